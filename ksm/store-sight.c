// SPDX-License-Identifier: Apache-2.0
/* From a report to a stored page: notes of where hashes were seen, second sightings, bytes asked for and checked. See store.h. */
#include <errno.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "ksm/store-internal.h"
#include "lib/clock.h"
#include "lib/log.h"

/* How far the index is looked up ahead of the entry that is handled, and the pages or chunks that it names. */
#define AHEAD_INDEX 24u
#define AHEAD_WHERE 12u

/* ---- pending pages ---- */

static uint32_t alloc_pending(struct gw_store *s)
{
	uint32_t i = s->free_pending;

	if (i != NONE) {
		s->free_pending = s->pending[i].waiters;
	} else {
		if (gw_store_grow(&s->pending, &s->cap_pending, s->npending, sizeof(*s->pending)) < 0)
			return NONE;
		i = s->npending++;
	}
	s->used_pending++;
	return i;
}

/* Tables of what is under way go when nothing is. */
static void drop_tables(struct gw_store *s)
{
	if (s->used_pending > 0 || s->used_waiters > 0)
		return;
	free(s->pending);
	free(s->waiter);
	s->pending = NULL;
	s->waiter = NULL;
	s->npending = s->cap_pending = s->nwaiters = s->cap_waiters = 0;
	s->free_pending = s->free_waiter = NONE;
}

static void free_pending(struct gw_store *s, uint32_t i)
{
	s->pending[i].tries = 0;
	s->pending[i].waiters = s->free_pending;
	s->free_pending = i;
	s->used_pending--;
	drop_tables(s);
}

static bool may_wait(const struct gw_store_client *c)
{
	return c->waiting < c->pages + GW_SHARE_CHUNK_PAGES;
}

/* `page`: with WAITER_ASKED or without. */
static int add_waiter(struct gw_store *s, uint32_t pending, struct gw_store_client *c, uint32_t page)
{
	uint32_t i = s->free_waiter;

	if (!may_wait(c))
		return -ENOBUFS;
	if (i != NONE) {
		s->free_waiter = s->waiter[i].next;
	} else {
		if (gw_store_grow(&s->waiter, &s->cap_waiters, s->nwaiters, sizeof(*s->waiter)) < 0)
			return -ENOMEM;
		i = s->nwaiters++;
	}
	s->waiter[i] = (struct waiter){ c->ref, page, s->pending[pending].waiters };
	s->pending[pending].waiters = i;
	s->used_waiters++;
	c->waiting++;
	return 0;
}

/* Takes the first waiter off: *page is as it was added. Its client when that lives and the page is still what it was, else NULL. False: none. */
static bool take_waiter(struct gw_store *s, uint32_t *head, uint64_t key, struct gw_store_client **ret, uint32_t *page)
{
	uint32_t i = *head;
	struct gw_store_client *c;

	if (i == NONE)
		return false;
	c = client_by_ref(s, s->waiter[i].client);
	*page = s->waiter[i].page;
	*head = s->waiter[i].next;
	s->waiter[i].next = s->free_waiter;
	s->free_waiter = i;
	s->used_waiters--;
	if (c && c->waiting > 0)
		c->waiting--;
	*ret = still_seen(c, *page & ~WAITER_ASKED, key) ? c : NULL;
	return true;
}

/* ---- what a client is asked for ---- */

static int want(struct gw_store_client *c, uint32_t pending)
{
	struct gw_store *s = c->store;

	if (c->pending >= MAX_PENDING)
		return -ENOBUFS;
	if (c->nwants == c->cap_wants && c->first_want > 0) {
		c->nwants -= c->first_want;
		memmove(c->want, c->want + c->first_want, c->nwants * sizeof(*c->want));
		c->first_want = 0;
	}
	if (gw_store_grow(&c->want, &c->cap_wants, c->nwants, sizeof(*c->want)) < 0)
		return -ENOMEM;
	if (c->nwants > c->first_want && s->pending[c->want[c->nwants - 1]].page > s->pending[pending].page)
		c->wants_unsorted = true;
	c->want[c->nwants++] = pending;
	c->pending++;
	gw_store_touch(c);
	return 0;
}

/* The page is not what it was reported as, as far as we know. */
static void unsee(struct gw_store_client *c, uint32_t page, uint64_t key)
{
	if (still_seen(c, page, key))
		c->seen[page] = 0;
}

/*
 * The one who was asked has not got it (it is no longer in any list of his). Another who waits is asked, of a client that was not asked yet: one
 * who lies cannot be asked in the others' place again and again. With a single one left that is where the hash was seen.
 */
