// SPDX-License-Identifier: Apache-2.0
/*
 * Doubt: COMMIT left the source's VMM, and no answer came. The VM stays paused until its fate is known: a thread asks the destination's agent
 * until it answers, or the operator decides.
 */
#ifndef GW_AGENT_SETTLE_H
#define GW_AGENT_SETTLE_H

#include "agent/guest.h"

/* With g->lock held: starts the thread if there is none. */
void gw_settle_start_locked(struct gw_guest *g);
/*
 * Tells the other side of the last move away, in the background, whose the VM is (`here`: ours): so that it ends what it holds
 * of the move or, knowing otherwise, protests.
 */
void gw_settle_tell(struct gw_guest *g, bool here);
/* The operator's word. */
int gw_settle_resolve(struct gw_guest *g, bool here, struct gw_error *err);

#endif
