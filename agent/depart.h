// SPDX-License-Identifier: Apache-2.0
/*
 * The source's part of a move, on a thread of its own: agrees with the destination's agent, opens the channels, hands them to the VMM,
 * follows it to the end. The end itself the watcher draws from the VMM and its journal (watch.c); a doubt is settle.c's.
 */
#ifndef GW_AGENT_DEPART_H
#define GW_AGENT_DEPART_H

#include "agent/guest.h"

/* Begins operation "move" and returns; g->departing until it is over, then g->departed tells how. */
int gw_depart_start(struct gw_guest *g, const Godwit__MoveRequest *req, struct gw_error *err);
/* With g->lock held, after a restart: the record says that a move away was under way. */
void gw_depart_resume_locked(struct gw_guest *g);
/* Asks it to end; does not wait. */
int gw_depart_cancel(struct gw_guest *g, struct gw_error *err);

#endif
