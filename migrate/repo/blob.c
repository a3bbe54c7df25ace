// SPDX-License-Identifier: Apache-2.0
/* Compressing and sealing pages; see blob.h. */
#include "migrate/repo/blob.h"

#include <errno.h>
#include <lz4.h>
#include <string.h>
#include <zstd.h>

#include "lib/bytes.h"

enum {
	OFF_NUMBER = 0,   /* u32 */
	OFF_PAGES = 4,    /* u16 */
	OFF_CODEC = 6,    /* u8 */
	OFF_RESERVED = 7, /* u8: 0 */
	OFF_NONCE = 8,    /* 8 bytes: the nonce's second part */
	OFF_TAG = 16,     /* 16 bytes */
};
enum { CODEC_RAW = 0, CODEC_ZSTD = 1, CODEC_LZ4 = 2 };
#define LEVEL 1

struct gw_blob_coder {
	struct gw_crypt *crypt;
	ZSTD_CCtx *compress;
	ZSTD_DCtx *decompress;
	uint8_t *scratch; /* SCRATCH bytes */
};
#define SCRATCH (GW_BLOB_MAX_PAGES * GW_PAGE_SIZE)

int gw_blob_coder_new(const struct gw_repo_keys *keys, struct gw_blob_coder **ret)
{
	struct gw_blob_coder *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->compress = ZSTD_createCCtx();
	c->decompress = ZSTD_createDCtx();
	c->scratch = malloc(SCRATCH);
	if (!c->compress || !c->decompress || !c->scratch || gw_crypt_new(keys, &c->crypt) < 0) {
		gw_blob_coder_free(c);
		return -ENOMEM;
	}
	*ret = c;
	return 0;
}

void gw_blob_coder_free(struct gw_blob_coder *c)
{
	if (!c)
		return;
	ZSTD_freeCCtx(c->compress);
	ZSTD_freeDCtx(c->decompress);
	gw_crypt_free(c->crypt);
	free(c->scratch);
	free(c);
}

struct gw_crypt *gw_blob_coder_crypt(struct gw_blob_coder *c)
{
	return c->crypt;
}

int gw_blob_key_derive(struct gw_blob_coder *c, const uint8_t segment[16], struct gw_blob_key *ret)
{
	const struct gw_span span = { segment, 16 };

	memcpy(ret->segment, segment, 16);
	return gw_crypt_mac(c->crypt, gw_crypt_keys(c->crypt)->blobs, &span, 1, ret->key);
}

/*
 * Whether the bytes look random: encrypted, or compressed already. A sample's histogram against chi-square: 255 is to be expected with a deviation of
 * 23, text and code are at thousands. Ten times as fast as finding it out by compressing.
 */
static bool looks_random(const uint8_t *data, size_t len)
{
	uint16_t seen[256] = { 0 };
	const size_t step = len / 64, take = 64;
	uint64_t squares = 0;

	for (size_t at = 0; at + take <= len; at += step) {
		for (size_t i = 0; i < take; i++)
			seen[data[at + i]]++;
	}
	for (unsigned i = 0; i < 256; i++)
		squares += (uint64_t)seen[i] * seen[i];
	/* With 4096 samples chi-square is squares / 16 - 4096. */
	return squares < 16 * (4096 + 400);
}

static void make_nonce(const uint8_t *head, uint8_t nonce[GW_SEAL_NONCE])
{
	memcpy(nonce, head + OFF_NUMBER, 4);
	memcpy(nonce + 4, head + OFF_NONCE, 8);
}

/* The nonce's second part follows from the content: should a random id ever come twice, the same nonce means the same pages. */
static int content_nonce(struct gw_blob_coder *c, const struct gw_blob_key *key, const uint8_t *head, const uint8_t *digests, unsigned count,
			 uint8_t out[8])
{
	const struct gw_span spans[] = { { key->segment, 16 }, { head, OFF_NONCE }, { digests, (size_t)count * GW_PAGE_DIGEST_LEN } };
	uint8_t mac[32];
	int r = gw_crypt_mac(c->crypt, gw_crypt_keys(c->crypt)->salts, spans, ARRAY_SIZE(spans), mac);

	memcpy(out, mac, 8);
	return r;
}

