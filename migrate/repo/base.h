// SPDX-License-Identifier: Apache-2.0
/*
 * Reading what a blob is told against (blob.h). The caller finds out where that lies, under his own lock; this reads it, ahead when bases are asked for in
 * the order in which they lie, which is how they come: VMs of one image have much in the same order.
 */
#ifndef GW_MIGRATE_REPO_BASE_H
#define GW_MIGRATE_REPO_BASE_H

#include <stdbool.h>

#include "lib/error.h"
#include "migrate/repo/blob.h"
#include "migrate/repo/bucket.h"
#include "migrate/repo/places.h"

struct gw_base_place {
	struct gw_base_ref ref;
	struct gw_blob_place blobs[GW_BASE_MAX_BLOBS];
	struct gw_pack_place packs[GW_BASE_MAX_BLOBS]; /* theirs */
};
/* False: it is not all known, or is no base. */
bool gw_base_find(const struct gw_places *p, const struct gw_base_ref *ref, struct gw_base_place *ret);

/* One a thread; remembers the last one. */
struct gw_base_reader;
/* Both are borrowed. 0 or -ENOMEM. */
int gw_base_reader_new(struct gw_bucket *bucket, struct gw_blob_coder *coder, struct gw_base_reader **ret);
void gw_base_reader_free(struct gw_base_reader *r);
/* ret->pages live until the next one is read. -ENOENT: its pack is gone; -EBADMSG: damaged; the bucket's errors. */
int gw_base_read(struct gw_base_reader *r, const struct gw_base_place *base, struct gw_blob_base *ret, struct gw_error *err);

#endif
