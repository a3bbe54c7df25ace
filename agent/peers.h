// SPDX-License-Identifier: Apache-2.0
/* Talking to other hosts' agents. */
#ifndef GW_AGENT_PEERS_H
#define GW_AGENT_PEERS_H

#include "agent/agent.h"
#include "agent/call.h"
#include "agent/records.h"

/* Connects to the host `name` ([peers], or HOST[:PORT]) and greets it; *host (may be NULL) is owned. */
int gw_peer_connect(struct gw_agent *a, const char *name, uint64_t deadline_ns, struct gw_chan **ret,
		    Godwit__AgentReply **hello, struct gw_error *err);
/* One step of the move `id` (a PeerMove request). */
int gw_peer_step(struct gw_chan *c, Godwit__AgentRequest__OpCase op, const uint8_t id[GW_ID_LEN], uint64_t deadline_ns,
		 Godwit__AgentReply **reply, struct gw_error *err);
/*
 * The same without waiting for it, for a step that the other side finds out by itself in time: tries for a minute, on a
 * background thread. Borrows nothing.
 */
void gw_peer_tell(struct gw_agent *a, const char *host, Godwit__AgentRequest__OpCase op, const uint8_t id[GW_ID_LEN]);
/* State of all configured peers, asked at the same time. *ret and its members are owned. */
int gw_peers_status(struct gw_agent *a, Godwit__PeerInfo ***ret, size_t *n, struct gw_error *err);

#endif
