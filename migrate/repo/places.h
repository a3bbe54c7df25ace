// SPDX-License-Identifier: Apache-2.0
/*
 * Where blobs lie. A page is known by its segment and its slot there: slots count the pages of a segment through all its blobs. Segments are what was
 * once written as one pack; prune may move blobs to other packs, which changes places and no names. Indexes and manifests hold such tables in the
 * same form, pack by pack.
 */
#ifndef GW_MIGRATE_REPO_PLACES_H
#define GW_MIGRATE_REPO_PLACES_H

#include <stdbool.h>
#include <stdint.h>

#include "migrate/repo/blob.h"
#include "migrate/repo/coding.h"

#define GW_PACK_HEADER 32u /* bytes before the first blob: prefix, then the pack's id */
#define GW_PLACES_MAX_SLOT (UINT32_MAX - 1)

struct gw_blob_place {
	uint64_t offset;  /* in the pack, bytes */
	uint32_t pack;    /* number in gw_places */
	uint32_t len;     /* bytes */
	uint32_t number;  /* in the segment */
	uint32_t slot;    /* of its first page */
	uint32_t pages;
	uint32_t hooks;   /* that an index has of it, see similar.h */
	struct gw_base_ref base;
};

struct gw_segment {
	uint8_t id[16];
	struct gw_blob_place *blobs; /* by number, and so by slot */
	uint32_t count, cap;
};

struct gw_pack_place {
	uint8_t id[16];
	uint64_t size; /* bytes of the object */
};

struct gw_places {
	struct gw_segment *segments;
	struct gw_pack_place *packs;
	uint32_t nsegments, npacks;
	uint32_t segments_cap, packs_cap;
	uint32_t *segment_table, *pack_table; /* by id: number + 1 */
	uint32_t segment_slots, pack_slots;   /* powers of two, or 0 */
};
#define GW_PLACES_INIT { NULL, NULL, 0, 0, 0, 0, NULL, NULL, 0, 0 }
void gw_places_release(struct gw_places *p);

#define GW_NO_PLACE UINT32_MAX
/* Number of the one with this id; add makes it. GW_NO_PLACE: there is none. */
uint32_t gw_places_find_segment(const struct gw_places *p, const uint8_t id[16]);
uint32_t gw_places_find_pack(const struct gw_places *p, const uint8_t id[16]);
/* 0 or -ENOMEM. A pack that is known with another size: -EBADMSG. */
int gw_places_add_segment(struct gw_places *p, const uint8_t id[16], uint32_t *ret);
int gw_places_add_pack(struct gw_places *p, const uint8_t id[16], uint64_t size, uint32_t *ret);
/* Told of one blob: all but where it lies. */
bool gw_places_same_blob(const struct gw_blob_place *a, const struct gw_blob_place *b);
/* One that is known stays where it is, or with `move` is from now on where `b` says. -EBADMSG: it contradicts what is known; -ENOMEM. */
int gw_places_add_blob(struct gw_places *p, uint32_t segment, const struct gw_blob_place *b, bool move);
/* The blob that holds the slot, NULL: none. Lives until a blob is added. */
const struct gw_blob_place *gw_places_at(const struct gw_places *p, uint32_t segment, uint32_t slot);
/* The first of base->blobs blobs that follow each other; NULL: they are not all known, or have a base themselves. Lives as long. */
const struct gw_blob_place *gw_places_base(const struct gw_places *p, const struct gw_base_ref *base, uint32_t *segment);

/*
 * Tables: varint packs, and for each: id, varint size, varint extents, and for each: segment id, varint first number, first slot, offset and blobs, and
 * for each blob varint length, pages and more; then, in an index, the digests of all pages of the extent. docs/REPOSITORY.md has the layout.
 */
struct gw_extent { /* blobs that follow each other in a segment and in a pack */
	uint32_t segment;
	uint32_t first; /* position in the segment's array of blobs */
	uint32_t count;
};
/* `hooks`: of all its blobs, as many as their places say, four bytes each; NULL: it is no index, and has none. */
void gw_extent_encode(struct gw_enc *e, const struct gw_places *p, const struct gw_extent *x, const uint8_t *hooks);

enum gw_places_how { /* what is done with a pack's blobs */
	GW_PLACES_SKIP,
	GW_PLACES_ADD,  /* those that are known stay where they are */
	GW_PLACES_MOVE, /* they are here from now on */
};
struct gw_places_sink {
	/* May be NULL: GW_PLACES_ADD for all. */
	enum gw_places_how (*wanted)(void *self, const uint8_t pack[16], uint64_t size);
	/* May be NULL; of wanted packs. `b` is as this table says, should another have told another place; it has b->hooks hooks. 0 or -ENOMEM. */
	int (*digests)(void *self, uint32_t segment, const struct gw_blob_place *b, const uint8_t *digests, const uint8_t *hooks);
	/* May be NULL; the table's bytes for one pack, wanted or not. 0 or -ENOMEM. */
	int (*section)(void *self, const uint8_t pack[16], const void *data, uint64_t len);
	void *self;
	bool has_digests; /* it is an index's table */
};
/* Adds all to `p`. 0, -EBADMSG or -ENOMEM. */
int gw_places_decode(struct gw_dec *d, struct gw_places *p, const struct gw_places_sink *sink);

#endif
