// SPDX-License-Identifier: Apache-2.0
/* Lists of a bucket's objects, in memory. */
#ifndef GW_MIGRATE_REPO_LISTING_H
#define GW_MIGRATE_REPO_LISTING_H

#include <stddef.h>
#include <stdint.h>

#include "lib/error.h"
#include "migrate/repo/bucket.h"

#define GW_LISTED_NAME 96 /* longer ones are none of a repository's and left out */
struct gw_listed {
	char name[GW_LISTED_NAME];
	uint64_t size, modified_s;
};
struct gw_listing {
	struct gw_listed *all; /* in the order of their names */
	size_t count, cap;
};
void gw_listing_release(struct gw_listing *l);
int gw_listing_read(struct gw_bucket *bucket, const char *prefix, struct gw_listing *ret, struct gw_error *err);
/* NULL: not there. */
const struct gw_listed *gw_listing_find(const struct gw_listing *l, const char *name);

#endif
