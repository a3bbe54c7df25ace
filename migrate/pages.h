// SPDX-License-Identifier: Apache-2.0
/* Looking at guest pages cheaply: which hold anything at all, and which hold only zeros. */
#ifndef GW_MIGRATE_PAGES_H
#define GW_MIGRATE_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/ram/ram.h"

/* True when all 4096 bytes are zero. The page may change meanwhile: the answer then holds for no moment. */
bool gw_page_is_zero(const void *page);

/*
 * Clears in `bitmap` (one bit a page index) the pages that the guest never touched, or that still map the kernel's page of zeros: reading
 * them would only cost a fault each. Asks the kernel's page tables (PAGEMAP_SCAN, or pagemap entries where that is missing); changes
 * nothing when neither answers. Returns how many it cleared.
 */
uint64_t gw_pages_drop_untouched(const struct gw_ram *ram, uint64_t *bitmap);

/* Bitmap helpers over `words` 64-bit words. */
uint64_t gw_bitmap_count(const uint64_t *bitmap, size_t words);

#endif
