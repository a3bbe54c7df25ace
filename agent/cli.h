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
	GW_CLI_NOT_FOUND = 3,   /* no such VM, repository, snapshot */
	GW_CLI_CONFLICT = 4,    /* the VM is in another state, or busy; or the name is taken */
	GW_CLI_UNREACHABLE = 5, /* no agent answers, or it refuses us; a repository's storage does not answer */
	GW_CLI_DOUBT = 6,       /* who owns the VM is in doubt */
	GW_CLI_CANCELLED = 7,   /* the move, or another command, was cancelled */
	GW_CLI_DAMAGED = 8,     /* something in the repository is damaged or missing */
	GW_CLI_LOCKED = 9,      /* the passphrase or key does not open the repository */
};

#define GW_CLI_MAX_ARGS 16

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
	bool force, all, detach, digest, clear, here, there, no_follow, client, watch, live, paused, no_wait;
	uint64_t timeout_ms, downtime_ms, bandwidth, channels, last, days, target;
	int policy;
	const char *dir, *out, *vm, *domain;
	const char *to, *from, *on, *through, *grant, *snapshot, *passphrase_file, *fingerprint;
	const char *dns[GW_CLI_MAX_ARGS];
	const char *ip[GW_CLI_MAX_ARGS];
	const char *disks[GW_CLI_MAX_ARGS]; /* NAME=PATH */
	unsigned ndns, nip, ndisks;
};

struct gw_cli_command {
	const char *name;
	const char *args_doc;
	const char *doc;
	unsigned min_args, max_args;
	const int *options; /* keys of the options it takes, 0 at the end; NULL: none */
	int (*run)(struct gw_cli *cli, struct gw_error *err); /* 0 or negative errno; NULL: cli-repo.h, which has commands of its own */
};

/* The status for 0 or a negative errno. */
int gw_cli_exit_status(int r);
/* Returns the exit status. */
int gw_cli_main(int argc, char **argv);
/* Of a command that failed: why, on standard error, and as JSON. */
void gw_cli_report(bool json, int status, const struct gw_error *err);

/* An option's number; one that is none, or out of bounds, ends the program with what is wrong with it (argp_error). */
uint64_t gw_cli_number(struct argp_state *state, const char *arg, const char *what, uint64_t min, uint64_t max);

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
int gw_cli_balloon(struct gw_cli *cli, struct gw_error *err);
int gw_cli_share(struct gw_cli *cli, struct gw_error *err);
int gw_cli_host(struct gw_cli *cli, struct gw_error *err);
int gw_cli_peers(struct gw_cli *cli, struct gw_error *err);
int gw_cli_events(struct gw_cli *cli, struct gw_error *err);
int gw_cli_move(struct gw_cli *cli, struct gw_error *err);
int gw_cli_suspend(struct gw_cli *cli, struct gw_error *err);
int gw_cli_snapshot(struct gw_cli *cli, struct gw_error *err);
int gw_cli_resume_snapshot(struct gw_cli *cli, struct gw_error *err);
int gw_cli_release(struct gw_cli *cli, struct gw_error *err);
int gw_cli_clone(struct gw_cli *cli, struct gw_error *err);
int gw_cli_cancel(struct gw_cli *cli, struct gw_error *err);
int gw_cli_console(struct gw_cli *cli, struct gw_error *err);
int gw_cli_pki(struct gw_cli *cli, struct gw_error *err);
int gw_cli_version(struct gw_cli *cli, struct gw_error *err);

#endif