static void fail_pending(struct gw_store *s, uint32_t i)
{
	struct gw_store_client *asked = client_by_ref(s, s->pending[i].client), *c, *best = NULL, *seen = NULL;
	uint64_t key = key_of(s, s->pending[i].low, s->pending[i].high);
	uint64_t *where = gw_index_find(&s->index, key);
	uint32_t old = s->pending[i].waiters, page, best_page = 0, seen_page = 0, others = 0;

	if (asked)
		asked->pending--;
	s->pending[i].waiters = NONE;
	while (take_waiter(s, &old, key, &c, &page)) {
		if (!c)
			continue;
		page |= c == asked ? WAITER_ASKED : 0;
		seen = c;
		seen_page = page & ~WAITER_ASKED;
		if (!best && !(page & WAITER_ASKED)) {
			best = c;
			best_page = page;
		} else if (add_waiter(s, i, c, page) == 0) {
			others++;
		}
	}
	if (best && others > 0 && s->pending[i].tries < MAX_TRIES && want(best, i) == 0) {
		s->pending[i].client = best->ref;
		s->pending[i].page = best_page;
		s->pending[i].tries++;
		/* Its page is known only now. */
		best->wants_unsorted = true;
		return;
	}
	while (take_waiter(s, &s->pending[i].waiters, key, &c, &page))
		;
	/* Rather where nobody has failed yet. */
	if (where && best)
		*where = where_seen(best->number, best_page);
	else if (where && seen)
		*where = where_seen(seen->number, seen_page);
	else if (where)
		gw_index_remove(&s->index, key);
	free_pending(s, i);
}

static int by_page(const void *a, const void *b, void *arg)
{
	const struct pending *p = arg;
	uint32_t x = p[*(const uint32_t *)a].page, y = p[*(const uint32_t *)b].page;

	return x < y ? -1 : x > y;
}

static struct fetch *free_fetch(struct gw_store_client *c)
{
	if (!c->fetch)
		c->fetch = calloc(MAX_FETCHES, sizeof(*c->fetch));
	for (unsigned i = 0; c->fetch && i < MAX_FETCHES; i++)
		if (c->fetch[i].sent_ns == 0)
			return &c->fetch[i];
	return NULL;
}

void gw_store_ask(struct gw_store_client *c)
{
	struct gw_store *s = c->store;

	while (c->first_want < c->nwants && c->nfetches < MAX_FETCHES) {
		struct gw_share_wanted page[GW_SHARE_MAX_FETCH];
		struct fetch *f = free_fetch(c);

		if (!f)
			return;
		if (c->wants_unsorted)
			qsort_r(c->want + c->first_want, c->nwants - c->first_want, sizeof(*c->want), by_page, s->pending);
		c->wants_unsorted = false;
		f->n = f->next = 0;
		while (f->n < GW_SHARE_MAX_FETCH && c->first_want < c->nwants) {
			uint32_t i = c->want[c->first_want++];

			/* It was reported as something else since. */
			if (!still_seen(c, s->pending[i].page, key_of(s, s->pending[i].low, s->pending[i].high))) {
				fail_pending(s, i);
				continue;
			}
			page[f->n].page = s->pending[i].page;
			f->pending[f->n++] = i;
		}
		if (f->n == 0)
			continue;
		f->cookie = ++c->next_cookie;
		f->sent_ns = gw_now_ns();
		c->nfetches++;
		gw_outbox_put(&c->out, GW_SHARE_FETCH, f->cookie, page, f->n, sizeof(page[0]), NULL);
	}
	if (c->first_want == c->nwants) {
		c->first_want = c->nwants = 0;
		if (c->cap_wants > MAX_WANTED) {
			free(c->want);
			c->want = NULL;
			c->cap_wants = 0;
		}
	}
}

void gw_store_forget_fetches(struct gw_store_client *c)
{
	for (unsigned i = 0; c->fetch && i < MAX_FETCHES; i++) {
		struct fetch *f = &c->fetch[i];

		while (f->sent_ns != 0 && f->next < f->n)
			fail_pending(c->store, f->pending[f->next++]);
		f->sent_ns = 0;
	}
	while (c->first_want < c->nwants)
		fail_pending(c->store, c->want[c->first_want++]);
}

/* ---- reports ---- */

