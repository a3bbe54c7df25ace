// SPDX-License-Identifier: Apache-2.0
/* godwitd(8) from its command line to its end; see daemon.h. */
#include "agent/daemon.h"

#include <argp.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>

#include "agent/agent.h"
#include "agent/bootfile.h"
#include "agent/conf.h"
#include "agent/guest.h"
#include "agent/server.h"
#include "lib/failpoint.h"
#include "lib/log.h"
#include "lib/util.h"

#define DEFAULT_CONFIG "/etc/godwit/godwitd.conf"
/* How long threads have to finish what they are at. */
#define STOP_MS 3000

struct options {
	const char *config;
	bool check;
	bool debug;
};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case 'c':
		o->config = arg;
		return 0;
	case 't':
		o->check = true;
		return 0;
	case 'd':
		o->debug = true;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "unexpected argument '%s'", arg);
		return EINVAL;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp_option option_list[] = {
	{ "config", 'c', "FILE", 0, "Configuration file (default " DEFAULT_CONFIG ")", 0 },
	{ "check", 't', NULL, 0, "Check the configuration and exit", 0 },
	{ "debug", 'd', NULL, 0, "Log more", 0 },
	{ 0 },
};
static const struct argp argp = {
	.options = option_list,
	.parser = parse_option,
	.doc = "The agent of a Godwit host: keeps its VMs, and moves them to and from other hosts.",
};

/* SIGTERM and SIGINT become readable; SIGPIPE is an error of a write; SIGHUP is for terminals that we do not have. */
static int open_signals(void)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0)
		return -1;
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static int run(const struct gw_conf *conf, int signal_fd, struct gw_error *err)
{
	struct gw_agent agent;
	struct gw_server server = { .local_fd = -1, .tls_fd = -1, .data_fd = -1 };
	int r = gw_agent_init(&agent, conf, err);

	r = r ?: gw_server_open(&agent, &server, err);
	r = r ?: gw_guests_load(&agent, err);
	r = r ?: gw_memory_watch(&agent, err);
	if (r == 0) {
		gw_bootfile_sweep(&agent);
		gw_events_emit(agent.events, "agent-started", NULL, "godwitd " GW_AGENT_VERSION);
		sd_notify(0, "READY=1");
		gw_server_run(&server, signal_fd);
		sd_notify(0, "STOPPING=1");
		gw_events_emit(agent.events, "agent-stopped", NULL, "its VMs run on");
	}
	if (gw_agent_stop(&agent, STOP_MS) < 0) {
		/* A thread is in the middle of something; what it needs must not go away under it. Files are safe at any time. */
		gw_warn("some work did not finish in time");
		gw_server_close(&server);
		_exit(r < 0 ? 1 : 0);
	}
	if (server.agent)
		gw_server_close(&server);
	gw_agent_release(&agent);
	return r;
}

int gw_daemon_main(int argc, char **argv)
{
	struct options o = { .config = DEFAULT_CONFIG };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_conf conf;
	gw_autofd signal_fd = -1;
	int r;

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	gw_log_init("godwitd", NULL, o.debug ? GW_LOG_DEBUG : GW_LOG_INFO);
	r = gw_conf_read(o.config, &conf, &err);
	if (r == 0 && o.check) {
		printf("%s: good\n", o.config);
		gw_conf_release(&conf);
		return 0;
	}
	if (r == 0)
		r = gw_failpoint_init(&err);
	if (r == 0) {
		signal_fd = open_signals();
		r = signal_fd < 0 ? gw_error_errno(&err, errno, "cannot take signals") : run(&conf, signal_fd, &err);
	}
	if (r < 0)
		gw_error_log("%s", gw_error_text(&err));
	gw_conf_release(&conf);
	return r < 0 ? 1 : 0;
}
