// SPDX-License-Identifier: Apache-2.0
/*
 * The agent's listeners: UNIX socket (local command lines), TLS (peers and remote command lines), and the port where the
 * channels of moves and connections to repositories arrive. A thread a connection, their number bounded; who does not say what
 * it wants in time is dropped.
 */
#ifndef GW_AGENT_SERVER_H
#define GW_AGENT_SERVER_H

#include "agent/agent.h"
#include "agent/gate.h"

struct gw_server {
	struct gw_agent *agent;
	int local_fd;
	int tls_fd;  /* -1 without [tls], like the next */
	int data_fd;
	struct gw_gate gate;                  /* of remote and data connections before they show who they are */
	_Atomic unsigned local, remote, data; /* connections now */
};

/* gw_server_close() in either case. */
int gw_server_open(struct gw_agent *a, struct gw_server *s, struct gw_error *err);
/* Accepts until the agent is to end (agent->stop_fd) or `signal_fd` becomes readable. */
void gw_server_run(struct gw_server *s, int signal_fd);
void gw_server_close(struct gw_server *s);

#endif