static void second_sighting(struct gw_store_client *c, const struct gw_share_hash *e, uint64_t *where)
{
	struct gw_store *s = c->store;
	struct gw_store_client *first = client_by_number(s, where_number(*where));
	uint32_t i;

	/* Where a bound of its own is met the first note simply stays; where the first one's is, it is not in the others' way. */
	if (c->pending >= MAX_PENDING)
		return;
	if (!may_wait(first)) {
		*where = where_seen(c->number, (uint32_t)e->page);
		return;
	}
	i = alloc_pending(s);
	if (i == NONE)
		return;
	s->pending[i] = (struct pending){ e->low, e->high, c->ref, (uint32_t)e->page, NONE, 1 };
	if (add_waiter(s, i, first, where_page(*where)) < 0) {
		free_pending(s, i);
		return;
	}
	if (want(c, i) < 0) {
		struct gw_store_client *none;
		uint32_t page;

		take_waiter(s, &s->pending[i].waiters, 0, &none, &page);
		free_pending(s, i);
		return;
	}
	*where = where_pending(i);
}

int gw_store_await_chunk(struct gw_chunk *k, struct gw_store_client *c, uint32_t page, unsigned slot)
{
	if (!may_wait(c))
		return -ENOBUFS;
	if (gw_store_grow(&k->waiter, &k->cap_waiters, k->nwaiters, sizeof(*k->waiter)) < 0)
		return -ENOMEM;
	k->waiter[k->nwaiters++] = (struct gw_chunk_waiter){ c->ref, page, (uint16_t)slot };
	c->waiting++;
	return 0;
}

static void report_one(struct gw_store_client *c, const struct gw_share_hash *e, uint64_t key)
{
	struct gw_store *s = c->store;
	uint16_t old = c->seen[e->page], tag = tag_of(key);
	uint64_t *where = gw_index_find(&s->index, key);
	uint64_t here = where_seen(c->number, e->page);

	if (old != tag) {
		if (old != 0) {
			gw_index_stale(&s->index, (uint64_t)old << 48);
			s->stale++;
		}
		c->seen[e->page] = tag;
	}
	if (!where) {
		/* Without memory it is not noted: the next one who reports it is the first. */
		(void)gw_index_put(&s->index, key, here);
		return;
	}
	switch (*where & WHERE_KIND) {
	case WHERE_SEEN:
		if (*where == here)
			break;
		if (still_seen(client_by_number(s, where_number(*where)), where_page(*where), key))
			second_sighting(c, e, where);
		else
			*where = here;
		break;
	case WHERE_PENDING: {
		const struct pending *p = &s->pending[(uint32_t)*where];

		/* Even when it was reported before: it may have been ordered to a chunk that the client had just let go of. */
		if (p->low == e->low && p->high == e->high && (p->client != c->ref || p->page != e->page))
			(void)add_waiter(s, (uint32_t)*where, c, (uint32_t)e->page);
		break;
	}
	case WHERE_STORED: {
		struct gw_chunk *k = s->chunk[where_chunk(*where)];
		unsigned slot = where_slot(*where);

		if (k->sealed)
			(void)gw_store_order(c, (uint32_t)e->page, k->number, slot);
		else if (k->slot[slot].origin != here)
			(void)gw_store_await_chunk(k, c, (uint32_t)e->page, slot);
		break;
	}
	}
}

static void prefetch_where(const struct gw_store *s, uint64_t where)
{
	if ((where & WHERE_KIND) == WHERE_SEEN) {
		const struct gw_store_client *c = client_by_number(s, where_number(where));

		if (c && where_page(where) < c->pages)
			__builtin_prefetch(&c->seen[where_page(where)]);
	} else if ((where & WHERE_KIND) == WHERE_STORED) {
		__builtin_prefetch(&s->chunk[where_chunk(where)]->slot[where_slot(where)]);
	}
}

int gw_store_report(struct gw_store_client *c, const struct gw_share_hash *e, unsigned n)
{
	struct gw_store *s = c->store;
	uint64_t key[GW_SHARE_MAX_REPORT];

	for (unsigned i = 0; i < n; i++)
		if (e[i].page >= c->pages)
			return -EPROTO;
	if (c->dones_due + c->out.dones >= GW_SHARE_REPORTS_AHEAD)
		return -EPROTO;
	/* Three loops in step, so that memory is on its way when it is needed. */
	for (unsigned i = 0; i < n + AHEAD_INDEX; i++) {
		if (i < n) {
			key[i] = key_of(s, e[i].low, e[i].high);
			gw_index_prefetch(&s->index, key[i]);
			__builtin_prefetch(&c->seen[e[i].page], 1);
		}
		if (i >= AHEAD_INDEX - AHEAD_WHERE && i - (AHEAD_INDEX - AHEAD_WHERE) < n) {
			const uint64_t *where = gw_index_find(&s->index, key[i - (AHEAD_INDEX - AHEAD_WHERE)]);

			if (where)
				prefetch_where(s, *where);
		}
		if (i >= AHEAD_INDEX)
			report_one(c, &e[i - AHEAD_INDEX], key[i - AHEAD_INDEX]);
	}
	c->reported += n;
	c->dones_due++;
	gw_store_touch(c);
	return 0;
}

