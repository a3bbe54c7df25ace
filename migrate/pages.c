// SPDX-License-Identifier: Apache-2.0
/* Looking at guest pages cheaply; see pages.h. */
#include "migrate/pages.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>

#include "lib/util.h"

/* PAGEMAP_SCAN (Linux 6.7, Documentation/admin-guide/mm/pagemap.rst); Debian 12's headers are older. */
struct scan_region {
	uint64_t start, end, categories;
};
struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_IOCTL _IOWR('f', 16, struct scan_arg)
#define SCAN_PRESENT (1ull << 3)
#define SCAN_SWAPPED (1ull << 4)
#define SCAN_ZERO_PAGE (1ull << 5)

#define ENTRY_PRESENT (1ull << 63)
#define ENTRY_SWAPPED (1ull << 62)

bool gw_page_is_zero(const void *page)
{
	const uint64_t *p = page;
	uint64_t any = p[0] | p[511];

	/* Most pages that are not zero show it in their first line. */
	for (int i = 0; i < 512 && any == 0; i += 16) {
		for (int k = 0; k < 16; k++)
			any |= p[i + k];
	}
	return any == 0;
}

uint64_t gw_bitmap_count(const uint64_t *bitmap, size_t words)
{
	uint64_t n = 0;

	for (size_t i = 0; i < words; i++)
		n += (uint64_t)__builtin_popcountll(bitmap[i]);
	return n;
}

static void set_range(uint64_t *bitmap, uint64_t first, uint64_t count)
{
	for (uint64_t i = first; i < first + count; i++)
		bitmap[i / 64] |= 1ull << (i % 64);
}

/* Sets the bits of pages that hold something. */
static int scan_region(int fd, const struct gw_ram_region *r, uint64_t *bitmap)
{
	struct scan_region found[64];
	struct scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)r->hva,
		.end = (uintptr_t)r->hva + r->size,
		.vec = (uintptr_t)found,
		.vec_len = ARRAY_SIZE(found),
		.category_inverted = SCAN_ZERO_PAGE,
		.category_mask = SCAN_ZERO_PAGE,
		.category_anyof_mask = SCAN_PRESENT | SCAN_SWAPPED,
		.return_mask = SCAN_PRESENT,
	};

	while (arg.start < arg.end) {
		int n = ioctl(fd, SCAN_IOCTL, &arg);

		if (n < 0)
			return -errno;
		for (int i = 0; i < n; i++)
			set_range(bitmap, r->first_page + ((found[i].start - (uintptr_t)r->hva) >> GW_PAGE_SHIFT),
				  (found[i].end - found[i].start) >> GW_PAGE_SHIFT);
		if (arg.walk_end <= arg.start)
			return -EIO;
		arg.start = arg.walk_end;
	}
	return 0;
}

static int read_entries(int fd, const struct gw_ram_region *r, uint64_t *bitmap)
{
	uint64_t entries[512];
	uint64_t pages = r->size >> GW_PAGE_SHIFT;

	for (uint64_t i = 0; i < pages; i += ARRAY_SIZE(entries)) {
		uint64_t n = GW_MIN(pages - i, (uint64_t)ARRAY_SIZE(entries));
		off_t at = (off_t)((((uintptr_t)r->hva >> GW_PAGE_SHIFT) + i) * sizeof(uint64_t));

		if (pread(fd, entries, n * sizeof(uint64_t), at) != (ssize_t)(n * sizeof(uint64_t)))
			return -EIO;
		for (uint64_t k = 0; k < n; k++) {
			if (entries[k] & (ENTRY_PRESENT | ENTRY_SWAPPED))
				set_range(bitmap, r->first_page + i + k, 1);
		}
	}
	return 0;
}

uint64_t gw_pages_drop_untouched(const struct gw_ram *ram, uint64_t *bitmap)
{
	size_t words = gw_ram_bitmap_words(ram);
	gw_autofree uint64_t *touched = calloc(words, sizeof(uint64_t));
	gw_autofd fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	const struct gw_ram_region *regions;
	uint64_t before;
	unsigned count;

	if (!touched || fd < 0)
		return 0;
	regions = gw_ram_regions(ram, &count);
	for (unsigned i = 0; i < count; i++) {
		if (scan_region(fd, &regions[i], touched) < 0 && read_entries(fd, &regions[i], touched) < 0)
			return 0;
	}
	before = gw_bitmap_count(bitmap, words);
	for (size_t i = 0; i < words; i++)
		bitmap[i] &= touched[i];
	return before - gw_bitmap_count(bitmap, words);
}
