// SPDX-License-Identifier: Apache-2.0
/*
 * AWS Signature Version 4 as S3 takes it: in the Authorization header, with the payload's hash signed (Amazon S3 API Reference,
 * "Authenticating Requests: Using the Authorization Header"). Pure functions; what the time is says the caller.
 */
#ifndef GW_MIGRATE_REPO_SIGV4_H
#define GW_MIGRATE_REPO_SIGV4_H

#include <stdint.h>

#include "lib/buf.h"

#define GW_SIGV4_MAX_PAIRS 16      /* query parameters or headers of a request */
#define GW_SIGV4_TIME_LEN 17       /* "20130524T000000Z" and its NUL */
#define GW_SIGV4_HASH_LEN 65       /* SHA-256 in hexadecimal and its NUL */
#define GW_SIGV4_AUTHORIZATION 1024 /* bytes that the value of the header needs at most */

struct gw_sigv4_pair {
	const char *name;
	const char *value;
};

struct gw_sigv4_key {
	const char *id;     /* access key */
	const char *secret;
	const char *region;
};

struct gw_sigv4_request {
	const char *method;
	const char *path; /* not encoded, from '/' */
	const struct gw_sigv4_pair *query; /* not encoded, in any order */
	unsigned queries;
	/* In lower case, in any order; all are signed. "host", "x-amz-date" and "x-amz-content-sha256" must be among them. */
	const struct gw_sigv4_pair *headers;
	unsigned header_count;
};

/* A time (seconds since 1970) as the x-amz-date header has it; beyond the year 9999 that year's end. */
void gw_sigv4_time(uint64_t seconds, char out[GW_SIGV4_TIME_LEN]);

/* Appends `path` as a URL has it: all but unreserved characters and '/' in %XX. 0 or -ENOMEM. */
int gw_sigv4_path(const char *path, struct gw_buf *out);
/* Appends the parameters, sorted and encoded, joined by '&': what is signed, and what must then be asked. 0, -ENOMEM or -E2BIG. */
int gw_sigv4_query(const struct gw_sigv4_pair *query, unsigned count, struct gw_buf *out);

/* The value of the Authorization header. 0, -ENOMEM, -E2BIG, -EINVAL (a header that must be there is not) or -EIO (OpenSSL failed). */
int gw_sigv4_sign(const struct gw_sigv4_key *key, const struct gw_sigv4_request *r, char out[GW_SIGV4_AUTHORIZATION]);

#endif
