// SPDX-License-Identifier: Apache-2.0
/*
 * The merger of one VM: gathers orders ("these pages equal those of the store", "these are zero"), sorts them by page and carries them out in
 * windows (ksm/window.h) whose size adapts so that no writer waits longer than a bound. Keeps the number of mappings within a budget.
 */
#ifndef GW_KSM_MERGE_H
#define GW_KSM_MERGE_H

#include <stdbool.h>
#include <stdint.h>

#include "ksm/overlays.h"
#include "ksm/stall.h"
#include "ksm/window.h"
#include "lib/ram/pagemap.h"

struct gw_merger_limits {
	uint64_t stall_ns;   /* that a window may hold writers, about; 0: 2 ms */
	uint32_t mappings;   /* that overlays may take; 0: half of vm.max_map_count */
};

struct gw_merger_stats {
	uint64_t zero_pages;      /* given back as zeros, ever */
	uint64_t store_pages;     /* exchanged for the store's, ever */
	uint64_t again_pages;     /* given back because they equal their overlay again, ever */
	uint64_t differing, busy; /* pages left out: changed meanwhile, or with I/O in flight */
	uint64_t over_budget;     /* pages left out for want of mappings */
	uint64_t failed;          /* pages of windows that could not be had */
	uint64_t windows;
	uint32_t mappings;        /* in use, about */
	char refusal[128];        /* why the last window could not be had; empty once one could */
	struct gw_stall stall;
};

struct gw_merger;

/* Borrows all but the limits. -ENOMEM, or as gw_window_new(). */
int gw_merger_new(struct gw_ram *ram, struct gw_pagemap *map, struct gw_written *written, struct gw_overlays *overlays,
		  const struct gw_merger_limits *limits, struct gw_merger **ret, struct gw_error *err);
void gw_merger_free(struct gw_merger *m);

/* Pages page..page+count-1 (in range) seem to be zero; to equal the chunk's slots slot.. (in range too). Carried out by gw_merger_run(). */
void gw_merger_zero(struct gw_merger *m, uint64_t page, uint32_t count);
void gw_merger_store(struct gw_merger *m, uint64_t page, uint32_t count, uint32_t chunk, uint32_t slot);
/* Pages that lie over an overlay and have a copy of their own leave it. */
void gw_merger_leave(struct gw_merger *m, uint64_t page, uint32_t count);
/* An order for these pages could not be carried out; the next pass reports them anew, written or not. */
void gw_merger_look_again(struct gw_merger *m, uint64_t page, uint32_t count);
/* Carries out the orders that wait; what cannot be done is left out and counted. */
void gw_merger_run(struct gw_merger *m);

/*
 * From another thread: hold returns when no window is open, and none opens until as many releases; gw_merger_run() waits. Quit ends that waiting
 * for good: what is ordered is then left undone.
 */
void gw_merger_hold(struct gw_merger *m);
void gw_merger_release(struct gw_merger *m);
void gw_merger_quit(struct gw_merger *m);

/*
 * Orders have come to rest: gives back what was only needed for them. A huge page of which a part was given back frees nothing before it is
 * split: splits those in which something was exchanged since the last call.
 */
void gw_merger_settle(struct gw_merger *m);
bool gw_merger_settle_due(const struct gw_merger *m); /* something was */

/* Others have mapped overlays: mappings are to be counted. */
void gw_merger_mapped(struct gw_merger *m);
/* Counts mappings anew: splits and joins are only estimated between two calls. */
void gw_merger_count_mappings(struct gw_merger *m);
uint32_t gw_merger_budget(const struct gw_merger *m); /* mappings */
const struct gw_merger_stats *gw_merger_stats(const struct gw_merger *m);
struct gw_window *gw_merger_window(struct gw_merger *m); /* tests */

#endif
