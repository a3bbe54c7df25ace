// SPDX-License-Identifier: Apache-2.0
/* Lazy loading: blocks of 2 MiB that are put together aside and come as one huge page. See lazy.h. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "lib/clock.h"
#include "lib/ram/uffd.h"
#include "lib/util.h"
#include "migrate/lazy-internal.h"

#define HUGE ((uint64_t)GW_LAZY_BLOCK_PAGES << GW_PAGE_SHIFT)
#define BLOCKS (GW_LAZY_PAGES / GW_LAZY_BLOCK_PAGES) /* that one fetch can have */
/* For so long who waits for a page of a block that is being put together waits for all of it. */
#define PATIENCE (10 * GW_NS_PER_MS)
/*
 * A page table's entry is moved in a few us, 512 pages one by one in 600: copying them takes 280 (measured). So many times in a row it was not the former:
 * the kernel has no huge pages for us.
 */
#define ONE_ENTRY (100 * 1000ull) /* ns of processor time */
#define MAX_SLOW 3

struct block {
	uint64_t first; /* page */
	bool open;      /* being put together */
	unsigned count; /* pages of it */
	uint64_t begun_ns;
	uint64_t got[GW_LAZY_BLOCK_PAGES / 64];
	uint8_t *bytes;
};

struct gw_lazy_huge {
	struct gw_lazy *l;
	uint8_t *map;   /* of BLOCKS + 1 blocks */
	unsigned slow;  /* moves in a row */
	bool off;       /* the kernel cannot, or it does not pay */
	unsigned count;
	struct block blocks[BLOCKS];
};

int gw_lazy_huge_new(struct gw_lazy *l, struct gw_lazy_huge **ret)
{
	struct gw_lazy_huge *h = calloc(1, sizeof(*h));

	if (!h)
		return -ENOMEM;
	h->l = l;
	/* As RAM is: pages are moved between memory of one kind only. */
	h->map = mmap(NULL, (BLOCKS + 1) * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (h->map == MAP_FAILED) {
		free(h);
		return -ENOMEM;
	}
	for (unsigned i = 0; i < BLOCKS; i++)
		h->blocks[i].bytes = (uint8_t *)GW_ALIGN_UP((uintptr_t)h->map, HUGE) + i * HUGE;
	gw_ram_advise(h->blocks[0].bytes, BLOCKS * HUGE);
	*ret = h;
	return 0;
}

void gw_lazy_huge_free(struct gw_lazy_huge *h)
{
	if (!h)
		return;
	munmap(h->map, (BLOCKS + 1) * HUGE);
	free(h);
}

void gw_lazy_huge_begin(struct gw_lazy_huge *h, const struct gw_lazy_work *work)
{
	h->count = 0;
	for (unsigned i = 0; i < work->count && !h->off; i++) {
		uint64_t first = GW_ALIGN_UP(work->ranges[i].page, (uint64_t)GW_LAZY_BLOCK_PAGES), end = work->ranges[i].page + work->ranges[i].count;

		for (; first + GW_LAZY_BLOCK_PAGES <= end && h->count < BLOCKS; first += GW_LAZY_BLOCK_PAGES) {
			struct block *b = &h->blocks[h->count];

			if ((uintptr_t)gw_ram_page(h->l->ram, first) % HUGE || gw_ram_contiguous(h->l->ram, first) < GW_LAZY_BLOCK_PAGES)
				continue;
			*b = (struct block){ .first = first, .open = true, .bytes = b->bytes };
			h->count++;
		}
	}
}

static uint64_t thread_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * GW_NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* All of it is there. What cannot be moved is copied: something is there already, or the kernel is older than 6.8. */
static int move(struct gw_lazy_huge *h, struct block *b)
{
	uint64_t moved, began = thread_ns();
	int r = gw_uffd_move(h->l->uffd, (uintptr_t)gw_ram_page(h->l->ram, b->first), b->bytes, HUGE, &moved);
	uint64_t pages = moved >> GW_PAGE_SHIFT;

	b->open = false;
	h->slow = thread_ns() - began > ONE_ENTRY ? h->slow + 1 : 0;
	h->off = h->slow == MAX_SLOW || (r < 0 && r != -EEXIST && r != -EAGAIN && r != -EBUSY && r != -ENOMEM);
	if (pages > 0)
		gw_lazy_note_placed(h->l, b->first, pages);
	return pages == GW_LAZY_BLOCK_PAGES ? 0 : gw_lazy_place(h->l, b->first + pages, GW_LAZY_BLOCK_PAGES - pages, b->bytes + moved);
}

/* What there is of it is placed, and what comes is placed as it comes. */
static int give_up(struct gw_lazy_huge *h, struct block *b)
{
	unsigned n;
	int r = 0;

	b->open = false;
	for (unsigned i = 0; i < GW_LAZY_BLOCK_PAGES && r == 0; i += n) {
		bool got = gw_lazy_bit(b->got, i);

		for (n = 1; i + n < GW_LAZY_BLOCK_PAGES && gw_lazy_bit(b->got, i + n) == got; n++)
			;
		if (got)
			r = gw_lazy_place(h->l, b->first + i, n, b->bytes + ((uint64_t)i << GW_PAGE_SHIFT));
	}
	return r;
}

static bool is_waited_for(struct gw_lazy *l, const struct block *b)
{
	bool wanted = false;

	pthread_mutex_lock(&l->lock);
	for (uint64_t page = b->first; l->stats.waiting > 0 && page < b->first + GW_LAZY_BLOCK_PAGES && !wanted; page++)
		wanted = gw_lazy_bit(l->wanted, page);
	pthread_mutex_unlock(&l->lock);
	return wanted;
}

/* Takes pages that lie in one block. */
static int take(struct gw_lazy_huge *h, struct block *b, uint64_t page, uint64_t count, const uint8_t *data)
{
	uint64_t now = gw_now_ns();

	memcpy(b->bytes + ((page - b->first) << GW_PAGE_SHIFT), data, count << GW_PAGE_SHIFT);
	for (uint64_t i = page - b->first; i < page - b->first + count; i++) {
		b->count += !gw_lazy_bit(b->got, i);
		b->got[i / 64] |= 1ull << (i % 64);
	}
	if (b->count == GW_LAZY_BLOCK_PAGES)
		return move(h, b);
	b->begun_ns = b->begun_ns ?: now;
	return now - b->begun_ns > PATIENCE && is_waited_for(h->l, b) ? give_up(h, b) : 0;
}

int gw_lazy_huge_take(struct gw_lazy_huge *h, uint64_t page, uint64_t count, const uint8_t *data)
{
	for (unsigned i = 0; i < h->count; i++) {
		struct block *b = &h->blocks[i];

		if (b->open && page >= b->first && page + count <= b->first + GW_LAZY_BLOCK_PAGES)
			return take(h, b, page, count, data) ?: 1;
	}
	return 0;
}

int gw_lazy_huge_end(struct gw_lazy_huge *h)
{
	int r = 0;

	for (unsigned i = 0; i < h->count && r == 0; i++)
		r = h->blocks[i].open ? give_up(h, &h->blocks[i]) : 0;
	return r;
}
