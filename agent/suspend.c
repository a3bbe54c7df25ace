// SPDX-License-Identifier: Apache-2.0
/* Saving a VM to a repository; see suspend.h. */
#include "agent/suspend.h"

#include <errno.h>
#include <openssl/rand.h>
#include <string.h>

#include "agent/failpoints.h"
#include "agent/records.h"
#include "agent/snapshot.h"
#include "agent/vmconfig.h"
#include "agent/vmmctl.h"
#include "agent/watch.h"
#include "lib/clock.h"
#include "lib/failpoint.h"
#include "lib/parse.h"
#include "lib/util.h"
#include "migrate/journal.h"

/* A VMM that has saved its VM ends by itself. */
#define GONE_PATIENCE (10 * GW_NS_PER_SEC)

struct suspend {
	struct gw_guest *g;        /* a reference */
	Godwit__SaveRequest *req;  /* NULL when it is followed after a restart */
	uint8_t id[GW_ID_LEN];
};

/* ---- what the record says ---- */

void gw_suspend_describe_locked(struct gw_guest *g)
{
	const Godwit__Suspension *s = g->record->suspension;

	gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_SUSPENDED, "in %.200s as %s", s ? s->url : "a repository", s ? s->name : "?");
}

bool gw_suspend_seen_locked(struct gw_guest *g)
{
	gw_autofree char *path = gw_guest_path(g, "journal");
	Godwit__Suspension *s = g->record->suspension;
	struct gw_journal_entry j;

	if (!path || gw_journal_read(path, &j, NULL) < 0 || j.state != GW_JOURNAL_SUSPENDED || j.epoch < g->record->epoch)
		return false;
	if (g->record->state == GODWIT__VM_STATE__VM_SUSPENDED)
		return true;
	if (s) {
		(void)gw_pb_set_bytes(&s->id, j.move_id, sizeof(j.move_id));
		if (g->save && g->save->snapshot.len == sizeof(j.move_id) && !memcmp(g->save->snapshot.data, j.move_id, sizeof(j.move_id)))
			s->generation = g->save->generation;
	}
	g->record->epoch = j.epoch;
	gw_suspend_describe_locked(g);
	return true;
}

/* Durable before the VMM hears of it. */
static int note(struct suspend *s, struct gw_error *err)
{
	struct gw_guest *g = s->g;
	Godwit__Suspension to = GODWIT__SUSPENSION__INIT, *copy;
	int r = 0;

	to.url = s->req->url;
	to.name = s->req->snapshot;
	copy = s->req->keep ? NULL : (Godwit__Suspension *)gw_pb_copy(&to.base);
	if (!copy && !s->req->keep)
		return gw_error_set(err, ENOMEM, "out of memory");
	pthread_mutex_lock(&g->lock);
	if (copy) {
		if (g->record->suspension)
			godwit__suspension__free_unpacked(g->record->suspension, NULL);
		g->record->suspension = copy;
	}
	gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_SAVING, "to %.200s", s->req->url);
	r = gw_guest_save_locked(g, err);
	pthread_mutex_unlock(&g->lock);
	return r;
}

/* ---- its course ---- */

static int check_cancelled(struct suspend *s, struct gw_error *err)
{
	bool is;

	pthread_mutex_lock(&s->g->lock);
	is = s->g->cancel;
	pthread_mutex_unlock(&s->g->lock);
	return is || s->g->agent->stopping ? gw_error_set(err, ECANCELED, "cancelled") : 0;
}

static int hand_over(struct suspend *s, const struct gw_repo *repo, const struct gw_buf *about, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_control(s->g);
	Godwit__VmmRequest req = GODWIT__VMM_REQUEST__INIT;
	Godwit__Save save = GODWIT__SAVE__INIT;

	if (!path)
		return gw_error_set(err, ENOMEM, "out of memory");
	save.url = s->req->url;
	save.key = (ProtobufCBinaryData){ GW_REPO_KEY_LEN, (uint8_t *)gw_repo_key(repo) };
	save.name = s->req->snapshot;
	save.host = s->g->agent->conf->name;
	save.live = s->req->live;
	save.keep = s->req->keep;
	save.downtime_ms = s->req->downtime_ms;
	save.about = (ProtobufCBinaryData){ about->len, about->data };
	save.id = (ProtobufCBinaryData){ sizeof(s->id), s->id };
	req.op_case = GODWIT__VMM_REQUEST__OP_SAVE;
	req.save = &save;
	return gw_vmmctl_ask(path, &req, NULL, 0, NULL, NULL, err);
}

