// SPDX-License-Identifier: Apache-2.0
/* Lazy loading: who fetches what next. Everything here is done with the lock held. See lazy.h. */
#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/lazy-internal.h"
#include "migrate/repo/blob.h"

#define MIN_WINDOW GW_BLOB_PAGES
#define MAX_PATIENCE 64u
#define ORDER_PAGES 64u /* of a fetch in the order of first touches: the next is wanted soon */

static void set_bit(uint64_t *bitmap, uint64_t page)
{
	bitmap[page / 64] |= 1ull << (page % 64);
}

static void clear_bit(uint64_t *bitmap, uint64_t page)
{
	bitmap[page / 64] &= ~(1ull << (page % 64));
}

static int push(struct gw_lazy_queue *q, uint64_t page)
{
	if (q->count == q->cap) {
		size_t cap = q->cap ? q->cap * 2 : 64;
		uint64_t *more = malloc(cap * sizeof(*more));

		if (!more)
			return -ENOMEM;
		for (size_t i = 0; i < q->count; i++)
			more[i] = q->pages[(q->first + i) & (q->cap - 1)];
		free(q->pages);
		q->pages = more;
		q->first = 0;
		q->cap = cap;
	}
	q->pages[(q->first + q->count++) & (q->cap - 1)] = page;
	return 0;
}

static bool pop(struct gw_lazy_queue *q, uint64_t *page)
{
	if (q->count == 0)
		return false;
	*page = q->pages[q->first];
	q->first = (q->first + 1) & (q->cap - 1);
	q->count--;
	return true;
}

/* A hint for the next time: what finds no room is left out. */
static void note_touched(struct gw_lazy *l, uint64_t first, uint64_t count)
{
	struct gw_snap_range *last = l->ntouched ? &l->touched[l->ntouched - 1] : NULL;

	if (last && last->page + last->count == first) {
		last->count += count;
		return;
	}
	if (l->ntouched == l->touched_cap) {
		size_t cap = GW_MAX(l->touched_cap * 2, (size_t)256);
		struct gw_snap_range *more = cap <= GW_LAZY_MAX_TOUCHED ? realloc(l->touched, cap * sizeof(*more)) : NULL;

		if (!more)
			return;
		l->touched = more;
		l->touched_cap = cap;
	}
	l->touched[l->ntouched++] = (struct gw_snap_range){ first, count };
}

int gw_lazy_want(struct gw_lazy *l, uint64_t page)
{
	int r = 0;

	if (gw_lazy_bit(l->wanted, page))
		return 0; /* several wait for it */
	if (!gw_lazy_bit(l->claimed, page)) {
		r = push(&l->faults, page);
		l->stride = GW_LAZY_MIN_PAGES;
	}
	if (r < 0)
		return r;
	set_bit(l->wanted, page);
	l->stats.waiting++;
	l->stats.faults++;
	return 0;
}

void gw_lazy_adapt(struct gw_lazy *l, uint64_t first_ns, uint64_t all_ns)
{
	uint64_t rest = all_ns - first_ns;

	if (rest > first_ns / 2) {
		l->window = GW_MAX(l->window / 2, MIN_WINDOW);
		l->patience = GW_MIN(l->patience * 2, MAX_PATIENCE);
		l->calm = 0;
	} else if (rest < first_ns / 4 && ++l->calm >= l->patience) {
		l->window = GW_MIN(l->window * 2, GW_LAZY_MAX_WINDOW);
		l->calm = 0;
	}
}

bool gw_lazy_placed(struct gw_lazy *l, uint64_t first, uint64_t count)
{
	bool waited = false;

	for (uint64_t page = first; page < first + count; page++) {
		if (!gw_lazy_bit(l->here, page))
			l->stats.here++;
		set_bit(l->here, page);
		if (!gw_lazy_bit(l->wanted, page))
			continue;
		l->stats.waiting--;
		clear_bit(l->wanted, page);
		waited = true;
	}
	return waited;
}

void gw_lazy_unclaim(struct gw_lazy *l, const struct gw_lazy_work *work)
{
	for (unsigned i = 0; i < work->count; i++) {
		for (uint64_t page = work->ranges[i].page; page < work->ranges[i].page + work->ranges[i].count; page++) {
			if (gw_lazy_bit(l->here, page))
				continue;
			clear_bit(l->claimed, page);
			/* Without memory for the queue the background brings it. */
			if (gw_lazy_bit(l->wanted, page))
				(void)push(&l->faults, page);
			l->cursor = GW_MIN(l->cursor, page);
		}
	}
}

