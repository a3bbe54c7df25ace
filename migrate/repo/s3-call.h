// SPDX-License-Identifier: Apache-2.0
/*
 * A call to S3: signed, repeated while that may help, and what the server refuses put into words that say what to check. Shared by the
 * files of the S3 back end.
 */
#ifndef GW_MIGRATE_REPO_S3_CALL_H
#define GW_MIGRATE_REPO_S3_CALL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "migrate/repo/bucket-internal.h"
#include "migrate/repo/s3-config.h"
#include "migrate/repo/s3-http.h"
#include "migrate/repo/s3-xml.h"
#include "migrate/repo/sigv4.h"

struct gw_s3 {
	struct gw_bucket base;
	struct gw_s3_config conf;
	struct gw_s3_http *http;
	pthread_mutex_t lock;
	pthread_cond_t changed; /* `cancelled` is set */
	bool cancelled;         /* under lock */
	/* Whether If-None-Match is honoured: under `asking`, which is held while that is found out. */
	pthread_mutex_t asking;
	enum { GW_S3_NOT_ASKED, GW_S3_EXACT, GW_S3_INEXACT } conditional;
};

#define GW_S3_MAX_QUERY 5
#define GW_S3_MAX_HEADERS 4

struct gw_s3_call {
	const char *method;
	const char *name; /* the object's, without the bucket's prefix; NULL: the bucket itself */
	struct gw_sigv4_pair query[GW_S3_MAX_QUERY]; /* ended by a NULL name */
	struct gw_sigv4_pair headers[GW_S3_MAX_HEADERS]; /* besides those of all calls */
	/* A body: these bytes of the pieces. */
	bool has_body;
	const struct gw_bucket_piece *pieces;
	unsigned piece_count;
	uint64_t body_at, body_len;
	/* What is wanted: a range to memory, or all of it to `x.body`. */
	void *to;
	uint64_t from, len;
	uint64_t limit;
	bool patient;     /* a server that is silent for long is at work */
	unsigned retry_s; /* in place of the bucket's, unless 0 */
	bool last_words;  /* one short try, even after everything was cancelled */

	/* What came of it. */
	struct gw_s3_exchange x;
	struct gw_s3_fault fault; /* what the server said, when it refused */
};

/*
 * 0: status 200, 204 or 206, and what was wanted is there. Else, after retries where they may help: -ENOENT (404, unless the bucket itself
 * is gone: -EIO), -EEXIST (412), -EACCES, -ENOSPC, -EHOSTUNREACH (no connection, standing still, or overload), -EIO, -EPROTO, -EFBIG,
 * -EINVAL (the URL is wrong), -ECANCELED, -ENOMEM. In any case the caller then calls gw_s3_call_release().
 */
int gw_s3_call(struct gw_s3 *s, struct gw_s3_call *c, struct gw_error *err);
void gw_s3_call_release(struct gw_s3_call *c);
#define gw_s3_autocall __attribute__((cleanup(gw_s3_call_release))) struct gw_s3_call

/* s3-fault.c: the errno for a refusal with this status and code, and what to say. `now_s` is our clock. */
int gw_s3_refused(const struct gw_s3_config *conf, const struct gw_s3_head *head, const struct gw_s3_fault *fault, int64_t now_s,
		  struct gw_error *err);
/* Whether the same may be granted when asked again. */
bool gw_s3_may_pass(const struct gw_s3_head *head, const struct gw_s3_fault *fault);

/* A value nobody else has, to tell a put's own object by: 32 digits. */
int gw_s3_mark(char ret[33]);

/* s3-multipart.c: an object in parts; when that fails, what was sent is removed. */
int gw_s3_put_parts(struct gw_s3 *s, const char *name, const struct gw_bucket_piece *pieces, unsigned count, uint64_t total,
		    struct gw_error *err);
#define GW_S3_PART (16ull << 20) /* bytes of a part; an object of more than two of them is sent in parts */


#endif
