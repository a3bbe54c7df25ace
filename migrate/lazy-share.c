// SPDX-License-Identifier: Apache-2.0
/* Lazy loading and the host's page store: what it has is mapped, what it lacks is given to it. See lazy.h. */
#include <errno.h>
#include <string.h>

#include "ksm/lineage.h"
#include "lib/log.h"
#include "lib/ram/uffd.h"
#include "lib/util.h"
#include "migrate/lazy-internal.h"
#include "migrate/repo/naming.h"

#define MIN_GATHERED 64u /* a chunk is a descriptor here and in every process that maps it */
#define RUN_PAGES 64u    /* checked at a time: who waits for one of them does not wait for many */

static_assert(GW_LAZY_PAGES <= GW_SHARE_MAX_FIND, "one question a fetch");
static_assert(GW_PROOF_LEN == GW_SHARE_PROOF_LEN, "proofs are carried as they are");

/* What was placed, and is to be a chunk when there is enough of it. */
struct gw_lazy_gift {
	pthread_mutex_t lock;
	unsigned count;
	struct gw_share_named names[GW_SHARE_CHUNK_PAGES];
	uint8_t pages[GW_SHARE_CHUNK_PAGES][GW_PAGE_SIZE];
};

struct gw_lazy_share {
	struct gw_lazy *l;
	struct gw_naming *naming;
	/* Of the work at hand, in its order. */
	unsigned count;
	uint64_t page[GW_LAZY_PAGES];
	bool done[GW_LAZY_PAGES]; /* found, or gathered */
	struct gw_share_find ask[GW_LAZY_PAGES];
	struct gw_share_named name[GW_LAZY_PAGES];
	struct gw_lineage_found found[GW_LAZY_PAGES];
	uint8_t (*data)[GW_PAGE_SIZE]; /* NULL until something is gathered */
};

int gw_lazy_share_new(struct gw_lazy *l, struct gw_lazy_share **ret)
{
	struct gw_lazy_share *s = calloc(1, sizeof(*s));

	if (!s || gw_naming_new(l->snap, &s->naming) < 0) {
		free(s);
		return -ENOMEM;
	}
	s->l = l;
	*ret = s;
	return 0;
}

void gw_lazy_share_free(struct gw_lazy_share *s)
{
	if (!s)
		return;
	gw_naming_free(s->naming);
	free(s->data);
	free(s);
}

static void spread(struct gw_lazy_share *s, const struct gw_lazy_work *work)
{
	s->count = 0;
	for (unsigned i = 0; i < work->count; i++)
		for (uint64_t k = 0; k < work->ranges[i].count; k++)
			s->page[s->count++] = work->ranges[i].page + k;
	memset(s->done, 0, s->count * sizeof(s->done[0]));
}

/* Maps slots in place of pages whose bytes were checked, or copies them where that is not worth it. */
static int map(struct gw_lazy *l, uint64_t page, uint32_t count, uint32_t chunk, uint32_t slot, const uint8_t *bytes)
{
	if (gw_lineage_map(l->lineage, page, count, chunk, slot) < 0)
		return gw_lazy_place(l, page, count, bytes);
	pthread_mutex_lock(&l->lock);
	gw_lazy_placed(l, page, count);
	pthread_mutex_unlock(&l->lock);
	/* Mapping wakes nobody; who waits may not have been noted yet. */
	(void)gw_uffd_wake(l->uffd, (uintptr_t)gw_ram_page(l->ram, page), (uint64_t)count << GW_PAGE_SHIFT);
	return 0;
}

/* ---- what the store has ---- */

/* A run of pages is said to be slots in a row: those that are, in as few pieces as they come in. */
static void take_run(struct gw_lazy_share *s, const struct gw_lineage_found *f, unsigned count)
{
	static struct gw_ratelimit limit;
	const uint8_t *bytes = gw_lineage_view(s->l->lineage, f->chunk, f->slot, count);
	unsigned from = 0, wrong = 0;

	for (unsigned i = 0; bytes && i <= count; i++) {
		const uint8_t *at = bytes + ((size_t)from << GW_PAGE_SHIFT);
		bool right = i < count && gw_naming_check(s->naming, s->page[f[i].index], bytes + ((size_t)i << GW_PAGE_SHIFT), f[i].proof) == 0;

		if (right)
			continue;
		wrong += i < count;
		if (i > from && map(s->l, s->page[f[from].index], i - from, f->chunk, f[from].slot, at) == 0)
			memset(&s->done[f[from].index], true, i - from);
		from = i + 1;
	}
	if (wrong)
		gw_warn_limited(&limit, "loading: %u pages of the page store are not what they are called", wrong);
	if (bytes)
		gw_lineage_unview(bytes, count);
}

