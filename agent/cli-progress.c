// SPDX-License-Identifier: Apache-2.0
/* How long work goes; see cli-progress.h. */
#include "agent/cli-progress.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>

#include "agent/cli-output.h"
#include "agent/json.h"
#include "lib/clock.h"
#include "lib/util.h"

/* Lines, where no bar can be drawn, at most that often. */
#define LINE_NS GW_NS_PER_SEC
#define BAR_WIDTH 20

void gw_progress_init(struct gw_progress *p, const struct gw_cli *cli)
{
	memset(p, 0, sizeof(*p));
	p->cli = cli;
	p->terminal = isatty(STDOUT_FILENO);
}

/* Redraws the terminal's line, no wider than it is: a wrapped one could not be redrawn. */
static void draw_bar(uint64_t total, uint64_t left, const char *line)
{
	struct winsize size = { .ws_col = 0 };
	unsigned columns, width, full;
	char bar[BAR_WIDTH + 1];

	ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
	columns = size.ws_col > 20 ? size.ws_col : 80;
	width = columns > 120 ? BAR_WIDTH : BAR_WIDTH / 2;
	full = total ? (unsigned)((total - GW_MIN(left, total)) * width / total) : 0;
	memset(bar, '-', width);
	memset(bar, '#', full);
	bar[width] = '\0';
	/* To the start of the line; what was there is cleared to its end. */
	printf("\r[%s] %.*s\033[K", bar, (int)(columns - width - 4), line);
}

void gw_progress_show(struct gw_progress *p, const ProtobufCMessage *message, const char *phase, uint64_t total, uint64_t left, const char *line)
{
	if (p->cli->json) {
		gw_print_json(json_pack("{s:o}", "progress", gw_json_message(message)), true);
		return;
	}
	if (p->terminal) {
		draw_bar(total, left, line);
		p->drawn = true;
	} else if (strncmp(p->last_phase, phase, sizeof(p->last_phase) - 1) != 0 || gw_now_ns() - p->last_line_ns >= LINE_NS) {
		printf("%s\n", line);
		p->last_line_ns = gw_now_ns();
		snprintf(p->last_phase, sizeof(p->last_phase), "%.15s", phase);
	}
	fflush(stdout);
}

void gw_progress_end(struct gw_progress *p)
{
	if (p->drawn)
		printf("\r\033[K");
	p->drawn = false;
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

void gw_cli_cancel_on_signal(const struct gw_cli *cli)
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
