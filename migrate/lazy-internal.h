// SPDX-License-Identifier: Apache-2.0
/* What the files of lazy loading share. */
#ifndef GW_MIGRATE_LAZY_INTERNAL_H
#define GW_MIGRATE_LAZY_INTERNAL_H

#include <pthread.h>

#include "migrate/lazy.h"

#define GW_LAZY_FAULTERS 4      /* threads for what somebody waits for, of which one watches for faults */
#define GW_LAZY_FETCHERS 7      /* with those for the rest */
#define GW_LAZY_RANGES 256      /* of one fetch */
#define GW_LAZY_MAX_TOUCHED (1u << 16) /* ranges that are remembered */
#define GW_LAZY_PAGES 1024u     /* of one fetch */
#define GW_LAZY_BLOCK_PAGES 512u /* that make a huge page */
#define GW_LAZY_MIN_PAGES 64u   /* of one after somebody touched memory elsewhere */
#define GW_LAZY_MAX_WINDOW 64u  /* pages that are fetched around one that somebody waits for */
#define GW_LAZY_FIRST_PATIENCE 4u /* see gw_lazy_adapt() */

/* Page numbers in the order in which they came. */
struct gw_lazy_queue {
	uint64_t *pages;
	size_t first, count, cap; /* a ring; cap is a power of two */
};

/* For whom something is fetched. */
enum gw_lazy_for {
	GW_LAZY_FOR_FAULTS, /* somebody waits */
	GW_LAZY_FOR_START,  /* the VM is going to touch it first */
	GW_LAZY_FOR_NOBODY, /* yet */
};

/* Ranges of pages to be fetched in this order. */
struct gw_lazy_order {
	struct gw_snap_range *ranges; /* owned */
	size_t count, at;
	uint64_t done; /* pages of the range at `at` that are claimed */
};

/* What one thread fetches at a time. */
struct gw_lazy_work {
	struct gw_snap_range ranges[GW_LAZY_RANGES];
	unsigned count;
	uint64_t pages;
	bool fault;  /* somebody waits for its first page */
	uint32_t window; /* then: what could have been fetched beside it */
};

struct gw_lazy_fetch;
struct gw_lazy_gift;

struct gw_lazy {
	struct gw_ram *ram;
	struct gw_snap *snap;
	struct gw_lineage *lineage; /* NULL: memory is not shared */
	struct gw_lazy_gift *gift;  /* with a lineage */
	int uffd, wake_fd;
	struct gw_lazy_thread {
		struct gw_lazy *l;
		enum gw_lazy_for whom;
		struct gw_lazy_fetch *fetch;
		pthread_t thread;
	} threads[GW_LAZY_FETCHERS + 1]; /* the last for the start, when it is asked for */
	unsigned nthreads;

