// SPDX-License-Identifier: Apache-2.0
/*
 * The repository's cryptography: subkeys of the repository key (HKDF-SHA256), keyed digests of pages (HMAC-SHA256, the first 128 bits), and
 * sealing (AES-256-GCM). docs/REPOSITORY.md says what each subkey is for, and why no nonce repeats under one key.
 */
#ifndef GW_MIGRATE_REPO_CRYPT_H
#define GW_MIGRATE_REPO_CRYPT_H

#include <stddef.h>
#include <stdint.h>

#define GW_REPO_KEY_LEN 32
#define GW_REPO_ID_LEN 16
#define GW_PAGE_DIGEST_LEN 16
#define GW_SEAL_TAG 16
#define GW_SEAL_NONCE 12

struct gw_span {
	const void *data; /* borrowed */
	size_t len;
};

/* All follow from the repository key and the repository's id. */
struct gw_repo_keys {
	uint8_t pages[GW_REPO_KEY_LEN];   /* digests of pages */
	uint8_t blobs[GW_REPO_KEY_LEN];   /* keys of segments */
	uint8_t objects[GW_REPO_KEY_LEN]; /* keys of index, manifest and mark objects */
	uint8_t salts[GW_REPO_KEY_LEN];   /* what makes nonces and salts differ with the content */
	uint8_t names[GW_REPO_KEY_LEN];   /* names of snapshots' folders */
	uint8_t config[GW_REPO_KEY_LEN];  /* authenticates the configuration */
	uint8_t proofs[GW_REPO_KEY_LEN];  /* that pages which another VM has loaded are what it says */
	uint8_t fingerprint[GW_REPO_ID_LEN]; /* tells this repository from one that somebody put in its place; no secret */
};
/* 0 or -EIO. */
int gw_repo_keys_derive(const uint8_t key[GW_REPO_KEY_LEN], const uint8_t id[GW_REPO_ID_LEN], struct gw_repo_keys *ret);

/* HKDF-SHA256. */
int gw_hkdf(struct gw_span secret, struct gw_span salt, struct gw_span info, uint8_t *out, size_t len);

/* Contexts that cost time to make: one a thread. Keys are copied. */
struct gw_crypt;
int gw_crypt_new(const struct gw_repo_keys *keys, struct gw_crypt **ret);
void gw_crypt_free(struct gw_crypt *c);
const struct gw_repo_keys *gw_crypt_keys(const struct gw_crypt *c);

/* Of each of so many pages of 4096 bytes that follow one another; many at once are faster (lanes.h). 0 or -EIO. */
int gw_crypt_digests(struct gw_crypt *c, const void *pages, unsigned count, uint8_t (*out)[GW_PAGE_DIGEST_LEN]);
/* HMAC-SHA256 of the spans one after the other: callers see to it that they cannot be taken for others. */
int gw_crypt_mac(struct gw_crypt *c, const uint8_t key[GW_REPO_KEY_LEN], const struct gw_span *spans, unsigned count, uint8_t out[32]);
/* AES-256-GCM; `in` and `out` may be the same. open: -EBADMSG when it is not what was sealed; `out` then holds nothing of use. */
int gw_crypt_seal(struct gw_crypt *c, const uint8_t key[GW_REPO_KEY_LEN], const uint8_t nonce[GW_SEAL_NONCE], const struct gw_span *aad,
		  unsigned naad, const void *in, size_t len, void *out, uint8_t tag[GW_SEAL_TAG]);
int gw_crypt_open(struct gw_crypt *c, const uint8_t key[GW_REPO_KEY_LEN], const uint8_t nonce[GW_SEAL_NONCE], const struct gw_span *aad,
		  unsigned naad, const void *in, size_t len, void *out, const uint8_t tag[GW_SEAL_TAG]);

#endif
