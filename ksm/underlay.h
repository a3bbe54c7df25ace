// SPDX-License-Identifier: Apache-2.0
/*
 * Which place, a number, lies under each page. Neighbours mostly have neighbouring places, so it is kept as runs. None crosses a piece of 512 pages, each of
 * which has a short sorted array of its own. 8 bytes a run, where an array of all pages would take 4 bytes a page.
 */
#ifndef GW_KSM_UNDERLAY_H
#define GW_KSM_UNDERLAY_H

#include <stdint.h>

#define GW_UNDERLAY_NONE UINT32_MAX
#define GW_UNDERLAY_PIECE 512u /* pages */

struct gw_underlay;

/* For page indexes below `pages`; nothing lies under any. -ENOMEM. */
int gw_underlay_new(uint64_t pages, struct gw_underlay **ret);
void gw_underlay_free(struct gw_underlay *u);
/* GW_UNDERLAY_NONE: nothing. */
uint32_t gw_underlay_at(const struct gw_underlay *u, uint64_t page);

struct gw_underlay_run {
	uint64_t page;
	uint32_t count;
	uint32_t place; /* of its first page */
};
/* The run that `from` lies in, or the first behind it; count 0 when there is none. */
struct gw_underlay_run gw_underlay_next(const struct gw_underlay *u, uint64_t from);

/* Nothing may lie under these pages yet. -ENOMEM: nothing lies under some of them. */
int gw_underlay_set(struct gw_underlay *u, uint64_t page, uint32_t count, uint32_t place);
/* Nothing lies under these pages any more. -ENOMEM, never for whole pieces: it is as it was for some of them. */
int gw_underlay_clear(struct gw_underlay *u, uint64_t page, uint32_t count);

/* Bytes that all this takes. */
uint64_t gw_underlay_memory(const struct gw_underlay *u);

#endif
