// SPDX-License-Identifier: Apache-2.0
/* Requests to agents; see call.h. */
#include "agent/call.h"

#include <errno.h>
#include <openssl/err.h>

#include "lib/util.h"

/* Fails a call whose connection broke. A refused certificate of ours shows only here (RFC 8446 section 4.4.2.4). */
static int broken(struct gw_chan *c, int r, const char *what, struct gw_error *err)
{
	if (r == -EPROTO && ERR_peek_error())
		return gw_ssl_error(err, EACCES, "%s refuses", gw_chan_peer(c));
	if (r == -EPIPE || r == -ECONNRESET)
		return gw_error_set(err, EHOSTUNREACH, "agent %s closed the connection", gw_chan_peer(c));
	return gw_error_errno(err, r, "%s agent %s", what, gw_chan_peer(c));
}

int gw_call(struct gw_chan *c, const Godwit__AgentRequest *req, gw_call_event_fn *on_event, void *arg, uint64_t deadline_ns,
	    Godwit__AgentReply **ret, struct gw_error *err)
{
	gw_autobuf body = GW_BUF_INIT;
	uint16_t type;
	int r = gw_chan_send(c, GW_FRAME_AGENT_REQUEST, &req->base, deadline_ns);

	if (r < 0)
		return broken(c, r, "sending to", err);
	for (;;) {
		Godwit__AgentEvent *ev;

		r = gw_chan_recv(c, &type, &body, GW_AGENT_FRAME_MAX, deadline_ns);
		if (r < 0)
			return broken(c, r, "waiting for", err);
		if (type == GW_FRAME_AGENT_REPLY) {
			Godwit__AgentReply *reply = godwit__agent_reply__unpack(NULL, body.len, body.data);

			if (!reply)
				break;
			*ret = reply;
			return 0;
		}
		ev = type == GW_FRAME_AGENT_EVENT ? godwit__agent_event__unpack(NULL, body.len, body.data) : NULL;
		if (!ev)
			break;
		if (on_event)
			on_event(arg, ev);
		godwit__agent_event__free_unpacked(ev, NULL);
	}
	return gw_error_set(err, EPROTO, "agent %s answers with something else than Godwit's protocol", gw_chan_peer(c));
}

int gw_reply_check(const Godwit__AgentReply *reply, struct gw_error *err)
{
	int code = reply ? reply->error : EPROTO;

	if (!reply)
		return gw_error_set(err, code, "there is no reply");
	if (code == 0)
		return 0;
	if (code < 0 || code > 4095)
		code = EIO;
	return gw_error_set(err, code, "%s", *reply->message ? reply->message : "failed");
}

int gw_ask(struct gw_chan *c, const Godwit__AgentRequest *req, uint64_t deadline_ns, Godwit__AgentReply **ret,
	   struct gw_error *err)
{
	gw_autoreply *reply = NULL;
	int r = gw_call(c, req, NULL, NULL, deadline_ns, &reply, err);

	r = r ?: gw_reply_check(reply, err);
	if (r < 0)
		return r;
	if (ret)
		*ret = gw_steal_ptr(&reply);
	return 0;
}
