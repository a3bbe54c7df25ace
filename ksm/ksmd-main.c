// SPDX-License-Identifier: Apache-2.0
/* godwit-ksmd(8), the page-store daemon of a host. Theory of operation: store.h and server.h. */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <systemd/sd-daemon.h>

#include "ksm/server.h"
#include "lib/limits.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "lib/util.h"

/* A descriptor a chunk: as many as the kernel allows at all by default. */

const char *argp_program_version = "godwit-ksmd 0.1.0";

struct options {
	int control_fd;
	const char *control;
	bool debug;
};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;
	struct gw_error err = GW_ERROR_INIT;
	uint64_t fd;

	switch (key) {
	case 'f':
		if (gw_parse_uint(arg, "--control-fd", 3, INT32_MAX, &fd, &err) < 0)
			argp_error(state, "%s", gw_error_text(&err));
		o->control_fd = (int)fd;
		return 0;
	case 'c':
		o->control = arg;
		return 0;
	case 'd':
		o->debug = true;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "unexpected argument '%s'", arg);
		return EINVAL;
	case ARGP_KEY_END:
		if ((o->control_fd >= 0) == (o->control != NULL))
			argp_error(state, "one of --control-fd and --control is needed");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp_option option_list[] = {
	{ "control-fd", 'f', "N", 0, "Connected UNIX stream socket to the agent; the daemon ends with it", 0 },
	{ "control", 'c', "PATH", 0, "Listen for control connections at PATH", 0 },
	{ "debug", 'd', NULL, 0, "Log more", 0 },
	{ 0 },
};
static const struct argp argp = {
	.options = option_list,
	.parser = parse_option,
	.doc = "The page store of a Godwit host: keeps the pages that VMs of one sharing domain have in common.",
};

static int on_signal(sd_event_source *s, const struct signalfd_siginfo *si, void *arg)
{
	return sd_event_exit(arg, 0);
}

static int run(const struct options *o, struct gw_error *err)
{
	struct gw_share_server *server = NULL;
	sd_event *loop = NULL;
	sigset_t set;
	int r;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return gw_error_errno(err, errno, "cannot take signals");
	r = sd_event_new(&loop);
	r = r < 0 ? r : sd_event_add_signal(loop, NULL, SIGTERM, on_signal, loop);
	r = r < 0 ? r : sd_event_add_signal(loop, NULL, SIGINT, on_signal, loop);
	if (r < 0) {
		sd_event_unref(loop);
		return gw_error_errno(err, r, "cannot set up the loop");
	}
	r = gw_share_server_new(loop, &server, err);
	if (r == 0 && o->control)
		r = gw_share_server_listen(server, o->control, err);
	else if (r == 0 && fcntl(o->control_fd, F_SETFD, FD_CLOEXEC) < 0)
		r = gw_error_errno(err, errno, "--control-fd %d", o->control_fd);
	else if (r == 0)
		r = gw_share_server_control(server, o->control_fd, true, err);
	if (r == 0) {
		/* Under the agent it is no service of its own. */
		if (o->control)
			sd_notify(0, "READY=1");
		r = sd_event_loop(loop);
		if (r < 0)
			gw_error_errno(err, r, "the loop failed");
		if (o->control)
			sd_notify(0, "STOPPING=1");
	}
	gw_share_server_free(server);
	sd_event_unref(loop);
	return r;
}

int main(int argc, char **argv)
{
	struct options o = { .control_fd = -1 };
	struct gw_error err = GW_ERROR_INIT;

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	gw_log_init("godwit-ksmd", NULL, o.debug ? GW_LOG_DEBUG : GW_LOG_INFO);
	/* Tables that grow are mapped and moved by the kernel, and go back to it at once; without this glibc raises the threshold. */
	mallopt(M_MMAP_THRESHOLD, 128 << 10);
	gw_raise_open_files();
	if (run(&o, &err) < 0) {
		gw_error_log("%s", gw_error_text(&err));
		return 1;
	}
	return 0;
}
