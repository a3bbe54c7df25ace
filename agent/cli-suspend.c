// SPDX-License-Identifier: Apache-2.0
/* godwit suspend, snapshot, and resume from a snapshot: they ask for it and show how it goes. */
#include <errno.h>
#include <string.h>

#include "agent/cli-output.h"
#include "agent/cli-progress.h"
#include "agent/cli-snapshot.h"
#include "agent/grant.h"
#include "agent/json.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"

int gw_cli_snapshot_secret(const struct gw_cli *cli, const char *url, struct gw_cli_secret *ret, struct gw_error *err)
{
	const struct gw_cli_secret_from from = {
		.passphrase_file = cli->passphrase_file ?: getenv("GODWIT_REPO_PASSPHRASE_FILE"),
		.fingerprint = cli->fingerprint,
	};

	if (from.passphrase_file || !from.fingerprint)
		return gw_cli_secret_read(&from, "Passphrase", url, false, ret, err);
	memset(ret, 0, sizeof(*ret));
	return gw_cli_secret_expect(ret, from.fingerprint, err);
}

ProtobufCBinaryData gw_cli_fingerprint(struct gw_cli_secret *s)
{
	return (ProtobufCBinaryData){ s->secret.fingerprint ? sizeof(s->fingerprint) : 0, s->fingerprint };
}

static void format_line(const Godwit__SaveProgress *p, char *out, size_t size)
{
	char left[24], rate[24], stored[24], eta[24];

	gw_format_size(p->bytes_left, left, sizeof(left));
	gw_format_size(p->rate, rate, sizeof(rate));
	gw_format_size(p->stored_bytes, stored, sizeof(stored));
	gw_format_ms(p->eta_ms, eta, sizeof(eta));
	if (!strcmp(p->phase, "memory"))
		snprintf(out, size, "%s, ETA %s", p->message, eta);
	else
		snprintf(out, size, "%-7.12s #%-3u ETA %s, %s left, %s/s, %s new to store", p->phase, p->round, eta, left, rate, stored);
}

static void on_event(void *arg, const Godwit__AgentEvent *ev)
{
	struct gw_progress *p = arg;
	char line[240];

	if (!ev->save)
		return;
	format_line(ev->save, line, sizeof(line));
	gw_progress_show(p, &ev->save->base, ev->save->phase, ev->save->ram_bytes, ev->save->bytes_left, line);
}

static void print_result(const struct gw_cli *cli, const Godwit__SaveProgress *p, int r, const struct gw_error *err)
{
	char took[24], ram[24], stored[24];

	if (cli->json) {
		json_t *o = p ? gw_json_message(&p->base) : json_object();

		json_object_set_new(o, "saved", json_boolean(r == 0));
		if (r < 0)
			json_object_set_new(o, "error", json_string(gw_error_text(err)));
		gw_print_json(json_pack("{s:o}", "result", o), true);
		return;
	}
	if (r < 0 || !p)
		return;
	gw_format_ms(p->elapsed_ms, took, sizeof(took));
	gw_format_size(p->ram_bytes, ram, sizeof(ram));
	gw_format_size(p->stored_bytes, stored, sizeof(stored));
	printf("%s %s as %s generation %llu in %s: %s of memory, %s of it new; it stood still for %.1f ms\n", cli->args[0],
	       p->keep ? "saved" : "suspended", p->name, (unsigned long long)p->generation, took, ram, stored, (double)p->stopped_us / 1000);
}

int gw_cli_save(const struct gw_cli *cli, Godwit__SaveRequest *s, struct gw_cli_secret *secret, Godwit__AgentReply **reply, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	struct gw_progress p;
	int r = gw_cli_connect(cli, &c, err);

	if (r < 0)
		return r;
	gw_progress_init(&p, cli);
	s->name = (char *)cli->args[0];
	s->passphrase = secret->passphrase ?: (char *)"";
	s->fingerprint = gw_cli_fingerprint(secret);
	s->snapshot = (char *)(cli->snapshot ?: "");
	s->downtime_ms = cli->downtime_ms;
	s->detach = cli->detach;
	s->no_wait = cli->no_wait;
	req.op_case = GODWIT__AGENT_REQUEST__OP_SAVE;
	req.save = s;
	if (!cli->detach)
		gw_cli_cancel_on_signal(cli);
	r = gw_call(c, &req, on_event, &p, GW_NO_DEADLINE, reply, err);
	gw_progress_end(&p);
	return r ?: gw_reply_check(*reply, err);
}

