// SPDX-License-Identifier: Apache-2.0
/* The merger; see merge.h. */
#include "ksm/merge.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/util.h"

#define MIN_WINDOW 16u
#define FIRST_WINDOW 64u
#define MAX_WINDOW 512u
#define MAX_SPAN 512u /* pages from the first run of a batch to the last */
#define DEFAULT_STALL_NS (2 * GW_NS_PER_MS)
#define MAX_ORDERS 1024u
#define LEAVE (GW_OVERLAYS_NONE - 1) /* in place of a chunk */
#define HUGE 512u /* pages of a huge page */

struct order {
	uint64_t page;
	uint32_t count;
	uint32_t chunk; /* GW_OVERLAYS_NONE: zeros; LEAVE */
	uint32_t slot;
};

struct gw_merger {
	struct gw_ram *ram;
	struct gw_pagemap *map;
	struct gw_written *written;
	struct gw_overlays *overlays;
	struct gw_window *window;
	struct order *orders;
	unsigned count;
	uint32_t window_pages;
	uint64_t stall_ns;
	uint32_t budget;
	struct gw_merger_stats stats;
	struct gw_ratelimit complaints;
	/* the batch being built */
	struct gw_window_run runs[MAX_SPAN];
	struct order from[MAX_SPAN]; /* of each run */
	unsigned nruns;
	bool exchanged;    /* anything since mappings were counted */
	bool settle_due;   /* a bit of `changed` is set */
	uint64_t *changed; /* huge pages' worth of RAM in which something was exchanged; a bit each */
	pthread_mutex_t lock;
	pthread_cond_t closed;
	unsigned held;    /* under lock */
	bool open, quit;  /* under lock */
	uint32_t planned; /* mappings that it will take at most */
	uint32_t chunks[GW_OVERLAYS_VIEWS]; /* that its runs compare with: their views stay while there are no more */
	unsigned nchunks;
};

static uint32_t max_map_count(void)
{
	gw_autofile *f = fopen("/proc/sys/vm/max_map_count", "re");
	unsigned n;

	return f && fscanf(f, "%u", &n) == 1 ? n : 65530;
}

int gw_merger_new(struct gw_ram *ram, struct gw_pagemap *map, struct gw_written *written, struct gw_overlays *overlays,
		  const struct gw_merger_limits *limits, struct gw_merger **ret, struct gw_error *err)
{
	struct gw_merger *m = calloc(1, sizeof(*m));
	int r;

	if (m) {
		m->orders = calloc(MAX_ORDERS, sizeof(*m->orders));
		m->changed = calloc(gw_ram_pages(ram) / HUGE / 64 + 1, sizeof(*m->changed));
	}
	if (!m || !m->orders || !m->changed) {
		gw_merger_free(m);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->closed, NULL);
	m->ram = ram;
	m->map = map;
	m->written = written;
	m->overlays = overlays;
	m->stall_ns = limits->stall_ns ? limits->stall_ns : DEFAULT_STALL_NS;
	m->budget = limits->mappings ? limits->mappings : max_map_count() / 2;
	m->window_pages = FIRST_WINDOW;
	r = gw_window_new(ram, written, &m->stats.stall, &m->window, err);
	if (r < 0) {
		gw_merger_free(m);
		return r;
	}
	*ret = m;
	return 0;
}

void gw_merger_free(struct gw_merger *m)
{
	if (!m)
		return;
	gw_window_free(m->window);
	pthread_cond_destroy(&m->closed);
	pthread_mutex_destroy(&m->lock);
	free(m->changed);
	free(m->orders);
	free(m);
}

static void add(struct gw_merger *m, struct order o)
{
	if (m->count == MAX_ORDERS)
		gw_merger_run(m);
	m->orders[m->count++] = o;
}

void gw_merger_zero(struct gw_merger *m, uint64_t page, uint32_t count)
{
	struct order *last = m->count ? &m->orders[m->count - 1] : NULL;

	if (last && last->chunk == GW_OVERLAYS_NONE && last->page + last->count == page)
		last->count += count;
	else
		add(m, (struct order){ .page = page, .count = count, .chunk = GW_OVERLAYS_NONE });
}

void gw_merger_store(struct gw_merger *m, uint64_t page, uint32_t count, uint32_t chunk, uint32_t slot)
{
	add(m, (struct order){ .page = page, .count = count, .chunk = chunk, .slot = slot });
}

