// SPDX-License-Identifier: Apache-2.0
/*
 * Marks: which packs prune is going to remove. Whoever begins to write reads them and refers to none of these packs; a grace period later nobody
 * is left who had begun before.
 */
#ifndef GW_MIGRATE_REPO_MARKS_H
#define GW_MIGRATE_REPO_MARKS_H

#include <stdbool.h>

#include "lib/error.h"
#include "migrate/repo/bucket.h"
#include "migrate/repo/crypt.h"

/* A set of packs' ids. */
struct gw_pack_set {
	uint8_t (*ids)[16]; /* sorted */
	size_t count, cap;
};
void gw_pack_set_release(struct gw_pack_set *s);
int gw_pack_set_add(struct gw_pack_set *s, const uint8_t id[16]); /* 0 or -ENOMEM; sort before has() */
void gw_pack_set_sort(struct gw_pack_set *s);
bool gw_pack_set_has(const struct gw_pack_set *s, const uint8_t id[16]);

/* Adds the packs of one mark object, or of all. */
int gw_mark_read(struct gw_bucket *bucket, struct gw_crypt *c, const char *name, struct gw_pack_set *s, struct gw_error *err);
int gw_marks_read_all(struct gw_bucket *bucket, struct gw_crypt *c, struct gw_pack_set *s, struct gw_error *err);
/* name: GW_OBJECT_NAME bytes. */
int gw_mark_write(struct gw_bucket *bucket, struct gw_crypt *c, const struct gw_pack_set *s, char *name, struct gw_error *err);
int gw_mark_decode(const void *data, uint64_t len, struct gw_pack_set *s);

#endif
