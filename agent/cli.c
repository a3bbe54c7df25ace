// SPDX-License-Identifier: Apache-2.0
/* The command line: options, dispatch, exit statuses; see cli.h. */
#include "agent/cli.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "agent/agent.h"
#include "agent/cli-output.h"
#include "agent/cli-repo.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"
#include "proto/vmm.pb-c.h"

#define DEFAULT_SOCKET "/run/godwit/godwitd.sock"
#define CONNECT_TIMEOUT (10 * GW_NS_PER_SEC)

enum {
	OPT_HOST = 0x100,
	OPT_SOCKET,
	OPT_CA,
	OPT_CERT,
	OPT_KEY,
	OPT_JSON,
	OPT_FORCE,
	OPT_ALL,
	OPT_STOP_TIMEOUT,
	OPT_DOWNTIME,
	OPT_MOVE_TIMEOUT,
	OPT_POLICY,
	OPT_CHANNELS,
	OPT_BANDWIDTH,
	OPT_DETACH,
	OPT_DIGEST,
	OPT_CLEAR,
	OPT_HERE,
	OPT_THERE,
	OPT_NO_FOLLOW,
	OPT_LAST,
	OPT_CLIENT,
	OPT_DAYS,
	OPT_DIR,
	OPT_OUT,
	OPT_DNS,
	OPT_IP,
	OPT_TARGET,
	OPT_VM,
	OPT_DOMAIN,
	OPT_WATCH,
	OPT_TO,
	OPT_FROM,
	OPT_ON,
	OPT_SNAPSHOT,
	OPT_LIVE,
	OPT_PAUSED,
	OPT_PASSPHRASE_FILE,
	OPT_SAVE_DOWNTIME,
	OPT_SAVE_DETACH,
	OPT_RESUME_FORCE,
	OPT_FINGERPRINT,
	OPT_PREFIX,
	OPT_DISK,
	OPT_THROUGH,
	OPT_GRANT,
	OPT_NO_WAIT,
};

