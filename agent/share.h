// SPDX-License-Identifier: Apache-2.0
/*
 * Sharing of memory on this host: attaches the VMs that share to the page-store daemon (share-daemon.h), and tells what it brings.
 *
 * A VM's watcher looks on each round whether the VM has a session with the daemon that runs now; if not, a thread makes a socket
 * pair and hands one end, with the domain's key, to the daemon, the other to the VMM. So the same rule serves a start, an
 * arrival, a restart of the agent, the death of the daemon and the end of a move. A VMM that refuses runs on without sharing, and is
 * asked again now and then.
 */
#ifndef GW_AGENT_SHARE_H
#define GW_AGENT_SHARE_H

#include "agent/guest.h"
#include "lib/error.h"
#include "proto/agent.pb-c.h"

struct gw_sharing;

/* Raises vm.max_map_count (the file `map_count`) as far as `conf` wants and may. Borrows conf and events. */
int gw_sharing_new(const struct gw_conf *conf, const char *map_count, struct gw_events *events, struct gw_sharing **ret,
		   struct gw_error *err);
/* Ends the daemon; VMs keep what they share. NULL is fine. */
void gw_sharing_free(struct gw_sharing *s);

/* By the watcher of a guest, often. `ask`: also asks the VMM how its sharing stands. */
void gw_sharing_check(struct gw_guest *g, bool ask);
/* Its VMM waits for a snapshot to load: it is given a session before, so that it can map what the store has of it. Should that fail it loads without. */
void gw_sharing_before_load(struct gw_guest *g);
/* Its VMM is dead. With g->lock held. */
void gw_sharing_ended_locked(struct gw_guest *g);

/* What sharing brings to this VM and domain, "" for all. *ret is owned. -ESRCH: there is no such VM or domain. */
int gw_sharing_info(struct gw_agent *a, const char *vm, const char *domain, Godwit__ShareInfo **ret, struct gw_error *err);

#endif
