// SPDX-License-Identifier: Apache-2.0
/* The index of a page store; see index.h. */
#include "ksm/index.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "lib/util.h"

#define MIN_CAP 32u
/* Filled to seven eighths at most: beyond it the way from the home to the entry grows fast. */
#define MAX_COUNT(cap) ((cap) / 8 * 7)
#define GROWN(cap) ((cap) + GW_MAX((cap) / 16, 16u))
/* After a cleaning a shard must have this much room, or it would be cleaned again at once. */
#define ROOMY(cap) ((cap) / 3 * 2)
#define PREFETCH_AHEAD 12u

int gw_index_init(struct gw_index *ix, const struct gw_index_owner *owner)
{
	memset(ix, 0, sizeof(*ix));
	if (getrandom(ix->secret, sizeof(ix->secret), 0) != (ssize_t)sizeof(ix->secret))
		return -EIO;
	ix->secret[1] |= 1;
	ix->secret[2] |= 1;
	ix->owner = *owner;
	return 0;
}

static void drop(struct gw_index *ix, struct gw_index_shard *s)
{
	size_t len = s->total * sizeof(*s->at);

	if (s->at)
		munmap(s->at, len);
	ix->bytes -= len;
	memset(s, 0, sizeof(*s));
}

void gw_index_release(struct gw_index *ix)
{
	for (unsigned i = 0; i < GW_INDEX_SHARDS; i++)
		drop(ix, &ix->shard[i]);
	memset(ix, 0, sizeof(*ix));
}

/* To whole pages: there may be room for more than that. */
static int resize(struct gw_index *ix, struct gw_index_shard *s, uint32_t total)
{
	size_t old = s->total * sizeof(*s->at), len = GW_ALIGN_UP(total * sizeof(*s->at), GW_PAGE_SIZE);
	void *at = s->at ? mremap(s->at, old, len, MREMAP_MAYMOVE) : mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		return -ENOMEM;
	ix->bytes += len - old;
	s->at = at;
	s->total = (uint32_t)(len / sizeof(*s->at));
	return 0;
}

/* Moves all entries to the front, without those that the owner does not keep when `clean`. */
static void pack(struct gw_index *ix, struct gw_index_shard *s, bool clean)
{
	const struct gw_index_owner *o = &ix->owner;
	uint32_t n = 0;

	for (uint32_t i = 0; i < s->total; i++) {
		if (clean && i + PREFETCH_AHEAD < s->total && s->at[i + PREFETCH_AHEAD].where != 0)
			o->prefetch(o->ctx, s->at[i + PREFETCH_AHEAD].where);
		if (s->at[i].where == 0 || (clean && !o->keep(o->ctx, s->at[i].key, s->at[i].where)))
			continue;
		s->at[n++] = s->at[i];
	}
	ix->count -= s->count - n;
	s->count = n;
	if (clean)
		s->stale = 0;
}

/* Where the last of the packed entries would be with `cap` homes. */
static uint32_t last_place(const struct gw_index_shard *s, uint32_t cap)
{
	uint32_t place = 0;

	for (uint32_t i = 0; i < s->count; i++) {
		uint32_t home = gw_index_home(s->at[i].key, cap);

		place = i > 0 ? GW_MAX(home, place + 1) : home;
	}
	return place;
}

/*
 * Packed entries go to their places for `cap` homes. They are first moved to the end of the array: as all of them fit behind each
 * one's place, no place is ahead of the entry that is read next.
 */
static void spread(struct gw_index_shard *s, uint32_t cap)
{
	uint32_t from = s->total - s->count, next = 0;

	memmove(s->at + from, s->at, s->count * sizeof(*s->at));
	s->cap = cap;
	for (uint32_t i = 0; i < s->count; i++) {
		struct gw_index_entry e = s->at[from + i];
		uint32_t place = GW_MAX(gw_index_home(e.key, cap), next);

		memset(s->at + next, 0, (place - next) * sizeof(e));
		s->at[place] = e;
		next = place + 1;
	}
	memset(s->at + next, 0, (s->total - next) * sizeof(*s->at));
}