void gw_merger_leave(struct gw_merger *m, uint64_t page, uint32_t count)
{
	add(m, (struct order){ .page = page, .count = count, .chunk = LEAVE });
}

void gw_merger_look_again(struct gw_merger *m, uint64_t page, uint32_t count)
{
	if (m->written)
		gw_written_again(m->written, page, count);
}

uint32_t gw_merger_budget(const struct gw_merger *m)
{
	return m->budget;
}

const struct gw_merger_stats *gw_merger_stats(const struct gw_merger *m)
{
	return &m->stats;
}

struct gw_window *gw_merger_window(struct gw_merger *m)
{
	return m->window;
}

void gw_merger_mapped(struct gw_merger *m)
{
	m->exchanged = true;
}

void gw_merger_count_mappings(struct gw_merger *m)
{
	if (!m->exchanged)
		return;
	m->exchanged = false;
	m->stats.mappings = gw_overlays_mappings(m->overlays);
}

/* What is to be done with one page of an order; false: nothing. */
static bool choose(const struct gw_merger *m, const struct order *o, uint32_t at, bool own, enum gw_window_op *op)
{
	uint32_t chunk, slot;
	bool over = gw_overlays_at(m->overlays, o->page + at, &chunk, &slot) && gw_ram_is_backed(m->ram, o->page + at);

	if (o->chunk == LEAVE) {
		*op = GW_WINDOW_KEEP;
		return own && over;
	}
	if (o->chunk == GW_OVERLAYS_NONE) {
		*op = over ? GW_WINDOW_ANON : GW_WINDOW_DROP;
		return own;
	}
	if (over && chunk == o->chunk && slot == o->slot + at) {
		*op = GW_WINDOW_AGAIN;
		return own;
	}
	*op = GW_WINDOW_STORE;
	return own || over;
}

/* Whether the page before or after the run lies over the neighbouring slot: the kernel then joins the mappings. */
static bool joins(const struct gw_merger *m, const struct order *o)
{
	uint32_t chunk, slot;

	return (o->page > 0 && o->slot > 0 && gw_overlays_at(m->overlays, o->page - 1, &chunk, &slot) && chunk == o->chunk && slot == o->slot - 1) ||
	       (o->page + o->count < gw_ram_pages(m->ram) && gw_overlays_at(m->overlays, o->page + o->count, &chunk, &slot) && chunk == o->chunk &&
		slot == o->slot + o->count);
}

/* An isolated run takes two mappings. The fuller the budget, the longer a run must be to be worth them. */
static bool affordable(const struct gw_merger *m, const struct order *o)
{
	uint64_t used = m->stats.mappings + m->planned;

	if (joins(m, o))
		return used < m->budget;
	if (used + 2 > m->budget)
		return false;
	if (used * 4 < (uint64_t)m->budget * 3)
		return true;
	return o->count >= (used * 10 < (uint64_t)m->budget * 9 ? 4 : 16);
}

static void merge_batch(struct gw_merger *m);

static const uint8_t *view(struct gw_merger *m, uint32_t chunk)
{
	unsigned i = 0;

	while (i < m->nchunks && m->chunks[i] != chunk)
		i++;
	if (i == GW_OVERLAYS_VIEWS) {
		merge_batch(m);
		i = 0;
	}
	if (i == m->nchunks)
		m->chunks[m->nchunks++] = chunk;
	return gw_overlays_view(m->overlays, chunk);
}

static void add_run(struct gw_merger *m, const struct order *o, enum gw_window_op op)
{
	const uint8_t *want = NULL;

	if (op == GW_WINDOW_STORE && !affordable(m, o)) {
		m->stats.over_budget += o->count;
		return;
	}
	if (o->chunk < GW_OVERLAYS_MAX_CHUNKS) {
		want = view(m, o->chunk);
		if (!want) {
			m->stats.failed += o->count;
			gw_merger_look_again(m, o->page, o->count);
			return;
		}
	}
	m->planned += op == GW_WINDOW_STORE ? 2 : 0;
	m->from[m->nruns] = *o;
	m->runs[m->nruns++] = (struct gw_window_run){
		.page = o->page,
		.count = o->count,
		.op = op,
		.fd = op == GW_WINDOW_STORE ? gw_overlays_fd(m->overlays, o->chunk) : -1,
		.offset = (uint64_t)o->slot << GW_PAGE_SHIFT,
		.want = want ? want + ((size_t)o->slot << GW_PAGE_SHIFT) : NULL,
	};
}