static int begin(struct suspend *s, struct gw_error *err)
{
	gw_autobuf about = GW_BUF_INIT;
	struct gw_repo *repo = NULL;
	int r = gw_snapshot_repo(s->g->agent, s->req->url, s->req->passphrase, &s->req->fingerprint, &repo, err);

	r = r ?: gw_snapshot_describe(s->g, !s->req->keep, &about, err);
	r = r ?: check_cancelled(s, err);
	r = r ?: note(s, err);
	r = r ?: hand_over(s, repo, &about, err);
	gw_repo_free(repo);
	return r;
}

/* The phase of this saving as the VMM tells it, "" before it does. With g->lock held. */
static const char *phase_locked(const struct suspend *s)
{
	const Godwit__SaveProgress *p = s->g->save;

	if (!p || (s->req && (p->id.len != sizeof(s->id) || memcmp(p->id.data, s->id, sizeof(s->id)))))
		return "";
	return p->phase;
}

/* With g->lock held: until it has ended. 0: saved, and suspended if that was asked for; else the VM is as it was. */
static int follow_locked(struct suspend *s, struct gw_error *err)
{
	struct gw_guest *g = s->g;
	uint64_t gone_ns = 0;

	for (;;) {
		const char *phase = phase_locked(s);

		if (g->record->state == GODWIT__VM_STATE__VM_SUSPENDED)
			return 0;
		if (!g->watched)
			return gw_error_set(err, EIO, "VM %s %s: %s", g->name, gw_vm_state_word(g->record->state), g->record->reason);
		if (!strcmp(phase, "failed"))
			return gw_error_set(err, EIO, "VM %s could not be saved and goes on: %.300s", g->name, g->save->message);
		if (!strcmp(phase, "cancelled"))
			return gw_error_set(err, ECANCELED, "cancelled; VM %s goes on", g->name);
		if (!strcmp(phase, "done") && g->save->keep)
			return 0;
		if (!strcmp(phase, "done")) {
			if (gw_suspend_seen_locked(g))
				return 0;
			gone_ns = gone_ns ?: gw_now_ns();
			if (gw_now_ns() - gone_ns > GONE_PATIENCE)
				gw_watch_kill_locked(g, gw_now_ns() + GONE_PATIENCE);
		} else if (!s->req && !*phase && g->status && g->status->state != GODWIT__VMM_RUN_STATE__VMM_SAVING) {
			return gw_error_set(err, ECANCELED, "the agent was restarted before saving began; VM %s goes on", g->name);
		}
		if (gw_guest_wait_locked(g, GW_NO_DEADLINE) == -ESHUTDOWN)
			return gw_error_set(err, EHOSTUNREACH, "the agent ends; saving VM %s goes on", g->name);
	}
}

static void report(struct gw_guest *g, int r, const struct gw_error *err)
{
	if (r < 0) {
		gw_events_emit(g->agent->events, r == -ECANCELED ? "save-cancelled" : "save-failed", g->name, "%s", gw_error_text(err));
		return;
	}
	pthread_mutex_lock(&g->lock);
	if (g->save)
		gw_events_emit(g->agent->events, "save-done", g->name, "%s generation %llu in %.200s: %llu new pages, %llu bytes, stood still for %.1f ms",
			       g->save->name, (unsigned long long)g->save->generation, g->save->url, (unsigned long long)g->save->stored_pages,
			       (unsigned long long)g->save->stored_bytes, (double)g->save->stopped_us / 1000);
	pthread_mutex_unlock(&g->lock);
}

