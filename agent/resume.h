// SPDX-License-Identifier: Apache-2.0
/*
 * Resuming a VM from a snapshot. Who may run it is settled before a VMM is started: a VM that is recorded here as suspended in this very
 * snapshot is ours; one that was suspended on another host is asked for there (gw_suspend_claim()), by name of the host that made the snapshot, or has been asked there by somebody
 * who brings the answer, a grant (grant.h); anything else could run it twice, or with disks that have changed since, and takes the operator's word (`force`).
 *
 * The answer is the same each time, and a grant is good for ever, but the VM goes on: that it was here from this snapshot is noted durably before it runs,
 * and who was here and has left is not resumed from it again, also when nothing else here remembers the VM. Until it has run it is recorded as suspended, and
 * is resumed again by that.
 */
#ifndef GW_AGENT_RESUME_H
#define GW_AGENT_RESUME_H

#include "agent/guest.h"

/* Returns when the VM runs (or stays paused); its memory may still be on its way. *ret is a reference to it. */
int gw_resume(struct gw_agent *a, const Godwit__ResumeRequest *req, struct gw_guest **ret, struct gw_error *err);
/* Whether it would be, but for whose it is; nothing is begun. Without a snapshot: whether this host can open the repository. */
int gw_resume_check(struct gw_agent *a, const Godwit__ResumeRequest *req, struct gw_error *err);
/* The same as gw_resume() on the host that the request names. *ret is its agent's reply, owned. */
int gw_resume_elsewhere(struct gw_agent *a, const Godwit__ResumeRequest *req, Godwit__AgentReply **ret, struct gw_error *err);

#endif
