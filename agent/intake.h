// SPDX-License-Identifier: Apache-2.0
/* What is looked at before a host takes a VM in, by a move or from a snapshot: the description is another host's and may hold anything. */
#ifndef GW_AGENT_INTAKE_H
#define GW_AGENT_INTAKE_H

#include "agent/guest.h"

/* Each of the configuration's disks is the same here as there. */
int gw_intake_check_disks(struct gw_agent *a, const Godwit__PeerPrepare *req, struct gw_error *err);
/* Whether the VM has a balloon. Older VMMs have none, and do not say so: such a VM stays what it is. */
bool gw_intake_has_balloon(const Godwit__VmmFeatures *f);
/* After gw_run_spawn(g, true): until the VMM answers that it waits for a VM. */
int gw_intake_wait_vmm(struct gw_guest *g, struct gw_error *err);
/* Then: whether it makes the same devices, and takes this state. */
int gw_intake_check_features(struct gw_guest *g, const Godwit__VmmFeatures *theirs, struct gw_error *err);

#endif
