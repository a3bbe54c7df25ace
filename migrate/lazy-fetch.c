// SPDX-License-Identifier: Apache-2.0
/* Memory that comes when it is touched: one read of the snapshot, and where its bytes go. See lazy-internal.h. */
#include <errno.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/ram/uffd.h"
#include "lib/util.h"
#include "migrate/lazy-internal.h"
#include "migrate/repo/blob.h"

#define PLACE_PAGES 64u  /* at a time, of what was gathered */
#define PLACE_DIRECTLY 4u /* so many that lie in one blob are not gathered */
#define FIRST_BACKOFF (100 * GW_NS_PER_MS)
#define LONGEST_BACKOFF (5 * GW_NS_PER_SEC)

struct gw_lazy_fetch {
	struct gw_lazy *l;
	enum gw_lazy_for whom;       /* and for nothing else */
	struct gw_lazy_share *share; /* NULL: memory is not shared */
	struct gw_lazy_huge *huge;   /* NULL: none are put together */
	struct gw_lazy_work work;
	bool gathering;
	int error;         /* of placing, not of reading */
	uint64_t first_ns; /* when the first were placed; 0: not yet */
	uint64_t first, count; /* pages that were gathered */
	uint8_t data[PLACE_PAGES << GW_PAGE_SHIFT];
};

void gw_lazy_note_placed(struct gw_lazy *l, uint64_t first, uint64_t count)
{
	bool waited;

	pthread_mutex_lock(&l->lock);
	waited = gw_lazy_placed(l, first, count);
	pthread_mutex_unlock(&l->lock);
	/* Placed, given back and touched again before it was noted: that fault was told before it could be told as one of zeros. */
	if (waited)
		(void)gw_uffd_wake(l->uffd, (uintptr_t)gw_ram_page(l->ram, first), count << GW_PAGE_SHIFT);
}

int gw_lazy_place(struct gw_lazy *l, uint64_t first, uint64_t count, const uint8_t *from)
{
	int r = 0;

	while (count > 0 && r == 0) {
		uint64_t n = GW_MIN(count, gw_ram_contiguous(l->ram, first));

		r = gw_uffd_copy(l->uffd, (uintptr_t)gw_ram_page(l->ram, first), from, n << GW_PAGE_SHIFT);
		if (r == 0)
			gw_lazy_note_placed(l, first, n);
		from += n << GW_PAGE_SHIFT;
		first += n;
		count -= n;
	}
	return r;
}

static int place_all(struct gw_lazy_fetch *f, uint64_t first, uint64_t count, const uint8_t *data)
{
	f->error = gw_lazy_place(f->l, first, count, data);
	if (f->first_ns == 0)
		f->first_ns = gw_now_ns();
	if (f->error == 0 && f->share)
		gw_lazy_share_placed(f->share, first, count, data);
	return f->error;
}

/* What was gathered. */
static int place(struct gw_lazy_fetch *f)
{
	uint64_t count = f->count;

	f->count = 0;
	return count > 0 && f->error == 0 ? place_all(f, f->first, count, f->data) : f->error;
}

/* Most come as whole blobs, and are placed from where they were decrypted; of pages that lie scattered those that follow one another are gathered. */
static int take_some(struct gw_lazy_fetch *f, uint64_t page, uint64_t count, const uint8_t *data)
{
	int r = f->huge ? gw_lazy_huge_take(f->huge, page, count, data) : 0;

	if (r != 0) {
		f->error = GW_MIN(r, 0);
		return f->error;
	}
	/* Who waits goes on as soon as the blob is there that has the page. */
	if (f->count && (page != f->first + f->count || f->count + count > PLACE_PAGES || f->work.fault))
		r = place(f);
	if (r < 0 || count >= PLACE_DIRECTLY)
		return r ?: place_all(f, page, count, data);
	if (f->count == 0)
		f->first = page;
	memcpy(f->data + (f->count << GW_PAGE_SHIFT), data, count << GW_PAGE_SHIFT);
	f->count += count;
	return 0;
}

static int take_pages(void *self, uint64_t page, uint64_t count, const uint8_t *data)
{
	struct gw_lazy_fetch *f = self;
	int r = 0;

	if (f->gathering) {
		gw_lazy_share_gather(f->share, page, count, data);
		return 0;
	}
	for (uint64_t n; count > 0 && r == 0; page += n, count -= n, data += n << GW_PAGE_SHIFT) {
		n = GW_MIN(count, GW_LAZY_BLOCK_PAGES - page % GW_LAZY_BLOCK_PAGES);
		r = take_some(f, page, n, data);
	}
	return r;
}

