// SPDX-License-Identifier: Apache-2.0
/*
 * godwit move --through: a move between hosts that do not reach each other, by way of a repository which both reach. Only the command line speaks to both:
 *
 *   HOST opens the repository? -> suspend --live -> HOST could resume it? -> release to HOST, which gives a grant -> resume on HOST with the grant
 *
 * Up to the release the VM is its old host's, and is resumed there when something fails; the release is in that host's journal before we hear of it, and from then on
 * the VM is HOST's alone. We keep nothing: said again, the command asks the old host how far it was and goes on from there, as each step has the same answer again.
 */
#include <errno.h>
#include <string.h>

#include "agent/cli-output.h"
#include "agent/cli-progress.h"
#include "agent/cli-snapshot.h"
#include "agent/grant.h"
#include "agent/guest.h"
#include "agent/json.h"
#include "agent/loading.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"

#define POLL_US (300 * 1000)

struct through {
	const struct gw_cli *cli;      /* to the host that has the VM */
	struct gw_cli there;           /* to HOST */
	char host[64];                 /* as its certificate says */
	struct gw_cli_secret secret;
	Godwit__ResumeRequest resume;  /* what HOST is asked for */
	Godwit__AgentReply *found;     /* what the old host told of the VM, owned, like the next ones: their parts are what `resume` points to */
	Godwit__AgentReply *saved;     /* NULL: it was suspended before */
	Godwit__AgentReply *released;
	Godwit__AgentReply *resumed;
	ProtobufCBinaryData id;        /* of the snapshot */
	bool gone;                     /* it was released before */
	uint64_t saved_ns;
};

static int ask_name(const struct gw_cli *cli, Godwit__AgentRequest__OpCase op, Godwit__AgentReply **reply, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__VmName name = GODWIT__VM_NAME__INIT;
	int r;

	name.name = (char *)cli->args[0];
	req.op_case = op;
	req.show = &name;
	r = gw_cli_ask(cli, &req, reply, err);
	if (r == 0 && (*reply)->n_vms != 1)
		r = gw_error_set(err, EPROTO, "the agent tells nothing of VM %s", name.name);
	return r;
}

static int ask_resume(const struct gw_cli *cli, Godwit__AgentRequest__OpCase op, Godwit__ResumeRequest *resume, Godwit__AgentReply **reply,
		      struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;

	req.op_case = op;
	req.resume_snapshot = resume; /* all ResumeRequest members share the place */
	return gw_cli_ask(cli, &req, reply, err);
}

static int ask_release(const struct gw_cli *cli, const char *host, ProtobufCBinaryData id, Godwit__AgentReply **reply, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__ReleaseRequest release = GODWIT__RELEASE_REQUEST__INIT;
	int r;

	release.vm = (char *)cli->args[0];
	release.host = (char *)host;
	release.snapshot = id;
	req.op_case = GODWIT__AGENT_REQUEST__OP_RELEASE;
	req.release = &release;
	r = gw_cli_ask(cli, &req, reply, err);
	if (r == 0 && !(*reply)->grant.len)
		r = gw_error_set(err, EPROTO, "the agent answers with no grant");
	return r;
}

int gw_cli_release(struct gw_cli *cli, struct gw_error *err)
{
	gw_autofree char *text = NULL;
	gw_autoreply *reply = NULL;
	int r = ask_release(cli, cli->args[1], (ProtobufCBinaryData){ 0, NULL }, &reply, err);

	r = r ?: gw_grant_print(reply->grant, &text, err);
	if (r < 0)
		return r;
	if (cli->json)
		gw_print_json(json_pack("{s:s,s:s,s:I,s:s}", "vm", cli->args[0], "host", cli->args[1], "epoch", (json_int_t)reply->epoch, "grant", text),
			      false);
	else
		fputs(text, stdout);
	return 0;
}

/* ---- before anything is done ---- */

/* That HOST is there, knows of grants, and opens the repository. */
static int greet(struct through *t, struct gw_error *err)
{
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	gw_autoreply *reply = NULL;
	int r = gw_cli_connect(&t->there, &c, err);

	if (r == 0)
		snprintf(t->host, sizeof(t->host), "%s", gw_chan_peer(c));
	r = r ?: ask_resume(&t->there, GODWIT__AGENT_REQUEST__OP_RESUME_CHECK, &t->resume, &reply, err);
	return r < 0 ? gw_error_wrap(err, "host %s (nothing was done)", t->there.host) : 0;
}

static void take_snapshot(struct through *t, char *name, uint64_t generation, ProtobufCBinaryData id)
{
	t->resume.snapshot = name;
	t->resume.generation = generation;
	t->id = id;
}