/* Cuts an order into runs of pages with which the same is to be done. */
static void build(struct gw_merger *m, const struct order *o, const uint64_t *own, uint64_t base)
{
	struct order run = *o;
	enum gw_window_op op = 0, run_op = 0;

	run.count = 0;
	for (uint32_t k = 0; k <= o->count; k++) {
		uint64_t bit = o->page + k - base;
		bool mine = k < o->count && (own[bit / 64] >> (bit % 64) & 1);
		bool wanted = k < o->count && choose(m, o, k, mine, &op);

		/* It may have been taken for broken when a device was to write it and did not. */
		if (k < o->count && !mine)
			gw_overlays_mend(m->overlays, o->page + k, 1);
		if (run.count > 0 && (!wanted || op != run_op)) {
			add_run(m, &run, run_op);
			run.count = 0;
		}
		if (wanted && run.count == 0) {
			run.page = o->page + k;
			run.slot = o->slot + (o->chunk >= GW_OVERLAYS_MAX_CHUNKS ? 0 : k);
			run_op = op;
		}
		run.count += wanted;
	}
}

/* The run was exchanged (gw_window_done_fn). */
static void exchanged(void *self, unsigned i, uint64_t page, uint32_t count)
{
	struct gw_merger *m = self;
	const struct order *o = &m->from[i];

	m->exchanged = m->settle_due = true;
	for (uint64_t b = page / HUGE; b <= (page + count - 1) / HUGE; b++)
		m->changed[b / 64] |= 1ull << (b % 64);
	switch (m->runs[i].op) {
	case GW_WINDOW_STORE:
		m->stats.mappings += joins(m, o) ? 0 : 2;
		gw_overlays_set(m->overlays, page, count, o->chunk, o->slot + (uint32_t)(page - o->page));
		m->stats.store_pages += count;
		break;
	case GW_WINDOW_KEEP:
		gw_overlays_clear(m->overlays, page, count);
		break;
	case GW_WINDOW_ANON:
		gw_overlays_clear(m->overlays, page, count);
		m->stats.zero_pages += count;
		break;
	case GW_WINDOW_DROP:
		m->stats.zero_pages += count;
		break;
	case GW_WINDOW_AGAIN:
		gw_overlays_mend(m->overlays, page, count);
		m->stats.again_pages += count;
		break;
	}
}

/* Waits while held; false when it is not to open any more. */
static bool open_gate(struct gw_merger *m)
{
	bool ok;

	pthread_mutex_lock(&m->lock);
	while (m->held > 0 && !m->quit)
		pthread_cond_wait(&m->closed, &m->lock);
	ok = m->open = !m->quit;
	pthread_mutex_unlock(&m->lock);
	return ok;
}

static void close_gate(struct gw_merger *m)
{
	pthread_mutex_lock(&m->lock);
	m->open = false;
	pthread_cond_broadcast(&m->closed);
	pthread_mutex_unlock(&m->lock);
}

void gw_merger_hold(struct gw_merger *m)
{
	pthread_mutex_lock(&m->lock);
	m->held++;
	while (m->open)
		pthread_cond_wait(&m->closed, &m->lock);
	pthread_mutex_unlock(&m->lock);
}

void gw_merger_release(struct gw_merger *m)
{
	pthread_mutex_lock(&m->lock);
	m->held--;
	pthread_cond_broadcast(&m->closed);
	pthread_mutex_unlock(&m->lock);
}

void gw_merger_quit(struct gw_merger *m)
{
	pthread_mutex_lock(&m->lock);
	m->quit = true;
	pthread_cond_broadcast(&m->closed);
	pthread_mutex_unlock(&m->lock);
}

