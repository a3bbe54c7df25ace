// SPDX-License-Identifier: Apache-2.0
/*
 * Where a repository's objects lie: a flat set of named byte strings, each written once and whole. What the objects mean is not known here.
 *
 * Names are '/'-separated words of [a-z0-9.-], at most 200 bytes in all, none of them "." or "..". All calls block and may be made by several
 * threads at once; requests run in parallel by being made in parallel. The other side is hostile until checked: lengths are bounded here,
 * contents are the caller's to verify.
 */
#ifndef GW_MIGRATE_REPO_BUCKET_H
#define GW_MIGRATE_REPO_BUCKET_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"

#define GW_BUCKET_MAX_OBJECT (1ull << 30) /* bytes; more than any pack */

struct gw_bucket;
struct gw_ticket;

enum gw_bucket_put {
	GW_BUCKET_REPLACE,    /* whatever was there */
	GW_BUCKET_IF_ABSENT,  /* -EEXIST when it is there already; where the server has no such thing, best effort (gw_bucket_exclusive) */
};

struct gw_bucket_piece {
	const void *data; /* borrowed */
	uint64_t len;
};

/*
 * file:///DIRECTORY, s3://BUCKET/PREFIX or godwit://HOST/NAME (migrate/repo/bucket-file.c, bucket-s3.c, bucket-remote.c). `ticket` is for the last alone
 * (ticket.h; NULL: none). `create` makes what is missing (a directory). -EINVAL: no such kind of URL, or a bad one; -ENOENT: nothing there; else what the
 * system or server said, with what to do about it in err.
 */
int gw_bucket_open_with(const char *url, const struct gw_ticket *ticket, bool create, struct gw_bucket **ret, struct gw_error *err);
static inline int gw_bucket_open(const char *url, bool create, struct gw_bucket **ret, struct gw_error *err)
{
	return gw_bucket_open_with(url, NULL, create, ret, err);
}
void gw_bucket_free(struct gw_bucket *b);
/* As given, without secrets. */
const char *gw_bucket_url(const struct gw_bucket *b);
/* Whether GW_BUCKET_IF_ABSENT is exact here. */
bool gw_bucket_exclusive(const struct gw_bucket *b);

/*
 * All errors below are after the back end's own retries: -ENOENT: no such object; -EIO: the server or the disk failed; -EHOSTUNREACH: it cannot
 * be reached, which may pass; -ENOSPC, -EACCES; -ECANCELED after gw_bucket_cancel().
 */
/* Writes the pieces one after the other. Durable and visible when it returns 0, and never visible in part; on failure it may be there or not. */
int gw_bucket_put(struct gw_bucket *b, const char *name, const struct gw_bucket_piece *pieces, unsigned count, enum gw_bucket_put how,
		  struct gw_error *err);
/* `len` bytes from `offset` into `data`; -EPROTO when the object ends before. */
int gw_bucket_get(struct gw_bucket *b, const char *name, uint64_t offset, uint64_t len, void *data, struct gw_error *err);
/* The whole of it, at most `limit` bytes (-EFBIG), appended to `out`. */
int gw_bucket_read(struct gw_bucket *b, const char *name, uint64_t limit, struct gw_buf *out, struct gw_error *err);
/* -ENOENT is no error: it is gone. */
int gw_bucket_remove(struct gw_bucket *b, const char *name, struct gw_error *err);

struct gw_bucket_entry {
	const char *name;     /* lives during the call */
	uint64_t size;        /* bytes */
	uint64_t modified_s;  /* when it was put, by the other side's clock: seconds since 1970 */
};
/* Nonzero ends the listing and is returned. */
typedef int gw_bucket_entry_fn(void *self, const struct gw_bucket_entry *e);
/* Objects whose name starts with `prefix`, in the order of their names. Names that are none of ours are left out. */
int gw_bucket_list(struct gw_bucket *b, const char *prefix, gw_bucket_entry_fn *fn, void *self, struct gw_error *err);

/* Requests under way and all later ones fail with -ECANCELED. Any thread. */
void gw_bucket_cancel(struct gw_bucket *b);

#endif
