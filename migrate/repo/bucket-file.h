// SPDX-License-Identifier: Apache-2.0
/* A bucket in a directory: what its files share, and for the agent that serves it to others, objects that are written and read a piece at a time. */
#ifndef GW_MIGRATE_REPO_BUCKET_FILE_H
#define GW_MIGRATE_REPO_BUCKET_FILE_H

#include <stdatomic.h>

#include "migrate/repo/bucket-internal.h"

#define GW_FILE_TEMP "_new-"
#define GW_FILE_STEP (4u << 20) /* bytes between looks at `cancelled` */

struct gw_file_bucket {
	struct gw_bucket base;
	int dir;
	atomic_bool cancelled;
};

/* Errors that bucket.h knows: "WHAT NAME: ...". Returns the negative one. */
int gw_file_failed(struct gw_error *err, const char *what, const char *name, int code);
/* Opens the folder that holds `name` and tells the last word of it. 0 or -errno. */
int gw_file_open_parent(struct gw_file_bucket *f, const char *name, bool create, int *ret, const char **leaf);

int gw_file_put(struct gw_bucket *b, const char *name, const struct gw_bucket_piece *pieces, unsigned count, enum gw_bucket_put how,
		struct gw_error *err);

/* All that follow are for buckets that gw_bucket_open() opened of file://, and names that are ones (gw_bucket_name_ok()). */

/* An object that is being written. */
struct gw_file_writing;
int gw_file_begin(struct gw_bucket *b, const char *name, enum gw_bucket_put how, struct gw_file_writing **ret, struct gw_error *err);
int gw_file_write(struct gw_file_writing *w, const void *data, uint64_t len, struct gw_error *err);
/* It is there, whole, when this returns 0. */
int gw_file_commit(struct gw_file_writing *w, struct gw_error *err);
/* In any case; what was not committed goes. Takes NULL. */
void gw_file_end(struct gw_file_writing *w);

/* For reading. -ENOENT. */
int gw_file_open(struct gw_bucket *b, const char *name, int *ret, uint64_t *size, struct gw_error *err);

#endif
