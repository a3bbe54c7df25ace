// SPDX-License-Identifier: Apache-2.0
/* Getting tickets for repositories that a host keeps (migrate/repo/ticket.h). -ENOENT: it keeps none of that name, and what to do about it. */
#ifndef GW_AGENT_TICKET_H
#define GW_AGENT_TICKET_H

#include "agent/agent.h"
#include "agent/chan.h"
#include "migrate/repo/ticket.h"

/* For one that this host keeps; the address is the one where this host itself reaches it, or as it was configured for others ("": where its agent is). */
int gw_ticket_grant(struct gw_agent *a, const char *name, bool create, bool local, struct gw_ticket *ret, struct gw_error *err);
int gw_ticket_from_peer(struct gw_agent *a, const char *host, const char *name, bool create, struct gw_ticket *ret, struct gw_error *err);
/* For a godwit:// URL, of this host or another, for use on this one. */
int gw_ticket_for(struct gw_agent *a, const char *url, struct gw_ticket *ret, struct gw_error *err);

struct gw_vmm_ticket {
	struct gw_ticket ticket;
	Godwit__RepositoryTicket message; /* of it */
};
/* One for a VMM alone, since connections are counted by ticket: *message is t's, or NULL where the URL needs none. */
int gw_ticket_for_vmm(struct gw_agent *a, const char *url, struct gw_vmm_ticket *t, Godwit__RepositoryTicket **message, struct gw_error *err);

/*
 * Asks the agent at the other end of `c` for one of `host` ("": its own). `address`: HOST:PORT at which that agent was reached; may be NULL when it
 * is this host's.
 */
int gw_ticket_ask(struct gw_chan *c, const char *host, const char *name, bool create, const char *address, struct gw_ticket *ret, struct gw_error *err);

#endif
