// SPDX-License-Identifier: Apache-2.0
/* Subkeys, digests and sealing by OpenSSL; see crypt.h. */
#include "migrate/repo/crypt.h"

#include <errno.h>
#include <limits.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <stdbool.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/lanes.h"

/* Fewer pages than any processor has lanes are not worth making them. */
#define MANY_PAGES 8u

struct gw_crypt {
	struct gw_repo_keys keys;
	EVP_MAC *mac;
	EVP_MAC_CTX *pages; /* keyed once: starting again is cheaper than a new key */
	EVP_MAC_CTX *any;
	EVP_CIPHER *gcm;
	EVP_CIPHER_CTX *seal, *open;
	struct gw_lanes *lanes; /* NULL: not made yet, or there are none */
	bool lanes_tried;
};

int gw_hkdf(struct gw_span secret, struct gw_span salt, struct gw_span info, uint8_t *out, size_t len)
{
	EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
	EVP_KDF_CTX *ctx = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
	const OSSL_PARAM params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)"SHA256", 0),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)secret.data, secret.len),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)salt.data, salt.len),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *)info.data, info.len),
		OSSL_PARAM_construct_end(),
	};
	int ok = ctx && EVP_KDF_derive(ctx, out, len, params) == 1;

	EVP_KDF_CTX_free(ctx);
	EVP_KDF_free(kdf);
	return ok ? 0 : -EIO;
}

int gw_repo_keys_derive(const uint8_t key[GW_REPO_KEY_LEN], const uint8_t id[GW_REPO_ID_LEN], struct gw_repo_keys *ret)
{
	struct gw_repo_keys k;
	const struct {
		const char *info;
		uint8_t *out;
		size_t len;
	} wanted[] = {
		{ "godwit repository 1 pages", k.pages, sizeof(k.pages) },
		{ "godwit repository 1 blobs", k.blobs, sizeof(k.blobs) },
		{ "godwit repository 1 objects", k.objects, sizeof(k.objects) },
		{ "godwit repository 1 salts", k.salts, sizeof(k.salts) },
		{ "godwit repository 1 names", k.names, sizeof(k.names) },
		{ "godwit repository 1 config", k.config, sizeof(k.config) },
		{ "godwit repository 1 proofs", k.proofs, sizeof(k.proofs) },
		{ "godwit repository 1 fingerprint", k.fingerprint, sizeof(k.fingerprint) },
	};
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(wanted) && r == 0; i++)
		r = gw_hkdf((struct gw_span){ key, GW_REPO_KEY_LEN }, (struct gw_span){ id, GW_REPO_ID_LEN },
			    (struct gw_span){ wanted[i].info, strlen(wanted[i].info) }, wanted[i].out, wanted[i].len);
	if (r == 0)
		*ret = k;
	OPENSSL_cleanse(&k, sizeof(k));
	return r;
}

static int init_mac(EVP_MAC_CTX *ctx, const uint8_t *key)
{
	const OSSL_PARAM params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)"SHA256", 0),
		OSSL_PARAM_construct_end(),
	};

	return EVP_MAC_init(ctx, key, GW_REPO_KEY_LEN, params) == 1 ? 0 : -EIO;
}

int gw_crypt_new(const struct gw_repo_keys *keys, struct gw_crypt **ret)
{
	struct gw_crypt *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->keys = *keys;
	c->mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	c->gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	c->pages = c->mac ? EVP_MAC_CTX_new(c->mac) : NULL;
	c->any = c->mac ? EVP_MAC_CTX_new(c->mac) : NULL;
	c->seal = EVP_CIPHER_CTX_new();
	c->open = EVP_CIPHER_CTX_new();
	if (!c->gcm || !c->pages || !c->any || !c->seal || !c->open || init_mac(c->pages, keys->pages) < 0 ||
	    EVP_EncryptInit_ex2(c->seal, c->gcm, NULL, NULL, NULL) != 1 || EVP_DecryptInit_ex2(c->open, c->gcm, NULL, NULL, NULL) != 1) {
		gw_crypt_free(c);
		return -ENOMEM;
	}
	*ret = c;
	return 0;
}

void gw_crypt_free(struct gw_crypt *c)
{
	if (!c)
		return;
	EVP_MAC_CTX_free(c->pages);
	EVP_MAC_CTX_free(c->any);
	EVP_MAC_free(c->mac);
	EVP_CIPHER_CTX_free(c->seal);
	EVP_CIPHER_CTX_free(c->open);
	EVP_CIPHER_free(c->gcm);
	gw_lanes_free(c->lanes);
	OPENSSL_cleanse(&c->keys, sizeof(c->keys));
	free(c);
}

