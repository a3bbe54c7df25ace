// SPDX-License-Identifier: Apache-2.0
/* Looking at guest pages cheaply; see pages.h. */
#include "migrate/pages.h"

#include <errno.h>

#include "lib/ram/pagemap.h"
#include "lib/util.h"

uint64_t gw_bitmap_count(const uint64_t *bitmap, size_t words)
{
	uint64_t n = 0;

	for (size_t i = 0; i < words; i++)
		n += (uint64_t)__builtin_popcountll(bitmap[i]);
	return n;
}

uint64_t gw_pages_drop_untouched(const struct gw_ram *ram, uint64_t *bitmap)
{
	size_t words = gw_ram_bitmap_words(ram);
	gw_autofree uint64_t *own = calloc(words, sizeof(uint64_t));
	struct gw_pagemap *map = NULL;
	const struct gw_ram_region *regions;
	uint64_t before = 0;
	unsigned count;
	int r = own ? gw_pagemap_new(&map) : -ENOMEM;

	regions = gw_ram_regions(ram, &count);
	for (unsigned i = 0; i < count && r == 0; i++)
		r = gw_pagemap_private(map, (uintptr_t)regions[i].hva, (uintptr_t)regions[i].hva + regions[i].size, own, regions[i].first_page);
	gw_pagemap_free(map);
	if (r < 0)
		return 0;
	before = gw_bitmap_count(bitmap, words);
	/* An overlay that was not looked at yet is absent from the page tables and holds something all the same. */
	for (size_t i = 0; i < words; i++)
		bitmap[i] &= own[i] | gw_ram_backed(ram)[i];
	return before - gw_bitmap_count(bitmap, words);
}

int gw_pages_empty(struct gw_ram *ram, struct gw_error *err)
{
	unsigned count;
	const struct gw_ram_region *regions = gw_ram_regions(ram, &count);

	for (unsigned i = 0; i < count; i++) {
		int r = gw_ram_discard(ram, regions[i].gpa, regions[i].size);

		if (r < 0)
			return gw_error_errno(err, r, "cannot empty guest memory");
	}
	return 0;
}
