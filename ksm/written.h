// SPDX-License-Identifier: Apache-2.0
/*
 * Which guest pages have content of their own that may have changed since it was last looked at. With asynchronous write protection
 * (userfaultfd, Linux 6.7) a page is told again only when it was written; where the kernel lacks it every page is told every time.
 */
#ifndef GW_KSM_WRITTEN_H
#define GW_KSM_WRITTEN_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/ram/pagemap.h"
#include "lib/ram/ram.h"

struct gw_written;

/*
 * Borrows both. -ENOMEM. Never fails for want of the kernel's help: see gw_written_tracks(). `later`: another userfaultfd has the memory, or will,
 * until the first take.
 */
int gw_written_new(struct gw_ram *ram, struct gw_pagemap *map, bool later, struct gw_written **ret);
void gw_written_free(struct gw_written *w);
/* False: every page is told every time. */
bool gw_written_tracks(const struct gw_written *w);

/*
 * ORs into `bitmap` (bit 0 for page `first`) those of `count` pages, all of one region, that hold content of their own and were written
 * since they were told last (`all`: written or not), and tells later writes of them again. A page read after this call and written after it was read is told by the
 * next. 0 or -errno.
 */
int gw_written_take(struct gw_written *w, uint64_t first, uint64_t count, bool all, uint64_t *bitmap);
/* The next take tells these pages, written or not. Not while another thread takes. */
void gw_written_again(struct gw_written *w, uint64_t page, uint64_t count);

/*
 * A merge window needs the range for its own protection: disarm, then arm again when it has let go. All its pages that then have content
 * of their own count as written. Neither changes a byte; called with the layout lock held.
 */
int gw_written_disarm(struct gw_written *w, uintptr_t start, uint64_t len); /* 0 or -errno: some of it is armed still */
void gw_written_arm(struct gw_written *w, uintptr_t start, uint64_t len);

#endif
