// SPDX-License-Identifier: Apache-2.0
/*
 * What all objects of a repository begin with, and the envelope in which index, manifest and mark objects are sealed: encrypted, and bound to
 * their kind and name, so that one cannot stand in for another. docs/REPOSITORY.md has the layout.
 */
#ifndef GW_MIGRATE_REPO_OBJECT_H
#define GW_MIGRATE_REPO_OBJECT_H

#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"
#include "migrate/repo/bucket.h"
#include "migrate/repo/crypt.h"

/* Of indexes and bodies of manifests: tables of places in version 1 have neither bases nor hooks (places.h). All others are of version 1. */
#define GW_OBJECT_VERSION 2
#define GW_OBJECT_PREFIX 16   /* magic, version, kind, variant */
#define GW_OBJECT_ENVELOPE 72 /* bytes of a sealed object before its ciphertext */

enum gw_object_kind {
	GW_OBJECT_CONFIG = 1,
	GW_OBJECT_KEY = 2,
	GW_OBJECT_PACK = 3,
	GW_OBJECT_INDEX = 4,
	GW_OBJECT_HEAD = 5, /* first part of a manifest */
	GW_OBJECT_BODY = 6, /* second part of a manifest */
	GW_OBJECT_MARK = 7,
};

void gw_object_prefix(uint8_t out[GW_OBJECT_PREFIX], enum gw_object_kind kind, uint8_t variant);
/* -EBADMSG: damaged, or something else; -EPROTONOSUPPORT: of a newer version. `name` is for the error. */
int gw_object_check_prefix(const void *data, uint64_t len, enum gw_object_kind kind, uint8_t *variant, const char *name, struct gw_error *err);

/* Appends the sealed object to `out`. */
int gw_object_seal(struct gw_crypt *c, enum gw_object_kind kind, const char *name, const void *plain, size_t len, struct gw_buf *out,
		   struct gw_error *err);
/* Appends the content, at most `limit` bytes, to `out`. -EBADMSG and -EPROTONOSUPPORT as above. */
int gw_object_open(struct gw_crypt *c, enum gw_object_kind kind, const char *name, const void *data, uint64_t len, uint64_t limit,
		   struct gw_buf *out, struct gw_error *err);
/* How long the sealed object says that it is: the first GW_OBJECT_PREFIX bytes are needed. */
uint32_t gw_object_len(const void *sealed);
/* The tag of a sealed object, of at least GW_OBJECT_ENVELOPE bytes. */
const uint8_t *gw_object_tag(const void *sealed);

/* "PREFIX/" and the digits of `id`; `out` holds GW_OBJECT_NAME bytes. */
#define GW_OBJECT_NAME 96
void gw_object_name(char out[GW_OBJECT_NAME], const char *folder, const uint8_t id[16]);
/* The id in such a name. -EINVAL when it is none. */
int gw_object_parse_name(const char *name, const char *folder, uint8_t id[16]);
/*
 * Puts an object that nobody else can have put: its name is random. Where an answer was lost and the storage then says that it is there already, it is ours: 0.
 * -EEXIST: it is there with another content.
 */
int gw_object_put(struct gw_bucket *bucket, const char *name, const void *data, uint64_t len, struct gw_error *err);
int gw_object_damaged(const char *name, struct gw_error *err);

#endif
