// SPDX-License-Identifier: Apache-2.0
/* godwit clone: asks for it, and tells of each. */
#include <errno.h>
#include <string.h>

#include "agent/cli-output.h"
#include "agent/cli-progress.h"
#include "agent/cli-snapshot.h"
#include "agent/json.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"

static void on_event(void *arg, const Godwit__AgentEvent *ev)
{
	const Godwit__CloneProgress *p = ev->clone;
	char line[160];

	if (!p)
		return;
	snprintf(line, sizeof(line), "%u of %u, making %.63s", p->made, p->count, p->name);
	gw_progress_show(arg, &p->base, p->name, p->count, p->count - GW_MIN(p->made, p->count), line);
}

static void print_result(const struct gw_cli *cli, const Godwit__AgentReply *reply, int r, const struct gw_error *err)
{
	size_t n = reply ? reply->n_vms : 0;

	if (cli->json) {
		json_t *list = json_array(), *o = json_pack("{s:o}", "clones", list);

		for (size_t i = 0; i < n; i++)
			json_array_append_new(list, gw_json_message(&reply->vms[i]->base));
		if (r < 0)
			json_object_set_new(o, "error", json_string(gw_error_text(err)));
		gw_print_json(json_pack("{s:o}", "result", o), true);
		return;
	}
	for (size_t i = 0; i < n; i++) {
		const Godwit__VmInfo *vm = reply->vms[i];

		printf("%s: %s on %s\n", vm->config->name, vm->state == GODWIT__VM_STATE__VM_PAUSED ? "paused" : "runs", vm->host);
	}
}

/* What the command line says of them; what `disks` points to is owned by the caller. */
static int fill(const struct gw_cli *cli, Godwit__CloneRequest *req, Godwit__VmDisk *disks, Godwit__VmDisk **list, struct gw_error *err)
{
	uint64_t count = 1;
	int r = cli->nargs > 1 ? gw_parse_uint(cli->args[1], "number of clones", 1, UINT32_MAX, &count, err) : 0;

	for (unsigned i = 0; i < cli->ndisks; i++) {
		const char *eq = strchr(cli->disks[i], '=');

		godwit__vm_disk__init(&disks[i]);
		disks[i].name = strndup(cli->disks[i], (size_t)(eq - cli->disks[i]));
		disks[i].path = (char *)eq + 1;
		list[i] = &disks[i];
		if (!disks[i].name)
			r = gw_error_set(err, ENOMEM, "out of memory");
	}
	req->count = (uint32_t)count;
	req->url = (char *)cli->from;
	req->host = (char *)(cli->on ?: "");
	req->prefix = (char *)(cli->snapshot ?: "");
	req->paused = cli->paused;
	req->disks = list;
	req->n_disks = cli->ndisks;
	return r;
}

static int ask(struct gw_cli *cli, Godwit__CloneRequest *clone, struct gw_error *err)
{
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	gw_autoreply *reply = NULL;
	struct gw_cli_secret secret = { 0 };
	struct gw_progress p;
	int r = gw_cli_snapshot_secret(cli, cli->from, &secret, err);

	if (r < 0)
		return r;
	clone->passphrase = secret.passphrase ?: (char *)"";
	clone->fingerprint = gw_cli_fingerprint(&secret);
	req.op_case = GODWIT__AGENT_REQUEST__OP_CLONE;
	req.clone = clone;
	r = gw_cli_connect(cli, &c, err);
	gw_progress_init(&p, cli);
	r = r ?: gw_call(c, &req, on_event, &p, GW_NO_DEADLINE, &reply, err);
	gw_cli_secret_release(&secret);
	gw_progress_end(&p);
	r = r ?: gw_reply_check(reply, err);
	print_result(cli, reply, r, err);
	return r;
}

int gw_cli_clone(struct gw_cli *cli, struct gw_error *err)
{
	gw_autofree char *name = strdup(cli->args[0]);
	Godwit__CloneRequest clone = GODWIT__CLONE_REQUEST__INIT;
	Godwit__VmDisk disks[GW_CLI_MAX_ARGS], *list[GW_CLI_MAX_ARGS];
	int r;

	if (!cli->from) {
		fprintf(stderr, "godwit clone: say where the snapshot is, by --from REPOSITORY\n");
		exit(GW_CLI_USAGE);
	}
	if (!name)
		return gw_error_set(err, ENOMEM, "out of memory");
	clone.snapshot = name;
	r = fill(cli, &clone, disks, list, err);
	r = r ?: gw_cli_split_generation(name, &clone.generation, err);
	r = r ?: ask(cli, &clone, err);
	for (unsigned i = 0; i < cli->ndisks; i++)
		free(disks[i].name);
	return r;
}
