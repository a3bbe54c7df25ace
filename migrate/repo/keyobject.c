// SPDX-License-Identifier: Apache-2.0
/* Wrapping the repository key; see keyobject.h. */
#include "migrate/repo/keyobject.h"

#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"
#include "migrate/repo/object.h"

/* Bytes after the prefix; what is not listed is zero. */
enum {
	OFF_REPOSITORY = 16, /* 16 bytes */
	OFF_CREATED = 32,    /* u64 */
	OFF_LABEL = 40,      /* 64 bytes, NUL-padded */
	OFF_PARAMS = 104,
	/* GW_KEY_PASSPHRASE */
	OFF_N = OFF_PARAMS,            /* u64 */
	OFF_R = OFF_PARAMS + 8,        /* u32 */
	OFF_P = OFF_PARAMS + 12,       /* u32 */
	OFF_SALT = OFF_PARAMS + 16,    /* 32 bytes */
	/* GW_KEY_HOST */
	OFF_HOST = OFF_PARAMS,         /* 32 bytes */
	OFF_POINT = OFF_PARAMS + 32,   /* 65 bytes, uncompressed, and 7 of zero */
	OFF_WRAPPED = OFF_PARAMS + 104, /* 32 bytes */
	OFF_TAG = OFF_WRAPPED + GW_REPO_KEY_LEN,
	KEY_LEN = OFF_TAG + GW_SEAL_TAG,
};
#define POINT_LEN 65

int gw_scrypt_ok(const struct gw_scrypt *s)
{
	return s->n >= 1u << 10 && s->n <= 1u << 20 && (s->n & (s->n - 1)) == 0 && s->r >= 1 && s->r <= 32 && s->p >= 1 && s->p <= 4 &&
	       128 * s->n * s->r <= 256u << 20;
}

int gw_key_parse(const char *name, const void *data, uint64_t len, struct gw_key_info *ret, struct gw_error *err)
{
	const uint8_t *p = data;
	struct gw_key_info info = { 0 };
	uint8_t variant;
	int r = gw_object_check_prefix(data, len, GW_OBJECT_KEY, &variant, name, err);

	if (r < 0)
		return r;
	if (len != KEY_LEN || (variant != GW_KEY_PASSPHRASE && variant != GW_KEY_HOST) || p[OFF_LABEL + GW_KEY_LABEL - 1])
		return gw_object_damaged(name, err);
	info.type = (enum gw_key_type)variant;
	memcpy(info.repository, p + OFF_REPOSITORY, GW_REPO_ID_LEN);
	info.created_s = gw_get_le64(p + OFF_CREATED);
	memcpy(info.label, p + OFF_LABEL, GW_KEY_LABEL);
	for (char *c = info.label; *c; c++) {
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			return gw_object_damaged(name, err);
	}
	if (info.type == GW_KEY_PASSPHRASE) {
		info.scrypt = (struct gw_scrypt){ gw_get_le64(p + OFF_N), gw_get_le32(p + OFF_R), gw_get_le32(p + OFF_P) };
		if (!gw_scrypt_ok(&info.scrypt))
			return gw_object_damaged(name, err);
	} else {
		memcpy(info.host, p + OFF_HOST, 32);
	}
	*ret = info;
	return 0;
}

static int scrypt(const struct gw_scrypt *s, struct gw_span passphrase, const uint8_t salt[32], uint8_t out[32])
{
	struct gw_scrypt params = *s;
	uint64_t max = 300u << 20;
	EVP_KDF *kdf = EVP_KDF_fetch(NULL, "SCRYPT", NULL);
	EVP_KDF_CTX *ctx = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
	const OSSL_PARAM list[] = {
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_PASSWORD, (void *)passphrase.data, passphrase.len),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)salt, 32),
		OSSL_PARAM_construct_uint64(OSSL_KDF_PARAM_SCRYPT_N, &params.n),
		OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_SCRYPT_R, &params.r),
		OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_SCRYPT_P, &params.p),
		OSSL_PARAM_construct_uint64(OSSL_KDF_PARAM_SCRYPT_MAXMEM, &max),
		OSSL_PARAM_construct_end(),
	};
	int ok = ctx && EVP_KDF_derive(ctx, out, 32, list) == 1;

	EVP_KDF_CTX_free(ctx);
	EVP_KDF_free(kdf);
	ERR_clear_error();
	return ok ? 0 : -ENOMEM;
}

/* A wrapping key wraps one key: its salt, or ephemeral key, is new each time. So the nonce may be zero. */
static const uint8_t zero_nonce[GW_SEAL_NONCE];

static int crypt_for_wrapping(struct gw_crypt **ret)
{
	struct gw_repo_keys none;

	memset(&none, 0, sizeof(none));
	return gw_crypt_new(&none, ret);
}

static int wrap(uint8_t *object, const char *name, const uint8_t wrapping[32], const uint8_t key[GW_REPO_KEY_LEN], struct gw_buf *out,
		struct gw_error *err)
{
	const struct gw_span aad[] = { { object, OFF_WRAPPED }, { name, strlen(name) } };
	struct gw_crypt *c = NULL;
	int r = crypt_for_wrapping(&c);

