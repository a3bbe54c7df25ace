// SPDX-License-Identifier: Apache-2.0
/* Commands about VMs and hosts that are a question and an answer. */
#include <errno.h>
#include <string.h>

#include "agent/agent.h"
#include "agent/cli-output.h"
#include "agent/cli.h"
#include "agent/guest.h"
#include "agent/json.h"
#include "agent/vmconfig.h"
#include "lib/util.h"

/* What a command has done, for people; as JSON the VM's state. */
static void print_done(const struct gw_cli *cli, const Godwit__AgentReply *reply, const char *done)
{
	const Godwit__VmInfo *vm = reply->n_vms ? reply->vms[0] : NULL;

	if (cli->json && vm)
		gw_print_json_message(&vm->base);
	else if (cli->json)
		gw_print_json(json_pack("{s:b}", "ok", 1), false);
	else
		printf("%s: %s\n", vm ? vm->config->name : cli->args[0], done);
}

/* A request whose only parameter is the VM's name. */
static int simple(struct gw_cli *cli, Godwit__AgentRequest__OpCase op, const char *done, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__VmName name = GODWIT__VM_NAME__INIT;
	gw_autoreply *reply = NULL;
	int r;

	name.name = (char *)cli->args[0];
	req.op_case = op;
	req.start = &name; /* all VmName members share the place */
	r = gw_cli_ask(cli, &req, &reply, err);
	if (r == 0)
		print_done(cli, reply, done);
	return r;
}

int gw_cli_create(struct gw_cli *cli, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	gw_cleanup(gw_vmconfig_freep) Godwit__VmConfig *config = NULL;
	gw_autoreply *reply = NULL;
	int r = gw_vmconfig_read(cli->args[0], &config, err);

	if (r < 0)
		return r == -EEXIST || r == -EBUSY ? -EINVAL : r;
	req.op_case = GODWIT__AGENT_REQUEST__OP_CREATE;
	req.create = config;
	r = gw_cli_ask(cli, &req, &reply, err);
	if (r == 0)
		print_done(cli, reply, "created");
	return r;
}

int gw_cli_start(struct gw_cli *cli, struct gw_error *err)
{
	return simple(cli, GODWIT__AGENT_REQUEST__OP_START, "started", err);
}

int gw_cli_pause(struct gw_cli *cli, struct gw_error *err)
{
	return simple(cli, GODWIT__AGENT_REQUEST__OP_PAUSE, "paused", err);
}

int gw_cli_resume(struct gw_cli *cli, struct gw_error *err)
{
	/* What it names is a snapshot when it is said where that is, else a paused VM. */
	if (cli->from)
		return gw_cli_resume_snapshot(cli, err);
	if (cli->on || cli->grant || cli->force || cli->paused || cli->passphrase_file) {
		fprintf(stderr, "godwit resume: --on, --grant, --force, --paused and --passphrase-file are for a snapshot: say --from REPOSITORY\n");
		exit(GW_CLI_USAGE);
	}
	return simple(cli, GODWIT__AGENT_REQUEST__OP_RESUME, "running again", err);
}

int gw_cli_remove(struct gw_cli *cli, struct gw_error *err)
{
	return simple(cli, GODWIT__AGENT_REQUEST__OP_REMOVE, "removed", err);
}

int gw_cli_cancel(struct gw_cli *cli, struct gw_error *err)
{
	return simple(cli, GODWIT__AGENT_REQUEST__OP_CANCEL, "what is under way is asked to end", err);
}

int gw_cli_stop(struct gw_cli *cli, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__StopRequest stop = GODWIT__STOP_REQUEST__INIT;
	gw_autoreply *reply = NULL;
	int r;

	stop.name = (char *)cli->args[0];
	stop.force = cli->force;
	stop.timeout_ms = cli->timeout_ms;
	req.op_case = GODWIT__AGENT_REQUEST__OP_STOP;
	req.stop = &stop;
	r = gw_cli_ask(cli, &req, &reply, err);
	if (r == 0)
		print_done(cli, reply, "stopped");
	return r;
}

int gw_cli_resolve(struct gw_cli *cli, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__ResolveRequest resolve = GODWIT__RESOLVE_REQUEST__INIT;
	gw_autoreply *reply = NULL;
	int r;

	if (cli->here == cli->there) {
		fprintf(stderr, "godwit resolve: say either --here or --there\n");
		exit(GW_CLI_USAGE);
	}
	resolve.name = (char *)cli->args[0];
	resolve.here = cli->here;
	req.op_case = GODWIT__AGENT_REQUEST__OP_RESOLVE;
	req.resolve = &resolve;
	r = gw_cli_ask(cli, &req, &reply, err);
	if (r == 0)
		print_done(cli, reply, cli->here ? "belongs to this host" : "belongs to the other host");
	return r;
}

