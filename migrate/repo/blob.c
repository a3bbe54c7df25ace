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
enum { CODEC_RAW = 0, CODEC_ZSTD = 1, CODEC_LZ4 = 2, CODEC_BASE = 3 }; /* BASE: zstd, with the base's pages as prefix */
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
	if (!c->compress || !c->decompress || !c->scratch || gw_crypt_new(keys, &c->crypt) < 0 ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(c->compress, ZSTD_c_compressionLevel, LEVEL))) {
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
bool gw_blob_looks_random(const void *pages, size_t len)
{
	const uint8_t *data = pages;
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

/* What is authenticated beside the ciphertext: the header, and which base. Its length. */
#define AAD_MAX (OFF_TAG + 24)
static size_t make_aad(const uint8_t *head, const struct gw_base_ref *base, uint8_t aad[AAD_MAX])
{
	memcpy(aad, head, OFF_TAG);
	if (!base)
		return OFF_TAG;
	memcpy(aad + OFF_TAG, base->segment, 16);
	gw_put_le32(aad + OFF_TAG + 16, base->slot);
	gw_put_le32(aad + OFF_TAG + 20, base->blobs);
	return AAD_MAX;
}

/* The nonce's second part follows from the content: should a random id ever come twice, the same nonce means the same pages, told in the same way. */
static int content_nonce(struct gw_blob_coder *c, const struct gw_blob_key *key, const struct gw_base_ref *base, const uint8_t *digests,
			 unsigned count, uint8_t *head)
{
	uint8_t aad[AAD_MAX], mac[32];
	const size_t len = make_aad(head, base, aad);
	const struct gw_span spans[] = {
		{ key->segment, 16 },
		{ aad, OFF_NONCE },
		{ digests, (size_t)count * GW_PAGE_DIGEST_LEN },
		{ aad + OFF_TAG, len - OFF_TAG },
	};
	int r = gw_crypt_mac(c->crypt, gw_crypt_keys(c->crypt)->salts, spans, ARRAY_SIZE(spans), mac);

	memcpy(head + OFF_NONCE, mac, 8);
	return r;
}

/* To scratch. Its length; 0: it does not shrink by much. */
static size_t compress(struct gw_blob_coder *c, const void *pages, size_t len, uint8_t codec, const struct gw_blob_base *base)
{
	const size_t room = len - len / 32;
	size_t n;

	if (codec == CODEC_LZ4)
		return (size_t)LZ4_compress_default(pages, (char *)c->scratch, (int)len, (int)room);
	ZSTD_CCtx_reset(c->compress, ZSTD_reset_session_only);
	if (codec == CODEC_BASE && ZSTD_isError(ZSTD_CCtx_refPrefix(c->compress, base->pages, base->len)))
		return 0;
	n = ZSTD_compress2(c->compress, c->scratch, room, pages, len);
	return ZSTD_isError(n) ? 0 : n;
}

static bool decompress(struct gw_blob_coder *c, uint8_t codec, size_t len, const struct gw_blob_base *base, uint8_t *out, size_t plain)
{
	switch (codec) {
	case CODEC_RAW:
		return true;
	case CODEC_BASE:
		if (ZSTD_isError(ZSTD_DCtx_refPrefix(c->decompress, base->pages, base->len)))
			return false;
		/* fall through */
	case CODEC_ZSTD:
		return ZSTD_decompressDCtx(c->decompress, out, plain, c->scratch, len) == plain;
	case CODEC_LZ4:
		return LZ4_decompress_safe((const char *)c->scratch, (char *)out, (int)len, (int)plain) == (int)plain;
	default:
		return false;
	}
}

/* Tries the codecs that may be worth it. The length in scratch, 0: the pages stay as they are. */
static size_t choose_codec(struct gw_blob_coder *c, const void *pages, size_t len, enum gw_blob_effort effort, const struct gw_blob_base *base,
			   uint8_t *codec)
{
	size_t n = 0;

	*codec = CODEC_BASE;
	if (base)
		n = compress(c, pages, len, *codec, base);
	if (n == 0 && effort != GW_BLOB_PLAIN) {
		*codec = effort == GW_BLOB_FAST ? CODEC_LZ4 : CODEC_ZSTD;
		n = compress(c, pages, len, *codec, NULL);
	}
	if (n == 0)
		*codec = CODEC_RAW;
	return n;
}

bool gw_blob_has_base(const uint8_t *blob)
{
	return blob[OFF_CODEC] == CODEC_BASE;
}

int gw_blob_seal(struct gw_blob_coder *c, const struct gw_blob_key *key, uint32_t number, const void *pages, unsigned count,
		 const uint8_t *digests, enum gw_blob_effort effort, const struct gw_blob_base *base, uint8_t *out)
{
	const size_t plain = count * GW_PAGE_SIZE;
	const struct gw_base_ref *ref;
	uint8_t nonce[GW_SEAL_NONCE], bytes[AAD_MAX];
	struct gw_span aad = { bytes, 0 };
	size_t n;
	int r;

	memset(out, 0, GW_BLOB_HEADER);
	gw_put_le32(out + OFF_NUMBER, number);
	gw_put_le16(out + OFF_PAGES, (uint16_t)count);
	n = choose_codec(c, pages, plain, effort, base, &out[OFF_CODEC]);
	ref = gw_blob_has_base(out) ? &base->ref : NULL;
	r = content_nonce(c, key, ref, digests, count, out);
	if (r < 0)
		return r;
	make_nonce(out, nonce);
	aad.len = make_aad(out, ref, bytes);
	r = gw_crypt_seal(c->crypt, key->key, nonce, &aad, 1, n ? c->scratch : pages, n ?: plain, out + GW_BLOB_HEADER, out + OFF_TAG);
	return r < 0 ? r : (int)(GW_BLOB_HEADER + (n ?: plain));
}

/* To `raw` what is not compressed, else to scratch: the decrypted bytes, as long as the ciphertext. */
static int decrypt(struct gw_blob_coder *c, const struct gw_blob_key *key, uint32_t number, unsigned count, const uint8_t *head, uint64_t len,
		   const struct gw_base_ref *base, uint8_t *raw)
{
	uint8_t nonce[GW_SEAL_NONCE], bytes[AAD_MAX];
	struct gw_span aad = { bytes, 0 };

	if (len < GW_BLOB_HEADER || count == 0 || count > GW_BLOB_MAX_PAGES || gw_get_le32(head + OFF_NUMBER) != number ||
	    gw_get_le16(head + OFF_PAGES) != count || head[OFF_RESERVED] != 0 || gw_blob_has_base(head) != (base != NULL))
		return -EBADMSG;
	len -= GW_BLOB_HEADER;
	if (head[OFF_CODEC] == CODEC_RAW ? len != count * GW_PAGE_SIZE : len > SCRATCH)
		return -EBADMSG;
	make_nonce(head, nonce);
	aad.len = make_aad(head, base, bytes);
	return gw_crypt_open(c->crypt, key->key, nonce, &aad, 1, head + GW_BLOB_HEADER, len, head[OFF_CODEC] == CODEC_RAW ? raw : c->scratch,
			     head + OFF_TAG);
}

int gw_blob_open(struct gw_blob_coder *c, const struct gw_blob_key *key, uint32_t number, unsigned count, const void *data, uint64_t len,
		 const struct gw_blob_base *base, uint8_t *out)
{
	const uint8_t *head = data;
	int r = decrypt(c, key, number, count, head, len, base ? &base->ref : NULL, out);

	return r < 0 ? r : decompress(c, head[OFF_CODEC], len - GW_BLOB_HEADER, base, out, count * GW_PAGE_SIZE) ? 0 : -EBADMSG;
}

int gw_blob_verify(struct gw_blob_coder *c, const struct gw_blob_key *key, uint32_t number, unsigned count, const void *data, uint64_t len,
		   const struct gw_base_ref *base)
{
	return decrypt(c, key, number, count, data, len, base, c->scratch);
}