	if (r == 0)
		r = gw_crypt_seal(c, wrapping, zero_nonce, aad, ARRAY_SIZE(aad), key, GW_REPO_KEY_LEN, object + OFF_WRAPPED, object + OFF_TAG);
	gw_crypt_free(c);
	if (r == 0)
		r = gw_buf_append(out, object, KEY_LEN);
	return r < 0 ? gw_error_errno(err, r, "the repository key cannot be wrapped") : 0;
}

static int unwrap(const uint8_t *object, const char *name, const uint8_t wrapping[32], uint8_t ret[GW_REPO_KEY_LEN], struct gw_error *err)
{
	const struct gw_span aad[] = { { object, OFF_WRAPPED }, { name, strlen(name) } };
	uint8_t key[GW_REPO_KEY_LEN];
	struct gw_crypt *c = NULL;
	int r = crypt_for_wrapping(&c);

	if (r == 0)
		r = gw_crypt_open(c, wrapping, zero_nonce, aad, ARRAY_SIZE(aad), object + OFF_WRAPPED, GW_REPO_KEY_LEN, key, object + OFF_TAG);
	gw_crypt_free(c);
	if (r == 0)
		memcpy(ret, key, sizeof(key));
	OPENSSL_cleanse(key, sizeof(key));
	if (r == -EBADMSG)
		return gw_error_set(err, EKEYREJECTED, "%s was made for another, or was changed", name);
	return r < 0 ? gw_error_errno(err, r, "%s cannot be unwrapped", name) : 0;
}

static void fill_common(uint8_t *object, enum gw_key_type type, const struct gw_key_info *info)
{
	memset(object, 0, KEY_LEN);
	gw_object_prefix(object, GW_OBJECT_KEY, (uint8_t)type);
	memcpy(object + OFF_REPOSITORY, info->repository, GW_REPO_ID_LEN);
	gw_put_le64(object + OFF_CREATED, info->created_s);
	memcpy(object + OFF_LABEL, info->label, strnlen(info->label, GW_KEY_LABEL - 1));
}

int gw_key_wrap_passphrase(const uint8_t key[GW_REPO_KEY_LEN], const struct gw_key_info *info, const char *name, struct gw_span passphrase,
			   struct gw_buf *out, struct gw_error *err)
{
	uint8_t object[KEY_LEN], wrapping[32];
	int r;

	if (passphrase.len < GW_KEY_MIN_PASSPHRASE)
		return gw_error_set(err, EINVAL, "a passphrase of at least %u bytes is needed", GW_KEY_MIN_PASSPHRASE);
	if (!gw_scrypt_ok(&info->scrypt))
		return gw_error_set(err, EINVAL, "scrypt parameters out of range");
	fill_common(object, GW_KEY_PASSPHRASE, info);
	gw_put_le64(object + OFF_N, info->scrypt.n);
	gw_put_le32(object + OFF_R, info->scrypt.r);
	gw_put_le32(object + OFF_P, info->scrypt.p);
	if (RAND_bytes(object + OFF_SALT, 32) != 1)
		return gw_error_set(err, EIO, "no random numbers");
	r = scrypt(&info->scrypt, passphrase, object + OFF_SALT, wrapping);
	if (r < 0)
		return gw_error_set(err, r, "no memory for the passphrase's scrypt");
	r = wrap(object, name, wrapping, key, out, err);
	OPENSSL_cleanse(wrapping, sizeof(wrapping));
	return r;
}

int gw_key_unwrap_passphrase(const char *name, const void *data, uint64_t len, struct gw_span passphrase, uint8_t ret[GW_REPO_KEY_LEN],
			     struct gw_error *err)
{
	struct gw_key_info info;
	uint8_t wrapping[32];
	int r = gw_key_parse(name, data, len, &info, err);

	if (r < 0)
		return r;
	if (info.type != GW_KEY_PASSPHRASE)
		return gw_error_set(err, EKEYREJECTED, "%s needs no passphrase", name);
	r = scrypt(&info.scrypt, passphrase, (const uint8_t *)data + OFF_SALT, wrapping);
	if (r < 0)
		return gw_error_set(err, r, "no memory for the passphrase's scrypt");
	r = unwrap(data, name, wrapping, ret, err);
	OPENSSL_cleanse(wrapping, sizeof(wrapping));
	return r;
}

/* ---- host keys ---- */

static void free_pkey(EVP_PKEY **p)
{
	EVP_PKEY_free(*p);
}

static bool is_p256(EVP_PKEY *key)
{
	char group[32];

	return EVP_PKEY_is_a(key, "EC") && EVP_PKEY_get_group_name(key, group, sizeof(group), NULL) == 1 &&
	       (strcmp(group, "prime256v1") == 0 || strcmp(group, "P-256") == 0);
}