static int ask_host(struct gw_cli *cli, Godwit__AgentRequest__OpCase op, Godwit__AgentReply **reply, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__HostRequest host = GODWIT__HOST_REQUEST__INIT;

	req.op_case = op;
	req.hello = &host;
	return gw_cli_ask(cli, &req, reply, err);
}

static void list_row(struct gw_table *t, const Godwit__VmInfo *vm)
{
	char memory[32], resident[32], note[300];

	gw_format_size(vm->config->memory, memory, sizeof(memory));
	gw_format_size(vm->resident, resident, sizeof(resident));
	/* "moving to h2" says it all already in the reason. */
	snprintf(note, sizeof(note), "%s%s%s", *vm->operation && strcmp(vm->operation, "move") ? vm->operation : "",
		 *vm->operation && strcmp(vm->operation, "move") && *vm->reason ? "; " : "", vm->reason);
	gw_table_cell(t, "%s", vm->config->name);
	gw_table_cell(t, "%s", gw_vm_state_word(vm->state));
	gw_table_cell(t, "%u", vm->config->cpus);
	gw_table_cell(t, "%s", memory);
	gw_table_cell(t, "%s", vm->pid ? resident : "-");
	gw_table_cell(t, "%llu", (unsigned long long)vm->epoch);
	gw_table_cell(t, "%s", note);
}

static bool listed(const struct gw_cli *cli, const Godwit__VmInfo *vm)
{
	return vm->config && (cli->all || vm->state != GODWIT__VM_STATE__VM_MOVED);
}

int gw_cli_list(struct gw_cli *cli, struct gw_error *err)
{
	static const char *const header[] = { "NAME", "STATE", "CPUS", "MEMORY", "RESIDENT", "EPOCH", "NOTE" };
	struct gw_table t = { .columns = ARRAY_SIZE(header) };
	gw_autoreply *reply = NULL;
	int r = ask_host(cli, GODWIT__AGENT_REQUEST__OP_LIST, &reply, err);

	if (r < 0)
		return r;
	if (cli->json) {
		json_t *list = json_array();

		for (size_t i = 0; i < reply->n_vms; i++) {
			if (listed(cli, reply->vms[i]))
				json_array_append_new(list, gw_json_message(&reply->vms[i]->base));
		}
		gw_print_json(list, false);
		return 0;
	}
	for (size_t i = 0; i < ARRAY_SIZE(header); i++)
		gw_table_cell(&t, "%s", header[i]);
	for (size_t i = 0; i < reply->n_vms; i++) {
		if (listed(cli, reply->vms[i]))
			list_row(&t, reply->vms[i]);
	}
	if (!t.failed)
		gw_table_print(&t);
	gw_table_release(&t);
	return 0;
}

static void show_config(const Godwit__VmInfo *vm)
{
	const Godwit__VmConfig *c = vm->config;
	char text[64], share[16];

	gw_format_size(c->memory, text, sizeof(text));
	gw_enum_word(&godwit__vm_share__descriptor, (int)c->share, share, sizeof(share));
	printf("tenant     %s\n", c->tenant);
	printf("share      %s\n", share);
	printf("cpus       %u\n", c->cpus);
	printf("memory     %s\n", text);
	printf("kernel     %s%s%s%s\n", c->kernel, *vm->kernel_file ? " (here: " : "", vm->kernel_file, *vm->kernel_file ? ")" : "");
	if (*c->initrd)
		printf("initrd     %s%s%s%s\n", c->initrd, *vm->initrd_file ? " (here: " : "", vm->initrd_file,
		       *vm->initrd_file ? ")" : "");
	if (*c->cmdline)
		printf("cmdline    %s\n", c->cmdline);
	for (size_t i = 0; i < c->n_disks; i++)
		printf("disk %-5s %s%s\n", c->disks[i]->name, c->disks[i]->path, c->disks[i]->readonly ? " (read-only)" : "");
	for (size_t i = 0; i < c->n_nets; i++) {
		const Godwit__VmNet *n = c->nets[i];
		const char *tap = *n->tap ? n->tap : i < vm->n_taps ? vm->taps[i] : "";

		printf("net %-6s %s %s%s%s%s\n", n->name, n->mac, *tap ? "tap " : "", tap, *n->bridge ? " at bridge " : "", n->bridge);
	}
}