/* How far it is. */
static int look(struct through *t, struct gw_error *err)
{
	int r = ask_name(t->cli, GODWIT__AGENT_REQUEST__OP_SHOW, &t->found, err);
	const Godwit__VmInfo *vm = r == 0 ? t->found->vms[0] : NULL;
	const Godwit__Suspension *s = vm ? vm->suspension : NULL;

	if (r < 0)
		return r;
	if (!strcmp(vm->host, t->host))
		return gw_error_set(err, EEXIST, "VM %s is on %s already", t->cli->args[0], t->host);
	t->gone = vm->state == GODWIT__VM_STATE__VM_MOVED && !strcmp(vm->peer, t->host);
	if (!s || (vm->state != GODWIT__VM_STATE__VM_SUSPENDED && !t->gone))
		return 0;
	if (strcmp(s->url, t->resume.url) != 0)
		return gw_error_set(err, EALREADY, "VM %s is suspended in %s: say --through that", t->cli->args[0], s->url);
	take_snapshot(t, s->name, s->generation, s->id);
	return 0;
}

/* ---- its course ---- */

static int suspend(struct through *t, struct gw_error *err)
{
	Godwit__SaveRequest s = GODWIT__SAVE_REQUEST__INIT;
	int r;

	if (t->id.len)
		return 0;
	s.url = t->resume.url;
	s.live = true;
	r = gw_cli_save(t->cli, &s, &t->secret, &t->saved, err);
	if (r == 0 && (!t->saved->save || !t->saved->save->snapshot.len))
		r = gw_error_set(err, EPROTO, "the agent does not tell which snapshot it made; 'godwit show %s' does", t->cli->args[0]);
	if (r == 0)
		take_snapshot(t, t->saved->save->name, t->saved->save->generation, t->saved->save->snapshot);
	t->saved_ns = gw_now_ns();
	return r;
}

/* It was not handed over as far as we know. Its old host resumes it if so, and else refuses. Returns what `err` says. */
static int back(struct through *t, struct gw_error *err)
{
	const char *vm = t->cli->args[0], *old = t->found->vms[0]->host;
	struct gw_error why = GW_ERROR_INIT, first = *err;
	gw_autoreply *reply = NULL;

	if (ask_resume(t->cli, GODWIT__AGENT_REQUEST__OP_RESUME_SNAPSHOT, &t->resume, &reply, &why) == 0)
		return gw_error_set(err, first.code, "VM %s did not go to %s, and was resumed on %s: %.300s", vm, t->host, old, gw_error_text(&first));
	return gw_error_set(err, first.code, "VM %s did not go to %s: %.160s; nor was it resumed on %s: %.160s. 'godwit show %s' there tells whose it is, and the same said "
			    "again goes on", vm, t->host, gw_error_text(&first), old, gw_error_text(&why), vm);
}

static int hand_over(struct through *t, struct gw_error *err)
{
	gw_autoreply *reply = NULL;
	int r = 0;

	if (!t->gone)
		r = ask_resume(&t->there, GODWIT__AGENT_REQUEST__OP_RESUME_CHECK, &t->resume, &reply, err);
	r = r ?: ask_release(t->cli, t->host, t->id, &t->released, err);
	if (r == 0)
		t->resume.grant = t->released->grant;
	else if (!t->gone)
		r = back(t, err);
	return r;
}

/* Also when the answer was lost. */
static bool is_there(struct through *t)
{
	return ask_name(&t->there, GODWIT__AGENT_REQUEST__OP_SHOW, &t->resumed, NULL) == 0 && gw_vm_state_is_live(t->resumed->vms[0]->state);
}

static int arrive(struct through *t, struct gw_error *err)
{
	const struct gw_cli *cli = t->cli;
	struct gw_error why = GW_ERROR_INIT;

	if (ask_resume(&t->there, GODWIT__AGENT_REQUEST__OP_RESUME_SNAPSHOT, &t->resume, &t->resumed, &why) == 0 || is_there(t))
		return 0;
	return gw_error_set(err, why.code, "VM %s is %s's now, suspended in %.100s, and was not resumed there: %.220s. Say the same again to go on", cli->args[0],
			    t->host, t->resume.url, gw_error_text(&why));
}

/* ---- how it goes ---- */

