// SPDX-License-Identifier: Apache-2.0
/* Which pages were written; see written.h. */
#include "ksm/written.h"

#include <errno.h>

#include "lib/ram/uffd.h"
#include "lib/util.h"

struct gw_written {
	struct gw_ram *ram;
	struct gw_pagemap *map;
	uint64_t *again; /* a bit for each page that is to be told whatever happens */
	int uffd; /* asynchronous, all of RAM registered; -1: every page is told */
};

static int register_all(struct gw_written *w)
{
	const struct gw_ram_region *regions;
	unsigned count;
	int r = 0;

	regions = gw_ram_regions(w->ram, &count);
	for (unsigned i = 0; i < count && r == 0; i++)
		r = gw_uffd_register(w->uffd, (uintptr_t)regions[i].hva, regions[i].size);
	return r;
}

int gw_written_new(struct gw_ram *ram, struct gw_pagemap *map, bool later, struct gw_written **ret)
{
	struct gw_written *w = calloc(1, sizeof(*w));

	if (w)
		w->again = calloc(gw_ram_bitmap_words(ram), sizeof(*w->again));
	if (!w || !w->again) {
		free(w);
		return -ENOMEM;
	}
	w->ram = ram;
	w->map = map;
	w->uffd = gw_pagemap_can_scan(map) ? gw_uffd_open(GW_UFFD_WP_ASYNC | GW_UFFD_WP_UNPOPULATED) : -1;
	/* Closing it undoes what was registered. Later: as each range is taken. */
	if (w->uffd >= 0 && !later && register_all(w) < 0)
		gw_closep(&w->uffd);
	*ret = w;
	return 0;
}

void gw_written_free(struct gw_written *w)
{
	if (!w)
		return;
	gw_closep(&w->uffd);
	free(w->again);
	free(w);
}

bool gw_written_tracks(const struct gw_written *w)
{
	return w->uffd >= 0;
}

void gw_written_again(struct gw_written *w, uint64_t page, uint64_t count)
{
	for (; count > 0; page++, count--)
		w->again[page / 64] |= 1ull << (page % 64);
}

static void take_again(struct gw_written *w, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	for (uint64_t page = first; page < first + count; page++) {
		uint64_t *word = &w->again[page / 64], bit = 1ull << (page % 64);

		if (!*word)
			page |= 63;
		else if (*word & bit)
			bitmap[(page - first) / 64] |= 1ull << ((page - first) % 64);
		*word &= ~bit;
	}
}

int gw_written_take(struct gw_written *w, uint64_t first, uint64_t count, bool all, uint64_t *bitmap)
{
	const struct gw_page_query written = {
		.all = all ? 0 : GW_PAGE_WRITTEN,
		.none = GW_PAGE_FILE | GW_PAGE_PFNZERO,
		.any = GW_PAGE_PRESENT | GW_PAGE_SWAPPED,
		.rearm = true,
	};
	uintptr_t start = (uintptr_t)gw_ram_page(w->ram, first);
	uintptr_t end = start + (count << GW_PAGE_SHIFT);
	int r;

	/* What the kernel wrote to pinned pages does not show in the page tables. */
	gw_ram_io_take(w->ram, first, count, bitmap);
	take_again(w, first, count, bitmap);
	if (w->uffd < 0)
		return gw_pagemap_private(w->map, start, end, bitmap, 0);
	r = gw_pagemap_scan(w->map, start, end, &written, bitmap, 0);
	/* Fresh memory, put there by gw_ram_discard(), is not registered yet, nor is what has just been loaded. */
	if (r == -EPERM && gw_uffd_register(w->uffd, start, end - start) == 0)
		r = gw_pagemap_scan(w->map, start, end, &written, bitmap, 0);
	/* For want of mappings, say. What was found so far is in the bitmap. */
	return r < 0 ? gw_pagemap_private(w->map, start, end, bitmap, 0) : 0;
}

int gw_written_disarm(struct gw_written *w, uintptr_t start, uint64_t len)
{
	return w->uffd >= 0 ? gw_uffd_unregister(w->uffd, start, len) : 0;
}

void gw_written_arm(struct gw_written *w, uintptr_t start, uint64_t len)
{
	/* Fails only for want of memory or mappings; the pages then are not told again until the next window arms them. */
	if (w->uffd >= 0)
		(void)gw_uffd_register(w->uffd, start, len);
}
