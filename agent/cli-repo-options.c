// SPDX-License-Identifier: Apache-2.0
/* The commands of godwit repo, and what their command lines may say; see cli-repo.h. */
#include <argp.h>
#include <string.h>

#include "agent/cli-repo.h"
#include "lib/parse.h"
#include "lib/util.h"

#define ANY_NUMBER UINT32_MAX

enum {
	OPT_REPO = 'r',
	OPT_PASSPHRASE_FILE = 0x100,
	OPT_KEY_FILE,
	OPT_FINGERPRINT,
	OPT_JSON,
	OPT_LABEL,
	OPT_GRACE,
	OPT_NEW_PASSPHRASE_FILE,
	OPT_NEW_CERT,
	OPT_TO,
	OPT_TO_PASSPHRASE_FILE,
	OPT_TO_KEY_FILE,
	OPT_TO_FINGERPRINT,
	OPT_READ_DATA,
	OPT_DRY_RUN,
	OPT_EXCLUSIVE,
	OPT_WASTE,
	OPT_ALL,
	OPT_KEEP_LAST,
};

static const struct argp_option all_options[] = {
	{ "label", OPT_LABEL, "TEXT", 0, "What the key is called in lists (default: who makes it where, or the certificate's name)", 0 },
	{ "grace", OPT_GRACE, "SECONDS", 0, "Prune leaves alone what is younger, a snapshot must be written within half of it (default 86400)", 0 },
	{ "new-passphrase-file", OPT_NEW_PASSPHRASE_FILE, "FILE", 0, "The passphrase that is added; '-' is standard input", 0 },
	{ "new-cert", OPT_NEW_CERT, "FILE", 0, "Certificate, or public key, of the host that is added", 0 },
	{ "to", OPT_TO, "URL", 0, "The repository that is copied to", 0 },
	{ "to-passphrase-file", OPT_TO_PASSPHRASE_FILE, "FILE", 0, "Its passphrase; without any of these, what opens the other", 0 },
	{ "to-key-file", OPT_TO_KEY_FILE, "FILE", 0, "A host's key that opens it", 0 },
	{ "to-fingerprint", OPT_TO_FINGERPRINT, "HEX", 0, "Its fingerprint", 0 },
	{ "read-data", OPT_READ_DATA, NULL, 0, "Also read, decrypt and compare every page", 0 },
	{ "dry-run", OPT_DRY_RUN, NULL, 0, "Only tell what would be done", 0 },
	{ "exclusive", OPT_EXCLUSIVE, NULL, 0, "At once: nobody writes to the repository or fetches pages of a removed snapshot. Be sure of that", 0 },
	{ "waste", OPT_WASTE, "PERCENT", 0, "Rewrite packs of which that much is unused (default 50; 101: none)", 0 },
	{ "all", OPT_ALL, NULL, 0, "All generations", 0 },
	{ "keep-last", OPT_KEEP_LAST, "N", 0, "All generations but the last N", 0 },
	{ 0 },
};

static const int init_options[] = { OPT_LABEL, OPT_GRACE, 0 };
static const int key_options[] = { OPT_NEW_PASSPHRASE_FILE, OPT_NEW_CERT, OPT_LABEL, 0 };
static const int check_options[] = { OPT_READ_DATA, 0 };
static const int prune_options[] = { OPT_DRY_RUN, OPT_EXCLUSIVE, OPT_WASTE, 0 };
static const int copy_options[] = { OPT_TO, OPT_TO_PASSPHRASE_FILE, OPT_TO_KEY_FILE, OPT_TO_FINGERPRINT, 0 };
static const int remove_options[] = { OPT_ALL, OPT_KEEP_LAST, OPT_DRY_RUN, 0 };
static const int no_options[] = { 0 };

static const struct gw_cli_repo_command commands[] = {
	{ "init", "[URL]", "Makes a repository.", 0, 0, init_options, false, gw_cli_repo_init },
	{ "ls", "[URL] [NAME]", "Lists snapshots.", 0, 1, no_options, true, gw_cli_repo_list },
	{ "show", "[URL] SNAPSHOT", "Tells all about a snapshot.", 1, 1, no_options, true, gw_cli_repo_show },
	{ "stats", "[URL]", "Tells what it holds and takes.", 0, 0, no_options, true, gw_cli_repo_stats },
	{ "check", "[URL]", "Looks for what is damaged or missing.", 0, 0, check_options, true, gw_cli_repo_check },
	{ "rm", "[URL] SNAPSHOT...", "Removes snapshots (prune frees space).", 1, ANY_NUMBER, remove_options, true, gw_cli_repo_remove },
	{ "prune", "[URL]", "Removes what no snapshot uses.", 0, 0, prune_options, true, gw_cli_repo_prune },
	{ "copy", "[URL] --to URL [SNAPSHOT...]", "Copies snapshots, or all of them.", 0, ANY_NUMBER, copy_options, true, gw_cli_repo_copy },
	{ "key ls", "[URL]", "Lists who can open the repository.", 0, 0, no_options, true, gw_cli_repo_key_list },
	{ "key add", "[URL]", "Lets a passphrase or host open it.", 0, 0, key_options, true, gw_cli_repo_key_add },
	{ "key rm", "[URL] KEY", "Removes a key.", 1, 1, no_options, true, gw_cli_repo_key_remove },
};

