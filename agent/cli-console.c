// SPDX-License-Identifier: Apache-2.0
/* godwit console: the terminal and a VM's serial console joined. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <termios.h>

#include "agent/cli.h"
#include "agent/vmmctl.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"
#include "proto/frame.h"

#define ESCAPE 0x1d /* Ctrl-] */
#define CHUNK 4096
#define WRITE_TIMEOUT (30 * GW_NS_PER_SEC)

/* One of both: a descriptor from the local agent, or the connection to a remote one. */
struct console {
	int fd;
	struct gw_chan *chan;
};

static ssize_t console_read(struct console *c, void *buf, size_t size)
{
	ssize_t n;

	if (c->chan)
		return gw_chan_read(c->chan, buf, size);
	n = read(c->fd, buf, size);
	return n < 0 ? -errno : n == 0 ? -EPIPE : n;
}

static int console_write(struct console *c, const void *buf, size_t len)
{
	if (c->chan)
		return gw_chan_write(c->chan, buf, len, gw_now_ns() + WRITE_TIMEOUT);
	return gw_write_full(c->fd, buf, len, gw_now_ns() + WRITE_TIMEOUT);
}

/* From the terminal. 1: the escape was typed; 0; -EPIPE at its end. */
static int take_input(struct console *c, bool terminal)
{
	char buf[CHUNK];
	ssize_t n = read(STDIN_FILENO, buf, sizeof(buf));
	const char *escape;

	if (n <= 0)
		return n < 0 && errno == EINTR ? 0 : -EPIPE;
	escape = terminal ? memchr(buf, ESCAPE, (size_t)n) : NULL;
	if (escape)
		n = escape - buf;
	if (n > 0 && console_write(c, buf, (size_t)n) < 0)
		return 1;
	return escape != NULL;
}

static int take_output(struct console *c)
{
	char buf[CHUNK];
	ssize_t n = console_read(c, buf, sizeof(buf));

	if (n < 0)
		return n == -EAGAIN || n == -EINTR ? 0 : -EPIPE;
	return gw_write_full(STDOUT_FILENO, buf, (size_t)n, GW_NO_DEADLINE);
}

/* Returns when either side ends or the escape is typed. At the end of piped input the output goes on. */
static void join(struct console *c, bool terminal)
{
	struct pollfd p[2] = { { .fd = c->chan ? gw_chan_fd(c->chan) : c->fd, .events = POLLIN },
			       { .fd = STDIN_FILENO, .events = POLLIN } };

	for (;;) {
		bool waiting = c->chan && gw_chan_pending(c->chan);

		if (poll(p, 2, waiting ? 0 : -1) < 0 && errno != EINTR)
			return;
		if ((waiting || p[0].revents) && take_output(c) < 0)
			return;
		if (p[1].fd >= 0 && p[1].revents) {
			int r = take_input(c, terminal);

			if (r > 0)
				return;
			if (r < 0)
				p[1].fd = -1;
		}
	}
}

/* Asks, and takes the reply with the descriptor that a local agent sends along. */
static int open_console(const struct gw_cli *cli, struct gw_chan *chan, int *fd, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__VmName name = GODWIT__VM_NAME__INIT;
	uint64_t deadline = gw_now_ns() + 30 * GW_NS_PER_SEC;
	gw_autobuf body = GW_BUF_INIT;
	gw_autoreply *reply = NULL;
	uint16_t type;
	int r;

	name.name = (char *)cli->args[0];
	req.op_case = GODWIT__AGENT_REQUEST__OP_CONSOLE;
	req.console = &name;
	if (cli->host)
		return gw_ask(chan, &req, deadline, NULL, err);
	r = gw_chan_send(chan, GW_FRAME_AGENT_REQUEST, &req.base, deadline);
	r = r ?: gw_vmmctl_recv(gw_chan_fd(chan), &type, &body, fd, deadline);
	if (r < 0)
		return gw_error_errno(err, r, "the agent does not answer");
	reply = godwit__agent_reply__unpack(NULL, body.len, body.data);
	if (type != GW_FRAME_AGENT_REPLY || !reply)
		return gw_error_set(err, EPROTO, "the agent answers with something else");
	r = gw_reply_check(reply, err);
	if (r == 0 && *fd < 0)
		r = gw_error_set(err, EPROTO, "the agent gave no console");
	return r;
}

int gw_cli_console(struct gw_cli *cli, struct gw_error *err)
{
	gw_cleanup(gw_chan_freep) struct gw_chan *chan = NULL;
	bool terminal = isatty(STDIN_FILENO);
	struct termios saved, raw;
	gw_autofd fd = -1;
	struct console c;
	int r = gw_cli_connect(cli, &chan, err);

	r = r ?: open_console(cli, chan, &fd, err);
	if (r < 0)
		return r;
	c = (struct console){ .fd = fd, .chan = cli->host ? chan : NULL };
	if (terminal && tcgetattr(STDIN_FILENO, &saved) == 0) {
		fprintf(stderr, "Connected to %s; Ctrl-] leaves.\n", cli->args[0]);
		raw = saved;
		cfmakeraw(&raw);
		tcsetattr(STDIN_FILENO, TCSANOW, &raw);
		join(&c, true);
		tcsetattr(STDIN_FILENO, TCSANOW, &saved);
		fprintf(stderr, "\n");
	} else {
		join(&c, false);
	}
	return 0;
}
