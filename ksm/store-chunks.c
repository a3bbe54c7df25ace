// SPDX-License-Identifier: Apache-2.0
/* Chunks of a store: their numbers, who holds them, when they close, and the orders that name them. See store.h. */
#include <errno.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "ksm/store-internal.h"
#include "lib/log.h"

/* What a client may hold, in slots: chunks of which hardly anything is mapped are held too, but not without bound. */
#define HELD_MAX(pages) ((pages) * 4 + 8ull * GW_SHARE_CHUNK_PAGES)
#define HASH_AT_ONCE 16u
/* Index lines that are on their way while a chunk's entries are taken out. */
#define CLOSE_AHEAD 16u

struct gw_chunk *gw_store_chunk(const struct gw_store *s, uint32_t number)
{
	return number < s->cap_chunks ? s->chunk[number] : NULL;
}

int gw_store_enter(struct gw_store *s, struct gw_chunk *k)
{
	uint32_t i = s->free_chunk_from;

	while (i < s->cap_chunks && s->chunk[i])
		i++;
	if (i == s->cap_chunks) {
		uint32_t old = s->cap_chunks;

		if (gw_store_grow(&s->chunk, &s->cap_chunks, old, sizeof(struct gw_chunk *)) < 0)
			return -ENOMEM;
		memset(s->chunk + old, 0, (s->cap_chunks - old) * sizeof(struct gw_chunk *));
	}
	s->chunk[i] = k;
	s->free_chunk_from = i + 1;
	s->nchunks++;
	k->number = i;
	return 0;
}

/* Found again by its inode when a client brings it (ADOPT). */
static uint64_t file_key(const struct gw_store *s, const struct gw_chunk *k)
{
	return gw_index_key(&s->files, k->ino);
}

static void file_enter(struct gw_store *s, const struct gw_chunk *k)
{
	/* Without memory for it: a client that comes back is refused what it holds. */
	(void)gw_index_put(&s->files, file_key(s, k), k->number + 1ull);
}

void gw_store_unstore(struct gw_store *s, struct gw_chunk *k, unsigned slot)
{
	uint64_t key = k->slot[slot].key, origin = k->slot[slot].origin;
	uint64_t *where = gw_index_find(&s->index, key);

	if (!where || *where != where_stored(k->number, slot))
		return;
	if (origin != 0 && still_seen(client_by_number(s, where_number(origin)), where_page(origin), key))
		*where = origin;
	else
		gw_index_remove(&s->index, key);
}

void gw_store_close(struct gw_store *s, struct gw_chunk *k)
{
	struct gw_store_client *owner = chunk_owner(s, k);

	for (unsigned i = 0; i < k->slots + CLOSE_AHEAD; i++) {
		if (i < k->slots)
			gw_index_prefetch(&s->index, k->slot[i].key);
		if (i >= CLOSE_AHEAD)
			gw_store_unstore(s, k, i - CLOSE_AHEAD);
	}
	gw_store_unname(s, k);
	for (uint32_t i = 0; i < k->nwaiters; i++) {
		struct gw_store_client *c = client_by_ref(s, k->waiter[i].client);

		if (c && c->waiting > 0)
			c->waiting--;
	}
	if (owner) {
		owner->stored -= k->slots;
		if (k->sealed && k->foreign == 0)
			owner->alone -= k->slots;
	}
	if (k->sealed) {
		uint64_t key = file_key(s, k), *where = gw_index_find(&s->files, key);

		if (where && *where == k->number + 1ull)
			gw_index_remove(&s->files, key);
		s->sealed_chunks--;
	}
	s->stored_pages -= k->slots;
	s->chunk[k->number] = NULL;
	s->free_chunk_from = GW_MIN(s->free_chunk_from, k->number);
	s->nchunks--;
	k->next_dying = s->dying;
	s->dying = k;
}