/* ---- options of all commands, before and after their name ---- */

static const struct argp_option shared_options[] = {
	{ "repo", OPT_REPO, "URL", 0, "file:///DIRECTORY, s3://BUCKET/PREFIX or godwit://HOST/NAME (default $GODWIT_REPO)", 10 },
	{ "passphrase-file", OPT_PASSPHRASE_FILE, "FILE", 0,
	  "Its passphrase; '-' is standard input (default $GODWIT_REPO_PASSPHRASE_FILE, else it is typed)", 10 },
	{ "key-file", OPT_KEY_FILE, "FILE", 0, "A host's key that opens it, in place of a passphrase", 10 },
	{ "fingerprint", OPT_FINGERPRINT, "HEX", 0, "Refuse a repository of another fingerprint", 10 },
	{ "json", OPT_JSON, NULL, 0, "Print JSON", 10 },
	{ 0 },
};

static error_t parse_shared(int key, char *arg, struct argp_state *state)
{
	struct gw_cli_repo *c = state->input;

	switch (key) {
	case OPT_REPO:
		c->url = arg;
		return 0;
	case OPT_PASSPHRASE_FILE:
		c->from.passphrase_file = arg;
		return 0;
	case OPT_KEY_FILE:
		c->from.key_file = arg;
		return 0;
	case OPT_FINGERPRINT:
		c->from.fingerprint = arg;
		return 0;
	case OPT_JSON:
		c->json = true;
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp shared_argp = { .options = shared_options, .parser = parse_shared };

/* ---- a command's own ---- */

struct parsing {
	struct gw_cli_repo *cli;
	const struct gw_cli_repo_command *command;
	const char *env_url; /* c->url is still this one */
};

static error_t parse_option(struct gw_cli_repo *c, int key, char *arg, struct argp_state *state)
{
	switch (key) {
	case OPT_LABEL:
		c->label = arg;
		return 0;
	case OPT_GRACE:
		c->grace_s = gw_cli_number(state, arg, "--grace", GW_REPO_MIN_GRACE_S, GW_REPO_MAX_GRACE_S);
		return 0;
	case OPT_NEW_PASSPHRASE_FILE:
		c->new_from.passphrase_file = arg;
		return 0;
	case OPT_TO_PASSPHRASE_FILE:
		c->to_from.passphrase_file = arg;
		return 0;
	case OPT_NEW_CERT:
		c->cert = arg;
		return 0;
	case OPT_TO:
		c->to = arg;
		return 0;
	case OPT_TO_KEY_FILE:
		c->to_from.key_file = arg;
		return 0;
	case OPT_TO_FINGERPRINT:
		c->to_from.fingerprint = arg;
		return 0;
	case OPT_READ_DATA:
		c->read_data = true;
		return 0;
	case OPT_DRY_RUN:
		c->dry_run = true;
		return 0;
	case OPT_EXCLUSIVE:
		c->exclusive = true;
		return 0;
	case OPT_WASTE:
		c->waste_percent = gw_cli_number(state, arg, "--waste", 1, 101);
		return 0;
	case OPT_ALL:
		c->all = true;
		return 0;
	case OPT_KEEP_LAST:
		c->keep_last = gw_cli_number(state, arg, "--keep-last", 1, 1000000);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

/* No snapshot has a name with "://" in it. */
static void take_argument(struct parsing *p, char *arg, struct argp_state *state)
{
	struct gw_cli_repo *c = p->cli;

	if (strstr(arg, "://")) {
		if (c->url == p->env_url)
			c->url = arg;
		else if (p->command->options == copy_options && !c->to)
			c->to = arg;
		else
			argp_error(state, "one repository too many: '%s'", arg);
		return;
	}
	if (c->nargs == p->command->max_args)
		argp_error(state, "one argument too many: '%s'", arg);
	c->args[c->nargs++] = arg;
}

static bool is_stdin(const char *file)
{
	return file && !strcmp(file, "-");
}

static void check_all(struct parsing *p, struct argp_state *state)
{
	struct gw_cli_repo *c = p->cli;

	if (c->nargs < p->command->min_args)
		argp_error(state, "an argument is missing (%s)", p->command->args_doc);
	if ((c->from.passphrase_file && c->from.key_file) || (c->to_from.passphrase_file && c->to_from.key_file) ||
	    (c->new_from.passphrase_file && c->cert))
		argp_error(state, "either a passphrase or a host's key");
	if (is_stdin(c->from.passphrase_file) && (is_stdin(c->to_from.passphrase_file) || is_stdin(c->new_from.passphrase_file)))
		argp_error(state, "only one of both passphrases can come from standard input");
	if (p->command->options == copy_options && !c->to)
		argp_error(state, "where to? Say --to URL");
	if (c->all && c->keep_last)
		argp_error(state, "either --all or --keep-last");
	if (!c->from.passphrase_file && !c->from.key_file)
		c->from.passphrase_file = getenv("GODWIT_REPO_PASSPHRASE_FILE");
}

static error_t parse_command(int key, char *arg, struct argp_state *state)
{
	struct parsing *p = state->input;

	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = p->cli;
		return 0;
	case ARGP_KEY_ARG:
		take_argument(p, arg, state);
		return 0;
	case ARGP_KEY_END:
		check_all(p, state);
		return 0;
	default:
		return parse_option(p->cli, key, arg, state);
	}
}

static void parse_rest(struct parsing *p, int argc, char **argv)
{
	struct argp_option options[ARRAY_SIZE(all_options)];
	const struct argp_child children[] = { { &shared_argp, 0, "Which repository, and how:", 5 }, { 0 } };
	const struct argp argp = { .options = options, .parser = parse_command, .args_doc = p->command->args_doc,
				   .doc = p->command->doc, .children = children };
	char name[48];
	unsigned n = 0;

	for (const int *key = p->command->options; *key; key++) {
		for (size_t i = 0; i + 1 < ARRAY_SIZE(all_options); i++) {
			if (all_options[i].key == *key)
				options[n++] = all_options[i];
		}
	}
	memset(&options[n], 0, sizeof(options[n]));
	snprintf(name, sizeof(name), "godwit repo %s", p->command->name);
	argv[0] = name; /* for messages and --help */
	argp_parse(&argp, argc, argv, 0, NULL, p);
}

/* ---- which command ---- */

struct seeking {
	struct gw_cli_repo *cli;
	int at; /* in argv: the next word */
};

static error_t parse_word(int key, char *arg, struct argp_state *state)
{
	struct seeking *s = state->input;

	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = s->cli;
		return 0;
	case ARGP_KEY_ARG:
		s->at = state->next - 1;
		state->next = state->argc;
		return 0;
	case ARGP_KEY_END:
		if (!s->at)
			argp_error(state, "a command is missing");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static char *list_commands(int key, const char *text, void *input)
{
	char *out = NULL;
	size_t size = 0;
	FILE *f;

	if (key != ARGP_KEY_HELP_POST_DOC || !(f = open_memstream(&out, &size)))
		return (char *)text;
	fputs("Commands:\n", f);
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		fprintf(f, "  %-7s %-28s %s\n", commands[i].name, commands[i].args_doc, commands[i].doc);
	fputs("\nSNAPSHOT is NAME, the latest of that name, or NAME@GENERATION. Exit status:\n"
	      "0 done, 1 failed, 2 usage, 3 no such repository, snapshot or key, 4 there\n"
	      "already, 5 the storage does not answer, 7 cancelled, 8 something is damaged or\n"
	      "missing, 9 wrong passphrase or key.", f);
	fclose(f);
	return out;
}

static int next_word(struct gw_cli_repo *c, int argc, char **argv)
{
	static const struct argp_child children[] = { { &shared_argp, 0, NULL, 0 }, { 0 } };
	static const struct argp argp = { .parser = parse_word, .args_doc = "COMMAND [ARGUMENT...]",
					  .doc = "Looks after a repository of snapshots.\v", .children = children,
					  .help_filter = list_commands };
	struct seeking s = { .cli = c };
	char name[] = "godwit repo";

	argv[0] = name;
	argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &s);
	return s.at;
}

/* The command of this name; *more: others begin with it and a further word. */
static const struct gw_cli_repo_command *find_command(const char *name, bool *more)
{
	size_t len = strlen(name);

	*more = false;
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		if (!strcmp(commands[i].name, name))
			return &commands[i];
		*more |= !strncmp(commands[i].name, name, len) && commands[i].name[len] == ' ';
	}
	return NULL;
}

const struct gw_cli_repo_command *gw_cli_repo_parse(struct gw_cli_repo *c, int argc, char **argv)
{
	struct parsing p = { .cli = c, .env_url = c->url };
	char name[48] = "";
	bool more;

	do {
		int at = next_word(c, argc, argv);
		size_t used = strlen(name);

		snprintf(name + used, sizeof(name) - used, "%s%s", used ? " " : "", argv[at]);
		argc -= at;
		argv += at;
		p.command = find_command(name, &more);
	} while (!p.command && more);
	if (!p.command) {
		fprintf(stderr, "godwit: there is no command 'repo %s' (see 'godwit repo --help')\n", name);
		exit(GW_CLI_USAGE);
	}
	parse_rest(&p, argc, argv);
	return p.command;
}
