// SPDX-License-Identifier: Apache-2.0
/* Reading snapshots: listing them, and fetching pages of one. What is returned was verified; a page is the right one or an error. */
#ifndef GW_MIGRATE_REPO_SNAP_H
#define GW_MIGRATE_REPO_SNAP_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "migrate/repo/manifest.h"
#include "migrate/repo/repo.h"

struct gw_snap;

/*
 * One manifest: `object` is its name in the bucket. When it cannot be read, info is NULL and `error` says why; the listing goes on. Nonzero ends it and
 * is returned.
 */
typedef int gw_snap_list_fn(void *self, const char *object, uint64_t size, const struct gw_snap_info *info, const struct gw_error *error);
/* Of all names, or of `name` alone, which costs nothing for the others. Generations of a name come in their order. */
int gw_snap_list(struct gw_repo *repo, const char *name, gw_snap_list_fn *fn, void *self, struct gw_error *err);

/*
 * generation 0: the latest. -ENOENT. That somebody took away the latest generation, or all of them, cannot be seen in the repository: who must
 * know opens by generation.
 */
int gw_snap_open(struct gw_repo *repo, const char *name, uint64_t generation, struct gw_snap **ret, struct gw_error *err);
int gw_snap_open_object(struct gw_repo *repo, const char *object, struct gw_snap **ret, struct gw_error *err);
void gw_snap_free(struct gw_snap *s);

const struct gw_snap_info *gw_snap_info(const struct gw_snap *s);
const char *gw_snap_object(const struct gw_snap *s);
/* What gw_snap_writer_part() was given; lives as long as `s`. NULL: none. */
const void *gw_snap_part(const struct gw_snap *s, const char *name, uint64_t *len);
/* Runs of pages that are not zero, by page. */
const struct gw_snap_run *gw_snap_runs(const struct gw_snap *s, uint64_t *count);
/* The run that holds the page, or the first after it; NULL: none. */
const struct gw_snap_run *gw_snap_run_at(const struct gw_snap *s, uint64_t page);
/*
 * The pages around `page` that lie in one blob with it: to fetch them costs no more than this one. False: the page is zero.
 */
bool gw_snap_neighbours(const struct gw_snap *s, uint64_t page, uint64_t *first, uint64_t *count);

struct gw_snap_range {
	uint64_t page, count;
};
/* `count` pages from `page` on, of which data holds 4096 bytes each, that live during the call. Nonzero ends the fetch and is returned. */
typedef int gw_snap_pages_fn(void *self, uint64_t page, uint64_t count, const uint8_t *data);
/*
 * Calls fn on this thread for the pages of the ranges that are not zero, for those together that lie so in one blob, in the order in which they lie in the repository but beginning with the blob of
 * the first page that is asked for; pages of one blob cost one decryption, blobs that are near to each other one get of up to some MiB. Any number of
 * threads; each holds so much memory. Follows pages that prune has moved. Pages of ranges that overlap come twice.
 */
int gw_snap_fetch(struct gw_snap *s, const struct gw_snap_range *ranges, unsigned count, gw_snap_pages_fn *fn, void *self, struct gw_error *err);
/* Of `count` pages, zero ones included, into memory. */
int gw_snap_read(struct gw_snap *s, uint64_t first, uint64_t count, void *data, struct gw_error *err);

/* For upkeep.c: the manifest itself. */
const struct gw_manifest *gw_snap_manifest(const struct gw_snap *s);

#endif