static const struct argp_option all_options[] = {
	{ "force", OPT_FORCE, NULL, 0, "Pull the plug instead of pressing the power button", 0 },
	{ "all", OPT_ALL, NULL, 0, "Also VMs that have moved away", 0 },
	{ "timeout", OPT_STOP_TIMEOUT, "SECONDS", 0, "How long to wait for the guest to power off (default 90)", 0 },
	{ "downtime", OPT_DOWNTIME, "MS", 0, "Blackout to stay below (default 50, and up to 300 once further rounds gain nothing)", 0 },
	{ "timeout", OPT_MOVE_TIMEOUT, "SECONDS", 0, "How long to copy before --policy applies (default: for ever)", 0 },
	{ "policy", OPT_POLICY, "fail|stop", 0, "Past the timeout: end the move, or stop the VM and finish (default fail)", 0 },
	{ "channels", OPT_CHANNELS, "N", 0, "Data channels, 1 to 16 (default 2, on a host of one CPU 1)", 0 },
	{ "bandwidth", OPT_BANDWIDTH, "RATE", 0, "At most that many bytes a second, such as 100M", 0 },
	{ "detach", OPT_DETACH, NULL, 0, "Return once the move is under way", 0 },
	{ "verify-digest", OPT_DIGEST, NULL, 0, "Test: compare a digest over all RAM of both sides (lengthens the blackout)", 0 },
#ifdef GW_BENCH_SWITCHES
	{ "clear", OPT_CLEAR, NULL, 0, "Bench only: no encryption", 0 },
#endif
	{ "here", OPT_HERE, NULL, 0, "The VM belongs to the host that is asked", 0 },
	{ "there", OPT_THERE, NULL, 0, "The VM belongs to the other host", 0 },
	{ "no-follow", OPT_NO_FOLLOW, NULL, 0, "End after the past events", 0 },
	{ "last", OPT_LAST, "N", 0, "How many past events (default 10)", 0 },
	{ "client", OPT_CLIENT, NULL, 0, "A client's certificate instead of a host's", 0 },
	{ "days", OPT_DAYS, "N", 0, "How long the certificate is good (default 3650 for the CA, 825 for others)", 0 },
	{ "dir", OPT_DIR, "DIR", 0, "Where the CA is (default /etc/godwit/pki, or ~/.config/godwit/pki)", 0 },
	{ "out", OPT_OUT, "DIR", 0, "Where certificate and key go (default: the CA's folder)", 0 },
	{ "dns", OPT_DNS, "NAME", 0, "A further name of the host; may be repeated", 0 },
	{ "ip", OPT_IP, "ADDRESS", 0, "An address of the host; may be repeated", 0 },
	{ "target", OPT_TARGET, "SIZE", 0, "How much memory the guest is to have, such as 512M", 0 },
	{ "vm", OPT_VM, "VM", 0, "Only this VM and its domain", 0 },
	{ "domain", OPT_DOMAIN, "NAME", 0, "Only this domain: the VMs of a tenant", 0 },
	{ "watch", OPT_WATCH, NULL, 0, "Again every 2 seconds, until Ctrl-C", 0 },
	{ "to", OPT_TO, "URL", 0, "The repository: file:///DIRECTORY, s3://BUCKET/PREFIX or godwit://HOST/NAME", 0 },
	{ "through", OPT_THROUGH, "URL", 0, "By way of this repository, for hosts that do not reach each other: suspended there, and resumed on HOST", 0 },
	{ "grant", OPT_GRANT, "FILE", 0, "The word of the host that suspended it, which this one cannot ask: what 'godwit release' printed there ('-': standard input)", 0 },
	{ "from", OPT_FROM, "URL", 0, "The repository that has the snapshot", 0 },
	{ "on", OPT_ON, "HOST", 0, "Run it on this host (a name of [peers]) instead of the one that is asked", 0 },
	{ "name", OPT_SNAPSHOT, "NAME", 0, "Of the snapshot (default: the VM's)", 0 },
	{ "live", OPT_LIVE, NULL, 0, "Copy its memory while it runs; it stands still for the rest only", 0 },
	{ "paused", OPT_PAUSED, NULL, 0, "It does not run before 'godwit resume VM'", 0 },
	{ "passphrase-file", OPT_PASSPHRASE_FILE, "FILE", 0, "Has the repository's passphrase; '-' is standard input (default $GODWIT_REPO_PASSPHRASE_FILE)", 0 },
	{ "fingerprint", OPT_FINGERPRINT, "HEX", 0, "Only the repository of this fingerprint; without a passphrase the host's own key opens it", 0 },
	{ "downtime", OPT_SAVE_DOWNTIME, "MS", 0, "How long the VM may stand still, about (default 300)", 0 },
	{ "detach", OPT_SAVE_DETACH, NULL, 0, "Return once it is under way", 0 },
	{ "no-wait", OPT_NO_WAIT, NULL, 0, "Fail while its memory is still on its way from a repository, instead of waiting for it", 0 },
	{ "name", OPT_PREFIX, "PREFIX", 0, "They are named PREFIX-1, PREFIX-2, ... (default: the name of the VM that was saved)", 0 },
	{ "disk", OPT_DISK, "NAME=PATH", 0, "Another path for a disk, {} in it standing for the clone's number; may be repeated", 0 },
	{ "force", OPT_RESUME_FORCE, NULL, 0, "You are sure that the VM runs nowhere, and that its disks are as they were", 0 },
};

static const int stop_options[] = { OPT_FORCE, OPT_STOP_TIMEOUT, 0 };
static const int list_options[] = { OPT_ALL, 0 };
static const int move_options[] = { OPT_DOWNTIME,  OPT_MOVE_TIMEOUT, OPT_POLICY, OPT_CHANNELS, OPT_BANDWIDTH,
				    OPT_DETACH,    OPT_DIGEST,       OPT_CLEAR,  OPT_THROUGH,  OPT_SNAPSHOT,
				    OPT_PASSPHRASE_FILE, OPT_FINGERPRINT, OPT_NO_WAIT,  0 };
