// SPDX-License-Identifier: Apache-2.0
/* Where a bucket is and who we are there: from s3://BUCKET/PREFIX?..., the environment and the shared credentials file, in this order. */
#ifndef GW_MIGRATE_REPO_S3_CONFIG_H
#define GW_MIGRATE_REPO_S3_CONFIG_H

#include <limits.h>
#include <stdbool.h>

#include "lib/error.h"

/* With an object's name (at most 200 bytes) within the 1024 bytes of a key. */
#define GW_S3_MAX_PREFIX 800

struct gw_s3_config {
	char bucket[64];
	char prefix[GW_S3_MAX_PREFIX + 1]; /* "" or ending with '/' */
	char region[64];
	char origin[384]; /* "https://host:port" that requests go to */
	char host[384];   /* the Host header, which is signed */
	bool in_path;     /* the bucket is the path's first word, not the host's */
	bool amazon;      /* no endpoint was given */
	char ca[PATH_MAX]; /* file of certificates, or "" for the system's */
	char id[256];
	char secret[256];
	char token[4096]; /* session token or "" */
	unsigned stall_s; /* a transfer that stands still for so long is broken off */
	unsigned retry_s; /* so long after the first failure, failing is final */
};

/* 0; -EINVAL: malformed; -EACCES: no credentials; errors say what to set. */
int gw_s3_config_load(const char *url, struct gw_s3_config *ret, struct gw_error *err);
/* Credentials only: of a file as ~/.aws/credentials, `text` of it, by `profile`. -ENOENT: not (all) there; -EINVAL: too long. */
int gw_s3_credentials_parse(const char *text, const char *profile, struct gw_s3_config *c);
/* Wipes the secrets. */
void gw_s3_config_release(struct gw_s3_config *c);

#endif
