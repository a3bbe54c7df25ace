// SPDX-License-Identifier: Apache-2.0
/* godwit events. */
#include <errno.h>

#include "agent/cli-output.h"
#include "agent/cli.h"
#include "agent/json.h"
#include "lib/io.h"
#include "lib/util.h"

static void print_event(void *arg, const Godwit__AgentEvent *ev)
{
	const struct gw_cli *cli = arg;
	char when[32];

	if (cli->json) {
		json_t *o = gw_json_message(&ev->base);

		if (o && !ev->move)
			json_object_del(o, "move");
		gw_print_json(o, true);
		return;
	}
	gw_format_time(ev->time_ns, when, sizeof(when));
	printf("%s  %-8s %-14s %-12s %s\n", when, ev->host, ev->kind, *ev->vm ? ev->vm : "-", ev->message);
	fflush(stdout);
}

int gw_cli_events(struct gw_cli *cli, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__EventsRequest events = GODWIT__EVENTS_REQUEST__INIT;
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	gw_autoreply *reply = NULL;
	int r = gw_cli_connect(cli, &c, err);

	if (r < 0)
		return r;
	events.last = (uint32_t)cli->last;
	events.follow = !cli->no_follow;
	req.op_case = GODWIT__AGENT_REQUEST__OP_EVENTS;
	req.events = &events;
	r = gw_call(c, &req, print_event, cli, GW_NO_DEADLINE, &reply, err);
	return r ?: gw_reply_check(reply, err);
}