static const int suspend_options[] = { OPT_TO, OPT_SNAPSHOT, OPT_LIVE, OPT_SAVE_DOWNTIME, OPT_PASSPHRASE_FILE, OPT_FINGERPRINT, OPT_SAVE_DETACH, OPT_NO_WAIT, 0 };
static const int snapshot_options[] = { OPT_TO, OPT_SNAPSHOT, OPT_SAVE_DOWNTIME, OPT_PASSPHRASE_FILE, OPT_FINGERPRINT, OPT_SAVE_DETACH, OPT_NO_WAIT, 0 };
static const int resume_options[] = { OPT_FROM, OPT_ON, OPT_GRANT, OPT_PAUSED, OPT_RESUME_FORCE, OPT_PASSPHRASE_FILE, OPT_FINGERPRINT, 0 };
static const int clone_options[] = { OPT_FROM, OPT_PREFIX, OPT_ON, OPT_DISK, OPT_PAUSED, OPT_PASSPHRASE_FILE, OPT_FINGERPRINT, 0 };
static const int resolve_options[] = { OPT_HERE, OPT_THERE, 0 };
static const int balloon_options[] = { OPT_TARGET, 0 };
static const int share_options[] = { OPT_VM, OPT_DOMAIN, OPT_WATCH, 0 };
static const int event_options[] = { OPT_NO_FOLLOW, OPT_LAST, 0 };
static const int pki_options[] = { OPT_CLIENT, OPT_DAYS, OPT_DIR, OPT_OUT, OPT_DNS, OPT_IP, 0 };

static const struct gw_cli_command commands[] = {
	{ "create", "FILE.vm", "Defines a VM from its file, godwit.vm(5).", 1, 1, NULL, gw_cli_create },
	{ "start", "VM", "Starts a VM.", 1, 1, NULL, gw_cli_start },
	{ "stop", "VM", "Presses a VM's power button and waits until it is off.", 1, 1, stop_options, gw_cli_stop },
	{ "pause", "VM", "Stops a VM's processors.", 1, 1, NULL, gw_cli_pause },
	{ "suspend", "VM", "Saves a VM to a repository and ends it here, until it is resumed.", 1, 1, suspend_options, gw_cli_suspend },
	{ "snapshot", "VM", "Saves a VM to a repository; it goes on.", 1, 1, snapshot_options, gw_cli_snapshot },
	{ "resume", "VM | SNAPSHOT[@N]", "Lets a paused VM run again; with --from, a VM from its snapshot.", 1, 1, resume_options, gw_cli_resume },
	{ "release", "VM HOST", "Hands a suspended VM over to a host that cannot ask for it, and prints the grant for 'resume --grant'.", 2, 2, NULL, gw_cli_release },
	{ "clone", "SNAPSHOT[@N] [COUNT]", "Makes VMs of their own from one snapshot.", 1, 2, clone_options, gw_cli_clone },
	{ "move", "VM HOST", "Moves a running VM to another host.", 2, 2, move_options, gw_cli_move },
	{ "cancel", "VM", "Cancels the move or the saving that is under way.", 1, 1, NULL, gw_cli_cancel },
	{ "console", "VM", "Connects to a VM's serial console; Ctrl-] leaves it.", 1, 1, NULL, gw_cli_console },
	{ "ls", "", "Lists VMs.", 0, 0, list_options, gw_cli_list },
	{ "show", "VM", "Tells all about a VM.", 1, 1, NULL, gw_cli_show },
	{ "balloon", "VM", "Tells how much memory a VM's guest has and uses, or how much it is to have.", 1, 1, balloon_options,
	  gw_cli_balloon },
	{ "share", "", "Tells what sharing memory saves, for whom, and what it costs.", 0, 0, share_options, gw_cli_share },
	{ "rm", "VM", "Forgets a VM that is stopped or has moved away. Its disks stay.", 1, 1, NULL, gw_cli_remove },
	{ "events", "", "Tells what happens on the host.", 0, 0, event_options, gw_cli_events },
	{ "resolve", "VM", "Decides for a VM in doubt who owns it. Be sure that it does not run on the other host.", 1, 1, resolve_options,
	  gw_cli_resolve },
	{ "host", "", "Tells about the host itself.", 0, 0, NULL, gw_cli_host },
	{ "peers", "", "Tells which other hosts answer.", 0, 0, NULL, gw_cli_peers },
	{ "pki", "init [DIR] | issue NAME", "Makes a certificate authority, or a certificate signed by it.", 1, 2, pki_options,
	  gw_cli_pki },
	{ "repo", "COMMAND [ARGUMENT...]", "Looks after a repository of snapshots.", 0, 0, NULL, NULL },
	{ "version", "", "Tells the versions of command line and agent.", 0, 0, NULL, gw_cli_version },
};

