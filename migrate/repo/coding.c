// SPDX-License-Identifier: Apache-2.0
/* Integers, varints and strings of the repository's structures; see coding.h. */
#include "migrate/repo/coding.h"

#include <errno.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"

void gw_enc_bytes(struct gw_enc *e, const void *data, size_t len)
{
	if (!e->error)
		e->error = gw_buf_append(e->buf, data, len);
}

void gw_enc_le16(struct gw_enc *e, uint16_t v)
{
	gw_enc_bytes(e, &v, sizeof(v));
}

void gw_enc_le32(struct gw_enc *e, uint32_t v)
{
	gw_enc_bytes(e, &v, sizeof(v));
}

void gw_enc_le64(struct gw_enc *e, uint64_t v)
{
	gw_enc_bytes(e, &v, sizeof(v));
}

void gw_enc_varint(struct gw_enc *e, uint64_t v)
{
	uint8_t out[10];
	unsigned n = 0;

	do {
		out[n] = (uint8_t)(v & 0x7f) | (v > 0x7f ? 0x80 : 0);
		v >>= 7;
		n++;
	} while (v);
	gw_enc_bytes(e, out, n);
}

void gw_enc_signed(struct gw_enc *e, int64_t v)
{
	gw_enc_varint(e, v < 0 ? ~((uint64_t)v << 1) : (uint64_t)v << 1);
}

void gw_enc_string(struct gw_enc *e, const char *s)
{
	gw_enc_varint(e, strlen(s));
	gw_enc_bytes(e, s, strlen(s));
}

const uint8_t *gw_dec_bytes(struct gw_dec *d, uint64_t len)
{
	const uint8_t *at = d->p;

	if (d->bad || len > gw_dec_left(d)) {
		d->bad = true;
		return NULL;
	}
	d->p += len;
	return at;
}

uint8_t gw_dec_u8(struct gw_dec *d)
{
	const uint8_t *p = gw_dec_bytes(d, 1);

	return p ? *p : 0;
}

uint16_t gw_dec_le16(struct gw_dec *d)
{
	const uint8_t *p = gw_dec_bytes(d, 2);

	return p ? gw_get_le16(p) : 0;
}

uint32_t gw_dec_le32(struct gw_dec *d)
{
	const uint8_t *p = gw_dec_bytes(d, 4);

	return p ? gw_get_le32(p) : 0;
}

uint64_t gw_dec_le64(struct gw_dec *d)
{
	const uint8_t *p = gw_dec_bytes(d, 8);

	return p ? gw_get_le64(p) : 0;
}

uint64_t gw_dec_varint(struct gw_dec *d)
{
	uint64_t v = 0;

	for (unsigned shift = 0; shift < 70; shift += 7) {
		uint8_t b = gw_dec_u8(d);

		if (d->bad || (shift == 63 && b > 1) || (shift && b == 0))
			break;
		v |= (uint64_t)(b & 0x7f) << shift;
		if (!(b & 0x80))
			return v;
	}
	d->bad = true;
	return 0;
}

uint64_t gw_dec_varint_max(struct gw_dec *d, uint64_t max)
{
	uint64_t v = gw_dec_varint(d);

	if (v <= max)
		return v;
	d->bad = true;
	return 0;
}

int64_t gw_dec_signed(struct gw_dec *d)
{
	uint64_t v = gw_dec_varint(d);

	return (int64_t)(v >> 1) ^ -(int64_t)(v & 1);
}

void gw_dec_string(struct gw_dec *d, char *out, size_t cap)
{
	uint64_t len = gw_dec_varint_max(d, cap - 1);
	const uint8_t *p = gw_dec_bytes(d, len);

	out[0] = '\0';
	if (!p)
		return;
	for (uint64_t i = 0; i < len; i++) {
		if (p[i] < 0x20 || p[i] == 0x7f) {
			d->bad = true;
			return;
		}
	}
	memcpy(out, p, len);
	out[len] = '\0';
}