/* Lays a shard out for `cap` homes; the array is as long as that takes. On -ENOMEM it is as it was, but for what was cleaned away. */
static int lay_out(struct gw_index *ix, struct gw_index_shard *s, uint32_t cap, bool clean)
{
	uint32_t old_cap = s->cap, total;
	int r = 0;

	if (s->at)
		pack(ix, s, clean);
	/* What was dropped may allow less. */
	if (clean && s->count <= ROOMY(old_cap))
		cap = old_cap;
	if (clean && s->count < old_cap / 4)
		cap = GW_MAX(s->count * 2, MIN_CAP);
	total = GW_MAX(last_place(s, cap) + 1, cap) + 16 + cap / 64;
	if (total > s->total) {
		r = resize(ix, s, total);
		if (r < 0)
			cap = old_cap;
	}
	spread(s, cap);
	if (total < s->total)
		(void)resize(ix, s, total);
	return r;
}

static int make_room(struct gw_index *ix, struct gw_index_shard *s)
{
	if (s->cap == 0)
		return lay_out(ix, s, MIN_CAP, false);
	if (s->cap > UINT32_MAX / 4)
		return -ENOMEM;
	return lay_out(ix, s, GROWN(s->cap), s->stale >= s->count / 4);
}

int gw_index_put(struct gw_index *ix, uint64_t key, uint64_t where)
{
	struct gw_index_shard *s = &ix->shard[key >> (64 - GW_INDEX_SHARD_BITS)];
	uint64_t *there = gw_index_find(ix, key);
	uint32_t place, gap;
	int r;

	if (there) {
		*there = where;
		return 0;
	}
	if (s->count >= MAX_COUNT(s->cap)) {
		r = make_room(ix, s);
		if (r < 0 && s->count + 1 >= s->cap)
			return r;
	}
	for (;;) {
		place = gw_index_home(key, s->cap);
		while (place < s->total && s->at[place].where != 0 && s->at[place].key < key)
			place++;
		for (gap = place; gap < s->total && s->at[gap].where != 0; gap++)
			;
		if (gap < s->total)
			break;
		/* Pushed off the end: lay_out() makes the tail longer. */
		r = lay_out(ix, s, GROWN(s->cap), false);
		if (r < 0)
			return r;
	}
	memmove(s->at + place + 1, s->at + place, (gap - place) * sizeof(*s->at));
	s->at[place] = (struct gw_index_entry){ key, where };
	s->count++;
	ix->count++;
	return 0;
}

bool gw_index_remove(struct gw_index *ix, uint64_t key)
{
	struct gw_index_shard *s = &ix->shard[key >> (64 - GW_INDEX_SHARD_BITS)];
	uint64_t *there = gw_index_find(ix, key);
	uint32_t i;

	if (!there)
		return false;
	/* Those behind it that are not at home move one place nearer. */
	i = (uint32_t)(gw_container_of(there, struct gw_index_entry, where) - s->at);
	while (i + 1 < s->total && s->at[i + 1].where != 0 && gw_index_home(s->at[i + 1].key, s->cap) <= i) {
		s->at[i] = s->at[i + 1];
		i++;
	}
	s->at[i] = (struct gw_index_entry){ 0, 0 };
	s->count--;
	ix->count--;
	return true;
}

void gw_index_stale_many(struct gw_index *ix, uint64_t n)
{
	uint64_t each = (n + GW_INDEX_SHARDS - 1) / GW_INDEX_SHARDS;

	for (unsigned i = 0; i < GW_INDEX_SHARDS; i++)
		ix->shard[i].stale += (uint32_t)GW_MIN(each, (uint64_t)ix->shard[i].count);
}

bool gw_index_sweep(struct gw_index *ix)
{
	for (unsigned i = 0; i < GW_INDEX_SHARDS; i++) {
		struct gw_index_shard *s = &ix->shard[ix->cursor];

		ix->cursor = (ix->cursor + 1) % GW_INDEX_SHARDS;
		if (s->count == 0 || s->stale == 0 || s->stale < s->count / 4)
			continue;
		(void)lay_out(ix, s, s->cap, true);
		if (s->count == 0)
			drop(ix, s);
		return true;
	}
	return false;
}
