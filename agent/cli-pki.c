// SPDX-License-Identifier: Apache-2.0
/* godwit pki: the certificate authority of a small cluster. */
#include <errno.h>
#include <string.h>

#include "agent/cli-output.h"
#include "agent/cli.h"
#include "agent/pki.h"
#include "lib/util.h"

#define CA_DAYS 3650
#define CERT_DAYS 825

/* Owned, NULL when out of memory. */
static char *default_dir(void)
{
	const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
	char *dir;

	if (geteuid() == 0)
		return strdup("/etc/godwit/pki");
	if (asprintf(&dir, "%s%s/godwit/pki", config ?: home ?: "", config ? "" : "/.config") < 0)
		return NULL;
	return dir;
}

static int init(struct gw_cli *cli, const char *dir, struct gw_error *err)
{
	int r = gw_pki_init(dir, "godwit", cli->days ? (unsigned)cli->days : CA_DAYS, err);

	if (r < 0)
		return r;
	if (cli->json)
		gw_print_json(json_pack("{s:s+,s:s+}", "cert", dir, "/ca.crt", "key", dir, "/ca.key"), false);
	else
		printf("%s/ca.crt  goes to every host and client\n%s/ca.key  stays here: who has it can be any host\n", dir, dir);
	return 0;
}

static int issue(struct gw_cli *cli, const char *dir, struct gw_error *err)
{
	struct gw_pki_request req = {
		.name = cli->args[1],
		.role = cli->client ? GW_ROLE_CLIENT : GW_ROLE_HOST,
		.dns = cli->dns,
		.ndns = cli->ndns,
		.ip = cli->ip,
		.nip = cli->nip,
		.days = cli->days ? (int)cli->days : CERT_DAYS,
	};
	const char *out = cli->out ?: dir;
	int r = gw_pki_issue(dir, out, &req, err);

	if (r < 0)
		return r;
	if (cli->json)
		gw_print_json(json_pack("{s:s,s:s,s:s}", "name", req.name, "role", gw_role_name(req.role), "dir", out), false);
	else
		printf("%s/%s.crt, %s/%s.key: certificate and key of %s %s\n", out, req.name, out, req.name, gw_role_name(req.role),
		       req.name);
	return 0;
}

int gw_cli_pki(struct gw_cli *cli, struct gw_error *err)
{
	bool is_init = !strcmp(cli->args[0], "init"), is_issue = !strcmp(cli->args[0], "issue");
	gw_autofree char *standard = default_dir();
	const char *dir = cli->dir ?: is_init && cli->nargs == 2 ? cli->args[1] : standard;

	if ((!is_init && !is_issue) || (is_issue && cli->nargs != 2)) {
		fprintf(stderr, "godwit pki: say 'init [DIR]' or 'issue NAME'\n");
		exit(GW_CLI_USAGE);
	}
	if (!dir)
		return gw_error_set(err, ENOMEM, "out of memory");
	return is_init ? init(cli, dir, err) : issue(cli, dir, err);
}