static void show_snapshots(const Godwit__VmInfo *vm)
{
	char text[64], all[64];

	if (vm->save && *vm->save->phase) {
		gw_format_size(vm->save->stored_bytes, text, sizeof(text));
		printf("last save  %s to %s as %s: %s new, stood still for %.1f ms%s%s\n", vm->save->phase, vm->save->url, vm->save->name, text,
		       (double)vm->save->stopped_us / 1000, *vm->save->message ? "; " : "", vm->save->message);
	}
	if (vm->load && *vm->load->phase) {
		gw_format_size(vm->load->bytes_here, text, sizeof(text));
		gw_format_size(vm->load->bytes, all, sizeof(all));
		printf("resumed    %s: %s of %s here, %llu pages were waited for%s%s\n", vm->load->phase, text, all, (unsigned long long)vm->load->faults,
		       *vm->load->message ? "; " : "", vm->load->message);
	}
}

static void show(const Godwit__VmInfo *vm)
{
	char text[64];

	gw_format_time(vm->changed_ns, text, sizeof(text));
	printf("name       %s\n", vm->config->name);
	printf("host       %s\n", vm->host);
	printf("state      %s since %s\n", gw_vm_state_word(vm->state), text);
	if (*vm->reason)
		printf("reason     %s\n", vm->reason);
	if (*vm->operation)
		printf("operation  %s\n", vm->operation);
	printf("epoch      %llu\n", (unsigned long long)vm->epoch);
	if (vm->pid) {
		gw_format_size(vm->resident, text, sizeof(text));
		printf("process    %u, %s of its memory resident\n", vm->pid, text);
	}
	if (vm->balloon) {
		gw_format_size(vm->balloon, text, sizeof(text));
		printf("balloon    %s given away by the guest\n", text);
	}
	if (vm->move && *vm->move->phase) {
		gw_format_size(vm->move->bytes_sent, text, sizeof(text));
		printf("last move  %s%s%s: %s in %u rounds, %s, blackout %.1f ms%s%s\n", *vm->peer ? vm->peer : "",
		       *vm->peer ? ": " : "", vm->move->phase, text, vm->move->round,
		       vm->move->encrypted ? vm->move->cipher : "not encrypted", (double)vm->move->blackout_us / 1000,
		       *vm->move->message ? "; " : "", vm->move->message);
	}
	show_snapshots(vm);
	show_config(vm);
}

int gw_cli_show(struct gw_cli *cli, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__VmName name = GODWIT__VM_NAME__INIT;
	gw_autoreply *reply = NULL;
	int r;

	name.name = (char *)cli->args[0];
	req.op_case = GODWIT__AGENT_REQUEST__OP_SHOW;
	req.show = &name;
	r = gw_cli_ask(cli, &req, &reply, err);
	if (r < 0)
		return r;
	if (reply->n_vms != 1 || !reply->vms[0]->config)
		return gw_error_set(err, EPROTO, "the agent answers with something else");
	if (cli->json)
		gw_print_json_message(&reply->vms[0]->base);
	else
		show(reply->vms[0]);
	return 0;
}

static void show_memory(const Godwit__GuestMemory *m)
{
	char text[6][32];
	const uint64_t sizes[] = { m->total, m->free, m->available, m->caches, m->swapped_in, m->swapped_out };

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
		gw_format_size(sizes[i], text[i], sizeof(text[i]));
	printf("total      %s, as the guest told %.1f s ago\nfree       %s\navailable  %s\ncaches     %s\nswapped    %s in, %s out\n",
	       text[0], (double)m->age_ms / 1000, text[1], text[2], text[3], text[4], text[5]);
	printf("faults     %llu major, %llu minor\nhuge pages %llu allocated, %llu failures\n", (unsigned long long)m->major_faults,
	       (unsigned long long)m->minor_faults, (unsigned long long)m->hugetlb_allocations,
	       (unsigned long long)m->hugetlb_failures);
}

