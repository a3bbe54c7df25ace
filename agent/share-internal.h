// SPDX-License-Identifier: Apache-2.0
/* Shared by the files that attach VMs to the page-store daemon and tell of it. */
#ifndef GW_AGENT_SHARE_INTERNAL_H
#define GW_AGENT_SHARE_INTERNAL_H

#include <pthread.h>

#include "agent/share-daemon.h"
#include "proto/agent.pb-c.h"

struct gw_sharing {
	struct gw_share_daemon *daemon;
	pthread_mutex_t keys_lock; /* of the key files; taken alone */
	uint64_t map_count;        /* vm.max_map_count, constant like the next */
	char warning[300];         /* what limits sharing on this host */
};

/* The sharing domain of a VM. */
const char *gw_share_domain(const Godwit__VmConfig *c);

#endif
