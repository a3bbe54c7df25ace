// SPDX-License-Identifier: Apache-2.0
/* godwit move: asks for it, shows how it goes, and takes Ctrl-C as the wish to cancel. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>

#include "agent/cli-output.h"
#include "agent/cli.h"
#include "agent/json.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"

/* Lines, where no bar can be drawn, at most that often. */
#define LINE_NS GW_NS_PER_SEC
#define BAR_WIDTH 20

struct progress {
	const struct gw_cli *cli;
	bool terminal;
	bool drawn;           /* a bar stands on the present line */
	uint64_t last_line_ns;
	char last_phase[16];
};

/* Redraws the terminal's line, no wider than it is: a wrapped one could not be redrawn. */
static void draw_bar(const Godwit__MoveProgress *m, const char *line)
{
	struct winsize size = { .ws_col = 0 };
	uint64_t left = GW_MIN(m->bytes_left, m->ram_bytes);
	unsigned columns, width, full;
	char bar[BAR_WIDTH + 1];

	ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
	columns = size.ws_col > 20 ? size.ws_col : 80;
	width = columns > 120 ? BAR_WIDTH : BAR_WIDTH / 2;
	full = m->ram_bytes ? (unsigned)((m->ram_bytes - left) * width / m->ram_bytes) : 0;
	memset(bar, '-', width);
	memset(bar, '#', full);
	bar[width] = '\0';
	/* To the start of the line; what was there is cleared to its end. */
	printf("\r[%s] %.*s\033[K", bar, (int)(columns - width - 4), line);
}

static void format_line(const Godwit__MoveProgress *m, char *out, size_t size)
{
	char sent[24], left[24], rate[24], dirty[24], eta[24], slowed[24] = "";

	gw_format_size(m->bytes_sent, sent, sizeof(sent));
	gw_format_size(m->bytes_left, left, sizeof(left));
	gw_format_size(m->rate, rate, sizeof(rate));
	gw_format_size(m->dirty_rate, dirty, sizeof(dirty));
	gw_format_ms(m->eta_ms, eta, sizeof(eta));
	if (m->slowed)
		snprintf(slowed, sizeof(slowed), ", slowed %u%%", m->slowed);
	snprintf(out, size, "%-7.12s #%-3u ETA %s, %s sent, %s left, %s/s, dirty %s/s%s, blackout ~%.0f ms", m->phase, m->round, eta, sent,
		 left, rate, dirty, slowed, (double)m->predicted_blackout_us / 1000);
}

static void on_event(void *arg, const Godwit__AgentEvent *ev)
{
	struct progress *p = arg;
	const Godwit__MoveProgress *m = ev->move;
	char line[240];

	if (!m)
		return;
	if (p->cli->json) {
		gw_print_json(json_pack("{s:o}", "progress", gw_json_message(&m->base)), true);
		return;
	}
	format_line(m, line, sizeof(line));
	if (p->terminal) {
		draw_bar(m, line);
		p->drawn = true;
	} else if (strncmp(p->last_phase, m->phase, sizeof(p->last_phase) - 1) != 0 || gw_now_ns() - p->last_line_ns >= LINE_NS) {
		printf("%s\n", line);
		p->last_line_ns = gw_now_ns();
		snprintf(p->last_phase, sizeof(p->last_phase), "%.15s", m->phase);
	}
	fflush(stdout);
}

static int send_cancel(const struct gw_cli *cli, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__VmName name = GODWIT__VM_NAME__INIT;
	gw_autoreply *reply = NULL;

	name.name = (char *)cli->args[0];
	req.op_case = GODWIT__AGENT_REQUEST__OP_CANCEL;
	req.cancel = &name;
	return gw_cli_ask(cli, &req, &reply, err);
}

/* The first Ctrl-C asks for the end and the truth is waited for; the second one only stops waiting. */
static void *signals(void *arg)
{
	const struct gw_cli *cli = arg;
	struct gw_error err = GW_ERROR_INIT;
	sigset_t set;
	int sig;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	if (sigwait(&set, &sig) != 0)
		return NULL;
	fprintf(stderr, "\ngodwit: cancelling; once more stops waiting for the outcome\n");
	if (send_cancel(cli, &err) < 0)
		fprintf(stderr, "godwit: %s\n", gw_error_text(&err));
	if (sigwait(&set, &sig) != 0)
		return NULL;
	fprintf(stderr, "godwit: not waiting any more; see 'godwit show %s'\n", cli->args[0]);
	_exit(GW_CLI_CANCELLED);
}

static void watch_signals(const struct gw_cli *cli)
{
	pthread_t t;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	/* Without the thread the signals would be lost: let them end us as usual. */
	if (pthread_create(&t, NULL, signals, (void *)cli) != 0)
		pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	else
		pthread_detach(t);
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

int gw_cli_move(struct gw_cli *cli, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__MoveRequest move = GODWIT__MOVE_REQUEST__INIT;
	struct progress p = { .cli = cli, .terminal = isatty(STDOUT_FILENO) };
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	gw_autoreply *reply = NULL;
	int r = gw_cli_connect(cli, &c, err);

	if (r < 0)
		return r;
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
	req.op_case = GODWIT__AGENT_REQUEST__OP_MOVE;
	req.move = &move;
	if (!cli->detach)
		watch_signals(cli);
	r = gw_call(c, &req, on_event, &p, GW_NO_DEADLINE, &reply, err);
	if (p.drawn)
		printf("\r\033[K");
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
