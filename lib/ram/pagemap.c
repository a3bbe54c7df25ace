// SPDX-License-Identifier: Apache-2.0
/* The kernel's page tables; see pagemap.h. */
#include "lib/ram/pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include "lib/util.h"

/* Debian 12's headers are older than PAGEMAP_SCAN. */
struct scan_region {
	uint64_t start, end, categories;
};
struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_IOCTL _IOWR('f', 16, struct scan_arg)
#define SCAN_WP_MATCHING (1ull << 0)
#define SCAN_CHECK_WPASYNC (1ull << 1)

#define ENTRY_PRESENT (1ull << 63)
#define ENTRY_SWAPPED (1ull << 62)
#define ENTRY_FILE (1ull << 61)

struct gw_pagemap {
	int fd;
	bool can_scan;
};

/* An empty range is enough to learn whether the call exists. */
static bool probe(int fd)
{
	struct scan_arg arg = { .size = sizeof(arg), .return_mask = GW_PAGE_PRESENT };

	return ioctl(fd, SCAN_IOCTL, &arg) == 0;
}

int gw_pagemap_new(struct gw_pagemap **ret)
{
	struct gw_pagemap *map;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	map = calloc(1, sizeof(*map));
	if (!map) {
		close(fd);
		return -ENOMEM;
	}
	map->fd = fd;
	map->can_scan = probe(fd);
	*ret = map;
	return 0;
}

void gw_pagemap_free(struct gw_pagemap *map)
{
	if (!map)
		return;
	close(map->fd);
	free(map);
}

bool gw_pagemap_can_scan(const struct gw_pagemap *map)
{
	return map->can_scan;
}

static void set_range(uint64_t *bitmap, uint64_t first, uint64_t count)
{
	for (uint64_t i = first; i < first + count; i++)
		bitmap[i / 64] |= 1ull << (i % 64);
}

int gw_pagemap_scan(struct gw_pagemap *map, uintptr_t start, uintptr_t end, const struct gw_page_query *query, uint64_t *bitmap,
		    uint64_t first_bit)
{
	struct scan_region found[128];
	struct scan_arg arg = {
		.size = sizeof(arg),
		.flags = query->rearm ? SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC : 0,
		.start = start,
		.end = end,
		.vec = (uintptr_t)found,
		.vec_len = ARRAY_SIZE(found),
		.category_inverted = query->none,
		.category_mask = query->all | query->none,
		.category_anyof_mask = query->any,
		.return_mask = GW_PAGE_PRESENT,
	};

	while (arg.start < arg.end) {
		int n = ioctl(map->fd, SCAN_IOCTL, &arg);

		if (n < 0)
			return -errno;
		for (int i = 0; i < n; i++)
			set_range(bitmap, first_bit + ((found[i].start - start) >> GW_PAGE_SHIFT),
				  (found[i].end - found[i].start) >> GW_PAGE_SHIFT);
		if (arg.walk_end <= arg.start)
			return -EIO;
		arg.start = arg.walk_end;
	}
	return 0;
}

static int read_entries(int fd, uintptr_t start, uintptr_t end, uint64_t *bitmap, uint64_t first_bit)
{
	uint64_t entries[512];
	uint64_t pages = (end - start) >> GW_PAGE_SHIFT;

	for (uint64_t i = 0; i < pages; i += ARRAY_SIZE(entries)) {
		uint64_t n = GW_MIN(pages - i, (uint64_t)ARRAY_SIZE(entries));
		off_t at = (off_t)(((start >> GW_PAGE_SHIFT) + i) * sizeof(uint64_t));

		if (pread(fd, entries, n * sizeof(uint64_t), at) != (ssize_t)(n * sizeof(uint64_t)))
			return -EIO;
		for (uint64_t k = 0; k < n; k++) {
			if ((entries[k] & (ENTRY_PRESENT | ENTRY_SWAPPED)) && !(entries[k] & ENTRY_FILE))
				set_range(bitmap, first_bit + i + k, 1);
		}
	}
	return 0;
}

int gw_pagemap_private(struct gw_pagemap *map, uintptr_t start, uintptr_t end, uint64_t *bitmap, uint64_t first_bit)
{
	static const struct gw_page_query holds = { .none = GW_PAGE_PFNZERO | GW_PAGE_FILE, .any = GW_PAGE_PRESENT | GW_PAGE_SWAPPED };

	if (map->can_scan && gw_pagemap_scan(map, start, end, &holds, bitmap, first_bit) == 0)
		return 0;
	return read_entries(map->fd, start, end, bitmap, first_bit);
}
