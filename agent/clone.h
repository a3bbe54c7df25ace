// SPDX-License-Identifier: Apache-2.0
/*
 * Clones: VMs of their own, made from one snapshot. Each has a name, a record, an epoch and a journal of its own, so that whoever owns the VM that was saved
 * has no part in it, may run or not, here or elsewhere. What cannot be had twice is its own or refused: MAC addresses are new, taps are made by the agent, a disk that
 * is written must be mapped to another one for each.
 *
 * A clone that is being made is recorded as suspended and `cloning`. What is found so after a crash of the agent, and is not owned by its VMM, goes without a trace
 * (watch.c).
 */
#ifndef GW_AGENT_CLONE_H
#define GW_AGENT_CLONE_H

#include "agent/call.h"
#include "agent/guest.h"

#define GW_CLONES_MAX 256

/* Called before each clone; negative: no further one is to be made. */
typedef int gw_clone_fn(void *arg, const Godwit__CloneProgress *p, struct gw_error *err);

/*
 * One after the other, each until it runs (or stays paused). ret[0] to ret[*made - 1] are references to those that do, also on failure; what the one that failed left
 * is gone then. All that can be known before is looked at before the first.
 */
int gw_clone(struct gw_agent *a, const Godwit__CloneRequest *req, gw_clone_fn *fn, void *arg, struct gw_guest *ret[GW_CLONES_MAX],
	     unsigned *made, struct gw_error *err);
/* The same on the host that the request names. *ret is its agent's reply, owned, with those that run; NULL without one. */
int gw_clone_elsewhere(struct gw_agent *a, const Godwit__CloneRequest *req, gw_call_event_fn *fn, void *arg, Godwit__AgentReply **ret,
		       struct gw_error *err);

#endif
