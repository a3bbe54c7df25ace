// SPDX-License-Identifier: Apache-2.0
/*
 * Sharing for one VM: a thread that goes over guest RAM pass by pass, gives zero pages back, tells the page-store daemon the hashes of the others
 * and carries out its orders (ksm/merge.h). A pass looks only at what was written since the pass before. The VM goes on, with what is
 * shared staying shared, when the daemon is gone; the next attach takes the chunks along.
 */
#ifndef GW_KSM_SHARER_H
#define GW_KSM_SHARER_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "lib/ram/ram.h"

struct gw_lineage;

struct gw_sharer_config {
	unsigned cpu_percent;   /* of one processor that the thread may take; 0: 25 */
	uint64_t interval_ns;   /* from the end of a pass to the next; up to eight times that while passes find nothing; 0: 45 s */
	uint64_t stall_ns;      /* as in struct gw_merger_limits */
	uint32_t mappings;
	bool image_only;        /* report only content that was seen coming from a disk (gw_sharer_disk_read()) */
	bool loading;           /* memory is on its way: passes begin with gw_sharer_loaded() */
};

struct gw_sharer_stats {
	bool attached;
	bool image_only;
	bool tracks;             /* writes are tracked: a pass looks only at what was written */
	char reason[128];        /* why nothing is shared; empty */
	char limit[160];         /* why less is shared, or at a higher price, than on another host; empty */
	uint64_t pages;          /* of RAM */
	uint64_t zero_pages;     /* given back as zeros and still so, at the end of the last pass */
	uint64_t shared_pages;   /* over a store page and not broken, likewise */
	uint64_t broken_pages;   /* over a store page and written, likewise */
	uint64_t lineage_pages;  /* mapped while memory was loaded, and not written */
	uint64_t hashed_pages;   /* ever */
	uint64_t merged_pages, again_pages; /* ever */
	uint64_t differing_pages, busy_pages, over_budget_pages, failed_pages; /* ever: why not */
	uint64_t chunks;         /* held */
	uint32_t mappings, mappings_budget;
	uint64_t passes;         /* finished */
	uint64_t pass_age_ns;    /* since the end of the last */
	uint64_t pass_ns;        /* how long it took */
	uint64_t cpu_ns;         /* of the thread */
	uint64_t metadata_bytes; /* of this process and, for mappings, the kernel's about */
	uint64_t windows, stall_p50_ns, stall_p99_ns, stall_max_ns;
};

struct gw_sharer;

/* Starts the thread, which waits for an attach. Borrows ram. -ENOMEM, or -EPERM, -ENOSYS, -EOPNOTSUPP when the host does not allow safe merging. */
int gw_sharer_new(struct gw_ram *ram, const struct gw_sharer_config *config, struct gw_sharer **ret, struct gw_error *err);
/* Ends the thread. What is shared stays mapped. NULL is fine. */
void gw_sharer_free(struct gw_sharer *s);

/* Takes fd, this VM's end of a socket pair whose other end the daemon has (proto/share.h). Replaces a session that is under way. */
void gw_sharer_attach(struct gw_sharer *s, int fd);
/*
 * With config->loading: what loads memory shares it by this, before and after an attach, until gw_sharer_loaded(); borrowed. It is served by the first
 * session alone. NULL: without.
 */
struct gw_lineage *gw_sharer_lineage(struct gw_sharer *s);
/* Memory is here, nobody uses the lineage any more, and no other userfaultfd has the memory. Again: nothing. */
void gw_sharer_loaded(struct gw_sharer *s);
/* Returns when no window is open and none will be until as many resumes. The session stays. */
void gw_sharer_pause(struct gw_sharer *s);
void gw_sharer_resume(struct gw_sharer *s);
/* Content that came from a disk into guest RAM (image_only). Any thread; ranges that hold no whole page are ignored. */
void gw_sharer_disk_read(struct gw_sharer *s, uint64_t gpa, uint64_t len);
void gw_sharer_stats(struct gw_sharer *s, struct gw_sharer_stats *ret);

#endif
