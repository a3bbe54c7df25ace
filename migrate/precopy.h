// SPDX-License-Identifier: Apache-2.0
/*
 * Pre-copy: rounds over the pages that the running VM dirties, until the rest is small enough to be sent while it stands still.
 *
 * - Dirty tracking starts before the first page is read. Round 1 is all of RAM but pages never touched.
 * - Within a round the log is taken several times: a page found dirty that this round has not reached yet needs no second sending.
 * - A round ends when the destination acknowledged it, so nothing of it queues in front of the last pages, and the measured rate
 *   is that of the whole path.
 * - Predicted blackout = bytes left / rate + fixed cost (round trips, the last log, an allowance for state). Once it meets the
 *   target, another round is worth it only while it is short and still shrinks the rest markedly.
 */
#ifndef GW_MIGRATE_PRECOPY_H
#define GW_MIGRATE_PRECOPY_H

#include <stdint.h>

#include "lib/error.h"

struct gw_move;
struct gw_precopy;
struct gw_senders;

/* Starts the dirty source. `rtt_ns` is the measured round trip to the destination. */
int gw_precopy_new(struct gw_move *mv, struct gw_senders *senders, uint64_t rtt_ns, struct gw_precopy **ret,
		   struct gw_error *err);
/* Ends tracking. Takes NULL. The senders must not be using its bitmaps any more. */
void gw_precopy_free(struct gw_precopy *pc);

/* Rounds until it is time to stop the VM; 0 then. Fails when cancelled, broken, or timed out with the policy `fail`. */
int gw_precopy_run(struct gw_precopy *pc, struct gw_error *err);
/* Then: for how long it may run on all the same, so that what it writes meanwhile costs little of the target. */
uint64_t gw_precopy_grace_ns(const struct gw_precopy *pc);
/* The VM is stopped: takes the last dirty pages and begins the last round. */
int gw_precopy_last(struct gw_precopy *pc, struct gw_error *err);

#endif
