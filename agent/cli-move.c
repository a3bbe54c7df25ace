// SPDX-License-Identifier: Apache-2.0
/* godwit move: asks for it and shows how it goes. */
#include <string.h>

#include "agent/cli-output.h"
#include "agent/cli-progress.h"
#include "agent/cli-snapshot.h"
#include "agent/json.h"
#include "lib/io.h"
#include "lib/util.h"

static void format_line(const Godwit__MoveProgress *m, char *out, size_t size)
{
	char sent[24], left[24], rate[24], dirty[24], eta[24], slowed[24] = "";

	gw_format_size(m->bytes_sent, sent, sizeof(sent));
	gw_format_size(m->bytes_left, left, sizeof(left));
	gw_format_size(m->rate, rate, sizeof(rate));
	gw_format_size(m->dirty_rate, dirty, sizeof(dirty));
	gw_format_ms(m->eta_ms, eta, sizeof(eta));
	if (!strcmp(m->phase, "memory")) {
		snprintf(out, size, "%s, ETA %s", m->message, eta);
		return;
	}
	if (m->slowed)
		snprintf(slowed, sizeof(slowed), ", slowed %u%%", m->slowed);
	snprintf(out, size, "%-7.12s #%-3u ETA %s, %s sent, %s left, %s/s, dirty %s/s%s, blackout ~%.0f ms", m->phase, m->round, eta, sent,
		 left, rate, dirty, slowed, (double)m->predicted_blackout_us / 1000);
}

static void on_event(void *arg, const Godwit__AgentEvent *ev)
{
	const Godwit__MoveProgress *m = ev->move;
	char line[240];

	if (!m)
		return;
	format_line(m, line, sizeof(line));
	gw_progress_show(arg, &m->base, m->phase, m->ram_bytes, m->bytes_left, line);
}

static void print_result(const struct gw_cli *cli, const Godwit__MoveProgress *m, int r, const struct gw_error *err)
{
	char took[24], sent[24];

	if (cli->json) {
		json_t *o = m ? gw_json_message(&m->base) : json_object();

		json_object_set_new(o, "moved", json_boolean(r == 0));
		if (r < 0)
			json_object_set_new(o, "error", json_string(gw_error_text(err)));
		gw_print_json(json_pack("{s:o}", "result", o), true);
		return;
	}
	if (r < 0 || !m)
		return;
	gw_format_ms(m->elapsed_ms, took, sizeof(took));
	gw_format_size(m->bytes_sent, sent, sizeof(sent));
	printf("%s moved to %s in %s: %s sent, %u rounds, blackout %.1f ms, %s\n", cli->args[0], cli->args[1], took, sent, m->round,
	       (double)m->blackout_us / 1000, m->encrypted ? m->cipher : "NOT ENCRYPTED");
}

static void usage(const char *text)
{
	fprintf(stderr, "godwit move: %s\n", text);
	exit(GW_CLI_USAGE);
}

int gw_cli_move(struct gw_cli *cli, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__MoveRequest move = GODWIT__MOVE_REQUEST__INIT;
	struct gw_progress p;
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	gw_autoreply *reply = NULL;
	int r;

	if (cli->through && (cli->timeout_ms || cli->policy || cli->channels || cli->bandwidth || cli->digest || cli->clear || cli->detach))
		usage("of the options of a move, --through knows --downtime and --no-wait only");
	if (cli->through)
		return gw_cli_move_through(cli, err);
	if (cli->snapshot || cli->passphrase_file || cli->fingerprint)
		usage("--name, --passphrase-file and --fingerprint are for a repository: say --through REPOSITORY");
	r = gw_cli_connect(cli, &c, err);
	if (r < 0)
		return r;
	gw_progress_init(&p, cli);
	move.name = (char *)cli->args[0];
	move.host = (char *)cli->args[1];
	move.downtime_ms = cli->downtime_ms;
	move.timeout_ms = cli->timeout_ms;
	move.policy = (Godwit__MovePolicy)cli->policy;
	move.channels = (uint32_t)cli->channels;
	move.bandwidth = cli->bandwidth;
	move.digest = cli->digest;
	move.clear = cli->clear;
	move.detach = cli->detach;
	move.no_wait = cli->no_wait;
	req.op_case = GODWIT__AGENT_REQUEST__OP_MOVE;
	req.move = &move;
	if (!cli->detach)
		gw_cli_cancel_on_signal(cli);
	r = gw_call(c, &req, on_event, &p, GW_NO_DEADLINE, &reply, err);
	gw_progress_end(&p);
	r = r ?: gw_reply_check(reply, err);
	if (cli->detach) {
		if (r == 0 && cli->json)
			gw_print_json(json_pack("{s:b}", "ok", 1), true);
		else if (r == 0)
			printf("%s: the move to %s is under way\n", cli->args[0], cli->args[1]);
		return r;
	}
	print_result(cli, reply ? reply->move : NULL, r, err);
	return r;
}