/* The VMM of a suspended VM ends by itself; whatever is asked next comes after. With g->lock held. */
static void wait_ended_locked(struct gw_guest *g)
{
	uint64_t deadline = gw_now_ns() + GONE_PATIENCE;
	int r = 0;

	while (g->watched && r == 0)
		r = gw_guest_wait_locked(g, deadline);
	if (r == -ETIMEDOUT)
		gw_watch_kill_locked(g, gw_now_ns() + GONE_PATIENCE);
}

static int cancel_vmm(struct gw_guest *g)
{
	gw_autofree char *path = gw_guest_control(g);

	return path ? gw_vmmctl_simple(path, GODWIT__VMM_REQUEST__OP_CANCEL, NULL, NULL) : -ENOMEM;
}

static void free_request(Godwit__SaveRequest *req)
{
	if (!req)
		return;
	explicit_bzero(req->passphrase, strlen(req->passphrase));
	godwit__save_request__free_unpacked(req, NULL);
}

static void suspend_main(void *arg)
{
	struct suspend *s = arg;
	struct gw_guest *g = s->g;
	struct gw_error err = GW_ERROR_INIT;
	bool suspended;
	int r = 0;

	if (s->req) {
		gw_events_emit(g->agent->events, "save-started", g->name, "to %.200s as %s", s->req->url, s->req->snapshot);
		r = begin(s, &err);
		pthread_mutex_lock(&g->lock);
		g->handed = r == 0;
		pthread_mutex_unlock(&g->lock);
		if (r == 0 && check_cancelled(s, NULL) < 0)
			(void)cancel_vmm(g);
	}
	if (r == 0) {
		pthread_mutex_lock(&g->lock);
		r = follow_locked(s, &err);
		pthread_mutex_unlock(&g->lock);
	}
	pthread_mutex_lock(&g->lock);
	suspended = g->record->state == GODWIT__VM_STATE__VM_SUSPENDED;
	pthread_mutex_unlock(&g->lock);
	if (!suspended && !g->agent->stopping)
		gw_watch_back_from(g, GODWIT__VM_STATE__VM_SAVING);
	report(g, r, &err);
	pthread_mutex_lock(&g->lock);
	g->departed = err;
	g->departed.code = -r;
	g->departing = false;
	g->leaving = suspended;
	pthread_cond_broadcast(&g->changed);
	if (suspended)
		wait_ended_locked(g);
	gw_guest_end_locked(g);
	pthread_mutex_unlock(&g->lock);
	free_request(s->req);
	gw_guest_unref(g);
	free(s);
}

/* With g->lock held and its operation begun; takes req, which may be NULL. */
static int launch_locked(struct gw_guest *g, Godwit__SaveRequest *req, struct gw_error *err)
{
	struct suspend *s = calloc(1, sizeof(*s));
	int r = 0;

	if (!s || RAND_bytes(s->id, sizeof(s->id)) != 1)
		r = gw_error_set(err, ENOMEM, "out of memory");
	if (r == 0) {
		s->g = gw_guest_ref(g);
		s->req = req;
		g->departing = true;
		g->cancel = false;
		g->handed = !req;
		g->departed = (struct gw_error)GW_ERROR_INIT;
		r = gw_agent_thread(g->agent, suspend_main, s, err);
		if (r < 0) {
			g->departing = false;
			gw_guest_unref(g);
		}
	}
	if (r < 0) {
		free_request(req);
		free(s);
	}
	return r;
}

int gw_suspend_start(struct gw_guest *g, const Godwit__SaveRequest *req, struct gw_error *err)
{
	Godwit__SaveRequest *copy = (Godwit__SaveRequest *)gw_pb_copy(&req->base);
	Godwit__VmState state;
	bool begun;
	int r = 0;

	if (!copy || (!*copy->snapshot && gw_pb_set_string(&copy->snapshot, g->name) < 0))
		r = gw_error_set(err, ENOMEM, "out of memory");
	r = r ?: gw_parse_name(copy->snapshot, "snapshot name", err);
	if (r < 0) {
		free_request(copy);
		return r;
	}
	pthread_mutex_lock(&g->lock);
	state = g->record->state;
	r = gw_guest_begin_locked(g, req->keep ? "snapshot" : "suspend", err);
	begun = r == 0;
	if (r == 0 && (!g->watched || (state != GODWIT__VM_STATE__VM_RUNNING && state != GODWIT__VM_STATE__VM_PAUSED)))
		r = gw_error_set(err, EALREADY, "VM %s is not running (%s%s%s)", g->name, gw_vm_state_word(state),
				 *g->record->reason ? ": " : "", g->record->reason);
	if (r == 0)
		r = launch_locked(g, gw_steal_ptr(&copy), err);
	if (r < 0 && begun)
		gw_guest_end_locked(g);
	pthread_mutex_unlock(&g->lock);
	free_request(copy);
	return r;
}