/* Claims what is free of first..end-1 and has content, as long as the work has room; returns the page at which it ended. */
static uint64_t claim(struct gw_lazy *l, uint64_t first, uint64_t end, uint64_t most, struct gw_lazy_work *w)
{
	uint64_t page = first;

	while (page < end && w->pages < most) {
		const struct gw_snap_run *run = gw_snap_run_at(l->snap, page);
		struct gw_snap_range *last = w->count ? &w->ranges[w->count - 1] : NULL;

		if (!run)
			return end;
		page = GW_MAX(page, run->page);
		for (; page < end && page < run->page + run->count && w->pages < most; page++) {
			if (gw_lazy_bit(l->claimed, page))
				continue;
			if (!last || last->page + last->count != page) {
				if (w->count == GW_LAZY_RANGES)
					return page;
				last = &w->ranges[w->count++];
				*last = (struct gw_snap_range){ page, 0 };
			}
			set_bit(l->claimed, page);
			last->count++;
			w->pages++;
		}
	}
	return GW_MIN(page, end);
}

static bool next_fault(struct gw_lazy *l, struct gw_lazy_work *w)
{
	uint64_t page;

	while (pop(&l->faults, &page)) {
		uint64_t first = GW_ALIGN_DOWN(page, (uint64_t)l->window);
		uint64_t end = GW_MIN(first + l->window, gw_ram_pages(l->ram));
		uint64_t near, count, most;

		/* By now another thread has it, whose window it was in. */
		if (gw_lazy_bit(l->claimed, page))
			continue;
		/* The page itself first, should there be more ranges than room; what lies in a blob with it costs nothing more. */
		if (!gw_snap_neighbours(l->snap, page, &near, &count))
			continue;
		most = GW_MAX((uint64_t)l->window, count);
		claim(l, page, near + count, most, w);
		claim(l, near, page, most, w);
		if (l->window > MIN_WINDOW) {
			claim(l, near + count, GW_MAX(end, near + count), most, w);
			claim(l, GW_MIN(first, near), near, most, w);
		}
		w->window = l->window;
		note_touched(l, w->ranges[0].page, w->ranges[0].count);
		return true;
	}
	return false;
}

/* The next fetch begins with a block that can be a huge page, if there are whole ones. */
static void end_with_a_block(struct gw_lazy *l, struct gw_lazy_work *w)
{
	struct gw_snap_range *last = &w->ranges[w->count - 1];
	uint64_t over = (last->page + last->count) % GW_LAZY_BLOCK_PAGES;

	if (over == 0 || over >= last->count || w->pages < over + GW_LAZY_BLOCK_PAGES)
		return;
	last->count -= over;
	w->pages -= over;
	l->cursor = last->page + last->count;
	for (uint64_t page = l->cursor; page < l->cursor + over; page++)
		clear_bit(l->claimed, page);
}

static void next_by_number(struct gw_lazy *l, struct gw_lazy_work *w)
{
	l->cursor = claim(l, l->cursor, gw_ram_pages(l->ram), l->stride, w);
	/* It may have begun in the middle. */
	if (w->count == 0 && !l->around) {
		l->around = true;
		l->cursor = claim(l, 0, gw_ram_pages(l->ram), l->stride, w);
	}
	if (w->count > 0)
		end_with_a_block(l, w);
}

int gw_lazy_order_set(struct gw_lazy_order *o, const struct gw_snap_range *ranges, size_t count)
{
	struct gw_snap_range *copy = malloc((count + 1) * sizeof(*copy));

	if (!copy)
		return -ENOMEM;
	if (count)
		memcpy(copy, ranges, count * sizeof(*copy));
	free(o->ranges);
	*o = (struct gw_lazy_order){ .ranges = copy, .count = count };
	return 0;
}

static bool next_in_order(struct gw_lazy *l, struct gw_lazy_order *o, uint64_t most, struct gw_lazy_work *w)
{
	while (o->at < o->count && w->pages < most && w->count < GW_LAZY_RANGES) {
		const struct gw_snap_range *r = &o->ranges[o->at];

		o->done = claim(l, r->page + o->done, r->page + r->count, most, w) - r->page;
		if (o->done < r->count)
			break;
		o->at++;
		o->done = 0;
	}
	return w->count > 0;
}

static bool next_background(struct gw_lazy *l, struct gw_lazy_work *w)
{
	if (!next_in_order(l, &l->order, ORDER_PAGES, w))
		next_by_number(l, w);
	l->stride = GW_MIN(l->stride * 2, GW_LAZY_PAGES);
	return w->count > 0;
}

bool gw_lazy_next(struct gw_lazy *l, enum gw_lazy_for whom, struct gw_lazy_work *w)
{
	w->count = 0;
	w->pages = 0;
	w->fault = whom == GW_LAZY_FOR_FAULTS;
	switch (whom) {
	case GW_LAZY_FOR_FAULTS:
		return next_fault(l, w);
	case GW_LAZY_FOR_START:
		return next_in_order(l, &l->first, GW_LAZY_PAGES, w);
	case GW_LAZY_FOR_NOBODY:
		break;
	}
	return l->background && next_background(l, w);
}
