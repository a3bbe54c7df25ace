// SPDX-License-Identifier: Apache-2.0
/* What the agent does for those who ask: one handler a request, and who may ask for it. */
#ifndef GW_AGENT_REQUESTS_H
#define GW_AGENT_REQUESTS_H

#include "agent/agent.h"
#include "agent/arrive.h"
#include "agent/chan.h"

/* The state of one connection, on its thread. */
struct gw_client {
	struct gw_agent *agent;
	struct gw_chan *chan;
	struct gw_session *session; /* a move that the peer has prepared */
};

/* Handles one packed AgentRequest and answers it. Negative errno: the connection is to be closed. */
int gw_client_request(struct gw_client *c, const uint8_t *data, size_t len);
void gw_client_end(struct gw_client *c);

#endif
