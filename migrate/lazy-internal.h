// SPDX-License-Identifier: Apache-2.0
/* What the files of lazy loading share. */
#ifndef GW_MIGRATE_LAZY_INTERNAL_H
#define GW_MIGRATE_LAZY_INTERNAL_H

#include <pthread.h>

#include "migrate/lazy.h"

#define GW_LAZY_FETCHERS 4
#define GW_LAZY_RANGES 64       /* of one fetch */
#define GW_LAZY_MAX_TOUCHED (1u << 16) /* ranges that are remembered */

/* Page numbers in the order in which they came. */
struct gw_lazy_queue {
	uint64_t *pages;
	size_t first, count, cap; /* a ring; cap is a power of two */
};

/* What one thread fetches at a time. */
struct gw_lazy_work {
	struct gw_snap_range ranges[GW_LAZY_RANGES];
	unsigned count;
	uint64_t pages;
};

struct gw_lazy {
	struct gw_ram *ram;
	struct gw_snap *snap;
	int uffd, wake_fd;
	pthread_t handler, fetchers[GW_LAZY_FETCHERS];
	bool handling;
	unsigned nfetchers;

	pthread_mutex_t lock; /* all below */
	pthread_cond_t work;  /* there may be something for fetchers */
	pthread_cond_t news;  /* for gw_lazy_wait() */
	bool quit, background;
	uint64_t *here;       /* one bit a page: placed */
	uint64_t *claimed;    /* a thread fetches it, or has */
	uint64_t *wanted;     /* somebody waits for it */
	struct gw_lazy_queue faults;
	struct gw_snap_range *order; /* owned */
	size_t norder, order_at;
	uint64_t order_done;  /* pages of the range at order_at that are claimed */
	uint64_t cursor;      /* the background has claimed all before it */
	struct gw_snap_range *touched; /* by faults, owned */
	size_t ntouched, touched_cap;
	uint64_t retry_ns, backoff_ns; /* while stalled: no read before */
	struct gw_lazy_stats stats;
};

static inline bool gw_lazy_bit(const uint64_t *bitmap, uint64_t page)
{
	return bitmap[page / 64] >> (page % 64) & 1;
}

/* lazy-work.c: what to fetch next. With the lock held; claims it. False: nothing now. */
bool gw_lazy_next(struct gw_lazy *l, bool faults_only, struct gw_lazy_work *ret);
/* Somebody waits for the page. 0 or -ENOMEM. */
int gw_lazy_want(struct gw_lazy *l, uint64_t page);
/* Pages were placed, or are somebody's else. Whether somebody waited. */
bool gw_lazy_placed(struct gw_lazy *l, uint64_t first, uint64_t count);
/* What of it was not placed is to be fetched again. */
void gw_lazy_unclaim(struct gw_lazy *l, const struct gw_lazy_work *work);

#endif