/* To scratch. Its length; 0: it does not shrink by much, and stays as it is. */
static size_t compress(struct gw_blob_coder *c, const void *pages, size_t len, enum gw_blob_effort effort, uint8_t *codec)
{
	const size_t room = len - len / 32;
	size_t n;

	if (effort == GW_BLOB_FAST) {
		*codec = CODEC_LZ4;
		n = (size_t)LZ4_compress_default(pages, (char *)c->scratch, (int)len, (int)room);
	} else {
		*codec = CODEC_ZSTD;
		n = ZSTD_compressCCtx(c->compress, c->scratch, room, pages, len, LEVEL);
		n = ZSTD_isError(n) ? 0 : n;
	}
	if (n == 0)
		*codec = CODEC_RAW;
	return n;
}

static bool decompress(struct gw_blob_coder *c, uint8_t codec, size_t len, uint8_t *out, size_t plain)
{
	switch (codec) {
	case CODEC_RAW:
		return true;
	case CODEC_ZSTD:
		return ZSTD_decompressDCtx(c->decompress, out, plain, c->scratch, len) == plain;
	case CODEC_LZ4:
		return LZ4_decompress_safe((const char *)c->scratch, (char *)out, (int)len, (int)plain) == (int)plain;
	default:
		return false;
	}
}

int gw_blob_seal(struct gw_blob_coder *c, const struct gw_blob_key *key, uint32_t number, const void *pages, unsigned count,
		 const uint8_t *digests, enum gw_blob_effort effort, uint8_t *out)
{
	const struct gw_span aad = { out, OFF_TAG };
	uint8_t nonce[GW_SEAL_NONCE];
	const void *from = pages;
	size_t len = count * GW_PAGE_SIZE, n;
	int r;

	memset(out, 0, GW_BLOB_HEADER);
	gw_put_le32(out + OFF_NUMBER, number);
	gw_put_le16(out + OFF_PAGES, (uint16_t)count);
	n = looks_random(pages, len) ? 0 : compress(c, pages, len, effort, &out[OFF_CODEC]);
	if (n) {
		from = c->scratch;
		len = n;
	}
	r = content_nonce(c, key, out, digests, count, out + OFF_NONCE);
	if (r < 0)
		return r;
	make_nonce(out, nonce);
	r = gw_crypt_seal(c->crypt, key->key, nonce, &aad, 1, from, len, out + GW_BLOB_HEADER, out + OFF_TAG);
	return r < 0 ? r : (int)(GW_BLOB_HEADER + len);
}

int gw_blob_open(struct gw_blob_coder *c, const struct gw_blob_key *key, uint32_t number, unsigned count, const void *data, uint64_t len,
		 uint8_t *out)
{
	const uint8_t *head = data;
	const struct gw_span aad = { data, OFF_TAG };
	const size_t plain = count * GW_PAGE_SIZE;
	uint8_t nonce[GW_SEAL_NONCE];
	int r;

	if (len < GW_BLOB_HEADER || count == 0 || count > GW_BLOB_MAX_PAGES || gw_get_le32(head + OFF_NUMBER) != number ||
	    gw_get_le16(head + OFF_PAGES) != count || head[OFF_RESERVED] != 0)
		return -EBADMSG;
	len -= GW_BLOB_HEADER;
	if (head[OFF_CODEC] == CODEC_RAW ? len != plain : len > SCRATCH)
		return -EBADMSG;
	make_nonce(head, nonce);
	r = gw_crypt_open(c->crypt, key->key, nonce, &aad, 1, head + GW_BLOB_HEADER, len, head[OFF_CODEC] == CODEC_RAW ? out : c->scratch,
			  head + OFF_TAG);
	return r < 0 ? r : decompress(c, head[OFF_CODEC], len, out, plain) ? 0 : -EBADMSG;
}
