// SPDX-License-Identifier: Apache-2.0
/* Overlays and their chunks; see overlays.h. */
#include "ksm/overlays.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "ksm/underlay.h"
#include "lib/util.h"
#include "proto/share.h"

#define VIEWS GW_OVERLAYS_VIEWS
/* The last slot of a chunk and the first of the next are no neighbours. */
#define SLOT_BITS 10
static_assert(GW_SHARE_CHUNK_PAGES < 1u << SLOT_BITS, "a slot fits its bits, and one more");
static_assert((uint64_t)GW_OVERLAYS_MAX_CHUNKS << SLOT_BITS < UINT32_MAX, "a place fits its word");

struct chunk {
	int fd;         /* -1: the number is free */
	uint32_t id;
	uint32_t slots;
	uint32_t pages; /* that lie over it */
	uint32_t broken; /* of them */
};

struct view {
	uint32_t chunk;
	uint8_t *bytes; /* NULL: unused */
	size_t len;
	uint64_t used;  /* when, in askings */
};

struct gw_overlays {
	uint64_t pages;
	struct gw_underlay *under; /* chunk << SLOT_BITS | slot */
	uint64_t *broken;    /* a bit a page; only where it lies over something */
	uint32_t all_pages, all_broken;
	struct chunk *chunks;
	uint32_t count, room, spare; /* spare: numbers below it are in use */
	uint32_t *by_id;     /* chunk number + 1, 0 none */
	uint32_t ids;
	struct view views[VIEWS];
	uint64_t askings;
};

int gw_overlays_new(uint64_t pages, struct gw_overlays **ret)
{
	struct gw_overlays *o = calloc(1, sizeof(*o));

	if (o) {
		o->broken = calloc((pages + 63) / 64, sizeof(*o->broken));
	}
	if (!o || !o->broken || gw_underlay_new(pages, &o->under) < 0) {
		gw_overlays_free(o);
		return -ENOMEM;
	}
	o->pages = pages;
	*ret = o;
	return 0;
}

static void close_view(struct view *v)
{
	if (v->bytes)
		munmap(v->bytes, v->len);
	v->bytes = NULL;
}

void gw_overlays_close_views(struct gw_overlays *o)
{
	for (unsigned i = 0; i < VIEWS; i++)
		close_view(&o->views[i]);
}

void gw_overlays_free(struct gw_overlays *o)
{
	if (!o)
		return;
	gw_overlays_close_views(o);
	for (uint32_t i = 0; i < o->count; i++)
		gw_closep(&o->chunks[i].fd);
	free(o->chunks);
	free(o->by_id);
	free(o->broken);
	gw_underlay_free(o->under);
	free(o);
}

static int grow(void *array, uint32_t *room, uint32_t wanted, size_t size)
{
	uint32_t fresh = GW_MAX(wanted, *room ? *room * 2 : 64);
	void *p;

	if (wanted <= *room)
		return 0;
	p = reallocarray(*(void **)array, fresh, size);
	if (!p)
		return -ENOMEM;
	memset((char *)p + *room * size, 0, (fresh - *room) * size);
	*(void **)array = p;
	*room = fresh;
	return 0;
}

/* Invariant 5: what is mapped never changes and never shrinks. */
static bool sealed(int fd, uint32_t slots)
{
	const int wanted = F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK;
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	return seals >= 0 && (seals & wanted) == wanted && fstat(fd, &st) == 0 && st.st_size >= (off_t)slots << GW_PAGE_SHIFT;
}

int gw_overlays_set_id(struct gw_overlays *o, uint32_t chunk, uint32_t id)
{
	if (id != GW_OVERLAYS_NONE) {
		if (id >= GW_OVERLAYS_MAX_CHUNKS || gw_overlays_find(o, id) != GW_OVERLAYS_NONE)
			return -EPROTO;
		if (grow(&o->by_id, &o->ids, id + 1, sizeof(*o->by_id)) < 0)
			return -ENOMEM;
		o->by_id[id] = chunk + 1;
	}
	o->chunks[chunk].id = id;
	return 0;
}

