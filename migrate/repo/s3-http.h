// SPDX-License-Identifier: Apache-2.0
/*
 * One HTTP exchange at a time for each calling thread, over connections that are kept: libcurl, with what a server may do bounded. What
 * is asked and what an answer means is the callers' (s3-call.c).
 *
 * A thread that asks takes a slot from a pool: a curl handle and, for itself alone, the multi handle that drives it, which keeps the slot's
 * connection and, unlike an easy handle, can be woken from another thread when everything is cancelled.
 */
#ifndef GW_MIGRATE_REPO_S3_HTTP_H
#define GW_MIGRATE_REPO_S3_HTTP_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"
#include "migrate/repo/bucket.h"

#define GW_S3_UNKNOWN UINT64_MAX

struct gw_s3_http;

/* What of an answer's head is of use. Values that are too long count as not sent. */
struct gw_s3_head {
	int status; /* 0: no answer */
	uint64_t length;                        /* Content-Length or GW_S3_UNKNOWN */
	uint64_t range_from, range_to, range_of; /* Content-Range, its last byte included; GW_S3_UNKNOWN */
	int64_t date_s;                         /* Date, or -1 */
	unsigned retry_after_s;                 /* 0: not sent */
	char etag[128];
	char region[64]; /* x-amz-bucket-region */
	char mark[64];   /* x-amz-meta-godwit-put */
};

void gw_s3_head_clear(struct gw_s3_head *head);
/* Takes a line, its end included, which need have no NUL. A status line begins anew. */
void gw_s3_head_line(struct gw_s3_head *head, const char *data, size_t len);

struct gw_s3_exchange {
	/* What is asked. */
	const char *method, *url;
	const char *const *headers; /* "Name: value" */
	unsigned header_count;
	bool has_body;
	const struct gw_bucket_piece *pieces; /* `body_len` bytes of them from `body_at` on are sent */
	unsigned piece_count;
	uint64_t body_at, body_len;
	bool careful; /* let the server refuse before the body is sent */
	bool patient; /* a server that is silent for long is at work */
	bool anyway;  /* also when all is cancelled */
	uint64_t deadline_ns;
	/* Where the body of a 200 or 206 goes: `room` bytes to `to` (and no other length will do), which are those of the object from `from` on. */
	uint8_t *to;
	uint64_t room, from;
	uint64_t limit; /* or, when `to` is NULL, at most so many bytes to `body` */

	/* What is answered. */
	struct gw_s3_head head;
	uint64_t got;       /* bytes at `to`, also on failure: they are good */
	struct gw_buf body; /* of any other answer: what it says, the first 64 KiB of it */
};

/* `ca`: file of certificates, or "" for the system's. */
int gw_s3_http_new(const char *ca, unsigned stall_s, struct gw_s3_http **ret, struct gw_error *err);
/* No exchange may be under way. */
void gw_s3_http_free(struct gw_s3_http *h);
/* Exchanges under way and later ones fail with -ECANCELED. Any thread. */
void gw_s3_http_cancel(struct gw_s3_http *h);

/*
 * 0: there is an answer, which may be an error's (head.status). -EHOSTUNREACH: no connection; -ETIMEDOUT: it stood still or took past the
 * deadline; -EIO: it broke: these may pass. -EACCES: the certificate is not good; -EPROTO: no sensible answer; -EFBIG: more than `limit`;
 * -ECANCELED, -ENOMEM, -EINVAL. The answer's fields start anew with each call; `body` is the caller's to release.
 */
int gw_s3_http_do(struct gw_s3_http *h, struct gw_s3_exchange *x, struct gw_error *err);

#endif
