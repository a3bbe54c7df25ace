// SPDX-License-Identifier: Apache-2.0
/* The pages of pre-copy rounds; see rounds.h. */
#include "migrate/rounds.h"

#include <errno.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "migrate/pages.h"

struct gw_rounds {
	struct gw_dirty_source dirty;
	bool tracking;
	size_t words;
	uint64_t *now;   /* pages of this round */
	uint64_t *next;  /* dirty since, for the next one */
	uint64_t *fresh; /* what one look at the log brought */
	uint64_t untouched;
	uint64_t synced_ns;
	uint64_t sync_cost_ns;
	double dirty_rate;
};

int gw_rounds_new(const struct gw_ram *ram, const struct gw_dirty_source *dirty, struct gw_rounds **ret, struct gw_error *err)
{
	struct gw_rounds *r = calloc(1, sizeof(*r));
	uint64_t pages = gw_ram_pages(ram);
	int e = 0;

	if (!r)
		return gw_error_set(err, ENOMEM, "out of memory");
	r->words = gw_ram_bitmap_words(ram);
	r->now = malloc(r->words * sizeof(uint64_t));
	r->next = calloc(r->words, sizeof(uint64_t));
	r->fresh = calloc(r->words, sizeof(uint64_t));
	if (!r->now || !r->next || !r->fresh)
		e = gw_error_set(err, ENOMEM, "out of memory");
	if (e == 0 && dirty) {
		r->dirty = *dirty;
		e = dirty->ops->start(dirty->self, err);
		r->tracking = e == 0;
	}
	if (e < 0) {
		gw_rounds_free(r);
		return e;
	}
	r->synced_ns = gw_now_ns();
	memset(r->now, 0xff, r->words * sizeof(uint64_t));
	if (pages % 64)
		r->now[r->words - 1] = (1ull << (pages % 64)) - 1;
	/* What is touched from here on is in the log. */
	r->untouched = gw_pages_drop_untouched(ram, r->now);
	*ret = r;
	return 0;
}

void gw_rounds_free(struct gw_rounds *r)
{
	if (!r)
		return;
	if (r->tracking)
		r->dirty.ops->stop(r->dirty.self);
	free(r->now);
	free(r->next);
	free(r->fresh);
	free(r);
}

const uint64_t *gw_rounds_now(const struct gw_rounds *r)
{
	return r->now;
}

size_t gw_rounds_words(const struct gw_rounds *r)
{
	return r->words;
}

uint64_t gw_rounds_untouched(const struct gw_rounds *r)
{
	return r->untouched;
}

uint64_t gw_rounds_left(const struct gw_rounds *r, size_t taken)
{
	taken = GW_MIN(taken, r->words);
	return gw_bitmap_count(r->now + taken, r->words - taken) + gw_bitmap_count(r->next, r->words);
}

static void meter(struct gw_rounds *r, uint64_t begun, uint64_t dirty)
{
	if (begun > r->synced_ns)
		r->dirty_rate = (double)(dirty << GW_PAGE_SHIFT) * 1e9 / (double)(begun - r->synced_ns);
	r->sync_cost_ns = gw_now_ns() - begun;
}

int gw_rounds_sync(struct gw_rounds *r, size_t (*taken_fn)(void *arg), void *arg, struct gw_error *err)
{
	uint64_t begun = gw_now_ns();
	size_t taken;
	int e = r->dirty.ops->sync(r->dirty.self, r->fresh, err);

	if (e < 0)
		return gw_error_wrap(err, "dirty log");
	taken = taken_fn(arg);
	meter(r, begun, gw_bitmap_count(r->fresh, r->words));
	for (size_t i = 0; i < r->words; i++)
		r->next[i] |= i < taken ? r->fresh[i] : r->fresh[i] & ~r->now[i];
	memset(r->fresh, 0, r->words * sizeof(uint64_t));
	r->synced_ns = begun;
	return 0;
}

void gw_rounds_put_off(struct gw_rounds *r, size_t first)
{
	for (size_t i = first; i < r->words; i++)
		r->next[i] |= r->now[i];
}

void gw_rounds_copied(struct gw_rounds *r)
{
	memset(r->now, 0, r->words * sizeof(uint64_t));
}

static size_t all_taken(void *arg)
{
	return *(size_t *)arg;
}

int gw_rounds_look(struct gw_rounds *r, bool *peeked, uint64_t *left, struct gw_error *err)
{
	uint64_t begun = gw_now_ns();
	int e = r->dirty.ops->peek ? r->dirty.ops->peek(r->dirty.self, r->fresh, err) : -EOPNOTSUPP;

	*peeked = e == 0;
	if (e == -EOPNOTSUPP) {
		memset(r->fresh, 0, r->words * sizeof(uint64_t));
		e = gw_rounds_sync(r, all_taken, &r->words, err);
	} else if (e < 0) {
		gw_error_wrap(err, "dirty log");
	}
	if (e < 0)
		return e;
	if (*peeked)
		meter(r, begun, gw_bitmap_count(r->fresh, r->words));
	for (size_t i = 0; i < r->words; i++)
		r->fresh[i] |= r->next[i];
	*left = gw_bitmap_count(r->fresh, r->words);
	memset(r->fresh, 0, r->words * sizeof(uint64_t));
	return 0;
}

void gw_rounds_next(struct gw_rounds *r)
{
	uint64_t *old = r->now;

	r->now = r->next;
	r->next = old;
	memset(r->next, 0, r->words * sizeof(uint64_t));
}

int gw_rounds_last(struct gw_rounds *r, struct gw_error *err)
{
	int e = r->dirty.ops->peek ? r->dirty.ops->peek(r->dirty.self, r->now, err) : -EOPNOTSUPP;

	if (e == -EOPNOTSUPP)
		e = r->dirty.ops->sync(r->dirty.self, r->now, err);
	return e < 0 ? gw_error_wrap(err, "dirty log") : 0;
}

uint64_t gw_rounds_synced_ns(const struct gw_rounds *r)
{
	return r->synced_ns;
}

uint64_t gw_rounds_sync_cost_ns(const struct gw_rounds *r)
{
	return r->sync_cost_ns;
}

double gw_rounds_dirty_rate(const struct gw_rounds *r)
{
	return r->dirty_rate;
}
