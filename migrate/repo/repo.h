// SPDX-License-Identifier: Apache-2.0
/*
 * DOC: repositories of snapshots
 *
 * A repository is a bucket (bucket.h) with
 *   config                  id and rules, in the clear, authenticated             (repo.c)
 *   keys/ID                 the repository key, wrapped for one who may open it   (keyobject.h)
 *   packs/ID                some MiB of blobs: pages, compressed and sealed       (blob.h)
 *   index/ID                digests of pages and where they lie                   (index.h)
 *   snapshots/NAME/GEN-ID   manifests: a snapshot each                            (manifest.h)
 *   marks/ID                what prune is going to remove                         (prune.c)
 * Objects are written once and never changed. A snapshot's packs are written first, then their index, then its manifest: until that is there nobody sees
 * anything of it, and from then on all of it. What a writer leaves that dies before is what prune removes. The format, and what is found out when
 * somebody tampers with it, is docs/REPOSITORY.md.
 *
 * Page digests are in index objects only, and needed only by those who write: a manifest names places. So a snapshot is opened by one object of some
 * hundred KiB, and its pages are read by ranges of packs that it names itself.
 *
 * Errors: -EBADMSG: an object is damaged, cut off, exchanged or from elsewhere, and -ENOENT: one is missing, both named; -EPROTONOSUPPORT: made by a newer
 * version; -EKEYREJECTED: wrong passphrase or host; and those of bucket.h.
 */
#ifndef GW_MIGRATE_REPO_REPO_H
#define GW_MIGRATE_REPO_REPO_H

#include <openssl/evp.h>
#include <stdint.h>

#include "lib/error.h"
#include "migrate/repo/bucket.h"
#include "migrate/repo/crypt.h"
#include "migrate/repo/keyobject.h"

struct gw_repo;

/* How to open it: with one of the first three. All borrowed. */
struct gw_repo_secret {
	const char *passphrase; /* NULL: none */
	EVP_PKEY *host;         /* private key of the host's certificate; NULL: none */
	/* The repository key itself, GW_REPO_KEY_LEN bytes, from who has opened it (gw_repo_key()); opens only. NULL: none. */
	const uint8_t *key;
	/*
	 * gw_repo_fingerprint() of the repository that is meant, GW_REPO_ID_LEN bytes; NULL: whichever it is. To open with a host's key without it trusts
	 * the storage: anybody who knows the public key can put a repository of his own there, and read what is then written to it.
	 */
	const uint8_t *fingerprint;
	/* Opens the way to what another host keeps, not what is in it (ticket.h); NULL: not needed. */
	const struct gw_ticket *ticket;
};

/* A writer may take half of it; prune leaves alone what is younger. */
#define GW_REPO_DEFAULT_GRACE_S 86400u
#define GW_REPO_MIN_GRACE_S 2u
#define GW_REPO_MAX_GRACE_S (30u * 86400)

struct gw_repo_params {
	uint32_t grace_s;        /* 0: GW_REPO_DEFAULT_GRACE_S */
	struct gw_scrypt scrypt; /* n 0: GW_SCRYPT_DEFAULT */
	const char *label;       /* of the first key; NULL: "first" */
};

/* Makes a repository that `secret` opens. -EEXIST when there is one already. params may be NULL. */
int gw_repo_init(const char *url, const struct gw_repo_secret *secret, const struct gw_repo_params *params, struct gw_error *err);
/* -ENOENT: no repository there. Thread-safe afterwards. */
int gw_repo_open(const char *url, const struct gw_repo_secret *secret, struct gw_repo **ret, struct gw_error *err);
/* Snapshots and writers of it must be freed before. Takes NULL. */
void gw_repo_free(struct gw_repo *repo);
/* All that is under way and all that comes fails with -ECANCELED. Any thread. */
void gw_repo_cancel(struct gw_repo *repo);

const char *gw_repo_url(const struct gw_repo *repo);
const uint8_t *gw_repo_id(const struct gw_repo *repo);          /* GW_REPO_ID_LEN bytes */
const uint8_t *gw_repo_fingerprint(const struct gw_repo *repo); /* GW_REPO_ID_LEN bytes */
/* GW_REPO_KEY_LEN bytes, with which a process that must not have the passphrase or the host's key can open it. */
const uint8_t *gw_repo_key(const struct gw_repo *repo);
uint32_t gw_repo_grace_s(const struct gw_repo *repo);
struct gw_bucket *gw_repo_bucket(struct gw_repo *repo);
const struct gw_repo_keys *gw_repo_keys(const struct gw_repo *repo);

/* ---- keys ---- */

struct gw_repo_key {
	char name[48]; /* of the object: "keys/ID" */
	struct gw_key_info info;
};
/* *ret is owned (free). Objects that are no keys are left out. */
int gw_repo_list_keys(struct gw_repo *repo, struct gw_repo_key **ret, size_t *count, struct gw_error *err);
/* Whoever has this secret can open the repository from now on; with `host`, the public key is enough. name may be NULL. */
int gw_repo_add_key(struct gw_repo *repo, const struct gw_repo_secret *secret, const struct gw_repo_params *params, char name[48],
		    struct gw_error *err);
/*
 * -EBUSY: the last one. It takes nothing back from those who have seen the repository key, or kept the object: to be safe from them a new repository is
 * needed (gw_repo_copy).
 */
int gw_repo_remove_key(struct gw_repo *repo, const char *name, struct gw_error *err);

#endif