void gw_suspend_resume_locked(struct gw_guest *g)
{
	struct gw_error err = GW_ERROR_INIT;

	g->op = "suspend";
	if (launch_locked(g, NULL, &err) < 0) {
		g->op = NULL;
		gw_events_emit(g->agent->events, "warning", g->name, "%s", gw_error_text(&err));
	}
}

/* ---- handing over ---- */

/* Durable in the journal first: from then on it is the other host's, whatever becomes of the answer. With g->lock held. */
static int release_locked(struct gw_guest *g, const char *peer, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_path(g, "journal");
	struct gw_journal_entry e = { .state = GW_JOURNAL_RELEASED, .epoch = g->record->epoch + 1 };
	struct gw_journal *j = NULL;
	int r = path ? gw_journal_open(path, &j, err) : gw_error_set(err, ENOMEM, "out of memory");

	if (r < 0)
		return r;
	memcpy(e.move_id, g->record->suspension->id.data, sizeof(e.move_id));
	snprintf(e.peer, sizeof(e.peer), "%s", peer);
	r = gw_journal_write(j, &e, err);
	gw_journal_close(j);
	if (r < 0)
		return r;
	(void)gw_failpoint(GW_FP_CLAIM_RELEASED); /* with the lock: nobody works on it meanwhile */
	g->record->epoch = e.epoch;
	(void)gw_pb_set_string(&g->record->peer, peer);
	gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_MOVED, "resumed on %s", peer);
	return 0;
}

/* It was handed to `peer` as what stands still in this snapshot, and did not run here since and move there. With g->lock held. */
static bool released_in_it(struct gw_guest *g, const char *peer, const ProtobufCBinaryData *snapshot)
{
	gw_autofree char *path = gw_guest_path(g, "journal");
	struct gw_journal_entry j;

	return g->record->state == GODWIT__VM_STATE__VM_MOVED && !strcmp(g->record->peer, peer) && path && gw_journal_read(path, &j, NULL) == 0 &&
	       j.state == GW_JOURNAL_RELEASED && !memcmp(j.move_id, snapshot->data, sizeof(j.move_id));
}

int gw_suspend_claim(struct gw_agent *a, const char *peer, const Godwit__PeerClaim *req, uint64_t *epoch, struct gw_error *err)
{
	gw_autoguest *g = gw_guest_find(a, req->vm);
	const Godwit__Suspension *s;
	bool same;
	int r = 0;

	if (!g || req->snapshot.len != GW_ID_LEN)
		return gw_error_set(err, ESRCH, "%s knows no VM '%.63s'", a->conf->name, req->vm);
	pthread_mutex_lock(&g->lock);
	gw_guest_wait_left_locked(g);
	s = g->record->suspension;
	same = s && s->id.len == GW_ID_LEN && !memcmp(s->id.data, req->snapshot.data, GW_ID_LEN);
	/* An answer that was lost is given again. */
	if (same && released_in_it(g, peer, &req->snapshot))
		*epoch = g->record->epoch;
	else if (!same || g->record->state != GODWIT__VM_STATE__VM_SUSPENDED || g->op || g->watched)
		r = gw_error_set(err, EBUSY, "VM %s is not suspended in this snapshot on %s any more (%s%s%s)", g->name, a->conf->name,
				 gw_vm_state_word(g->record->state), *g->record->reason ? ": " : "", g->record->reason);
	else
		r = release_locked(g, peer, err);
	if (r == 0)
		*epoch = g->record->epoch;
	pthread_mutex_unlock(&g->lock);
	return r;
}
