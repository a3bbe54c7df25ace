// SPDX-License-Identifier: Apache-2.0
/* The asking side of the agents' protocol (proto/agent.proto): command lines, and agents that ask their peers. */
#ifndef GW_AGENT_CALL_H
#define GW_AGENT_CALL_H

#include "agent/chan.h"
#include "proto/agent.pb-c.h"

/*
 * Results that callers tell apart, as errno values in replies:
 * ESRCH no such VM; EBUSY, EEXIST, EALREADY wrong state or under way; EUCLEAN doubt; EHOSTUNREACH the agent does not answer.
 */
typedef void gw_call_event_fn(void *arg, const Godwit__AgentEvent *ev);

/*
 * Sends `req` and reads until its reply, giving events to `on_event` (may be NULL). 0 means that a reply came, which may say
 * that the request failed; *ret is owned (godwit__agent_reply__free_unpacked).
 */
int gw_call(struct gw_chan *c, const Godwit__AgentRequest *req, gw_call_event_fn *on_event, void *arg, uint64_t deadline_ns,
	    Godwit__AgentReply **ret, struct gw_error *err);
/* The same, and a reply that says "failed" is a failure. `ret` may be NULL. */
int gw_ask(struct gw_chan *c, const Godwit__AgentRequest *req, uint64_t deadline_ns, Godwit__AgentReply **ret,
	   struct gw_error *err);
/* 0, or what the reply says. */
int gw_reply_check(const Godwit__AgentReply *reply, struct gw_error *err);

static inline void gw_reply_freep(Godwit__AgentReply **p)
{
	if (*p)
		godwit__agent_reply__free_unpacked(*p, NULL);
}
#define gw_autoreply gw_cleanup(gw_reply_freep) Godwit__AgentReply

#endif
