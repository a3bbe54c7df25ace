// SPDX-License-Identifier: Apache-2.0
/* Talking to other hosts' agents; see peers.h. */
#include "agent/peers.h"

#include <errno.h>
#include <string.h>

#include "agent/vmconfig.h"
#include "lib/clock.h"
#include "lib/util.h"

#define STATUS_TIMEOUT (3 * GW_NS_PER_SEC)
#define TELL_TIMEOUT (60 * GW_NS_PER_SEC)

int gw_peer_connect(struct gw_agent *a, const char *name, uint64_t deadline_ns, struct gw_chan **ret,
		    Godwit__AgentReply **hello, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__HostRequest host = GODWIT__HOST_REQUEST__INIT;
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	gw_autoreply *reply = NULL;
	char address[280], want[256];
	struct gw_error why;
	int r;

	if (!a->tls_client)
		return gw_error_set(err, EHOSTUNREACH, "this agent has no [tls] section and thus no peers");
	r = gw_agent_peer_address(a, name, address, want, err);
	r = r ?: gw_chan_connect_tls(a->tls_client, address, want, deadline_ns, &c, err);
	if (r < 0)
		return gw_error_set(err, EHOSTUNREACH, "host %.63s cannot be reached: %.400s", name,
				    gw_error_text(memcpy(&why, err, sizeof(why))));
	req.op_case = GODWIT__AGENT_REQUEST__OP_HELLO;
	req.hello = &host;
	r = gw_ask(c, &req, deadline_ns, &reply, err);
	if (r < 0)
		return r;
	if (!reply->host || reply->host->protocol != GW_AGENT_PROTOCOL)
		return gw_error_set(err, EPROTO, "host %s speaks version %u of the agents' protocol, this host %u", name,
				    reply->host ? reply->host->protocol : 0, GW_AGENT_PROTOCOL);
	*ret = gw_steal_ptr(&c);
	if (hello)
		*hello = gw_steal_ptr(&reply);
	return 0;
}

int gw_peer_step(struct gw_chan *c, Godwit__AgentRequest__OpCase op, const uint8_t id[GW_ID_LEN], uint64_t deadline_ns,
		 Godwit__AgentReply **reply, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__PeerMove move = GODWIT__PEER_MOVE__INIT;

	move.move_id.data = (uint8_t *)id;
	move.move_id.len = GW_ID_LEN;
	req.op_case = op;
	req.peer_spawn = &move; /* all PeerMove members share the place */
	return gw_ask(c, &req, deadline_ns, reply, err);
}

struct tell {
	struct gw_agent *agent;
	char *host;
	Godwit__AgentRequest__OpCase op;
	uint8_t id[GW_ID_LEN];
};

static void tell(void *arg)
{
	struct tell *t = arg;
	uint64_t end = gw_now_ns() + TELL_TIMEOUT;
	uint64_t wait = 250 * GW_NS_PER_MS;
	struct gw_error err = GW_ERROR_INIT;
	int r;

	for (;;) {
		struct gw_chan *c = NULL;

		r = gw_peer_connect(t->agent, t->host, gw_now_ns() + STATUS_TIMEOUT, &c, NULL, &err);
		r = r ?: gw_peer_step(c, t->op, t->id, gw_now_ns() + 30 * GW_NS_PER_SEC, NULL, &err);
		gw_chan_free(c);
		/* A refusal is an answer as well. */
		if (r == 0 || r == -EEXIST || r == -EACCES || gw_now_ns() >= end || gw_agent_sleep(t->agent, gw_now_ns() + wait))
			break;
		wait = GW_MIN(wait * 2, 5 * GW_NS_PER_SEC);
	}
	if (r == -EEXIST && t->op == GODWIT__AGENT_REQUEST__OP_PEER_ABORT)
		gw_events_emit(t->agent->events, "warning", NULL, "host %s says of a VM that was resolved to be here: %s. Stop one of them",
			       t->host, gw_error_text(&err));
	else if (r < 0 && !t->agent->stopping)
		gw_events_emit(t->agent->events, "warning", NULL, "host %s could not be told how a move ended: %s", t->host,
			       gw_error_text(&err));
	free(t->host);
	free(t);
}

void gw_peer_tell(struct gw_agent *a, const char *host, Godwit__AgentRequest__OpCase op, const uint8_t id[GW_ID_LEN])
{
	struct tell *t = calloc(1, sizeof(*t));

	if (!t)
		return;
	t->agent = a;
	t->host = strdup(host);
	t->op = op;
	memcpy(t->id, id, GW_ID_LEN);
	if (!t->host || gw_agent_thread(a, tell, t, NULL) < 0) {
		free(t->host);
		free(t);
	}
}

struct probe {
	struct gw_agent *agent;
	const struct gw_conf_peer *peer;
	pthread_t thread;
	bool started;
	Godwit__PeerInfo *info; /* NULL: out of memory */
};

static void *probe(void *arg)
{
	struct probe *p = arg;
	Godwit__PeerInfo info = GODWIT__PEER_INFO__INIT;
	struct gw_error err = GW_ERROR_INIT;
	struct gw_chan *c = NULL;
	Godwit__AgentReply *hello = NULL;
	uint64_t start = gw_now_ns();

	info.name = p->peer->name;
	info.address = p->peer->address;
	if (gw_peer_connect(p->agent, p->peer->name, start + STATUS_TIMEOUT, &c, &hello, &err) == 0) {
		info.reachable = true;
		info.host = hello->host;
		info.rtt_us = (gw_now_ns() - start) / GW_NS_PER_US;
	} else {
		info.message = (char *)gw_error_text(&err);
	}
	p->info = (Godwit__PeerInfo *)gw_pb_copy(&info.base);
	if (hello)
		godwit__agent_reply__free_unpacked(hello, NULL);
	gw_chan_free(c);
	return NULL;
}

int gw_peers_status(struct gw_agent *a, Godwit__PeerInfo ***ret, size_t *n, struct gw_error *err)
{
	unsigned count = a->conf->npeers;
	gw_autofree struct probe *probes = calloc((size_t)count + 1, sizeof(*probes));
	Godwit__PeerInfo **list = calloc((size_t)count + 1, sizeof(Godwit__PeerInfo *));
	size_t have = 0;

	if (!probes || !list) {
		free(list);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	for (unsigned i = 0; i < count; i++) {
		probes[i].agent = a;
		probes[i].peer = &a->conf->peers[i];
		probes[i].started = pthread_create(&probes[i].thread, NULL, probe, &probes[i]) == 0;
		if (!probes[i].started)
			probe(&probes[i]);
	}
	for (unsigned i = 0; i < count; i++) {
		if (probes[i].started)
			pthread_join(probes[i].thread, NULL);
		if (probes[i].info)
			list[have++] = probes[i].info;
	}
	*ret = list;
	*n = have;
	return 0;
}
