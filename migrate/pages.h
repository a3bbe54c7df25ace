// SPDX-License-Identifier: Apache-2.0
/* Looking at guest pages cheaply: which hold anything at all. */
#ifndef GW_MIGRATE_PAGES_H
#define GW_MIGRATE_PAGES_H

#include <stdint.h>

#include "lib/ram/ram.h"

/*
 * Clears in `bitmap` (one bit a page index) the pages that the guest never touched, or that still map the kernel's page of zeros: reading
 * them would only cost a fault each. Asks the kernel's page tables (PAGEMAP_SCAN, or pagemap entries where that is missing); changes
 * nothing when neither answers. Returns how many it cleared.
 */
uint64_t gw_pages_drop_untouched(const struct gw_ram *ram, uint64_t *bitmap);

/* Gives all pages back, whatever building a VM may have left in them: who fills RAM leaves out what is zero. */
int gw_pages_empty(struct gw_ram *ram, struct gw_error *err);

/* Bitmap helpers over `words` 64-bit words. */
uint64_t gw_bitmap_count(const uint64_t *bitmap, size_t words);

#endif
