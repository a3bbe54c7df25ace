// SPDX-License-Identifier: Apache-2.0
/*
 * Which stored blob resembles pages that are about to be stored: another VM's kernel at another address, the same file a few bytes on. Of each blob the
 * index has some hooks: hashes of 64-byte pieces of its pages, of those pieces whose hash happens to be one of so many (as in M. Lillibridge et al., "Sparse
 * Indexing", FAST 2009). Blobs with many hooks in common have much else in common. It is a guess that costs nothing but time when it is wrong.
 */
#ifndef GW_MIGRATE_REPO_SIMILAR_H
#define GW_MIGRATE_REPO_SIMILAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GW_HOOK_LEN 4u        /* bytes, in an index */
#define GW_BLOB_MAX_HOOKS 64u /* of a blob; about 32 for 16 pages */

/* Writes at most GW_BLOB_MAX_HOOKS hooks, GW_HOOK_LEN bytes each; returns how many. */
unsigned gw_hooks_of(const void *pages, size_t len, uint8_t *out);

struct gw_similar;
/* 0 or -ENOMEM. */
int gw_similar_new(struct gw_similar **ret);
void gw_similar_free(struct gw_similar *s);
/* A blob, with its hooks. Beyond some million hooks it is not remembered. 0 or -ENOMEM. */
int gw_similar_add(struct gw_similar *s, uint32_t segment, uint32_t slot, uint32_t pages, const uint8_t *hooks, unsigned count);

struct gw_similar_blobs {
	uint32_t segment, slot; /* of the first page */
	uint32_t blobs;         /* that follow each other: 1 or 2 */
};
/* What has most hooks in common with these, and enough to be worth it. Any number of threads when nothing is added. */
bool gw_similar_find(const struct gw_similar *s, const uint8_t *hooks, unsigned count, struct gw_similar_blobs *ret);

#endif
