// SPDX-License-Identifier: Apache-2.0
/* The disks of clones: read-only ones are shared as they are; for each that is written the caller names another one for each clone. */
#ifndef GW_AGENT_CLONE_DISKS_H
#define GW_AGENT_CLONE_DISKS_H

#include "agent/guest.h"
#include "proto/agent.pb-c.h"

/* Puts into `config`, of the clone with this number, the paths that are wanted instead. */
int gw_clone_map_disks(Godwit__VmConfig *config, const Godwit__CloneRequest *req, unsigned number, struct gw_error *err);
/* Whether `n` clones with these configurations of the VM that was saved can have their disks on this host. */
int gw_clone_check_disks(struct gw_agent *a, const Godwit__CloneRequest *req, const Godwit__PeerPrepare *saved, Godwit__VmConfig *const *configs,
			 unsigned n, struct gw_error *err);
/*
 * Once the clone is recorded as `self`: whether no other VM has come to have a disk that it writes. Of two that are made at once with the same disk at
 * least one is refused.
 */
int gw_clone_recheck_disks(struct gw_guest *self, struct gw_error *err);

#endif
