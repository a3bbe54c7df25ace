// SPDX-License-Identifier: Apache-2.0
/*
 * Blobs: a few pages that were written one after the other, compressed together where that helps, and sealed. A blob is known by its segment (a
 * random id, one a pack that was written) and its number there, for ever; it is sealed under the segment's key and bound to its number, wherever it lies.
 * It may be told as what differs from pages that are stored already, its base: then these are needed to open it.
 */
#ifndef GW_MIGRATE_REPO_BLOB_H
#define GW_MIGRATE_REPO_BLOB_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/util.h"
#include "migrate/repo/crypt.h"

#define GW_BLOB_PAGES 16u     /* that our writer puts in one */
#define GW_BLOB_MAX_PAGES 64u /* that a reader accepts */
#define GW_BLOB_HEADER 32u
#define GW_BLOB_MAX_LEN (GW_BLOB_HEADER + GW_BLOB_MAX_PAGES * GW_PAGE_SIZE) /* what does not shrink is stored as it is */

/* One blob or two that follow each other in their segment, and have no base themselves. Sealed with the blob that is told against them. */
#define GW_BASE_MAX_BLOBS 2u
struct gw_base_ref {
	uint8_t segment[16];
	uint32_t slot;  /* of the first one's first page */
	uint32_t blobs; /* 0: there is no base */
};
struct gw_blob_base {
	struct gw_base_ref ref;
	const void *pages; /* of all its blobs */
	size_t len;        /* bytes of these */
};

/* One a thread. */
struct gw_blob_coder;
int gw_blob_coder_new(const struct gw_repo_keys *keys, struct gw_blob_coder **ret);
void gw_blob_coder_free(struct gw_blob_coder *c);
struct gw_crypt *gw_blob_coder_crypt(struct gw_blob_coder *c);

struct gw_blob_key {
	uint8_t segment[16];
	uint8_t key[GW_REPO_KEY_LEN];
};
/* 0 or -EIO. */
int gw_blob_key_derive(struct gw_blob_coder *c, const uint8_t segment[16], struct gw_blob_key *ret);

/* Encrypted, or compressed already: to try it costs more than to look. */
bool gw_blob_looks_random(const void *pages, size_t len);

/* What is short: time of ours (LZ4), or of whoever stores it (zstd). */
enum gw_blob_effort {
	GW_BLOB_PLAIN, /* is not compressed */
	GW_BLOB_FAST,
	GW_BLOB_SMALL,
};

/*
 * Seals `count` pages, whose digests are given, to `out`, which holds GW_BLOB_HEADER + count * 4096 bytes. A number is used once in a
 * segment. With a base (else NULL) they are told against it, where that makes them smaller: gw_blob_has_base(). Returns the length, or -EIO.
 */
int gw_blob_seal(struct gw_blob_coder *c, const struct gw_blob_key *key, uint32_t number, const void *pages, unsigned count,
		 const uint8_t *digests, enum gw_blob_effort effort, const struct gw_blob_base *base, uint8_t *out);
bool gw_blob_has_base(const uint8_t *blob);
/*
 * The pages to `out`, which holds count * 4096 bytes. -EBADMSG when it is not blob `number` of the segment with so many pages, told against this
 * base (NULL: none).
 */
int gw_blob_open(struct gw_blob_coder *c, const struct gw_blob_key *key, uint32_t number, unsigned count, const void *data, uint64_t len,
		 const struct gw_blob_base *base, uint8_t *out);
/* Whether it is what was sealed, without its pages: `base` is not read. 0, -EBADMSG or -EIO. */
int gw_blob_verify(struct gw_blob_coder *c, const struct gw_blob_key *key, uint32_t number, unsigned count, const void *data, uint64_t len,
		   const struct gw_base_ref *base);

#endif
