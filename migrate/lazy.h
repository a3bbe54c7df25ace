// SPDX-License-Identifier: Apache-2.0
/*
 * DOC: memory that comes from a snapshot when it is touched
 *
 * A VM that is resumed runs before its memory is here. Its RAM is empty and registered with a userfaultfd that holds the kernel's accesses
 * too: whoever touches a page that is missing, a vCPU, a device's thread or a system call, waits until it is placed.
 *
 * - Threads that do nothing else take turns in watching for faults. A page of zeros is placed at once. For others, who has read the fault fetches the part of the
 *   snapshot around it, the page's blob first, while another watches.
 * - What the VM touched last before it was saved can be brought before it runs (gw_lazy_start()), by a thread of its own.
 * - Once asked for (gw_lazy_background()) threads that leave the processors to everybody else bring the rest: first what the VM touched first when it was
 *   last resumed, in that order, then page by page, in reads of megabytes; in small ones while there are faults, one of which may be for what is read.
 * - Of what nobody waits for, blocks of 2 MiB that are all content come as huge pages, where the kernel can move them (Linux 6.8); who waits for a page of such a block
 *   waits 10 ms more at most.
 * - A page is placed whole, once, and only with bytes that the repository's reader has verified. What cannot be read is not placed, and tried
 *   again and again: until then who touched it waits, and gw_lazy_stats() says why.
 * - Blocks of 2 MiB that are all zeros are not registered. When all is here nothing is.
 *
 * With a lineage (ksm/lineage.h) the page store is asked before the repository: pages that it has are mapped, once their proofs were checked. The background
 * begins anywhere, so that clones that come together do not all fetch the same. What it fetches is given to the store and mapped from there; what somebody
 * waited for is placed at once and given as well, for the sharer to exchange it later.
 *
 * Pages that the guest gives back meanwhile (gw_ram_discard()) read as zeros when they had been here, else as what they held: a guest does not rely on either
 * (virtio 1.2, 5.5.6.7).
 */
#ifndef GW_MIGRATE_LAZY_H
#define GW_MIGRATE_LAZY_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"
#include "lib/ram/ram.h"
#include "migrate/repo/snap.h"

struct gw_lazy;
struct gw_lineage;

struct gw_lazy_stats {
	uint64_t pages;    /* that the snapshot has content for */
	uint64_t here;     /* of them placed */
	uint64_t faults;   /* pages that somebody waited for, so far */
	uint64_t waiting;  /* that somebody waits for now */
	bool stalled;      /* the last read failed; it is tried again */
	char why[256];
};

/*
 * `ram` must be empty and nobody else's userfaultfd have it. From now on pages come when they are touched. `snap` has as many pages; both borrowed, and the lineage (may be NULL), which has
 * the same RAM. Threads that touch
 * `ram` can wait without end: whoever ends this before all is here makes sure that there are none. -EPERM, -ENOSYS: this host allows no userfaultfd
 * that holds the kernel's faults.
 */
int gw_lazy_new(struct gw_ram *ram, struct gw_snap *snap, struct gw_lineage *lineage, struct gw_lazy **ret, struct gw_error *err);
/*
 * Begins to fetch this before anything that nobody waits for; copied. Once. 0 or -errno. And: waits until that is done, as far as it can be read now, or for
 * the deadline.
 */
int gw_lazy_start(struct gw_lazy *l, const struct gw_snap_range *first, size_t count);
void gw_lazy_await_start(struct gw_lazy *l, uint64_t deadline_ns);
/* How many of these pages, from the first on without a gap, were placed or are zero. */
uint64_t gw_lazy_here(struct gw_lazy *l, uint64_t first, uint64_t count);
/* Fetches the rest, in this order first (may be empty); copied. 0 or -ENOMEM. */
int gw_lazy_background(struct gw_lazy *l, const struct gw_snap_range *order, size_t count);
/* True when all is here. Waits until then, or until the VM begins or ceases to wait for what cannot be read, or for a nudge, or for the deadline. */
bool gw_lazy_wait(struct gw_lazy *l, bool stalled, uint64_t deadline_ns);
/* Whoever waits, or will, returns at once. */
void gw_lazy_nudge(struct gw_lazy *l);
void gw_lazy_stats(struct gw_lazy *l, struct gw_lazy_stats *ret);
/* In which order pages were touched (repo/touch.h), those of gw_lazy_background() first. 0 or -ENOMEM. */
int gw_lazy_touched(struct gw_lazy *l, struct gw_buf *out);
/* When gw_lazy_wait() has said true: the page store is given what it was not given yet. */
void gw_lazy_all_here(struct gw_lazy *l);
/* What is missing is zero from now on: the guest begins anew. Nobody touches RAM meanwhile. */
void gw_lazy_forget(struct gw_lazy *l);
/* Reads that are under way must fail soon: gw_repo_cancel(). Takes NULL. */
void gw_lazy_free(struct gw_lazy *l);

#endif
