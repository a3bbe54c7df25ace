// SPDX-License-Identifier: Apache-2.0
/*
 * What the kernel's page tables say of this process' memory: PAGEMAP_SCAN (Linux 6.7, Documentation/admin-guide/mm/pagemap.rst), and
 * plain pagemap entries where that is missing.
 */
#ifndef GW_LIB_RAM_PAGEMAP_H
#define GW_LIB_RAM_PAGEMAP_H

#include <stdbool.h>
#include <stdint.h>

/* Categories of a page, the kernel's PAGE_IS_*. */
#define GW_PAGE_WRITTEN (1ull << 1)   /* since it was write-protected through an asynchronous userfaultfd */
#define GW_PAGE_FILE (1ull << 2)      /* maps a page of a file: an overlay that was not written */
#define GW_PAGE_PRESENT (1ull << 3)
#define GW_PAGE_SWAPPED (1ull << 4)
#define GW_PAGE_PFNZERO (1ull << 5)   /* maps the kernel's page of zeros */

struct gw_pagemap;

/* Opens this process' page map; -errno when /proc is not there. */
int gw_pagemap_new(struct gw_pagemap **ret);
void gw_pagemap_free(struct gw_pagemap *map);
/* Whether the kernel has PAGEMAP_SCAN; without it only gw_pagemap_private() works. */
bool gw_pagemap_can_scan(const struct gw_pagemap *map);

/* Which pages are looked for: all of `all`, none of `none`, and, when it is not 0, any of `any`. */
struct gw_page_query {
	uint64_t all, none, any;
	bool rearm; /* write-protects the pages found again (their asynchronous userfaultfd must be registered) */
};

/*
 * ORs into `bitmap` (one bit a page, the first for `start`) the pages of [start, end) that the query finds. Both are multiples of 4096.
 * 0 or -errno (-ENOTTY, -EINVAL without PAGEMAP_SCAN; -EPERM when rearm finds memory that is not registered).
 */
int gw_pagemap_scan(struct gw_pagemap *map, uintptr_t start, uintptr_t end, const struct gw_page_query *query, uint64_t *bitmap,
		    uint64_t first_bit);

/*
 * The same for pages with content of their own: present or swapped, not a page of a file (an overlay that was not written), and not the
 * page of zeros if the kernel can tell. Works everywhere.
 */
int gw_pagemap_private(struct gw_pagemap *map, uintptr_t start, uintptr_t end, uint64_t *bitmap, uint64_t first_bit);

#endif