int gw_key_host_id(EVP_PKEY *host, uint8_t ret[32])
{
	unsigned char *der = NULL;
	int len = i2d_PUBKEY(host, &der);
	int ok = len > 0 && EVP_Digest(der, (size_t)len, ret, NULL, EVP_sha256(), NULL) == 1;

	OPENSSL_free(der);
	return ok ? 0 : -EINVAL;
}

static int public_point(EVP_PKEY *key, uint8_t point[POINT_LEN])
{
	size_t len;

	EVP_PKEY_set_utf8_string_param(key, OSSL_PKEY_PARAM_EC_POINT_CONVERSION_FORMAT, OSSL_PKEY_EC_POINT_CONVERSION_FORMAT_UNCOMPRESSED);
	return EVP_PKEY_get_octet_string_param(key, OSSL_PKEY_PARAM_PUB_KEY, point, POINT_LEN, &len) == 1 && len == POINT_LEN ? 0 : -EINVAL;
}

static int point_key(const uint8_t point[POINT_LEN], EVP_PKEY **ret)
{
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, (char *)"prime256v1", 0),
		OSSL_PARAM_construct_octet_string(OSSL_PKEY_PARAM_PUB_KEY, (void *)point, POINT_LEN),
		OSSL_PARAM_construct_end(),
	};
	EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
	int ok = ctx && EVP_PKEY_fromdata_init(ctx) == 1 && EVP_PKEY_fromdata(ctx, ret, EVP_PKEY_PUBLIC_KEY, params) == 1;

	EVP_PKEY_CTX_free(ctx);
	return ok ? 0 : -EINVAL;
}

/* The key that both sides find: HKDF over the shared secret, bound to both public keys. set_peer checks that the point is on the curve. */
static int agree(EVP_PKEY *own, EVP_PKEY *peer, const uint8_t *object, uint8_t wrapping[32])
{
	EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(own, NULL);
	uint8_t secret[32], info[40 + 32 + POINT_LEN] = "godwit repository 1 host key";
	size_t len = sizeof(secret);
	int r = -EINVAL;

	memcpy(info + 40, object + OFF_HOST, 32);
	memcpy(info + 72, object + OFF_POINT, POINT_LEN);
	if (ctx && EVP_PKEY_derive_init(ctx) == 1 && EVP_PKEY_derive_set_peer(ctx, peer) == 1 && EVP_PKEY_derive(ctx, secret, &len) == 1 &&
	    len == sizeof(secret))
		r = gw_hkdf((struct gw_span){ secret, len }, (struct gw_span){ object + OFF_REPOSITORY, GW_REPO_ID_LEN },
			    (struct gw_span){ info, sizeof(info) }, wrapping, 32);
	OPENSSL_cleanse(secret, sizeof(secret));
	EVP_PKEY_CTX_free(ctx);
	return r;
}

int gw_key_wrap_host(const uint8_t key[GW_REPO_KEY_LEN], const struct gw_key_info *info, const char *name, EVP_PKEY *host, struct gw_buf *out,
		     struct gw_error *err)
{
	gw_cleanup(free_pkey) EVP_PKEY *ephemeral = NULL;
	uint8_t object[KEY_LEN], wrapping[32];
	int r;

	if (!is_p256(host))
		return gw_error_set(err, EINVAL, "the host's key is not EC P-256, as godwit pki makes them");
	fill_common(object, GW_KEY_HOST, info);
	ephemeral = EVP_EC_gen("P-256");
	r = ephemeral ? public_point(ephemeral, object + OFF_POINT) : -EIO;
	if (r == 0)
		r = gw_key_host_id(host, object + OFF_HOST);
	if (r == 0)
		r = agree(ephemeral, host, object, wrapping);
	ERR_clear_error();
	if (r < 0)
		return gw_error_set(err, r, "the repository key cannot be wrapped for this host");
	r = wrap(object, name, wrapping, key, out, err);
	OPENSSL_cleanse(wrapping, sizeof(wrapping));
	return r;
}

int gw_key_unwrap_host(const char *name, const void *data, uint64_t len, EVP_PKEY *host, uint8_t ret[GW_REPO_KEY_LEN], struct gw_error *err)
{
	gw_cleanup(free_pkey) EVP_PKEY *ephemeral = NULL;
	uint8_t wrapping[32], id[32];
	struct gw_key_info info;
	int r = gw_key_parse(name, data, len, &info, err);

	if (r < 0)
		return r;
	if (info.type != GW_KEY_HOST || !is_p256(host) || gw_key_host_id(host, id) < 0 || memcmp(id, info.host, sizeof(id)))
		return gw_error_set(err, EKEYREJECTED, "%s was made for another", name);
	r = point_key((const uint8_t *)data + OFF_POINT, &ephemeral);
	if (r == 0)
		r = agree(host, ephemeral, data, wrapping);
	ERR_clear_error();
	if (r < 0)
		return gw_object_damaged(name, err);
	r = unwrap(data, name, wrapping, ret, err);
	OPENSSL_cleanse(wrapping, sizeof(wrapping));
	return r;
}