int gw_overlays_add(struct gw_overlays *o, uint32_t id, int fd, uint32_t slots)
{
	gw_autofd owned = fd;
	uint32_t n = o->spare;
	int r;

	if (slots == 0 || slots > GW_SHARE_CHUNK_PAGES || !sealed(fd, slots))
		return -EPROTO;
	while (n < o->count && o->chunks[n].fd >= 0)
		n++;
	if (n >= GW_OVERLAYS_MAX_CHUNKS)
		return -ENOSPC;
	if (grow(&o->chunks, &o->room, n + 1, sizeof(*o->chunks)) < 0)
		return -ENOMEM;
	r = gw_overlays_set_id(o, n, id);
	if (r < 0)
		return r;
	o->chunks[n] = (struct chunk){ .fd = gw_steal_fd(&owned), .id = id, .slots = slots };
	o->count = GW_MAX(o->count, n + 1);
	o->spare = n + 1;
	return (int)n;
}

uint32_t gw_overlays_find(const struct gw_overlays *o, uint32_t id)
{
	return id < o->ids && o->by_id[id] ? o->by_id[id] - 1 : GW_OVERLAYS_NONE;
}

uint32_t gw_overlays_chunks(const struct gw_overlays *o)
{
	return o->count;
}

uint32_t gw_overlays_slots(const struct gw_overlays *o, uint32_t chunk)
{
	return o->chunks[chunk].fd < 0 ? 0 : o->chunks[chunk].slots;
}

int gw_overlays_fd(const struct gw_overlays *o, uint32_t chunk)
{
	return o->chunks[chunk].fd;
}

uint32_t gw_overlays_id(const struct gw_overlays *o, uint32_t chunk)
{
	return o->chunks[chunk].id;
}

uint32_t gw_overlays_pages(const struct gw_overlays *o, uint32_t chunk)
{
	return chunk == GW_OVERLAYS_NONE ? o->all_pages : o->chunks[chunk].pages;
}

uint32_t gw_overlays_broken(const struct gw_overlays *o, uint32_t chunk)
{
	return chunk == GW_OVERLAYS_NONE ? o->all_broken : o->chunks[chunk].broken;
}

const uint8_t *gw_overlays_view(struct gw_overlays *o, uint32_t chunk)
{
	struct view *v = &o->views[0];
	void *p;

	o->askings++;
	for (unsigned i = 0; i < VIEWS; i++) {
		if (o->views[i].bytes && o->views[i].chunk == chunk) {
			o->views[i].used = o->askings;
			return o->views[i].bytes;
		}
		if (o->views[i].used < v->used)
			v = &o->views[i];
	}
	close_view(v);
	v->len = (size_t)o->chunks[chunk].slots << GW_PAGE_SHIFT;
	/* Populated now, so that comparing under protection takes no faults. */
	p = mmap(NULL, v->len, PROT_READ, MAP_SHARED | MAP_POPULATE, o->chunks[chunk].fd, 0);
	if (p == MAP_FAILED)
		return NULL;
	v->chunk = chunk;
	v->used = o->askings;
	v->bytes = p;
	return v->bytes;
}

void gw_overlays_drop(struct gw_overlays *o, uint32_t chunk)
{
	struct chunk *c = &o->chunks[chunk];

	for (unsigned i = 0; i < VIEWS; i++) {
		if (o->views[i].chunk == chunk)
			close_view(&o->views[i]);
	}
	if (c->id != GW_OVERLAYS_NONE)
		o->by_id[c->id] = 0;
	gw_closep(&c->fd);
	c->id = GW_OVERLAYS_NONE;
	o->spare = GW_MIN(o->spare, chunk);
}

void gw_overlays_forget_ids(struct gw_overlays *o)
{
	for (uint32_t i = 0; i < o->count; i++)
		o->chunks[i].id = GW_OVERLAYS_NONE;
	if (o->ids > 0)
		memset(o->by_id, 0, o->ids * sizeof(*o->by_id));
}

static uint32_t chunk_of(uint32_t place)
{
	return place >> SLOT_BITS;
}

static uint32_t slot_of(uint32_t place)
{
	return place & ((1u << SLOT_BITS) - 1);
}