const struct gw_repo_keys *gw_crypt_keys(const struct gw_crypt *c)
{
	return &c->keys;
}

static int digest(struct gw_crypt *c, const void *page, uint8_t out[GW_PAGE_DIGEST_LEN])
{
	uint8_t full[32];
	size_t len;

	if (EVP_MAC_init(c->pages, NULL, 0, NULL) != 1 || EVP_MAC_update(c->pages, page, GW_PAGE_SIZE) != 1 ||
	    EVP_MAC_final(c->pages, full, &len, sizeof(full)) != 1)
		return -EIO;
	memcpy(out, full, GW_PAGE_DIGEST_LEN);
	return 0;
}

/* Another library: it is used once it has told the same as OpenSSL. */
static void try_lanes(struct gw_crypt *c, const void *page)
{
	uint8_t one[GW_PAGE_DIGEST_LEN], other[1][GW_PAGE_DIGEST_LEN];

	c->lanes_tried = true;
	if (gw_lanes_new(c->keys.pages, &c->lanes) < 0)
		return;
	if (digest(c, page, one) < 0 || gw_lanes_digests(c->lanes, page, 1, other) < 0 || memcmp(one, other[0], sizeof(one)) != 0) {
		gw_lanes_free(c->lanes);
		c->lanes = NULL;
	}
}

int gw_crypt_digests(struct gw_crypt *c, const void *pages, unsigned count, uint8_t (*out)[GW_PAGE_DIGEST_LEN])
{
	int r = 0;

	if (count >= MANY_PAGES && !c->lanes_tried)
		try_lanes(c, pages);
	if (count >= MANY_PAGES && c->lanes)
		return gw_lanes_digests(c->lanes, pages, count, out);
	for (unsigned i = 0; i < count && r == 0; i++)
		r = digest(c, (const uint8_t *)pages + (size_t)i * GW_PAGE_SIZE, out[i]);
	return r;
}

int gw_crypt_mac(struct gw_crypt *c, const uint8_t key[GW_REPO_KEY_LEN], const struct gw_span *spans, unsigned count, uint8_t out[32])
{
	size_t len;

	if (init_mac(c->any, key) < 0)
		return -EIO;
	for (unsigned i = 0; i < count; i++) {
		if (EVP_MAC_update(c->any, spans[i].data, spans[i].len) != 1)
			return -EIO;
	}
	return EVP_MAC_final(c->any, out, &len, 32) == 1 ? 0 : -EIO;
}

int gw_crypt_seal(struct gw_crypt *c, const uint8_t key[GW_REPO_KEY_LEN], const uint8_t nonce[GW_SEAL_NONCE], const struct gw_span *aad,
		  unsigned naad, const void *in, size_t len, void *out, uint8_t tag[GW_SEAL_TAG])
{
	int n;

	if (len > INT_MAX || EVP_EncryptInit_ex2(c->seal, NULL, key, nonce, NULL) != 1)
		return -EIO;
	for (unsigned i = 0; i < naad; i++) {
		if (EVP_EncryptUpdate(c->seal, NULL, &n, aad[i].data, (int)aad[i].len) != 1)
			return -EIO;
	}
	if (EVP_EncryptUpdate(c->seal, out, &n, in, (int)len) != 1 || n != (int)len ||
	    EVP_EncryptFinal_ex(c->seal, (uint8_t *)out + len, &n) != 1 ||
	    EVP_CIPHER_CTX_ctrl(c->seal, EVP_CTRL_AEAD_GET_TAG, GW_SEAL_TAG, tag) != 1)
		return -EIO;
	return 0;
}

int gw_crypt_open(struct gw_crypt *c, const uint8_t key[GW_REPO_KEY_LEN], const uint8_t nonce[GW_SEAL_NONCE], const struct gw_span *aad,
		  unsigned naad, const void *in, size_t len, void *out, const uint8_t tag[GW_SEAL_TAG])
{
	int n;

	if (len > INT_MAX || EVP_DecryptInit_ex2(c->open, NULL, key, nonce, NULL) != 1)
		return -EIO;
	for (unsigned i = 0; i < naad; i++) {
		if (EVP_DecryptUpdate(c->open, NULL, &n, aad[i].data, (int)aad[i].len) != 1)
			return -EIO;
	}
	if (EVP_DecryptUpdate(c->open, out, &n, in, (int)len) != 1 || n != (int)len ||
	    EVP_CIPHER_CTX_ctrl(c->open, EVP_CTRL_AEAD_SET_TAG, GW_SEAL_TAG, (void *)tag) != 1)
		return -EIO;
	return EVP_DecryptFinal_ex(c->open, (uint8_t *)out + len, &n) == 1 ? 0 : -EBADMSG;
}
