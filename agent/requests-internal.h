// SPDX-License-Identifier: Apache-2.0
/* Shared by the files that answer requests. */
#ifndef GW_AGENT_REQUESTS_INTERNAL_H
#define GW_AGENT_REQUESTS_INTERNAL_H

#include "agent/guest.h"
#include "agent/requests.h"
#include "proto/agent.pb-c.h"
#include "proto/frame.h"

/* Returned by handlers instead of 0: the answer has gone already, or the connection is at its end. */
#define GW_CLIENT_ANSWERED 1
#define GW_CLIENT_CLOSE 2

/* A reference, or NULL with -ESRCH in err. */
struct gw_guest *gw_client_guest(struct gw_client *c, const char *name, struct gw_error *err);
/* Adds what a VM is to the reply. 0 or -ENOMEM. */
int gw_client_add_info(Godwit__AgentReply *rep, struct gw_guest *g);
/* Answers; a descriptor goes along on a UNIX socket only. */
int gw_client_reply(struct gw_client *c, int r, const struct gw_error *err, Godwit__AgentReply *rep, int fd);

int gw_client_move(struct gw_client *c, const Godwit__AgentRequest *req, Godwit__AgentReply *rep, struct gw_error *err);
int gw_client_save(struct gw_client *c, const Godwit__AgentRequest *req, Godwit__AgentReply *rep, struct gw_error *err);
int gw_client_clone(struct gw_client *c, const Godwit__AgentRequest *req, Godwit__AgentReply *rep, struct gw_error *err);
int gw_client_events(struct gw_client *c, const Godwit__AgentRequest *req, Godwit__AgentReply *rep, struct gw_error *err);
int gw_client_console(struct gw_client *c, const Godwit__AgentRequest *req, Godwit__AgentReply *rep, struct gw_error *err);

#endif
