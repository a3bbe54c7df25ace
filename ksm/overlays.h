// SPDX-License-Identifier: Apache-2.0
/*
 * Which store page lies under each guest page, and the chunks that hold them. A page keeps its overlay when a write breaks the sharing: when it
 * becomes equal again, giving up its own copy is enough. Chunks have numbers of their own here, so that they outlive a session with the
 * daemon, whose ids they lose and get. Used by one thread at a time.
 */
#ifndef GW_KSM_OVERLAYS_H
#define GW_KSM_OVERLAYS_H

#include <stdbool.h>
#include <stdint.h>

#define GW_OVERLAYS_MAX_CHUNKS (1u << 20) /* 2 TiB */
#define GW_OVERLAYS_NONE UINT32_MAX
#define GW_OVERLAYS_VIEWS 32

struct gw_overlays;

/* For page indexes below `pages`. -ENOMEM. */
int gw_overlays_new(uint64_t pages, struct gw_overlays **ret);
/* Closes all descriptors; mappings of guest RAM stay. */
void gw_overlays_free(struct gw_overlays *o);

/*
 * Takes `fd`, a sealed file of `slots` pages that the daemon calls `id`, and returns its chunk number. Closes fd and returns -EPROTO when it is
 * not sealed, too short or the id is taken (GW_OVERLAYS_NONE: it has none yet), -ENOSPC past GW_OVERLAYS_MAX_CHUNKS, -ENOMEM.
 */
int gw_overlays_add(struct gw_overlays *o, uint32_t id, int fd, uint32_t slots);
/* The chunk of an id, GW_OVERLAYS_NONE when there is none. */
uint32_t gw_overlays_find(const struct gw_overlays *o, uint32_t id);
/* Numbers are below it; some may be free (gw_overlays_slots() is 0). */
uint32_t gw_overlays_chunks(const struct gw_overlays *o);
uint32_t gw_overlays_slots(const struct gw_overlays *o, uint32_t chunk);
int gw_overlays_fd(const struct gw_overlays *o, uint32_t chunk); /* borrowed */
uint32_t gw_overlays_id(const struct gw_overlays *o, uint32_t chunk); /* GW_OVERLAYS_NONE: not known to the daemon */
/* All bytes of the chunk, read-only and mapped in; valid until GW_OVERLAYS_VIEWS other chunks were asked for. NULL when it cannot be mapped. */
const uint8_t *gw_overlays_view(struct gw_overlays *o, uint32_t chunk);
/* None is needed for a while: they take mappings and page tables. */
void gw_overlays_close_views(struct gw_overlays *o);
/* How many guest pages lie over it, broken ones too; and how many of them are broken. With GW_OVERLAYS_NONE over all chunks. */
uint32_t gw_overlays_pages(const struct gw_overlays *o, uint32_t chunk);
uint32_t gw_overlays_broken(const struct gw_overlays *o, uint32_t chunk);
/* Closes its descriptor and frees its number; no page may lie over it. */
void gw_overlays_drop(struct gw_overlays *o, uint32_t chunk);

/* The session ended: no chunk has an id any more; and one gets its new one (GW_OVERLAYS_NONE: none). -ENOMEM, -EPROTO when it is taken. */
void gw_overlays_forget_ids(struct gw_overlays *o);
int gw_overlays_set_id(struct gw_overlays *o, uint32_t chunk, uint32_t id);

/* What lies under a page; false: nothing, it is anonymous memory. While memory is short it may be false for one that lies over a chunk. */
bool gw_overlays_at(const struct gw_overlays *o, uint64_t page, uint32_t *chunk, uint32_t *slot);
struct gw_overlays_run {
	uint64_t page;
	uint32_t count;
	uint32_t chunk, slot; /* under its first page */
};
/* The pages in a row, over slots in a row, that page `from` belongs to, or the next behind it; false: there are none. */
bool gw_overlays_next(const struct gw_overlays *o, uint64_t from, struct gw_overlays_run *ret);
/* Pages page..page+count-1 now lie over slots slot..slot+count-1. */
void gw_overlays_set(struct gw_overlays *o, uint64_t page, uint32_t count, uint32_t chunk, uint32_t slot);
void gw_overlays_clear(struct gw_overlays *o, uint64_t page, uint32_t count);
/* A page got a copy of its own, if it lies over anything; gave it up again. What is set is not broken. */
void gw_overlays_break(struct gw_overlays *o, uint64_t page);
void gw_overlays_mend(struct gw_overlays *o, uint64_t page, uint32_t count);
bool gw_overlays_is_broken(const struct gw_overlays *o, uint64_t page);
/* Mappings that the kernel needs for all this beyond one for all of RAM, about: it joins those that follow one another in memory and in a chunk. */
uint32_t gw_overlays_mappings(const struct gw_overlays *o);

/* Bytes that all this takes. */
uint64_t gw_overlays_memory(const struct gw_overlays *o);

#endif