static const struct argp_option global_options[] = {
	{ "host", OPT_HOST, "HOST", 0, "Ask the agent of another host: NAME[:PORT], or NAME@ADDRESS[:PORT]", 10 },
	{ "socket", OPT_SOCKET, "PATH", 0, "Socket of the local agent (default " DEFAULT_SOCKET ")", 10 },
	{ "ca", OPT_CA, "FILE", 0, "CA certificate for --host (default ~/.config/godwit/ca.crt)", 10 },
	{ "cert", OPT_CERT, "FILE", 0, "Client certificate for --host (default ~/.config/godwit/client.crt)", 10 },
	{ "key", OPT_KEY, "FILE", 0, "Its key (default ~/.config/godwit/client.key)", 10 },
	{ "json", OPT_JSON, NULL, 0, "Print JSON", 10 },
	{ 0 },
};

static void set_path(char **field, const char *value)
{
	free(*field);
	*field = strdup(value);
}

static error_t parse_global(int key, char *arg, struct argp_state *state)
{
	struct gw_cli *c = state->input;

	switch (key) {
	case OPT_HOST:
		c->host = arg;
		return 0;
	case OPT_SOCKET:
		c->socket = arg;
		c->host = NULL;
		return 0;
	case OPT_CA:
		set_path(&c->ca, arg);
		return 0;
	case OPT_CERT:
		set_path(&c->cert, arg);
		return 0;
	case OPT_KEY:
		set_path(&c->key, arg);
		return 0;
	case OPT_JSON:
		c->json = true;
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp global_argp = { .options = global_options, .parser = parse_global };

uint64_t gw_cli_number(struct argp_state *state, const char *arg, const char *what, uint64_t min, uint64_t max)
{
	struct gw_error err = GW_ERROR_INIT;
	uint64_t v = 0;

	if (gw_parse_uint(arg, what, min, max, &v, &err) < 0)
		argp_error(state, "%s", gw_error_text(&err));
	return v;
}

static void add_word(struct argp_state *state, const char **list, unsigned *n, const char *word)
{
	if (*n == GW_CLI_MAX_ARGS)
		argp_error(state, "more than %d names, addresses or disks", GW_CLI_MAX_ARGS);
	list[(*n)++] = word;
}

static error_t parse_flag(struct gw_cli *c, int key)
{
	switch (key) {
	case OPT_FORCE:
	case OPT_RESUME_FORCE:
		c->force = true;
		return 0;
	case OPT_ALL:
		c->all = true;
		return 0;
	case OPT_LIVE:
		c->live = true;
		return 0;
	case OPT_PAUSED:
		c->paused = true;
		return 0;
	case OPT_NO_WAIT:
		c->no_wait = true;
		return 0;
	case OPT_DETACH:
	case OPT_SAVE_DETACH:
		c->detach = true;
		return 0;
	case OPT_DIGEST:
		c->digest = true;
		return 0;
	case OPT_CLEAR:
		c->clear = true;
		return 0;
	case OPT_HERE:
		c->here = true;
		return 0;
	case OPT_THERE:
		c->there = true;
		return 0;
	case OPT_NO_FOLLOW:
		c->no_follow = true;
		return 0;
	case OPT_CLIENT:
		c->client = true;
		return 0;
	case OPT_WATCH:
		c->watch = true;
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static error_t parse_value(struct gw_cli *c, int key, char *arg, struct argp_state *state)
{
	struct gw_error err = GW_ERROR_INIT;

	switch (key) {
	case OPT_STOP_TIMEOUT:
	case OPT_MOVE_TIMEOUT:
		c->timeout_ms = gw_cli_number(state, arg, "--timeout", 1, 1000000) * 1000;
		return 0;
	case OPT_TO:
		c->to = arg;
		return 0;
	case OPT_FROM:
		c->from = arg;
		return 0;
	case OPT_ON:
		c->on = arg;
		return 0;
	case OPT_THROUGH:
		c->through = arg;
		return 0;
	case OPT_GRANT:
		c->grant = arg;
		return 0;
	case OPT_SNAPSHOT:
	case OPT_PREFIX:
		c->snapshot = arg;
		return 0;
	case OPT_PASSPHRASE_FILE:
		c->passphrase_file = arg;
		return 0;
	case OPT_FINGERPRINT:
		c->fingerprint = arg;
		return 0;
	case OPT_DOWNTIME:
	case OPT_SAVE_DOWNTIME:
		c->downtime_ms = gw_cli_number(state, arg, "--downtime", 1, 3600000);
		return 0;
	case OPT_CHANNELS:
		c->channels = gw_cli_number(state, arg, "--channels", 1, 16);
		return 0;
	case OPT_LAST:
		c->last = gw_cli_number(state, arg, "--last", 0, 1000);
		return 0;
	case OPT_DAYS:
		c->days = gw_cli_number(state, arg, "--days", 1, 36500);
		return 0;
	case OPT_BANDWIDTH:
		if (gw_parse_size(arg, &c->bandwidth, &err) < 0 || c->bandwidth == 0)
			argp_error(state, "--bandwidth: %s", c->bandwidth || !err.code ? "0 is no rate" : gw_error_text(&err));
		return 0;
	case OPT_TARGET:
		if (gw_parse_size(arg, &c->target, &err) < 0 || c->target == 0)
			argp_error(state, "--target: %s", c->target || !err.code ? "no memory at all is no target" : gw_error_text(&err));
		return 0;
	case OPT_POLICY:
		if (strcmp(arg, "fail") != 0 && strcmp(arg, "stop") != 0)
			argp_error(state, "--policy is 'fail' or 'stop', not '%s'", arg);
		c->policy = !strcmp(arg, "stop") ? GODWIT__MOVE_POLICY__MOVE_STOP : GODWIT__MOVE_POLICY__MOVE_FAIL;
		return 0;
	case OPT_DIR:
		c->dir = arg;
		return 0;
	case OPT_OUT:
		c->out = arg;
		return 0;
	case OPT_VM:
		c->vm = arg;
		return 0;
	case OPT_DOMAIN:
		c->domain = arg;
		return 0;
	case OPT_DNS:
		add_word(state, c->dns, &c->ndns, arg);
		return 0;
	case OPT_DISK:
		if (!strchr(arg, '=') || *arg == '=')
			argp_error(state, "--disk %s: want NAME=PATH", arg);
		add_word(state, c->disks, &c->ndisks, arg);
		return 0;
	case OPT_IP:
		add_word(state, c->ip, &c->nip, arg);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

/* The command whose options are being parsed; argp has one input for all parsers. */
struct command_state {
	struct gw_cli *cli;
	const struct gw_cli_command *command;
};

static error_t parse_command(int key, char *arg, struct argp_state *state)
{
	struct command_state *cs = state->input;
	struct gw_cli *c = cs->cli;

	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = c;
		return 0;
	case ARGP_KEY_ARG:
		if (c->nargs == cs->command->max_args)
			argp_error(state, "one argument too many: '%s'", arg);
		c->args[c->nargs++] = arg;
		return 0;
	case ARGP_KEY_END:
		if (c->nargs < cs->command->min_args)
			argp_error(state, "an argument is missing (%s)", cs->command->args_doc);
		return 0;
	default:
		return parse_flag(c, key) == 0 ? 0 : parse_value(c, key, arg, state);
	}
}

static void parse_command_line(struct gw_cli *cli, const struct gw_cli_command *cmd, int argc, char **argv)
{
	struct argp_option options[ARRAY_SIZE(all_options) + 1];
	struct argp_child children[] = { { &global_argp, 0, "Which agent, and how:", 5 }, { 0 } };
	struct argp argp = { .options = options, .parser = parse_command, .args_doc = cmd->args_doc, .doc = cmd->doc,
			     .children = children };
	struct command_state cs = { cli, cmd };
	char name[64];
	unsigned n = 0;

	for (const int *key = cmd->options; key && *key; key++) {
		for (size_t i = 0; i < ARRAY_SIZE(all_options); i++) {
			if (all_options[i].key == *key)
				options[n++] = all_options[i];
		}
	}
	memset(&options[n], 0, sizeof(options[n]));
	snprintf(name, sizeof(name), "godwit %s", cmd->name);
	argv[0] = name; /* for messages and --help */
	argp_parse(&argp, argc, argv, 0, NULL, &cs);
}

static char *help_filter(int key, const char *text, void *input)
{
	char *out = NULL;
	size_t size = 0;
	FILE *f;

	if (key != ARGP_KEY_HELP_POST_DOC)
		return (char *)text;
	f = open_memstream(&out, &size);
	if (!f)
		return (char *)text;
	fputs("Commands:\n", f);
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		fprintf(f, "  %-8s %-24s %s\n", commands[i].name, commands[i].args_doc, commands[i].doc);
	fputs("\n'godwit COMMAND --help' tells each one's options. Exit status: 0 done, 1 failed, 2 usage, 3 no such VM,\n"
	      "4 busy or in another state, 5 no agent answers, 6 in doubt, 7 cancelled, 8 damaged, 9 wrong passphrase.", f);
	fclose(f);
	return out;
}

/* Options before the command; stops at the command. */
static error_t parse_first(int key, char *arg, struct argp_state *state)
{
	unsigned *command = ((void **)state->input)[1];

	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = ((void **)state->input)[0];
		return 0;
	case ARGP_KEY_ARG:
		*command = (unsigned)state->next - 1;
		state->next = state->argc;
		return 0;
	case ARGP_KEY_END:
		if (!*command)
			argp_error(state, "a command is missing");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int gw_cli_exit_status(int r)
{
	switch (-r) {
	case 0:
		return GW_CLI_OK;
	case ESRCH:
		return GW_CLI_NOT_FOUND;
	case EBUSY:
	case EEXIST:
	case EALREADY:
		return GW_CLI_CONFLICT;
	case EHOSTUNREACH:
		return GW_CLI_UNREACHABLE;
	case EUCLEAN:
		return GW_CLI_DOUBT;
	case ECANCELED:
		return GW_CLI_CANCELLED;
	case EBADMSG:
		return GW_CLI_DAMAGED;
	case EKEYREJECTED:
		return GW_CLI_LOCKED;
	default:
		return GW_CLI_FAILED;
	}
}

static void set_defaults(struct gw_cli *c)
{
	const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
	gw_autofree char *dir = NULL;

	memset(c, 0, sizeof(*c));
	c->socket = getenv("GODWIT_SOCKET") ?: DEFAULT_SOCKET;
	c->host = getenv("GODWIT_HOST");
	c->last = 10;
	if (asprintf(&dir, "%s%s/godwit", config ?: home ?: "", config ? "" : "/.config") < 0 ||
	    asprintf(&c->ca, "%s/ca.crt", dir) < 0 || asprintf(&c->cert, "%s/client.crt", dir) < 0 ||
	    asprintf(&c->key, "%s/client.key", dir) < 0)
		exit(GW_CLI_FAILED);
}

int gw_cli_connect(const struct gw_cli *cli, struct gw_chan **ret, struct gw_error *err)
{
	char address[280], name[256];
	SSL_CTX *tls = NULL;
	int r;

	if (!cli->host) {
		r = gw_chan_connect_unix(cli->socket, ret, err);
		if (r == -ENOENT || r == -ECONNREFUSED)
			return gw_error_set(err, EHOSTUNREACH, "no agent answers at %s (is godwitd running?)", cli->socket);
		goto unreachable;
	}
	r = gw_split_host(cli->host, address, name, err);
	r = r ?: gw_tls_new(cli->ca, cli->cert, cli->key, false, &tls, err);
	if (r < 0)
		return r;
	r = gw_chan_connect_tls(tls, address, name, gw_now_ns() + CONNECT_TIMEOUT, ret, err);
	SSL_CTX_free(tls);
unreachable:
	if (r < 0)
		err->code = EHOSTUNREACH;
	return r < 0 ? -EHOSTUNREACH : 0;
}

int gw_cli_ask(const struct gw_cli *cli, const Godwit__AgentRequest *req, Godwit__AgentReply **reply, struct gw_error *err)
{
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	int r = gw_cli_connect(cli, &c, err);

	return r ?: gw_ask(c, req, GW_NO_DEADLINE, reply, err);
}

void gw_cli_report(bool json, int status, const struct gw_error *err)
{
	fprintf(stderr, "godwit: %s\n", gw_error_text(err));
	if (json)
		gw_print_json(json_pack("{s:{s:s,s:i,s:i}}", "error", "message", gw_error_text(err), "errno", err->code, "exit", status),
			      true);
}

int gw_cli_main(int argc, char **argv)
{
	static const struct argp_child children[] = { { &global_argp, 0, NULL, 0 }, { 0 } };
	static const struct argp argp = { .parser = parse_first, .args_doc = "COMMAND [ARGUMENT...]",
					  .doc = "Controls the VMs of a Godwit host.\v", .children = children,
					  .help_filter = help_filter };
	const struct gw_cli_command *cmd = NULL;
	struct gw_error err = GW_ERROR_INIT;
	struct gw_cli cli;
	unsigned at = 0;
	int r, status;

	argp_err_exit_status = GW_CLI_USAGE;
	signal(SIGPIPE, SIG_IGN);
	set_defaults(&cli);
	argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, (void *[]){ &cli, &at });
	for (size_t i = 0; i < ARRAY_SIZE(commands) && !cmd; i++) {
		if (!strcmp(commands[i].name, argv[at]))
			cmd = &commands[i];
	}
	if (!cmd) {
		fprintf(stderr, "godwit: there is no command '%s' (see 'godwit --help')\n", argv[at]);
		return GW_CLI_USAGE;
	}
	if (cmd->run) {
		parse_command_line(&cli, cmd, argc - (int)at, argv + at);
		r = cmd->run(&cli, &err);
		status = gw_cli_exit_status(r);
		if (r < 0)
			gw_cli_report(cli.json, status, &err);
	} else {
		status = gw_cli_repo_main(argc - (int)at, argv + at, &cli);
	}
	free(cli.ca);
	free(cli.cert);
	free(cli.key);
	return status;
}