/* How many follow one another from here on, in memory, in the work and in the chunk. */
static unsigned run_length(const struct gw_lazy_share *s, const struct gw_lineage_found *f, unsigned n)
{
	unsigned k = 1, most = (unsigned)GW_MIN((uint64_t)RUN_PAGES, gw_ram_contiguous(s->l->ram, s->page[f->index]));

	while (k < n && k < most && f[k].chunk == f->chunk && f[k].slot == f->slot + k && f[k].index == f->index + k &&
	       s->page[f[k].index] == s->page[f->index] + k)
		k++;
	return k;
}

/* Asks for pages from..to-1 of the work, whose names are known, and maps what is right. How many the store said it had. */
static unsigned find(struct gw_lazy_share *s, unsigned from, unsigned to, bool urgent)
{
	unsigned n = gw_lineage_find(s->l->lineage, s->ask + from, to - from, urgent, s->found), k;

	for (unsigned i = 0; i < n; i++)
		s->found[i].index += from;
	for (unsigned i = 0; i < n; i += k) {
		k = run_length(s, &s->found[i], n - i);
		take_run(s, &s->found[i], k);
	}
	return n;
}

static void give_back(struct gw_lazy *l, uint64_t page)
{
	const struct gw_lazy_work one = { .ranges = { { page, 1 } }, .count = 1 };

	pthread_mutex_lock(&l->lock);
	gw_lazy_unclaim(l, &one);
	pthread_mutex_unlock(&l->lock);
}

/* What is not done is the work now. What has no room in it is fetched another time. */
static void keep_rest(struct gw_lazy_share *s, struct gw_lazy_work *work)
{
	work->count = 0;
	work->pages = 0;
	for (unsigned i = 0; i < s->count; i++) {
		struct gw_snap_range *last = work->count ? &work->ranges[work->count - 1] : NULL;

		if (s->done[i])
			continue;
		if (last && last->page + last->count == s->page[i]) {
			last->count++;
		} else if (work->count < GW_LAZY_RANGES) {
			work->ranges[work->count++] = (struct gw_snap_range){ s->page[i], 1 };
		} else {
			give_back(s->l, s->page[i]);
			continue;
		}
		work->pages++;
	}
}

void gw_lazy_share_find(struct gw_lazy_share *s, struct gw_lazy_work *work)
{
	if (!gw_lineage_ready(s->l->lineage))
		return;
	spread(s, work);
	for (unsigned i = 0; i < s->count; i++)
		s->ask[i].name = gw_naming_name(s->naming, s->page[i]);
	if (find(s, 0, s->count, work->fault) > 0)
		keep_rest(s, work);
}

/* ---- what the store is given ---- */

bool gw_lazy_share_gathers(struct gw_lazy_share *s, const struct gw_lazy_work *work)
{
	if (work->fault || work->pages < MIN_GATHERED || !gw_lineage_ready(s->l->lineage))
		return false;
	if (!s->data)
		s->data = malloc(GW_LAZY_PAGES * sizeof(*s->data));
	spread(s, work);
	return s->data != NULL;
}

void gw_lazy_share_gather(struct gw_lazy_share *s, uint64_t page, uint64_t count, const uint8_t *data)
{
	for (unsigned i = 0; i < s->count; i++) {
		if (s->page[i] < page || s->page[i] - page >= count)
			continue;
		memcpy(s->data[i], data + ((s->page[i] - page) << GW_PAGE_SHIFT), GW_PAGE_SIZE);
		s->done[i] = true;
	}
}