static int save(struct gw_cli *cli, bool keep, struct gw_error *err)
{
	Godwit__SaveRequest s = GODWIT__SAVE_REQUEST__INIT;
	gw_autoreply *reply = NULL;
	struct gw_cli_secret secret = { 0 };
	int r;

	if (!cli->to) {
		fprintf(stderr, "godwit %s: say where to, by --to REPOSITORY\n", keep ? "snapshot" : "suspend");
		exit(GW_CLI_USAGE);
	}
	s.url = (char *)cli->to;
	s.live = keep || cli->live;
	s.keep = keep;
	r = gw_cli_snapshot_secret(cli, cli->to, &secret, err) ?: gw_cli_save(cli, &s, &secret, &reply, err);
	gw_cli_secret_release(&secret);
	if (!cli->detach)
		print_result(cli, reply ? reply->save : NULL, r, err);
	else if (r == 0 && cli->json)
		gw_print_json(json_pack("{s:b}", "ok", 1), true);
	else if (r == 0)
		printf("%s: saving to %s is under way\n", cli->args[0], cli->to);
	return r;
}

int gw_cli_suspend(struct gw_cli *cli, struct gw_error *err)
{
	return save(cli, false, err);
}

int gw_cli_snapshot(struct gw_cli *cli, struct gw_error *err)
{
	return save(cli, true, err);
}

int gw_cli_split_generation(char *name, uint64_t *generation, struct gw_error *err)
{
	char *at = strrchr(name, '@');

	*generation = 0;
	if (!at)
		return 0;
	*at = '\0';
	return gw_parse_uint(at + 1, "generation", 1, UINT64_MAX, generation, err);
}

static void print_resumed(const struct gw_cli *cli, const Godwit__AgentReply *reply)
{
	const Godwit__VmInfo *vm = reply->n_vms ? reply->vms[0] : NULL;
	char left[24] = "", took[24] = "";

	if (cli->json) {
		if (vm)
			gw_print_json_message(&vm->base);
		return;
	}
	if (!vm || !vm->load) {
		printf("%s: resumed\n", vm ? vm->config->name : cli->args[0]);
		return;
	}
	gw_format_size(vm->load->bytes - GW_MIN(vm->load->bytes_here, vm->load->bytes), left, sizeof(left));
	gw_format_ms(vm->load->start_us / 1000, took, sizeof(took));
	printf("%s: %s on %s after %s, %s of its memory still on the way\n", vm->config->name, vm->state == GODWIT__VM_STATE__VM_PAUSED ? "paused" : "runs",
	       vm->host, took, left);
}

int gw_cli_resume_snapshot(struct gw_cli *cli, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__ResumeRequest resume = GODWIT__RESUME_REQUEST__INIT;
	gw_autofree char *name = strdup(cli->args[0]);
	gw_autobuf grant = GW_BUF_INIT;
	gw_autoreply *reply = NULL;
	struct gw_cli_secret secret = { 0 };
	int r = name ? gw_cli_split_generation(name, &resume.generation, err) : gw_error_set(err, ENOMEM, "out of memory");

	if (r == 0 && cli->grant)
		r = gw_grant_read(cli->grant, &grant, err);
	r = r ?: gw_cli_snapshot_secret(cli, cli->from, &secret, err);
	if (r < 0)
		return r;
	resume.snapshot = name;
	resume.grant = (ProtobufCBinaryData){ grant.len, grant.data };
	resume.url = (char *)cli->from;
	resume.passphrase = secret.passphrase ?: (char *)"";
	resume.fingerprint = gw_cli_fingerprint(&secret);
	resume.host = (char *)(cli->on ?: "");
	resume.force = cli->force;
	resume.paused = cli->paused;
	req.op_case = GODWIT__AGENT_REQUEST__OP_RESUME_SNAPSHOT;
	req.resume_snapshot = &resume;
	r = gw_cli_ask(cli, &req, &reply, err);
	gw_cli_secret_release(&secret);
	if (r == 0)
		print_resumed(cli, reply);
	return r;
}