/* With the lock held: how the read ended. */
static void note_read(struct gw_lazy *l, const struct gw_lazy_work *work, int r, const struct gw_error *err)
{
	bool was = l->stats.stalled;

	l->stats.stalled = r < 0;
	if (r < 0) {
		gw_lazy_unclaim(l, work);
		snprintf(l->stats.why, sizeof(l->stats.why), "%.250s", gw_error_text(err));
		l->backoff_ns = was ? GW_MIN(l->backoff_ns * 2, LONGEST_BACKOFF) : FIRST_BACKOFF;
		l->retry_ns = gw_now_ns() + l->backoff_ns;
	} else {
		l->stats.why[0] = '\0';
	}
	if (was != l->stats.stalled) {
		pthread_cond_broadcast(&l->work);
		pthread_cond_broadcast(&l->follow);
	}
	if (was != l->stats.stalled || l->stats.here >= l->stats.pages)
		pthread_cond_broadcast(&l->news);
}

/* With the lock held: nothing had to be read. What cannot be read stays so. */
static void note_found(struct gw_lazy *l)
{
	l->retry_ns = gw_now_ns();
	if (l->stats.here >= l->stats.pages)
		pthread_cond_broadcast(&l->news);
}

static void note_pace(struct gw_lazy *l, uint64_t first_ns, uint64_t all_ns)
{
	pthread_mutex_lock(&l->lock);
	gw_lazy_adapt(l, first_ns, all_ns);
	pthread_mutex_unlock(&l->lock);
}

static int fetch(struct gw_lazy_fetch *f, struct gw_error *err)
{
	const struct gw_lazy_work *work = &f->work;
	uint64_t began = gw_now_ns();
	int r;

	f->count = 0;
	f->error = 0;
	f->first_ns = 0;
	f->gathering = f->share && gw_lazy_share_gathers(f->share, work);
	if (f->huge)
		gw_lazy_huge_begin(f->huge, work);
	r = gw_snap_fetch(f->l->snap, work->ranges, work->count, take_pages, f, err);
	if (f->gathering)
		f->error = gw_lazy_share_give(f->share, r == 0);
	else if (r == 0)
		r = place(f);
	else if (f->huge && f->error == 0)
		f->error = gw_lazy_huge_end(f->huge);
	if (work->fault && r == 0 && f->first_ns > 0 && (work->pages >= work->window || work->window == GW_BLOB_PAGES))
		note_pace(f->l, f->first_ns - began, gw_now_ns() - began);
	return f->error ? gw_error_errno(err, f->error, "pages cannot be placed") : r;
}

/* With the lock held, which is given away meanwhile. What the page store has needs no read. */
static int fetch_unlocked(struct gw_lazy_fetch *f)
{
	struct gw_error err = GW_ERROR_INIT;
	int r;

	pthread_mutex_unlock(&f->l->lock);
	if (f->share)
		gw_lazy_share_find(f->share, &f->work);
	r = f->work.count ? fetch(f, &err) : 0;
	pthread_mutex_lock(&f->l->lock);
	if (f->work.count)
		note_read(f->l, &f->work, r, &err);
	else
		note_found(f->l);
	return r;
}

/* With the lock held. While reads fail, one thread at a time tries, now and then. */
static bool next_read(struct gw_lazy_fetch *f)
{
	struct gw_lazy *l = f->l;

	if (l->stats.stalled && gw_now_ns() < l->retry_ns)
		return false;
	/* However long reads take, somebody watches for faults: a page of zeros needs no read. */
	if (f->whom == GW_LAZY_FOR_FAULTS && l->fetching == GW_LAZY_FAULTERS - 1)
		return false;
	if (!gw_lazy_next(l, f->whom, &f->work))
		return false;
	l->retry_ns = gw_now_ns() + LONGEST_BACKOFF;
	return true;
}

bool gw_lazy_fetch_next(struct gw_lazy_fetch *f, int *ret)
{
	bool fault = f->whom == GW_LAZY_FOR_FAULTS;
	struct gw_lazy *l = f->l;

	if (!next_read(f))
		return false;
	l->fetching += fault;
	/* Another takes the next fault, or watches for it. */
	if (fault && !l->watched)
		pthread_cond_signal(&l->follow);
	*ret = fetch_unlocked(f);
	l->fetching -= fault;
	return true;
}

int gw_lazy_fetch_new(struct gw_lazy *l, enum gw_lazy_for whom, struct gw_lazy_fetch **ret)
{
	struct gw_lazy_fetch *f = calloc(1, sizeof(*f));

	if (!f)
		return -ENOMEM;
	f->l = l;
	f->whom = whom;
	/* Without memory for either it goes without. What is shared is mapped in small pages. */
	if (l->lineage)
		(void)gw_lazy_share_new(l, &f->share);
	else if (whom == GW_LAZY_FOR_NOBODY)
		(void)gw_lazy_huge_new(l, &f->huge);
	*ret = f;
	return 0;
}

void gw_lazy_fetch_free(struct gw_lazy_fetch *f)
{
	if (!f)
		return;
	gw_lazy_share_free(f->share);
	gw_lazy_huge_free(f->huge);
	free(f);
}