static void name(struct gw_lazy_share *s, uint64_t page, const void *bytes, struct gw_share_named *ret)
{
	ret->name = gw_naming_name(s->naming, page);
	/* Should this fail, whoever finds it by that name checks it in vain. */
	if (gw_naming_prove(s->naming, page, bytes, ret->proof) < 0)
		memset(ret->proof, 0, sizeof(ret->proof));
}

/* Those of pages from..to-1 that are done, in pieces that follow one another in memory. `chunk` holds them from slot 0 on; GW_OVERLAYS_NONE: none does. */
static int settle(struct gw_lazy_share *s, unsigned from, unsigned to, uint32_t chunk)
{
	unsigned n;
	int r = 0;

	for (unsigned i = from; i < to && r == 0; i += n) {
		uint64_t most = GW_MIN((uint64_t)(to - i), gw_ram_contiguous(s->l->ram, s->page[i]));

		for (n = 1; n < most && s->page[i + n] == s->page[i] + n && s->done[i + n] == s->done[i]; n++)
			;
		if (!s->done[i])
			continue;
		r = chunk == GW_OVERLAYS_NONE ? gw_lazy_place(s->l, s->page[i], n, s->data[i]) :
						map(s->l, s->page[i], n, chunk, i - from, s->data[i]);
	}
	return r;
}

/* Somebody else was quicker: what he has given is mapped, the rest is placed. */
static int settle_known(struct gw_lazy_share *s, unsigned from, unsigned to)
{
	memset(s->done + from, false, (to - from) * sizeof(s->done[0]));
	find(s, from, to, false);
	for (unsigned i = from; i < to; i++)
		s->done[i] = !s->done[i];
	return settle(s, from, to, GW_OVERLAYS_NONE);
}

int gw_lazy_share_give(struct gw_lazy_share *s, bool all)
{
	int r = 0;

	for (unsigned from = 0, to; from < s->count && r == 0; from = to) {
		uint32_t chunk = GW_OVERLAYS_NONE;
		int offered = -EINVAL;

		to = GW_MIN(s->count, from + GW_SHARE_CHUNK_PAGES);
		for (unsigned i = from; i < to && all; i++) {
			name(s, s->page[i], s->data[i], &s->name[i]);
			s->ask[i].name = s->name[i].name;
		}
		if (all)
			offered = gw_lineage_offer(s->l->lineage, s->data[from], &s->name[from], to - from, &chunk);
		r = offered == -EEXIST ? settle_known(s, from, to) : settle(s, from, to, chunk);
	}
	return r;
}

/* ---- what was placed at once ---- */

int gw_lazy_gift_new(struct gw_lazy *l)
{
	l->gift = calloc(1, sizeof(*l->gift));
	if (!l->gift)
		return -ENOMEM;
	pthread_mutex_init(&l->gift->lock, NULL);
	return 0;
}

void gw_lazy_gift_free(struct gw_lazy *l)
{
	if (!l->gift)
		return;
	pthread_mutex_destroy(&l->gift->lock);
	free(l->gift);
}

/* With its lock held. Nothing is mapped of it: the sharer's first pass finds that our copies are equal. */
static void offer(struct gw_lazy *l)
{
	struct gw_lazy_gift *g = l->gift;

	if (g->count > 0)
		(void)gw_lineage_offer(l->lineage, g->pages, g->names, g->count, NULL);
	g->count = 0;
}

void gw_lazy_share_placed(struct gw_lazy_share *s, uint64_t first, uint64_t count, const uint8_t *data)
{
	struct gw_lazy_gift *g = s->l->gift;

	if (!gw_lineage_ready(s->l->lineage))
		return;
	pthread_mutex_lock(&g->lock);
	for (uint64_t i = 0; i < count; i++) {
		memcpy(g->pages[g->count], data + (i << GW_PAGE_SHIFT), GW_PAGE_SIZE);
		name(s, first + i, g->pages[g->count], &g->names[g->count]);
		if (++g->count == GW_SHARE_CHUNK_PAGES)
			offer(s->l);
	}
	pthread_mutex_unlock(&g->lock);
}

void gw_lazy_share_flush(struct gw_lazy *l)
{
	pthread_mutex_lock(&l->gift->lock);
	offer(l);
	pthread_mutex_unlock(&l->gift->lock);
}
