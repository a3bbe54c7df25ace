// SPDX-License-Identifier: Apache-2.0
/* Getting tickets for repositories; see ticket.h. */
#include "agent/ticket.h"

#include <errno.h>
#include <string.h>

#include "agent/peers.h"
#include "agent/vmconfig.h"
#include "agent/repositories.h"
#include "lib/clock.h"
#include "lib/util.h"

#define TIMEOUT (10 * GW_NS_PER_SEC) /* each for connecting and for asking */

int gw_ticket_grant(struct gw_agent *a, const char *name, bool create, bool local, struct gw_ticket *ret, struct gw_error *err)
{
	const char *address = local ? a->conf->data_listen : a->conf->data_address;
	struct gw_ticket t;
	char port[6];
	int r = gw_repositories_ticket(a->repositories, a->conf->name, name, create, &t, err);

	if (r == 0 && address)
		r = gw_parse_address(address, GW_DATA_PORT, t.address, port, err);
	if (r < 0)
		return r;
	t.port = a->data_port;
	*ret = t;
	return 0;
}

int gw_ticket_ask(struct gw_chan *c, const char *host, const char *name, bool create, const char *address, struct gw_ticket *ret, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__TicketRequest ticket = GODWIT__TICKET_REQUEST__INIT;
	gw_autoreply *reply = NULL;
	char reached[256], port[6];
	int r;

	ticket.host = (char *)host;
	ticket.name = (char *)name;
	ticket.create = create;
	req.op_case = GODWIT__AGENT_REQUEST__OP_TICKET;
	req.ticket = &ticket;
	r = gw_ask(c, &req, gw_now_ns() + 2 * TIMEOUT, &reply, err);
	if (r < 0)
		return r;
	if (!reply->ticket)
		return gw_error_set(err, EPROTO, "agent %s grants a ticket and gives none", gw_chan_peer(c));
	if (!*reply->ticket->address && address) {
		r = gw_parse_address(address, GW_DATA_PORT, reached, port, err);
		if (r == 0 && gw_pb_set_string(&reply->ticket->address, reached) < 0)
			r = gw_error_set(err, ENOMEM, "out of memory");
	}
	r = r ?: gw_ticket_read(reply->ticket, ret, err);
	explicit_bzero(reply->ticket->secret.data, reply->ticket->secret.len);
	return r;
}

int gw_ticket_from_peer(struct gw_agent *a, const char *host, const char *name, bool create, struct gw_ticket *ret, struct gw_error *err)
{
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	char address[280], want[256];
	int r = gw_agent_peer_address(a, host, address, want, err);

	r = r ?: gw_peer_connect(a, host, gw_now_ns() + TIMEOUT, &c, NULL, err);
	return r ?: gw_ticket_ask(c, "", name, create, address, ret, err);
}

int gw_ticket_for(struct gw_agent *a, const char *url, struct gw_ticket *ret, struct gw_error *err)
{
	struct gw_ticket_url u;
	int r = gw_ticket_parse_url(url, &u, err);

	if (r < 0)
		return r;
	if (!strcmp(u.host, a->conf->name))
		return gw_ticket_grant(a, u.name, false, true, ret, err);
	return gw_ticket_from_peer(a, u.host, u.name, false, ret, err);
}

int gw_ticket_for_vmm(struct gw_agent *a, const char *url, struct gw_vmm_ticket *t, Godwit__RepositoryTicket **message, struct gw_error *err)
{
	int r;

	if (!gw_ticket_is_url(url))
		return 0;
	r = gw_ticket_for(a, url, &t->ticket, err);
	if (r < 0)
		return r;
	gw_ticket_write(&t->ticket, &t->message);
	*message = &t->message;
	return 0;
}