int gw_cli_balloon(struct gw_cli *cli, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__BalloonRequest balloon = GODWIT__BALLOON_REQUEST__INIT;
	const Godwit__BalloonStatus *b;
	gw_autoreply *reply = NULL;
	char target[32], actual[32], reported[32];
	int r;

	balloon.name = (char *)cli->args[0];
	balloon.target = cli->target;
	req.op_case = GODWIT__AGENT_REQUEST__OP_BALLOON;
	req.balloon = &balloon;
	r = gw_cli_ask(cli, &req, &reply, err);
	if (r < 0)
		return r;
	b = reply->balloon;
	if (!b)
		return gw_error_set(err, EPROTO, "the agent answers with something else");
	if (cli->json) {
		gw_print_json_message(&b->base);
		return 0;
	}
	gw_format_size(b->target, target, sizeof(target));
	gw_format_size(b->actual, actual, sizeof(actual));
	gw_format_size(b->reported, reported, sizeof(reported));
	printf("target     %s\nactual     %s%s\nreported   %s of free pages given back\n", target, actual,
	       b->driver ? "" : " (the guest has no driver for its balloon)", reported);
	if (b->memory)
		show_memory(b->memory);
	return 0;
}

int gw_cli_host(struct gw_cli *cli, struct gw_error *err)
{
	gw_autoreply *reply = NULL;
	char total[32], available[32];
	int r = ask_host(cli, GODWIT__AGENT_REQUEST__OP_HELLO, &reply, err);

	if (r < 0)
		return r;
	if (!reply->host)
		return gw_error_set(err, EPROTO, "the agent answers with something else");
	if (cli->json) {
		gw_print_json_message(&reply->host->base);
		return 0;
	}
	gw_format_size(reply->host->memory_total, total, sizeof(total));
	gw_format_size(reply->host->memory_available, available, sizeof(available));
	printf("name     %s\nversion  %s\nmemory   %s, %s available\ncpus     %u\nVMs      %u, %u running\npeers    %s\n", reply->host->name,
	       reply->host->version, total, available, reply->host->cpus, reply->host->vms, reply->host->running,
	       *reply->host->listen ? reply->host->listen : "none: no [tls] section");
	return 0;
}

int gw_cli_peers(struct gw_cli *cli, struct gw_error *err)
{
	static const char *const header[] = { "NAME", "ADDRESS", "STATE", "VERSION", "VMS", "AVAILABLE", "ROUND TRIP" };
	struct gw_table t = { .columns = ARRAY_SIZE(header) };
	gw_autoreply *reply = NULL;
	int r = ask_host(cli, GODWIT__AGENT_REQUEST__OP_PEERS, &reply, err);

	if (r < 0)
		return r;
	if (cli->json) {
		json_t *list = json_array();

		for (size_t i = 0; i < reply->n_peers; i++)
			json_array_append_new(list, gw_json_message(&reply->peers[i]->base));
		gw_print_json(list, false);
		return 0;
	}
	for (size_t i = 0; i < ARRAY_SIZE(header); i++)
		gw_table_cell(&t, "%s", header[i]);
	for (size_t i = 0; i < reply->n_peers; i++) {
		const Godwit__PeerInfo *p = reply->peers[i];
		char available[32] = "-";

		if (p->host)
			gw_format_size(p->host->memory_available, available, sizeof(available));
		gw_table_cell(&t, "%s", p->name);
		gw_table_cell(&t, "%s", p->address);
		gw_table_cell(&t, "%s", p->reachable ? "up" : "down");
		gw_table_cell(&t, "%s", p->host ? p->host->version : "-");
		gw_table_cell(&t, "%u", p->host ? p->host->vms : 0);
		gw_table_cell(&t, "%s", available);
		if (p->reachable)
			gw_table_cell(&t, "%.1f ms", (double)p->rtt_us / 1000);
		else
			gw_table_cell(&t, "%s", p->message);
	}
	if (!t.failed)
		gw_table_print(&t);
	gw_table_release(&t);
	return 0;
}

int gw_cli_version(struct gw_cli *cli, struct gw_error *err)
{
	gw_autoreply *reply = NULL;
	const char *agent = NULL;

	/* It is a question about us as well, so that no agent is no failure. */
	if (ask_host(cli, GODWIT__AGENT_REQUEST__OP_HELLO, &reply, err) == 0 && reply->host)
		agent = reply->host->version;
	if (cli->json)
		gw_print_json(json_pack("{s:s,s:s?}", "godwit", GW_AGENT_VERSION, "agent", agent), false);
	else
		printf("godwit %s\nagent  %s\n", GW_AGENT_VERSION, agent ?: "does not answer");
	return 0;
}