void gw_store_close_unheld(struct gw_store *s)
{
	while (s->nfresh > 0) {
		struct gw_chunk *k = gw_store_chunk(s, s->fresh[--s->nfresh]);

		if (k && k->sealed && k->holders == 0)
			gw_store_close(s, k);
	}
	if (s->cap_fresh > 1024) {
		free(s->fresh);
		s->fresh = NULL;
		s->cap_fresh = 0;
	}
}

/* It may be held by nobody when this step is over. */
static void fresh(struct gw_store *s, const struct gw_chunk *k)
{
	if (gw_store_grow(&s->fresh, &s->cap_fresh, s->nfresh, sizeof(*s->fresh)) == 0)
		s->fresh[s->nfresh++] = k->number;
}

void gw_store_sealed(struct gw_store *s, struct gw_chunk *k)
{
	struct gw_store_client *owner = chunk_owner(s, k);

	file_enter(s, k);
	s->sealed_chunks++;
	if (owner)
		owner->alone += k->slots;
	fresh(s, k);
	gw_store_check_thin(s, k);
}

int gw_store_seal(struct gw_store_client *c)
{
	static struct gw_ratelimit limit;
	struct gw_store *s = c->store;
	struct gw_chunk *k = gw_steal_ptr(&c->open);
	int r;

	if (!k)
		return 0;
	r = gw_chunk_seal(k);
	if (r < 0) {
		gw_warn_limited(&limit, "domain %s: cannot seal a chunk: %s", s->domain, strerrordesc_np(-r));
		gw_store_close(s, k);
		return r;
	}
	gw_store_sealed(s, k);
	for (uint32_t i = 0; i < k->nwaiters; i++) {
		const struct gw_chunk_waiter *w = &k->waiter[i];
		struct gw_store_client *to = client_by_ref(s, w->client);

		if (!to)
			continue;
		to->waiting -= to->waiting > 0;
		if (still_seen(to, w->page, k->slot[w->slot].key))
			(void)gw_store_order(to, w->page, k->number, w->slot);
	}
	free(k->waiter);
	k->waiter = NULL;
	k->nwaiters = k->cap_waiters = 0;
	return 0;
}

/* ---- who holds what ---- */

bool gw_store_hold(struct gw_store_client *c, struct gw_chunk *k, bool send)
{
	struct gw_store_client *owner = chunk_owner(c->store, k);

	if (k->number < c->nlive && c->live[k->number] != 0)
		return true;
	if (c->held_slots + k->slots > HELD_MAX(c->pages))
		return false;
	if (k->number >= c->nlive) {
		uint32_t old = c->nlive;

		if (gw_store_grow(&c->live, &c->nlive, k->number, sizeof(*c->live)) < 0)
			return false;
		memset(c->live + old, 0, (c->nlive - old) * sizeof(*c->live));
	}
	if (c->out.overflow)
		return false;
	c->live[k->number] = 1;
	c->chunks++;
	c->held_slots += k->slots;
	k->holders++;
	(void)gw_store_told(k, c->ref, true);
	if (c != owner && k->foreign++ == 0 && owner)
		owner->alone -= k->slots;
	if (send) {
		struct gw_share_chunk m = { .chunk = k->number, .slots = k->slots };

		gw_outbox_put(&c->out, GW_SHARE_CHUNK, 0, &m, 1, sizeof(m), k);
	}
	return true;
}

void gw_store_release(struct gw_store_client *c, struct gw_chunk *k)
{
	struct gw_store *s = c->store;
	struct gw_store_client *owner = chunk_owner(s, k);
	uint64_t pages = c->live[k->number] - 1;

	c->live[k->number] = 0;
	c->chunks--;
	c->held_slots -= k->slots;
	c->live_pages -= pages;
	s->live_pages -= pages;
	k->live -= pages;
	gw_store_untell(k, c->ref);
	if (c->serial != k->owner && --k->foreign == 0 && owner)
		owner->alone += k->slots;
	if (--k->holders == 0)
		gw_store_close(s, k);
	else
		gw_store_check_thin(s, k);
}

