// SPDX-License-Identifier: Apache-2.0
/* Prefix and envelope of objects; see object.h. */
#include "migrate/repo/object.h"

#include <errno.h>
#include <openssl/rand.h>
#include <string.h>
#include <zstd.h>

#include "lib/bytes.h"
#include "lib/parse.h"
#include "lib/util.h"

/* Bytes of an envelope; what is not listed is zero. */
enum {
	OFF_MAGIC = 0,    /* 8 bytes */
	OFF_VERSION = 8,  /* u16 */
	OFF_KIND = 10,    /* u8 */
	OFF_VARIANT = 11, /* u8: here the codec */
	OFF_LEN = 12,     /* u32: bytes of the sealed object; 0 in objects of other kinds */
	OFF_PLAIN = 16,   /* u64: bytes of content */
	OFF_SALT = 24,    /* 32 bytes */
	OFF_TAG = 56,     /* 16 bytes */
};
enum { CODEC_RAW = 0, CODEC_ZSTD = 1 };
#define LEVEL 3
static const uint8_t magic[8] = { 'G', 'W', 'R', 'E', 'P', 'O', '\r', '\n' };

static uint16_t version_of(enum gw_object_kind kind)
{
	return kind == GW_OBJECT_INDEX || kind == GW_OBJECT_BODY ? GW_OBJECT_VERSION : 1;
}

void gw_object_prefix(uint8_t out[GW_OBJECT_PREFIX], enum gw_object_kind kind, uint8_t variant)
{
	memset(out, 0, GW_OBJECT_PREFIX);
	memcpy(out + OFF_MAGIC, magic, sizeof(magic));
	gw_put_le16(out + OFF_VERSION, version_of(kind));
	out[OFF_KIND] = (uint8_t)kind;
	out[OFF_VARIANT] = variant;
}

int gw_object_damaged(const char *name, struct gw_error *err)
{
	return gw_error_set(err, EBADMSG, "%s is damaged, or not what belongs there", name);
}

int gw_object_check_prefix(const void *data, uint64_t len, enum gw_object_kind kind, uint8_t *variant, const char *name, struct gw_error *err)
{
	const uint8_t *p = data;

	if (len < GW_OBJECT_PREFIX || memcmp(p, magic, sizeof(magic)) || p[OFF_KIND] != kind ||
	    (kind <= GW_OBJECT_PACK && gw_get_le32(p + OFF_LEN) != 0))
		return gw_object_damaged(name, err);
	if (gw_get_le16(p + OFF_VERSION) == 0 || gw_get_le16(p + OFF_VERSION) > version_of(kind))
		return gw_error_set(err, EPROTONOSUPPORT, "%s is of version %u, which this godwit does not know", name,
				    gw_get_le16(p + OFF_VERSION));
	*variant = p[OFF_VARIANT];
	return 0;
}

uint32_t gw_object_len(const void *sealed)
{
	return gw_get_le32((const uint8_t *)sealed + OFF_LEN);
}

const uint8_t *gw_object_tag(const void *sealed)
{
	return (const uint8_t *)sealed + OFF_TAG;
}

/* One key an object: salts are of 256 bits, random, and differ with the content even where random numbers repeat. */
static int make_salt(struct gw_crypt *c, const uint8_t *head, const char *name, struct gw_span plain, uint8_t salt[32])
{
	uint8_t random[32];
	const struct gw_span spans[] = { { random, 32 }, { head, OFF_SALT }, { name, strlen(name) + 1 }, plain };

	if (RAND_bytes(random, sizeof(random)) != 1)
		return -EIO;
	return gw_crypt_mac(c, gw_crypt_keys(c)->salts, spans, ARRAY_SIZE(spans), salt);
}

static int object_key(struct gw_crypt *c, const uint8_t *head, uint8_t key[32])
{
	const struct gw_span spans[] = { { head + OFF_KIND, 1 }, { head + OFF_SALT, 32 } };

	return gw_crypt_mac(c, gw_crypt_keys(c)->objects, spans, ARRAY_SIZE(spans), key);
}

/* The content, compressed where that helps, to at + GW_OBJECT_ENVELOPE. Returns its length there. */
static size_t pack_plain(uint8_t *at, size_t room, const void *plain, size_t len)
{
	size_t n = ZSTD_compress(at + GW_OBJECT_ENVELOPE, room, plain, len, LEVEL);

	if (!ZSTD_isError(n) && n < len) {
		at[OFF_VARIANT] = CODEC_ZSTD;
		return n;
	}
	if (len)
		memcpy(at + GW_OBJECT_ENVELOPE, plain, len);
	return len;
}

static const uint8_t zero_nonce[GW_SEAL_NONCE];

