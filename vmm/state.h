// SPDX-License-Identifier: Apache-2.0
/*
 * Device state by table: each device lists its fields by name; one encoder and one decoder serve all. What is stored is a
 * field's meaning under a name, so the C layout is free to change.
 *
 *	static const struct gw_state_field serial_fields[] = {
 *		GW_STATE_UINT(struct gw_serial, lcr, 1),
 *		GW_STATE_BYTES(struct gw_serial, fifo, 1),
 *		{ }
 *	};
 *	static const struct gw_state_desc serial_state = { "serial", 1, 1, serial_fields };
 *
 * Versions: a field has the version that introduced it. A section of an older version (not below `min_version`) may lack newer fields,
 * which then keep the value they have after reset; a section of a newer version is refused. Fields nobody knows are refused, so that
 * nothing is lost silently.
 */
#ifndef GW_VMM_STATE_H
#define GW_VMM_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"

/*
 * Of all tables together, for whoever must know before it gets a state: raised when a table is, or one is added. Older ones are taken.
 * 2: the generation ID, pm's general-purpose events, the alias of a network card.
 */
#define GW_STATE_VERSION 2

enum gw_state_type {
	GW_STATE_END = 0,
	GW_STATE_T_UINT,  /* uint8_t .. uint64_t at `offset` */
	GW_STATE_T_BOOL,  /* bool at `offset`: 0 or 1 */
	GW_STATE_T_BYTES, /* exactly `size` bytes at `offset` (array or plain struct of the kernel's ABI) */
	GW_STATE_T_BUF,   /* struct gw_buf at `offset`, at most `size` bytes */
};

struct gw_state_field {
	const char *name;
	enum gw_state_type type;
	uint32_t since; /* version of the table that introduced it */
	size_t offset;
	size_t size;
};

#define GW_STATE_UINT(st, member, v) \
	{ #member, __builtin_types_compatible_p(__typeof__(((st *)0)->member), bool) ? GW_STATE_T_BOOL : GW_STATE_T_UINT, (v), \
	  offsetof(st, member), sizeof(((st *)0)->member) }
#define GW_STATE_BYTES(st, member, v) \
	{ #member, GW_STATE_T_BYTES, (v), offsetof(st, member), sizeof(((st *)0)->member) }
#define GW_STATE_BUF(st, member, max, v) \
	{ #member, GW_STATE_T_BUF, (v), offsetof(st, member), (max) }

struct gw_state_desc {
	const char *device;
	uint32_t version;
	uint32_t min_version;
	const struct gw_state_field *fields; /* ends with an empty one */
};

/* Collects sections; opaque. */
struct gw_state_writer;
int gw_state_writer_new(struct gw_state_writer **ret);
void gw_state_writer_free(struct gw_state_writer *w);
/* Appends a section read from `obj` by `desc`. `instance` is copied. -ENOMEM. */
int gw_state_put(struct gw_state_writer *w, const struct gw_state_desc *desc, const char *instance, const void *obj);
/* Packs all sections as a godwit.MachineState. */
int gw_state_finish(struct gw_state_writer *w, struct gw_buf *out);

/* A decoded, checked MachineState. */
struct gw_state_reader;
int gw_state_reader_new(const void *data, size_t len, struct gw_state_reader **ret, struct gw_error *err);
void gw_state_reader_free(struct gw_state_reader *r);
/*
 * Fills `obj` from the section (desc->device, instance). -ENOENT when there is none, -EPROTO when it does not fit the
 * table. The values themselves are hostile: the device checks them afterwards. `obj` may be partly written on failure.
 */
int gw_state_get(struct gw_state_reader *r, const struct gw_state_desc *desc, const char *instance, void *obj,
		 struct gw_error *err);
/* True when every section was taken by gw_state_get(); else err names the first left over. */
int gw_state_reader_done(struct gw_state_reader *r, struct gw_error *err);

#endif