	pthread_mutex_t lock; /* all below */
	pthread_cond_t work;  /* there may be something to fetch that nobody waits for */
	pthread_cond_t follow; /* nobody watches for faults, or somebody may have to fetch for one */
	pthread_cond_t news;  /* for gw_lazy_wait() */
	bool quit, background, nudged;
	bool watched;         /* a thread waits for faults */
	unsigned fetching;    /* threads that fetch for faults now */
	uint64_t *here;       /* one bit a page: placed */
	uint64_t *claimed;    /* a thread fetches it, or has */
	uint64_t *wanted;     /* somebody waits for it */
	struct gw_lazy_queue faults;
	uint32_t window;      /* pages, a power of two (gw_lazy_adapt()) */
	unsigned calm, patience; /* fetches of which more would have come in no time, in a row; how many before there is more */
	uint32_t stride;      /* pages of the next fetch for nobody: fewer after a fault of a page that nobody fetches; who follows the background needs it fast */
	struct gw_lazy_order order, first;
	bool starting;        /* a thread brings what is first */
	uint64_t cursor;      /* the background has claimed all from where it began to this page */
	bool around;          /* it has been at the end, and went on from page 0 */
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
bool gw_lazy_next(struct gw_lazy *l, enum gw_lazy_for whom, struct gw_lazy_work *ret);
/* Takes a copy. 0 or -ENOMEM. */
int gw_lazy_order_set(struct gw_lazy_order *o, const struct gw_snap_range *ranges, size_t count);
/* Somebody waits for the page. 0 or -ENOMEM. */
int gw_lazy_want(struct gw_lazy *l, uint64_t page);
/*
 * A fetch for somebody took so long until the first pages were placed, and so long for all. How much is fetched beside what is waited for follows
 * from it: as much as comes in half the time that it takes anyway. That is little where decryption is slow, only the page's blob, and much where the way is long.
 * The more often it was too much, the later more is tried again.
 */
void gw_lazy_adapt(struct gw_lazy *l, uint64_t first_ns, uint64_t all_ns);
/* Pages were placed, or are somebody's else. Whether somebody waited. */
bool gw_lazy_placed(struct gw_lazy *l, uint64_t first, uint64_t count);
/* What of it was not placed is to be fetched again. */
void gw_lazy_unclaim(struct gw_lazy *l, const struct gw_lazy_work *work);

/* lazy-fetch.c: a read of the snapshot, and where its bytes go. One a thread, for one purpose. 0 or -ENOMEM. */
int gw_lazy_fetch_new(struct gw_lazy *l, enum gw_lazy_for whom, struct gw_lazy_fetch **ret);
void gw_lazy_fetch_free(struct gw_lazy_fetch *f);
/*
 * With the lock held, which is given away meanwhile: brings what is next for it. False: there is nothing now. `ret`: 0, or -errno when it could not be
 * read or placed; it is told in the stats, and tried again later.
 */
bool gw_lazy_fetch_next(struct gw_lazy_fetch *f, int *ret);
/* Contiguous pages were placed by the userfaultfd; without the lock. */
void gw_lazy_note_placed(struct gw_lazy *l, uint64_t first, uint64_t count);
/* Places verified bytes. 0 or -errno. */
int gw_lazy_place(struct gw_lazy *l, uint64_t first, uint64_t count, const uint8_t *from);

/*
 * lazy-huge.c: of what nobody waits for, blocks of 2 MiB that are all content are put together aside and moved in as one huge page (UFFDIO_MOVE, Linux 6.8):
 * neither copied by the kernel nor page by page, and the guest has the huge page that it had before it was saved. One a thread. -ENOMEM.
 */
struct gw_lazy_huge;
int gw_lazy_huge_new(struct gw_lazy *l, struct gw_lazy_huge **ret);
void gw_lazy_huge_free(struct gw_lazy_huge *h);
/* Which blocks of the work are put together. */
void gw_lazy_huge_begin(struct gw_lazy_huge *h, const struct gw_lazy_work *work);
/* Pages that came. 1: it has them; 0: they are of no such block, and not taken; or -errno. */
int gw_lazy_huge_take(struct gw_lazy_huge *h, uint64_t page, uint64_t count, const uint8_t *data);
/* The rest could not be read: what there is of blocks is placed. 0 or -errno. */
int gw_lazy_huge_end(struct gw_lazy_huge *h);

/* lazy-share.c: pages that the host's page store has, or is given (ksm/lineage.h). One a thread. -ENOMEM. */
struct gw_lazy_share;
int gw_lazy_share_new(struct gw_lazy *l, struct gw_lazy_share **ret);
void gw_lazy_share_free(struct gw_lazy_share *s);
/* Maps what the store has of the work, and takes it out. */
void gw_lazy_share_find(struct gw_lazy_share *s, struct gw_lazy_work *work);
/* What is fetched of this work is to be gathered, so that it can be mapped. False: it is placed as it comes. */
bool gw_lazy_share_gathers(struct gw_lazy_share *s, const struct gw_lazy_work *work);
void gw_lazy_share_gather(struct gw_lazy_share *s, uint64_t page, uint64_t count, const uint8_t *data);
/* Brings what was gathered to the store and maps it; what cannot be is placed. `all`: nothing is missing. 0 or -errno. */
int gw_lazy_share_give(struct gw_lazy_share *s, bool all);
/* Pages that were placed are given as well, once there are many, or with gw_lazy_share_flush(). */
void gw_lazy_share_placed(struct gw_lazy_share *s, uint64_t first, uint64_t count, const uint8_t *data);
void gw_lazy_share_flush(struct gw_lazy *l);
int gw_lazy_gift_new(struct gw_lazy *l);
void gw_lazy_gift_free(struct gw_lazy *l);

#endif
