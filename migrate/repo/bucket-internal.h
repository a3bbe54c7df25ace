// SPDX-License-Identifier: Apache-2.0
/* What bucket.c and its back ends share: each embeds struct gw_bucket first and is listed in bucket.c's one table. */
#ifndef GW_MIGRATE_REPO_BUCKET_INTERNAL_H
#define GW_MIGRATE_REPO_BUCKET_INTERNAL_H

#include "migrate/repo/bucket.h"

/* Calls are those of bucket.h, with names that were checked. */
struct gw_bucket_ops {
	const char *scheme; /* "file://" */
	/* `url` begins with the scheme. ops and url of *ret are filled in by bucket.c. */
	int (*open)(const char *url, const struct gw_ticket *ticket, bool create, struct gw_bucket **ret, struct gw_error *err);
	void (*free)(struct gw_bucket *b);
	bool (*exclusive)(const struct gw_bucket *b);
	int (*put)(struct gw_bucket *b, const char *name, const struct gw_bucket_piece *pieces, unsigned count, enum gw_bucket_put how,
		   struct gw_error *err);
	int (*get)(struct gw_bucket *b, const char *name, uint64_t offset, uint64_t len, void *data, struct gw_error *err);
	int (*read)(struct gw_bucket *b, const char *name, uint64_t limit, struct gw_buf *out, struct gw_error *err);
	int (*remove)(struct gw_bucket *b, const char *name, struct gw_error *err);
	int (*list)(struct gw_bucket *b, const char *prefix, gw_bucket_entry_fn *fn, void *self, struct gw_error *err);
	void (*cancel)(struct gw_bucket *b);
};

struct gw_bucket {
	const struct gw_bucket_ops *ops;
	char *url; /* owned, without secrets */
};

#define GW_BUCKET_MAX_NAME 200u
/* Whether it is a name as bucket.h says. */
bool gw_bucket_name_ok(const char *name);

extern const struct gw_bucket_ops gw_bucket_file;
extern const struct gw_bucket_ops gw_bucket_s3;
extern const struct gw_bucket_ops gw_bucket_remote;

#endif
