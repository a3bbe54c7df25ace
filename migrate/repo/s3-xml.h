// SPDX-License-Identifier: Apache-2.0
/*
 * What an S3 server answers in XML, parsed with expat. The input is hostile: a document type is refused (so there are no entities to
 * expand), depth, text and the number of entries are bounded, a document counts only when it is whole, and outputs are set only then.
 */
#ifndef GW_MIGRATE_REPO_S3_XML_H
#define GW_MIGRATE_REPO_S3_XML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"

#define GW_S3_PAGE 1000          /* entries that we ask for at a time, and take at most: also what S3 gives at most */
#define GW_S3_MAX_KEY 1024       /* bytes of an object's key */
#define GW_S3_MAX_TOKEN 4096     /* bytes of a token or an upload's id */
#define GW_S3_MAX_XML (8u << 20) /* bytes of a document: a page of the longest keys, each byte encoded as three, fits twice */

struct gw_s3_entry {
	const char *key; /* decoded; in the page's buffer */
	uint64_t size;
	uint64_t modified_s; /* seconds since 1970 */
};

/* A page of a listing. */
struct gw_s3_list {
	struct gw_s3_entry *entries; /* owned */
	unsigned count;
	bool truncated; /* there is more; `token` asks for it */
	char token[GW_S3_MAX_TOKEN + 1];
	struct gw_buf keys;
};

struct gw_s3_fault {
	char code[64];     /* "NoSuchKey"; "" when the server said nothing that we know how to read */
	char message[256]; /* printable ASCII only, cut */
	char region[64];   /* where the server says the bucket is, or "" */
};

/* ListBucketResult of ListObjectsV2 with encoding-type=url. 0, -EPROTO or -ENOMEM. */
int gw_s3_parse_list(const void *xml, size_t len, struct gw_s3_list *ret, struct gw_error *err);
void gw_s3_list_release(struct gw_s3_list *list);

/* Error: what can be made of it, be it no XML at all. Always sets *ret. */
void gw_s3_parse_fault(const void *xml, size_t len, struct gw_s3_fault *ret);

/* UploadId of InitiateMultipartUploadResult. 0 or -EPROTO. */
int gw_s3_parse_upload(const void *xml, size_t len, char ret[GW_S3_MAX_TOKEN + 1], struct gw_error *err);

/*
 * The answer to CompleteMultipartUpload, which may be an error though the status is 200, since the status was sent before the work was done.
 * 0: done; -EIO: refused, *fault tells; -EPROTO: neither.
 */
int gw_s3_parse_complete(const void *xml, size_t len, struct gw_s3_fault *fault, struct gw_error *err);

#endif