int gw_store_live(struct gw_store_client *c, const struct gw_share_live *e, unsigned n)
{
	struct gw_store *s = c->store;

	for (unsigned i = 0; i < n; i++) {
		bool held = e[i].chunk < c->nlive && c->live[e[i].chunk] != 0;
		struct gw_chunk *k = held ? s->chunk[e[i].chunk] : NULL;

		if (!held && e[i].pages == 0)
			continue;
		if (!held || e[i].pages > c->pages)
			return -EPROTO;
		if (e[i].pages == 0) {
			gw_store_release(c, k);
			continue;
		}
		k->live += e[i].pages - (c->live[k->number] - 1ull);
		s->live_pages += e[i].pages - (c->live[k->number] - 1ull);
		c->live_pages += e[i].pages - (c->live[k->number] - 1ull);
		c->live[k->number] = e[i].pages + 1;
	}
	return 0;
}

/* ---- what a client brings back ---- */

/* Its pages' hashes are ours to compute: what a sealed file holds is true, whoever made it. */
static int hash_all(struct gw_store *s, struct gw_chunk *k)
{
	for (unsigned at = 0; at < k->slots;) {
		unsigned n = GW_MIN(k->slots - at, HASH_AT_ONCE);
		int r = gw_chunk_read(k, at, n, s->page);

		if (r < 0)
			return r;
		for (unsigned i = 0; i < n; i++) {
			XXH128_hash_t h = XXH3_128bits_withSecret(s->page[i], sizeof(s->page[i]), s->secret, sizeof(s->secret));

			k->slot[at + i].key = key_of(s, h.low64, h.high64);
		}
		at += n;
	}
	return 0;
}

/* A page that was brought has been seen elsewhere: who reported it reports it no more, and is told now. */
static void order_seen(struct gw_store *s, uint64_t *where, struct gw_chunk *k, unsigned slot)
{
	struct gw_store_client *c = client_by_number(s, where_number(*where));

	if (still_seen(c, where_page(*where), k->slot[slot].key)) {
		k->slot[slot].origin = *where;
		(void)gw_store_order(c, where_page(*where), k->number, slot);
	}
	*where = where_stored(k->number, slot);
}

struct gw_chunk *gw_store_bring(struct gw_store_client *c, int *fd)
{
	struct gw_store *s = c->store;
	struct gw_chunk *k = NULL, *known;
	uint64_t *where;

	if (gw_chunk_adopt(*fd, &k) < 0)
		return NULL;
	*fd = -1;
	where = gw_index_find(&s->files, file_key(s, k));
	known = where ? gw_store_chunk(s, (uint32_t)(*where - 1)) : NULL;
	if (known && known->dev == k->dev && known->ino == k->ino) {
		gw_chunk_unref(k);
		return known;
	}
	if (known || c->alone + k->slots > c->pages || c->held_slots + k->slots > HELD_MAX(c->pages) || hash_all(s, k) < 0 ||
	    gw_store_enter(s, k) < 0) {
		gw_chunk_unref(k);
		return NULL;
	}
	k->owner = c->serial;
	c->stored += k->slots;
	s->stored_pages += k->slots;
	for (unsigned i = 0; i < k->slots; i++) {
		uint64_t key = k->slot[i].key;

		where = gw_index_find(&s->index, key);
		if (!where)
			(void)gw_index_put(&s->index, key, where_stored(k->number, i));
		else if ((*where & WHERE_KIND) == WHERE_SEEN)
			order_seen(s, where, k, i);
	}
	gw_store_sealed(s, k);
	return k;
}

static void may_map_all(struct gw_chunk *k, uint32_t ref)
{
	struct gw_chunk_told *told = gw_store_told(k, ref, false);

	for (unsigned i = 0; told && i < k->slots; i++)
		gw_store_may_map(told, i);
}

