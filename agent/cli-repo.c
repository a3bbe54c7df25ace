// SPDX-License-Identifier: Apache-2.0
/* godwit repo: opens the repository, runs the command, tells how it ended; see cli-repo.h. */
#include "agent/cli-repo.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"

/* An error that says where, and what to do: the engine's name the object. */
static int explain(int r, const char *url, const char *hint, struct gw_error *err)
{
	char text[GW_ERROR_MAX];
	bool where = strstr(err->msg, url) != NULL;

	if (r == -ECANCELED)
		return gw_error_set(err, ECANCELED, "cancelled");
	snprintf(text, sizeof(text), "%s", gw_error_text(err));
	return gw_error_set(err, r, "%s%s%s%s%s", where ? "" : url, where ? "" : ": ", text, *hint ? "; " : "", hint);
}

int gw_cli_repo_open(const char *url, const struct gw_repo_secret *secret, struct gw_repo **ret, struct gw_error *err)
{
	int r = gw_repo_open(url, secret, ret, err);

	switch (r) {
	case 0:
		return 0;
	case -ENOENT:
		return explain(-ESRCH, url, "'godwit repo init' makes one", err);
	case -EKEYREJECTED:
		return explain(r, url, secret->passphrase ? "" : "'godwit repo key add --new-cert' gives it one", err);
	case -EPROTONOSUPPORT:
		return explain(r, url, "a newer godwit made it, and is needed", err);
	case -EBADMSG:
		return explain(r, url, "without it nothing can be read: bring it back from a copy of the storage", err);
	default:
		return explain(r, url, "", err);
	}
}

int gw_cli_repo_failed(int r, const char *url, struct gw_error *err)
{
	if (r == -ENOENT)
		r = -EBADMSG;
	if (r == -EBADMSG)
		return explain(r, url, "'godwit repo check' tells all that is", err);
	if (r == -EPROTONOSUPPORT)
		return explain(r, url, "a newer godwit wrote it, and is needed", err);
	return r < 0 ? explain(r, url, "", err) : r;
}

static int run(struct gw_cli_repo *c, const struct gw_cli_repo_command *cmd, struct gw_error *err)
{
	int r;

	if (!c->url)
		return gw_error_set(err, EINVAL, "which repository? Say --repo URL, or GODWIT_REPO in the environment");
	r = gw_cli_secret_read(&c->from, cmd->opens ? "Passphrase" : "New passphrase", c->url, !cmd->opens, &c->secret, err);
	r = r ?: gw_cli_repo_reach(c, c->url, !cmd->opens, &c->secret, err);
	if (r == 0 && cmd->opens)
		r = gw_cli_repo_open(c->url, &c->secret.secret, &c->repo, err);
	return r < 0 ? r : cmd->run(c, err);
}

int gw_cli_repo_main(int argc, char **argv, const struct gw_cli *cli)
{
	struct gw_cli_repo c = { .cli = cli, .json = cli->json, .url = getenv("GODWIT_REPO") };
	struct gw_error err = GW_ERROR_INIT;
	const struct gw_cli_repo_command *cmd;
	int r, status;

	c.args = calloc((size_t)argc + 1, sizeof(*c.args));
	if (!c.args)
		return GW_CLI_FAILED;
	cmd = gw_cli_repo_parse(&c, argc, argv);
	r = run(&c, cmd, &err);
	status = c.status ?: r == -EINVAL ? GW_CLI_USAGE : gw_cli_exit_status(r);
	if (r < 0) {
		gw_clean_text(err.msg, err.msg, sizeof(err.msg));
		gw_cli_report(c.json, status, &err);
	}
	gw_repo_free(c.repo);
	gw_cli_secret_release(&c.secret);
	free(c.args);
	return status;
}
