// SPDX-License-Identifier: Apache-2.0
/*
 * Writing and reading the repository's structures: little-endian integers, varints (7 bits a byte, low ones first, at most 10 bytes, in their
 * shortest form), byte strings. A failure sticks, so that it is looked at once at the end.
 */
#ifndef GW_MIGRATE_REPO_CODING_H
#define GW_MIGRATE_REPO_CODING_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/buf.h"

struct gw_enc {
	struct gw_buf *buf; /* borrowed */
	int error;          /* 0 or -ENOMEM */
};
void gw_enc_bytes(struct gw_enc *e, const void *data, size_t len);
void gw_enc_le16(struct gw_enc *e, uint16_t v);
void gw_enc_le32(struct gw_enc *e, uint32_t v);
void gw_enc_le64(struct gw_enc *e, uint64_t v);
void gw_enc_varint(struct gw_enc *e, uint64_t v);
/* Small differences of either sign stay short. */
void gw_enc_signed(struct gw_enc *e, int64_t v);
/* varint length, then the bytes. */
void gw_enc_string(struct gw_enc *e, const char *s);

struct gw_dec {
	const uint8_t *p, *end;
	bool bad; /* something was short, long or malformed; all later values are 0 */
};
/* NULL when there are fewer. */
const uint8_t *gw_dec_bytes(struct gw_dec *d, uint64_t len);
uint8_t gw_dec_u8(struct gw_dec *d);
uint16_t gw_dec_le16(struct gw_dec *d);
uint32_t gw_dec_le32(struct gw_dec *d);
uint64_t gw_dec_le64(struct gw_dec *d);
uint64_t gw_dec_varint(struct gw_dec *d);
/* Bad when it is above `max`. */
uint64_t gw_dec_varint_max(struct gw_dec *d, uint64_t max);
int64_t gw_dec_signed(struct gw_dec *d);
/* Into out[cap] with a NUL; bad when it is longer or holds a NUL or control characters. */
void gw_dec_string(struct gw_dec *d, char *out, size_t cap);
static inline uint64_t gw_dec_left(const struct gw_dec *d)
{
	return (uint64_t)(d->end - d->p);
}

#endif
