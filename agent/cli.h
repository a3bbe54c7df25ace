// SPDX-License-Identifier: Apache-2.0
/* godwit(1), the command line. */
#ifndef GW_AGENT_CLI_H
#define GW_AGENT_CLI_H

#include <argp.h>
#include <stdbool.h>
#include <stdint.h>

#include "agent/call.h"
#include "lib/error.h"

/* Exit statuses, as in godwit(1). */
enum gw_cli_status {
	GW_CLI_OK = 0,
	GW_CLI_FAILED = 1,      /* the operation failed */
	GW_CLI_USAGE = 2,       /* the command line makes no sense */
	GW_CLI_NOT_FOUND = 3,   /* no such VM */
	GW_CLI_CONFLICT = 4,    /* the VM is in another state, or busy; or the name is taken */
	GW_CLI_UNREACHABLE = 5, /* no agent answers, or it refuses us */
	GW_CLI_DOUBT = 6,       /* who owns the VM is in doubt */
	GW_CLI_CANCELLED = 7,   /* the move was cancelled */
};

#define GW_CLI_MAX_ARGS 8

/* Everything that a command line may say; each command takes some of it. */
struct gw_cli {
	/* To which agent. */
	const char *host; /* NULL: the local one */
	const char *socket;
	char *ca, *cert, *key; /* owned */
	bool json;
	/* The command's own. */
	const char *args[GW_CLI_MAX_ARGS];
	unsigned nargs;
	bool force, all, detach, digest, clear, here, there, no_follow, client;
	uint64_t timeout_ms, downtime_ms, bandwidth, channels, last, days;
	int policy;
	const char *dir, *out;
	const char *dns[GW_CLI_MAX_ARGS];
	const char *ip[GW_CLI_MAX_ARGS];
	unsigned ndns, nip;
};

struct gw_cli_command {
	const char *name;
	const char *args_doc;
	const char *doc;
	unsigned min_args, max_args;
	const int *options; /* keys of the options it takes, 0 at the end; NULL: none */
	int (*run)(struct gw_cli *cli, struct gw_error *err); /* 0 or negative errno */
};

/* Returns the exit status. */
int gw_cli_main(int argc, char **argv);

/* Connects as the command line says. Failures are -EHOSTUNREACH. */
int gw_cli_connect(const struct gw_cli *cli, struct gw_chan **ret, struct gw_error *err);
/* Connects, asks, waits for the reply; *reply is owned. */
int gw_cli_ask(const struct gw_cli *cli, const Godwit__AgentRequest *req, Godwit__AgentReply **reply, struct gw_error *err);

int gw_cli_create(struct gw_cli *cli, struct gw_error *err);
int gw_cli_start(struct gw_cli *cli, struct gw_error *err);
int gw_cli_stop(struct gw_cli *cli, struct gw_error *err);
int gw_cli_pause(struct gw_cli *cli, struct gw_error *err);
int gw_cli_resume(struct gw_cli *cli, struct gw_error *err);
int gw_cli_remove(struct gw_cli *cli, struct gw_error *err);
int gw_cli_resolve(struct gw_cli *cli, struct gw_error *err);
int gw_cli_list(struct gw_cli *cli, struct gw_error *err);
int gw_cli_show(struct gw_cli *cli, struct gw_error *err);
int gw_cli_host(struct gw_cli *cli, struct gw_error *err);
int gw_cli_peers(struct gw_cli *cli, struct gw_error *err);
int gw_cli_events(struct gw_cli *cli, struct gw_error *err);
int gw_cli_move(struct gw_cli *cli, struct gw_error *err);
int gw_cli_cancel(struct gw_cli *cli, struct gw_error *err);
int gw_cli_console(struct gw_cli *cli, struct gw_error *err);
int gw_cli_pki(struct gw_cli *cli, struct gw_error *err);
int gw_cli_version(struct gw_cli *cli, struct gw_error *err);

#endif
