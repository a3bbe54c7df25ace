// SPDX-License-Identifier: Apache-2.0
/*
 * The index of a page store: 64-bit key -> 64-bit location, 16 bytes an entry, 18 to 20 bytes of table an entry.
 *
 * Theory of operation. A shard (one of 64, by the key's top bits) is a sorted array with gaps: an entry's home is its key scaled to the
 * shard's capacity, entries sit at their home or, in key order, as near behind it as there is room. That is linear probing kept in
 * order, and the order is worth it: a miss ends at the first greater key, and a shard grows in place by a sixteenth, in two passes over
 * memory in sequence, without a second table beside the first. Each shard grows when it is full itself, so that one insertion
 * never pays for more than a 64th of the table. Shards are mappings of their own: between
 * arrays that grow in turn a heap would keep holes as large as a sixth of the table.
 *
 * Keys come from clients, who may choose them to collide. gw_index_key() therefore mixes what they report with a secret of this
 * process first; it is a bijection, so that equal keys mean equal tags.
 *
 * Entries may become untrue without being removed (stale). The owner counts them by gw_index_stale(); they are dropped when a
 * shard fills, or by gw_index_sweep().
 */
#ifndef GW_KSM_INDEX_H
#define GW_KSM_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GW_INDEX_SHARD_BITS 6
#define GW_INDEX_SHARDS (1u << GW_INDEX_SHARD_BITS)

struct gw_index_entry {
	uint64_t key;
	uint64_t where; /* 0: no entry here */
};

struct gw_index_shard {
	struct gw_index_entry *at;
	uint32_t cap;   /* homes */
	uint32_t total; /* cap and the tail where the last entries are pushed to */
	uint32_t count;
	uint32_t stale; /* at most about this many of count */
};

/* What the owner knows about its entries; both may be called for any entry while a shard is cleaned. */
struct gw_index_owner {
	bool (*keep)(void *ctx, uint64_t key, uint64_t where);
	void (*prefetch)(void *ctx, uint64_t where); /* keep() is to be asked for this one soon */
	void *ctx;
};

struct gw_index {
	struct gw_index_shard shard[GW_INDEX_SHARDS];
	struct gw_index_owner owner;
	uint64_t secret[3];
	uint64_t count;
	uint64_t bytes;  /* of the shards' arrays */
	uint32_t cursor; /* of the sweep */
};

/* `owner` is copied. -errno when the kernel gives no random bytes. */
int gw_index_init(struct gw_index *ix, const struct gw_index_owner *owner);
void gw_index_release(struct gw_index *ix);

/* The key of a tag that came from outside. Never 0. */
static inline uint64_t gw_index_key(const struct gw_index *ix, uint64_t tag)
{
	uint64_t x = tag ^ ix->secret[0];

	/* Odd multipliers and xor-shifts are each invertible. */
	x *= ix->secret[1];
	x ^= x >> 32;
	x *= ix->secret[2];
	x ^= x >> 29;
	x *= ix->secret[1];
	x ^= x >> 32;
	return x | !x;
}

static inline uint32_t gw_index_home(uint64_t key, uint32_t cap)
{
	return (uint32_t)(((unsigned __int128)(key << GW_INDEX_SHARD_BITS) * cap) >> 64);
}

static inline void gw_index_prefetch(const struct gw_index *ix, uint64_t key)
{
	const struct gw_index_shard *s = &ix->shard[key >> (64 - GW_INDEX_SHARD_BITS)];

	if (s->at)
		__builtin_prefetch(&s->at[gw_index_home(key, s->cap)], 1);
}

/* The location of `key`, which may be written to (never 0), or NULL. Good until the next insertion or removal. */
static inline uint64_t *gw_index_find(const struct gw_index *ix, uint64_t key)
{
	const struct gw_index_shard *s = &ix->shard[key >> (64 - GW_INDEX_SHARD_BITS)];
	const struct gw_index_entry *e, *end;

	if (s->count == 0)
		return NULL;
	end = s->at + s->total;
	for (e = s->at + gw_index_home(key, s->cap); e < end && e->where != 0 && e->key <= key; e++)
		if (e->key == key)
			return (uint64_t *)&e->where;
	return NULL;
}

/* Adds `key`, or moves it: 0 or -ENOMEM. `where` is not 0. */
int gw_index_put(struct gw_index *ix, uint64_t key, uint64_t where);
/* True when it was there. */
bool gw_index_remove(struct gw_index *ix, uint64_t key);

/* An entry of that key may have become untrue; n of unknown keys. */
static inline void gw_index_stale(struct gw_index *ix, uint64_t key)
{
	ix->shard[key >> (64 - GW_INDEX_SHARD_BITS)].stale++;
}
void gw_index_stale_many(struct gw_index *ix, uint64_t n);
/* Cleans one shard of which a quarter or more is stale. False: there is none. */
bool gw_index_sweep(struct gw_index *ix);

#endif