/* The VM is there; until all of its memory is, the repository is needed. Nothing that fails here matters to the move. */
static void follow(struct through *t)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_progress p;
	int r = 0;

	gw_progress_init(&p, t->cli);
	while (r == 0 && t->resumed->n_vms && gw_loading(t->resumed->vms[0]->load)) {
		const Godwit__LoadProgress *l = t->resumed->vms[0]->load;
		uint64_t gone = l->bytes - GW_MIN(l->bytes_here, l->bytes);
		char left[24], rate[24], eta[24], line[300];
		Godwit__AgentReply *next = NULL;

		gw_format_size(gone, left, sizeof(left));
		gw_format_size(l->rate, rate, sizeof(rate));
		gw_format_ms(l->eta_ms, eta, sizeof(eta));
		snprintf(line, sizeof(line), "%-7.12s on %s, ETA %s, %s of its memory left, %s/s%s%.60s", l->phase, t->host, eta, left, rate,
			 *l->message ? ": " : "", l->message);
		gw_progress_show(&p, &l->base, l->phase, l->bytes, gone, line);
		usleep(POLL_US);
		r = ask_name(&t->there, GODWIT__AGENT_REQUEST__OP_SHOW, &next, &err);
		if (r == 0) {
			godwit__agent_reply__free_unpacked(t->resumed, NULL);
			t->resumed = next;
		}
	}
	gw_progress_end(&p);
	if (r < 0)
		fprintf(stderr, "godwit: VM %s is on %s; how its memory comes is not known: %s\n", t->cli->args[0], t->host, gw_error_text(&err));
}

static json_t *result(const struct through *t, uint64_t still_ms, int r, const struct gw_error *err)
{
	json_t *o = json_pack("{s:b,s:s,s:s,s:I}", "moved", r == 0, "host", t->host, "through", t->resume.url, "stood_still_ms", (json_int_t)still_ms);

	if (t->id.len) {
		json_object_set_new(o, "snapshot", json_string(t->resume.snapshot));
		json_object_set_new(o, "generation", json_integer((json_int_t)t->resume.generation));
	}
	if (t->saved && t->saved->save)
		json_object_set_new(o, "save", gw_json_message(&t->saved->save->base));
	if (r == 0 && t->resumed->n_vms && t->resumed->vms[0]->load)
		json_object_set_new(o, "load", gw_json_message(&t->resumed->vms[0]->load->base));
	if (r < 0)
		json_object_set_new(o, "error", json_string(gw_error_text(err)));
	return json_pack("{s:o}", "result", o);
}

static void print_result(const struct through *t, uint64_t began_ns, uint64_t still_ms, int r, const struct gw_error *err)
{
	char took[24], still[24];

	if (t->cli->json) {
		gw_print_json(result(t, still_ms, r, err), true);
		return;
	}
	if (r < 0)
		return;
	gw_format_ms((gw_now_ns() - began_ns) / GW_NS_PER_MS, took, sizeof(took));
	gw_format_ms(still_ms, still, sizeof(still));
	printf("%s moved to %s through %s in %s", t->cli->args[0], t->host, t->resume.url, took);
	if (t->saved)
		printf(", stood still for at most %s", still);
	printf("; the snapshot %s@%llu stays there\n", t->resume.snapshot, (unsigned long long)t->resume.generation);
}

static void release(struct through *t)
{
	Godwit__AgentReply *const owned[] = { t->found, t->saved, t->released, t->resumed };

	for (size_t i = 0; i < ARRAY_SIZE(owned); i++) {
		if (owned[i])
			godwit__agent_reply__free_unpacked(owned[i], NULL);
	}
	gw_cli_secret_release(&t->secret);
}

int gw_cli_move_through(struct gw_cli *cli, struct gw_error *err)
{
	struct through t = { .cli = cli, .there = *cli, .resume = GODWIT__RESUME_REQUEST__INIT };
	uint64_t began_ns = gw_now_ns(), still_ms = 0;
	int r = gw_cli_snapshot_secret(cli, cli->through, &t.secret, err);

	t.there.host = cli->args[1];
	t.resume.url = (char *)cli->through;
	t.resume.passphrase = t.secret.passphrase ?: (char *)"";
	t.resume.fingerprint = gw_cli_fingerprint(&t.secret);
	r = r ?: greet(&t, err);
	r = r ?: look(&t, err);
	r = r ?: suspend(&t, err);
	r = r ?: hand_over(&t, err);
	r = r ?: arrive(&t, err);
	if (r == 0 && t.saved)
		still_ms = t.saved->save->stopped_us / 1000 + (gw_now_ns() - t.saved_ns) / GW_NS_PER_MS;
	if (r == 0)
		follow(&t);
	print_result(&t, began_ns, still_ms, r, err);
	release(&t);
	return r;
}
