// SPDX-License-Identifier: Apache-2.0
/*
 * Index objects: for packs, which pages (by digest) lie in which of their blobs. Needed by whoever writes, checks or prunes; a snapshot is read without.
 * Each describes one or many packs; that a pack is in two of them means nothing, so that prune can write a new one before it removes old ones.
 */
#ifndef GW_MIGRATE_REPO_INDEX_H
#define GW_MIGRATE_REPO_INDEX_H

#include "lib/buf.h"
#include "lib/error.h"
#include "migrate/repo/bucket.h"
#include "migrate/repo/crypt.h"
#include "migrate/repo/places.h"

#define GW_INDEX_TARGET (32u << 20)      /* bytes after which another object is begun */
#define GW_INDEX_MAX_PLAIN (256u << 20)
#define GW_INDEX_MAX_OBJECT (257u << 20)

struct gw_index_builder {
	struct gw_buf body;
	struct gw_enc enc;
	uint32_t packs;
};
void gw_index_builder_init(struct gw_index_builder *b);
void gw_index_builder_release(struct gw_index_builder *b);
/* A pack, and then its `extents`, each with the digests of its pages, and the hooks of its blobs, as many as their places say. */
void gw_index_add_pack(struct gw_index_builder *b, const uint8_t id[16], uint64_t size, uint32_t extents);
void gw_index_add_extent(struct gw_index_builder *b, const struct gw_places *p, const struct gw_extent *x, const uint8_t *digests,
			 const uint8_t *hooks);
/* Writes what was added, if anything, as a new object and starts again. name (GW_OBJECT_NAME bytes) may be NULL. */
int gw_index_write(struct gw_index_builder *b, struct gw_bucket *bucket, struct gw_crypt *c, char *name, struct gw_error *err);

/* The content of an object. 0, -EBADMSG or -ENOMEM. */
int gw_index_decode(const void *data, uint64_t len, struct gw_places *p, const struct gw_places_sink *sink);
/* Reads one object. */
int gw_index_read(struct gw_bucket *bucket, struct gw_crypt *c, const char *name, struct gw_places *p, const struct gw_places_sink *sink,
		  struct gw_error *err);
/* Reads all there are; starts again when prune has exchanged them meanwhile, so that `sink` may be told things twice. */
int gw_index_read_all(struct gw_bucket *bucket, struct gw_crypt *c, struct gw_places *p, const struct gw_places_sink *sink, struct gw_error *err);

#endif