bool gw_overlays_at(const struct gw_overlays *o, uint64_t page, uint32_t *chunk, uint32_t *slot)
{
	uint32_t place = gw_underlay_at(o->under, page);

	if (place == GW_UNDERLAY_NONE)
		return false;
	*chunk = chunk_of(place);
	*slot = slot_of(place);
	return true;
}

bool gw_overlays_next(const struct gw_overlays *o, uint64_t from, struct gw_overlays_run *ret)
{
	struct gw_underlay_run run = gw_underlay_next(o->under, from);

	*ret = (struct gw_overlays_run){ run.page, run.count, chunk_of(run.place), slot_of(run.place) };
	return run.count > 0;
}

bool gw_overlays_is_broken(const struct gw_overlays *o, uint64_t page)
{
	return o->broken[page / 64] >> (page % 64) & 1;
}

/* Marks it as broken or not, and counts it. */
static void flip_broken(struct gw_overlays *o, uint64_t page, uint32_t place, int by)
{
	o->broken[page / 64] ^= 1ull << (page % 64);
	o->chunks[chunk_of(place)].broken += (uint32_t)by;
	o->all_broken += (uint32_t)by;
}

void gw_overlays_break(struct gw_overlays *o, uint64_t page)
{
	uint32_t place = gw_underlay_at(o->under, page);

	if (place != GW_UNDERLAY_NONE && !gw_overlays_is_broken(o, page))
		flip_broken(o, page, place, 1);
}

void gw_overlays_mend(struct gw_overlays *o, uint64_t page, uint32_t count)
{
	for (; count > 0; page++, count--) {
		if (gw_overlays_is_broken(o, page))
			flip_broken(o, page, gw_underlay_at(o->under, page), -1);
	}
}

/* Counts the pages of the range that lie over something, or counts them no more. */
static void count_pages(struct gw_overlays *o, uint64_t page, uint32_t count, int by)
{
	uint64_t end = page + count;
	struct gw_underlay_run r;

	for (r = gw_underlay_next(o->under, page); r.count > 0 && r.page < end; r = gw_underlay_next(o->under, r.page + r.count)) {
		uint32_t n = (uint32_t)(GW_MIN(r.page + r.count, end) - GW_MAX(r.page, page));

		o->chunks[chunk_of(r.place)].pages += n * (uint32_t)by;
		o->all_pages += n * (uint32_t)by;
	}
}

void gw_overlays_clear(struct gw_overlays *o, uint64_t page, uint32_t count)
{
	gw_overlays_mend(o, page, count);
	count_pages(o, page, count, -1);
	if (gw_underlay_clear(o->under, page, count) < 0) {
		uint64_t from = GW_ALIGN_DOWN(page, GW_UNDERLAY_PIECE), end = GW_ALIGN_UP(page + count, GW_UNDERLAY_PIECE);

		/* Short of memory: to know too little does no harm, to know what is not true would. */
		count_pages(o, page, count, 1);
		gw_overlays_clear(o, from, (uint32_t)(GW_MIN(end, o->pages) - from));
	}
}

void gw_overlays_set(struct gw_overlays *o, uint64_t page, uint32_t count, uint32_t chunk, uint32_t slot)
{
	gw_overlays_clear(o, page, count);
	/* Short of memory: as if those that are left out were not mapped. */
	(void)gw_underlay_set(o->under, page, count, chunk << SLOT_BITS | slot);
	count_pages(o, page, count, 1);
}

uint64_t gw_overlays_memory(const struct gw_overlays *o)
{
	return sizeof(*o) + gw_underlay_memory(o->under) + o->pages / 8 + o->room * sizeof(*o->chunks) + o->ids * sizeof(*o->by_id);
}

uint32_t gw_overlays_mappings(const struct gw_overlays *o)
{
	uint64_t end = 0;  /* of the last run */
	uint32_t n = 0, place = GW_UNDERLAY_NONE; /* behind it */
	struct gw_underlay_run r;

	for (r = gw_underlay_next(o->under, 0); r.count > 0; r = gw_underlay_next(o->under, end)) {
		if (r.page > end)
			n += 1 + (end > 0);
		else
			n += r.place != place;
		end = r.page + r.count;
		place = r.place + r.count;
	}
	return n + (end > 0 && end < o->pages);
}
