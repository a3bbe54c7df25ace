// SPDX-License-Identifier: Apache-2.0
/*
 * Tickets for repositories that a host keeps; see cli-repo.h. The agent that the command line names is asked, which asks the other host; where none was named and
 * none runs here, the host itself is asked, by the client's certificate.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "agent/cli-repo.h"
#include "agent/conf.h"
#include "agent/ticket.h"
#include "lib/util.h"

/* *via is changed when it asks the host itself. */
static int connect_agent(struct gw_cli *via, const char *host, struct gw_chan **ret, struct gw_error *err)
{
	int r = gw_cli_connect(via, ret, err);

	if (r != -EHOSTUNREACH || via->host || access(via->cert, R_OK) < 0)
		return r;
	via->host = host;
	return gw_cli_connect(via, ret, err);
}

static int ask(const struct gw_cli *cli, const struct gw_ticket_url *u, bool create, struct gw_ticket *ret, struct gw_error *err)
{
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	struct gw_cli via = *cli;
	char address[280], name[256];
	int r = connect_agent(&via, u->host, &c, err);

	if (r == 0 && via.host)
		r = gw_split_host(via.host, address, name, err);
	return r ?: gw_ticket_ask(c, via.host == u->host ? "" : u->host, u->name, create, via.host ? address : NULL, ret, err);
}

int gw_cli_repo_reach(const struct gw_cli_repo *c, const char *url, bool create, struct gw_cli_secret *s, struct gw_error *err)
{
	struct gw_ticket_url u;
	int r;

	if (!gw_ticket_is_url(url))
		return 0;
	r = gw_ticket_parse_url(url, &u, err) ?: ask(c->cli, &u, create, &s->ticket, err);
	if (r == -ENOENT)
		err->code = ESRCH;
	if (r < 0)
		return gw_error_wrap(err, "%s", url);
	s->secret.ticket = &s->ticket;
	return 0;
}
