// SPDX-License-Identifier: Apache-2.0
/*
 * Key objects: the repository key, wrapped for one who may open the repository. By a passphrase (scrypt), or for a host by the public key of its
 * certificate (EC P-256: an ephemeral ECDH). docs/REPOSITORY.md has the layout.
 */
#ifndef GW_MIGRATE_REPO_KEYOBJECT_H
#define GW_MIGRATE_REPO_KEYOBJECT_H

#include <openssl/evp.h>
#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"
#include "migrate/repo/crypt.h"

#define GW_KEY_LABEL 64
#define GW_KEY_MAX_OBJECT 4096u /* bytes; more than any key object */
#define GW_KEY_MIN_PASSPHRASE 8u

enum gw_key_type {
	GW_KEY_PASSPHRASE = 1,
	GW_KEY_HOST = 2,
};

/* scrypt (RFC 7914). Memory is 128 * n * r bytes; what a repository may ask for is bounded (gw_scrypt_ok). */
struct gw_scrypt {
	uint64_t n;
	uint32_t r, p;
};
#define GW_SCRYPT_DEFAULT { 1u << 16, 8, 1 } /* 64 MiB, about 0.2 s */
int gw_scrypt_ok(const struct gw_scrypt *s);

/* What anybody can read in one. */
struct gw_key_info {
	enum gw_key_type type;
	uint8_t repository[GW_REPO_ID_LEN];
	uint64_t created_s;       /* since 1970 */
	char label[GW_KEY_LABEL]; /* for people: which passphrase, which host */
	struct gw_scrypt scrypt;  /* GW_KEY_PASSPHRASE */
	uint8_t host[32];         /* GW_KEY_HOST: SHA-256 of the subject public key info */
};
int gw_key_parse(const char *name, const void *data, uint64_t len, struct gw_key_info *ret, struct gw_error *err);

/*
 * Append the key object that will be called `name` to `out`. `info` gives type, repository, time, label and scrypt's parameters. -EINVAL: a passphrase
 * that is too short, a public key of another kind.
 */
int gw_key_wrap_passphrase(const uint8_t key[GW_REPO_KEY_LEN], const struct gw_key_info *info, const char *name, struct gw_span passphrase,
			   struct gw_buf *out, struct gw_error *err);
int gw_key_wrap_host(const uint8_t key[GW_REPO_KEY_LEN], const struct gw_key_info *info, const char *name, EVP_PKEY *host, struct gw_buf *out,
		     struct gw_error *err);
/* -EKEYREJECTED: made with another passphrase or for another host, or changed since. */
int gw_key_unwrap_passphrase(const char *name, const void *data, uint64_t len, struct gw_span passphrase, uint8_t ret[GW_REPO_KEY_LEN],
			     struct gw_error *err);
int gw_key_unwrap_host(const char *name, const void *data, uint64_t len, EVP_PKEY *host, uint8_t ret[GW_REPO_KEY_LEN], struct gw_error *err);
/* SHA-256 of the key's subject public key info. */
int gw_key_host_id(EVP_PKEY *host, uint8_t ret[32]);

#endif