/* ---- bytes ---- */

/* The page is in a chunk now; who waited for it waits for the chunk. */
static void stored(struct gw_store_client *c, struct gw_chunk *k, unsigned slot, uint32_t i)
{
	struct gw_store *s = c->store;
	uint64_t key = key_of(s, s->pending[i].low, s->pending[i].high);
	uint64_t *where = gw_index_find(&s->index, key);
	struct gw_store_client *other;
	uint32_t page;

	k->slot[slot] = (struct gw_chunk_slot){ key, where_seen(c->number, s->pending[i].page) };
	if (where)
		*where = where_stored(k->number, slot);
	while (take_waiter(s, &s->pending[i].waiters, key, &other, &page))
		if (other)
			(void)gw_store_await_chunk(k, other, page & ~WAITER_ASKED, slot);
	(void)gw_store_await_chunk(k, c, s->pending[i].page, slot);
	c->pending--;
	c->stored++;
	s->stored_pages++;
	free_pending(s, i);
}

static int open_chunk(struct gw_store_client *c)
{
	struct gw_chunk *k = NULL;
	int r;

	if (c->open)
		return 0;
	r = gw_chunk_new(&k);
	r = r ?: gw_store_enter(c->store, k);
	if (r < 0) {
		gw_chunk_unref(k);
		return r;
	}
	k->owner = c->serial;
	c->open = k;
	c->opened_ns = gw_now_ns();
	return 0;
}

/* Appends n checked pages. */
static int store(struct gw_store_client *c, const uint32_t *pending, const struct iovec *iov, unsigned n)
{
	static struct gw_ratelimit limit;

	for (unsigned at = 0; at < n;) {
		unsigned take, slot;
		int r = c->alone + (c->open ? c->open->slots : 0) >= c->pages ? -EDQUOT : open_chunk(c);

		if (r == 0) {
			slot = c->open->slots;
			take = GW_MIN(n - at, GW_SHARE_CHUNK_PAGES - slot);
			r = gw_chunk_append(c->open, iov + at, take);
		}
		if (r < 0) {
			if (r != -EDQUOT)
				gw_warn_limited(&limit, "domain %s: cannot store pages: %s", c->store->domain, strerrordesc_np(-r));
			for (; at < n; at++)
				fail_pending(c->store, pending[at]);
			return r;
		}
		for (unsigned i = 0; i < take; i++)
			stored(c, c->open, slot + i, pending[at + i]);
		at += take;
		c->open_ns = gw_now_ns();
		if (c->open->slots == GW_SHARE_CHUNK_PAGES)
			gw_store_seal(c);
	}
	return 0;
}

/* A page that was asked for and will not come, or not as it was. */
static void lost(struct gw_store_client *c, uint32_t i)
{
	unsee(c, c->store->pending[i].page, key_of(c->store, c->store->pending[i].low, c->store->pending[i].high));
	fail_pending(c->store, i);
}

int gw_store_pages(struct gw_store_client *c, uint32_t cookie, const struct gw_share_page *e, unsigned n)
{
	struct gw_store *s = c->store;
	uint32_t pending[GW_SHARE_MAX_PAGES];
	struct iovec iov[GW_SHARE_MAX_PAGES];
	struct fetch *f = NULL;
	unsigned good = 0, bad = 0;
	int r = 0;

	for (unsigned i = 0; c->fetch && i < MAX_FETCHES; i++)
		if (c->fetch[i].sent_ns != 0 && c->fetch[i].cookie == cookie)
			f = &c->fetch[i];
	if (!f)
		return -EPROTO;
	for (unsigned i = 0; i < n; i++) {
		XXH128_hash_t h;
		uint32_t p;

		while (f->next < f->n && s->pending[f->pending[f->next]].page != e[i].page)
			lost(c, f->pending[f->next++]);
		if (f->next == f->n) {
			r = -EPROTO;
			break;
		}
		p = f->pending[f->next++];
		h = XXH3_128bits_withSecret(e[i].bytes, sizeof(e[i].bytes), s->secret, sizeof(s->secret));
		if (h.low64 == s->pending[p].low && h.high64 == s->pending[p].high) {
			pending[good] = p;
			iov[good++] = (struct iovec){ (void *)e[i].bytes, sizeof(e[i].bytes) };
		} else {
			bad++;
			lost(c, p);
		}
	}
	c->lies += bad;
	(void)store(c, pending, iov, good);
	if (r == 0 && n < GW_SHARE_MAX_PAGES) {
		while (f->next < f->n)
			lost(c, f->pending[f->next++]);
		f->sent_ns = 0;
		c->nfetches--;
	}
	gw_store_touch(c);
	return r;
}
