// SPDX-License-Identifier: Apache-2.0
/* What the command line prints: tables, sizes, JSON. */
#ifndef GW_AGENT_CLI_OUTPUT_H
#define GW_AGENT_CLI_OUTPUT_H

#include <jansson.h>
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>

/* A table of text: columns as wide as their widest cell, the last one ragged. */
#define GW_TABLE_COLUMNS 12
struct gw_table {
	unsigned columns;
	char **cells; /* row by row; the first row is the header */
	unsigned ncells;
	bool failed;  /* out of memory */
};
void gw_table_cell(struct gw_table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void gw_table_print(const struct gw_table *t);
void gw_table_release(struct gw_table *t);

/* "512.0 MiB", "1.5 GiB", "17 B" */
void gw_format_size(uint64_t bytes, char *out, size_t size);
/* "3.21 s", "2 min 5 s" */
void gw_format_ms(uint64_t ms, char *out, size_t size);
/* Local time, "2026-01-31 12:00:00" */
void gw_format_time(uint64_t realtime_ns, char *out, size_t size);
/* "2026-01-31T12:00:00Z", for JSON */
void gw_format_utc(uint64_t realtime_ns, char *out, size_t size);

/*
 * Text that somebody else chose, as it may go to a terminal and into JSON: what is no UTF-8, control characters and those that turn the direction of
 * writing become '?'. Cut to `size`. Returns `out`, which may be `in`.
 */
const char *gw_clean_text(const char *in, char *out, size_t size);

/* Prints and frees a JSON value, indented or on one line. */
void gw_print_json(json_t *value, bool one_line);
void gw_print_json_message(const ProtobufCMessage *msg);

#endif