bool gw_store_adopted(struct gw_store_client *c, uint32_t cookie, struct gw_chunk *k)
{
	struct gw_share_adopted m = { .chunk = cookie, .now = GW_SHARE_NO_CHUNK };

	if (k && gw_store_hold(c, k, false)) {
		may_map_all(k, c->ref);
		m.now = k->number;
	}
	gw_outbox_put(&c->out, GW_SHARE_ADOPTED, 0, &m, 1, sizeof(m), NULL);
	gw_store_touch(c);
	return m.now != GW_SHARE_NO_CHUNK;
}

int gw_store_adopt(struct gw_store_client *c, const struct gw_share_adopt *e, int fd)
{
	gw_autofd file = fd;
	struct gw_chunk *k;

	if (c->reported > 0 || e->chunk >= 1u << 31 || e->pages > c->pages)
		return -EPROTO;
	k = gw_store_bring(c, &file);
	/* It maps what it was asked to in another life. LIVE of 0 would be to let go of it. */
	if (gw_store_adopted(c, e->chunk, k) && e->pages > 0) {
		struct gw_share_live live = { .chunk = k->number, .pages = e->pages };

		(void)gw_store_live(c, &live, 1);
	}
	return 0;
}

/* ---- orders ---- */

int gw_store_order(struct gw_store_client *c, uint32_t page, uint32_t chunk, unsigned slot)
{
	if (gw_store_grow(&c->order, &c->cap_orders, c->norders, sizeof(*c->order)) < 0)
		return -ENOMEM;
	c->order[c->norders++] = (struct order){ page, chunk, (uint16_t)slot };
	gw_store_touch(c);
	return 0;
}

static int order_by_page(const void *a, const void *b)
{
	const struct order *x = a, *y = b;

	return x->page < y->page ? -1 : x->page > y->page;
}

static bool in_order(const struct order *o, uint32_t n)
{
	for (uint32_t i = 1; i < n; i++)
		if (o[i - 1].page > o[i].page)
			return false;
	return true;
}

/* Packets of runs; of several orders for one page only the first is sent. */
static void send_merges(struct gw_store_client *c)
{
	struct gw_share_merge run[GW_SHARE_MAX_RUNS];
	unsigned n = 0;

	for (uint32_t i = 0; i < c->norders; i++) {
		const struct order *o = &c->order[i];
		struct gw_share_merge *last = n > 0 ? &run[n - 1] : NULL;

		if (o->chunk == NONE || (last && o->page < last->page + last->count))
			continue;
		if (last && last->chunk == o->chunk && last->page + last->count == o->page && last->slot + last->count == o->slot) {
			last->count++;
			continue;
		}
		if (n == GW_SHARE_MAX_RUNS) {
			gw_outbox_put(&c->out, GW_SHARE_MERGE, 0, run, n, sizeof(run[0]), NULL);
			n = 0;
		}
		run[n++] = (struct gw_share_merge){ .page = o->page, .chunk = o->chunk, .slot = o->slot, .count = 1 };
	}
	if (n > 0)
		gw_outbox_put(&c->out, GW_SHARE_MERGE, 0, run, n, sizeof(run[0]), NULL);
}

void gw_store_send_orders(struct gw_store_client *c)
{
	struct gw_chunk_told *told = NULL;
	uint32_t last = NONE;

	if (c->norders == 0)
		return;
	if (!in_order(c->order, c->norders))
		qsort(c->order, c->norders, sizeof(*c->order), order_by_page);
	for (uint32_t i = 0; i < c->norders; i++) {
		struct gw_chunk *k;

		if (c->order[i].chunk == last) {
			gw_store_may_map(told, c->order[i].slot);
			continue;
		}
		k = gw_store_chunk(c->store, c->order[i].chunk);
		if (k && k->sealed && gw_store_hold(c, k, true)) {
			last = k->number;
			told = gw_store_told(k, c->ref, false);
			gw_store_may_map(told, c->order[i].slot);
		} else {
			c->order[i].chunk = NONE;
		}
	}
	send_merges(c);
	c->norders = 0;
	if (c->cap_orders > 4 * GW_SHARE_MAX_REPORT) {
		free(c->order);
		c->order = NULL;
		c->cap_orders = 0;
	}
}