void gw_merger_settle(struct gw_merger *m)
{
	uint64_t pages = gw_ram_pages(m->ram);

	gw_overlays_close_views(m->overlays);
	if (!m->settle_due)
		return;
	m->settle_due = false;
	/*
	 * MADV_COLD splits what it meets a part of. The kernel does not put pages together again that are write-protected, which all are that were
	 * looked at.
	 */
	for (uint64_t b = 0; b * HUGE < pages; b++) {
		uint64_t count = GW_MIN((uint64_t)HUGE, gw_ram_contiguous(m->ram, b * HUGE));

		if (m->changed[b / 64] >> (b % 64) & 1)
			(void)madvise(gw_ram_page(m->ram, b * HUGE), count << GW_PAGE_SHIFT, MADV_COLD);
	}
	memset(m->changed, 0, (pages / HUGE / 64 + 1) * sizeof(*m->changed));
}

bool gw_merger_settle_due(const struct gw_merger *m)
{
	return m->settle_due;
}

/* Holds the bound by halving at once and growing slowly. */
static void adapt(struct gw_merger *m, uint32_t longest, uint64_t held_ns)
{
	if (held_ns > m->stall_ns)
		m->window_pages = GW_MAX(MIN_WINDOW, m->window_pages / 2);
	else if (held_ns * 2 < m->stall_ns && longest * 2 >= m->window_pages)
		m->window_pages = GW_MIN(MAX_WINDOW, m->window_pages + m->window_pages / 4);
}

static void merge_batch(struct gw_merger *m)
{
	struct gw_window_result result;
	struct gw_error err = GW_ERROR_INIT;
	uint32_t pages = 0;

	if (m->nruns == 0)
		return;
	for (unsigned i = 0; i < m->nruns; i++)
		pages += m->runs[i].count;
	if (open_gate(m)) {
		if (gw_window_merge(m->window, m->runs, m->nruns, m->window_pages, exchanged, m, &result, &err) < 0) {
			m->stats.failed += pages;
			for (unsigned i = 0; i < m->nruns; i++)
				gw_merger_look_again(m, m->runs[i].page, m->runs[i].count);
			snprintf(m->stats.refusal, sizeof(m->stats.refusal), "%s", gw_error_text(&err));
			gw_warn_limited(&m->complaints, "sharing: %s", gw_error_text(&err));
		} else {
			m->stats.refusal[0] = '\0';
		}
		close_gate(m);
		m->stats.windows = m->stats.stall.count;
		m->stats.differing += result.differing;
		m->stats.busy += result.busy;
		adapt(m, result.longest, result.held_ns);
	}
	m->nruns = 0;
	m->planned = 0;
	m->nchunks = 0;
}

static int by_page(const void *a, const void *b)
{
	const struct order *x = a, *y = b;

	return x->page < y->page ? -1 : x->page > y->page;
}

/* The first order from *i on of which anything is left behind page `done`; NULL when there is none. */
static struct order *next_order(struct gw_merger *m, unsigned *i, uint64_t done)
{
	for (; *i < m->count; (*i)++) {
		struct order *o = &m->orders[*i];

		/* A page that two orders name: the first has it. */
		if (o->page < done) {
			uint32_t cut = (uint32_t)GW_MIN(done - o->page, (uint64_t)o->count);

			o->page += cut;
			o->slot += o->chunk >= GW_OVERLAYS_MAX_CHUNKS ? 0 : cut;
			o->count -= cut;
		}
		if (o->count > 0)
			return o;
	}
	return NULL;
}

void gw_merger_run(struct gw_merger *m)
{
	struct order *o;
	uint64_t done = 0;
	unsigned i = 0;

	qsort(m->orders, m->count, sizeof(*m->orders), by_page);
	while ((o = next_order(m, &i, done))) {
		uint64_t own[MAX_SPAN / 64] = { 0 };
		uint64_t base = o->page;
		uint64_t span = GW_MIN((uint64_t)MAX_SPAN, gw_ram_contiguous(m->ram, base));
		uintptr_t start = (uintptr_t)gw_ram_page(m->ram, base);

		if (gw_pagemap_private(m->map, start, start + (span << GW_PAGE_SHIFT), own, 0) < 0)
			break;
		for (; o && o->page < base + span; o = next_order(m, &i, done)) {
			struct order piece = *o;

			piece.count = GW_MIN(o->count, m->window_pages);
			piece.count = (uint32_t)GW_MIN(base + span - o->page, (uint64_t)piece.count);
			done = piece.page + piece.count;
			build(m, &piece, own, base);
		}
		merge_batch(m);
	}
	m->count = 0;
}