int gw_object_seal(struct gw_crypt *c, enum gw_object_kind kind, const char *name, const void *plain, size_t len, struct gw_buf *out,
		   struct gw_error *err)
{
	size_t room = GW_MAX(ZSTD_compressBound(len), len), n;
	uint8_t *at = gw_buf_reserve(out, GW_OBJECT_ENVELOPE + room);
	uint8_t key[32];
	int r;

	if (!at)
		return gw_error_set(err, ENOMEM, "out of memory");
	memset(at, 0, GW_OBJECT_ENVELOPE);
	gw_object_prefix(at, kind, CODEC_RAW);
	gw_put_le64(at + OFF_PLAIN, len);
	n = pack_plain(at, room, plain, len);
	if (n > UINT32_MAX - GW_OBJECT_ENVELOPE)
		return gw_error_set(err, EFBIG, "%s is too large", name);
	gw_put_le32(at + OFF_LEN, (uint32_t)(GW_OBJECT_ENVELOPE + n));
	r = make_salt(c, at, name, (struct gw_span){ plain, len }, at + OFF_SALT);
	if (r == 0)
		r = object_key(c, at, key);
	if (r == 0) {
		const struct gw_span aad[] = { { at, OFF_TAG }, { name, strlen(name) } };

		r = gw_crypt_seal(c, key, zero_nonce, aad, ARRAY_SIZE(aad), at + GW_OBJECT_ENVELOPE, n, at + GW_OBJECT_ENVELOPE,
				  at + OFF_TAG);
	}
	if (r < 0)
		return gw_error_set(err, r, "%s cannot be encrypted", name);
	out->len += GW_OBJECT_ENVELOPE + n;
	return 0;
}

static int unpack_plain(const uint8_t *head, const uint8_t *packed, size_t len, uint8_t *to, uint64_t plain)
{
	switch (head[OFF_VARIANT]) {
	case CODEC_RAW:
		if (len != plain)
			return -EBADMSG;
		memcpy(to, packed, len);
		return 0;
	case CODEC_ZSTD:
		return ZSTD_decompress(to, plain, packed, len) == plain ? 0 : -EBADMSG;
	default:
		return -EBADMSG;
	}
}

int gw_object_open(struct gw_crypt *c, enum gw_object_kind kind, const char *name, const void *data, uint64_t len, uint64_t limit,
		   struct gw_buf *out, struct gw_error *err)
{
	const uint8_t *at = data;
	gw_autobuf packed = GW_BUF_INIT;
	uint8_t key[32], variant, *to;
	uint64_t plain;
	size_t n;
	int r = gw_object_check_prefix(data, len, kind, &variant, name, err);

	if (r < 0)
		return r;
	if (len < GW_OBJECT_ENVELOPE || gw_get_le32(at + OFF_LEN) != len)
		return gw_object_damaged(name, err);
	plain = gw_get_le64(at + OFF_PLAIN);
	n = len - GW_OBJECT_ENVELOPE;
	if (plain > limit)
		return gw_object_damaged(name, err);
	to = gw_buf_reserve(&packed, n + 1) ? gw_buf_reserve(out, plain + 1) : NULL;
	if (!to)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = object_key(c, at, key);
	if (r == 0) {
		const struct gw_span aad[] = { { at, OFF_TAG }, { name, strlen(name) } };

		r = gw_crypt_open(c, key, zero_nonce, aad, ARRAY_SIZE(aad), at + GW_OBJECT_ENVELOPE, n, packed.data, at + OFF_TAG);
	}
	if (r == 0)
		r = unpack_plain(at, packed.data, n, to, plain);
	if (r < 0)
		return gw_object_damaged(name, err);
	out->len += plain;
	return 0;
}

void gw_object_name(char out[GW_OBJECT_NAME], const char *folder, const uint8_t id[16])
{
	char hex[33];

	gw_format_hex(id, 16, hex);
	snprintf(out, GW_OBJECT_NAME, "%s/%s", folder, hex);
}

int gw_object_parse_name(const char *name, const char *folder, uint8_t id[16])
{
	size_t len = strlen(folder);

	if (strncmp(name, folder, len) || name[len] != '/' || strlen(name + len + 1) != 32)
		return -EINVAL;
	return gw_parse_hex(name + len + 1, id, 16, NULL) < 0 ? -EINVAL : 0;
}

int gw_object_put(struct gw_bucket *bucket, const char *name, const void *data, uint64_t len, struct gw_error *err)
{
	const struct gw_bucket_piece piece = { data, len };
	gw_autobuf there = GW_BUF_INIT;
	int r = gw_bucket_put(bucket, name, &piece, 1, GW_BUCKET_IF_ABSENT, err);

	if (r == -EEXIST && gw_bucket_read(bucket, name, len, &there, NULL) == 0 && there.len == len &&
	    (len == 0 || memcmp(there.data, data, len) == 0))
		return 0;
	return r;
}
