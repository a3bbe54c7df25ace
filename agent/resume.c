// SPDX-License-Identifier: Apache-2.0
/* Resuming a VM from a snapshot; see resume.h. */
#include "agent/resume.h"

#include <errno.h>
#include <string.h>

#include "agent/grant.h"
#include "agent/intake.h"
#include "agent/peers.h"
#include "agent/records.h"
#include "agent/restore.h"
#include "agent/snapshot.h"
#include "agent/suspend.h"
#include "agent/watch.h"
#include "lib/clock.h"
#include "lib/util.h"

#define CONNECT_TIMEOUT (10 * GW_NS_PER_SEC)
#define CLAIM_TIMEOUT (30 * GW_NS_PER_SEC)
#define KILL_TIMEOUT (15 * GW_NS_PER_SEC)
#define RELAY_TIMEOUT (300 * GW_NS_PER_SEC)

struct resume {
	struct gw_restore from;
	const Godwit__ResumeRequest *req;
	struct gw_guest *g;    /* a reference, with operation "resume" begun */
	Godwit__VmState before; /* of one that was here */
	bool fresh;            /* it is not recorded here yet, or as one that left */
	uint64_t epoch;        /* of a fresh one: that its record gets */
};

/* ---- whose it is ---- */

static bool is_this(const struct resume *s, const Godwit__Suspension *to)
{
	return to && to->id.len == sizeof(s->from.info->id) && !memcmp(to->id.data, s->from.info->id, sizeof(s->from.info->id));
}

/* A VM of that name is recorded here, and lives nowhere else. With its lock held. */
static int check_here_locked(const struct resume *s, const struct gw_guest *g, struct gw_error *err)
{
	Godwit__VmState state = g->record->state;

	if (g->watched || gw_vm_state_is_live(state))
		return gw_error_set(err, EALREADY, "VM %s is %s here", g->name, gw_vm_state_word(state));
	if (s->req->force || (state == GODWIT__VM_STATE__VM_SUSPENDED && is_this(s, g->record->suspension)))
		return 0;
	if (state == GODWIT__VM_STATE__VM_SUSPENDED)
		return gw_error_set(err, EALREADY, "VM %s is suspended in another snapshot (%s); --force resumes this one", g->name,
				    g->record->reason);
	return gw_error_set(err, EALREADY, "VM %s is %s here, not suspended in this snapshot: its disks may have changed since. --force resumes it "
			    "all the same", g->name, gw_vm_state_word(state));
}

/* Somebody else has asked. */
static int take_grant(struct resume *s, struct gw_error *err)
{
	struct gw_agent *a = s->from.a;
	Godwit__GrantTerms want = GODWIT__GRANT_TERMS__INIT;

	if (!a->tls_client)
		return gw_error_set(err, EINVAL, "this host has no [tls], and so no CA to check a grant by");
	want.vm = s->from.about->vm->config->name;
	want.snapshot = (ProtobufCBinaryData){ sizeof(s->from.info->id), (uint8_t *)s->from.info->id };
	want.from = (char *)s->from.info->host;
	want.to = a->conf->name;
	return gw_grant_check(a->tls_client, s->req->grant, &want, &s->epoch, err);
}

static int claim(struct resume *s, struct gw_error *err)
{
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__PeerClaim claim = GODWIT__PEER_CLAIM__INIT;
	gw_autoreply *reply = NULL;
	int r = gw_peer_connect(s->from.a, s->from.info->host, gw_now_ns() + CONNECT_TIMEOUT, &c, NULL, err);

	if (r == 0 && strcmp(gw_chan_peer(c), s->from.info->host) != 0)
		r = gw_error_set(err, EACCES, "host %s answers where %s was", gw_chan_peer(c), s->from.info->host);
	claim.vm = s->from.about->vm->config->name;
	claim.snapshot = (ProtobufCBinaryData){ sizeof(s->from.info->id), (uint8_t *)s->from.info->id };
	req.op_case = GODWIT__AGENT_REQUEST__OP_PEER_CLAIM;
	req.peer_claim = &claim;
	r = r ?: gw_ask(c, &req, gw_now_ns() + CLAIM_TIMEOUT, &reply, err);
	if (r == -EHOSTUNREACH)
		return gw_error_wrap(err, "host %s, which has suspended it, is not reached from here (there, 'godwit release %s %s' prints a grant that --grant "
				     "takes here; --force if it surely runs nowhere)", s->from.info->host, claim.vm, s->from.a->conf->name);
	if (r < 0)
		return gw_error_wrap(err, "host %s, which has suspended it, does not hand it over (--force if it surely runs nowhere)", s->from.info->host);
	s->epoch = reply->epoch;
	return 0;
}

/* No VM of that name is here. */
static int check_elsewhere(struct resume *s, struct gw_error *err)
{
	bool resumed;
	int r = s->req->force ? 0 : gw_resumed_get(s->from.a, s->from.info->id, &resumed, err);

	if (s->req->force || r < 0)
		return r;
	if (resumed)
		return gw_error_set(err, EALREADY, "VM %s was resumed here from this snapshot before, and has left or was forgotten since; --force resumes it "
				    "again, if it surely runs nowhere", s->from.about->vm->config->name);
	if (!s->from.about->suspended)
		return gw_error_set(err, EALREADY, "%s is a snapshot of a VM that went on; --force resumes it, if that surely runs nowhere and its "
				    "disks are as they were", s->from.info->name);
	if (!strcmp(s->from.info->host, s->from.a->conf->name))
		return gw_error_set(err, EALREADY, "VM %s was suspended here, and is not any more; --force resumes it, if it surely runs nowhere",
				    s->from.about->vm->config->name);
	return s->req->grant.len ? take_grant(s, err) : claim(s, err);
}

/* Finds the VM, or whom to ask for it, and begins the operation on one that is here. */
static int find(struct resume *s, struct gw_error *err)
{
	struct gw_guest *g = gw_guest_find(s->from.a, s->from.about->vm->config->name);
	int r = 0;

	s->fresh = true;
	s->from.forced = s->req->force;
	s->epoch = s->from.about->vm->epoch + 1;
	if (g) {
		pthread_mutex_lock(&g->lock);
		gw_guest_wait_left_locked(g);
		s->before = g->record->state;
		/* An attempt by force that came to nothing is one still. */
		s->from.forced |= is_this(s, g->record->suspension) && g->record->suspension->forced;
		s->fresh = s->before == GODWIT__VM_STATE__VM_MOVED;
		if (s->fresh)
			s->epoch = GW_MAX(s->epoch, g->record->epoch + 1);
		else
			r = check_here_locked(s, g, err) ?: gw_guest_begin_locked(g, "resume", err);
		pthread_mutex_unlock(&g->lock);
	}
	if (g && (s->fresh || r < 0))
		gw_guest_unref(gw_steal_ptr(&g));
	s->g = g;
	return r;
}

/* ---- what it needs ---- */

static int check_needs(struct resume *s, struct gw_error *err)
{
	const Godwit__PeerPrepare *vm = s->from.about->vm;
	int r = gw_intake_check_disks(s->from.a, vm, err);

	r = r ?: gw_memory_admit(s->from.a, s->g, vm->config->memory, err);
	return r ?: gw_restore_check_host(&s->from, vm->config, err);
}

/* It is recorded here as suspended, and the operation is begun, when this returns 0. */
static int take(struct resume *s, struct gw_error *err)
{
	const Godwit__PeerPrepare *vm = s->from.about->vm;
	struct gw_agent *a = s->from.a;
	Godwit__VmRecord *rec;
	uint64_t epoch;
	int r = check_needs(s, err);

	if (r == 0 && s->fresh)
		r = check_elsewhere(s, err);
	if (r < 0)
		return r;
	if (s->fresh) {
		rec = gw_restore_record(&s->from, vm->config, s->epoch);
		if (!rec)
			return gw_error_set(err, ENOMEM, "out of memory");
		r = gw_guest_add(a, rec, "resume", true, &s->g, err);
		s->before = GODWIT__VM_STATE__VM_SUSPENDED;
	}
	if (r < 0)
		return r;
	pthread_mutex_lock(&s->g->lock);
	if (!s->fresh && gw_restore_suspension(&s->from, s->g->record) < 0)
		r = gw_error_set(err, ENOMEM, "out of memory");
	if (r == 0)
		gw_suspend_describe_locked(s->g);
	epoch = s->g->record->epoch;
	pthread_mutex_unlock(&s->g->lock);
	return r ?: gw_resumed_note(a, s->from.info->id, s->g->name, epoch, err);
}

/* It is suspended again, or what it was; if its VMM got as far as to own it, that is gone with it and the watcher has said so. */
static void undo(struct resume *s)
{
	struct gw_guest *g = s->g;

	pthread_mutex_lock(&g->lock);
	if (g->watched)
		gw_watch_kill_locked(g, gw_now_ns() + KILL_TIMEOUT);
	if (g->record->state == GODWIT__VM_STATE__VM_SUSPENDED && s->before != GODWIT__VM_STATE__VM_SUSPENDED)
		gw_guest_set_state_locked(g, s->before, "%s", "");
	pthread_mutex_unlock(&g->lock);
}

int gw_resume(struct gw_agent *a, const Godwit__ResumeRequest *req, struct gw_guest **ret, struct gw_error *err)
{
	struct resume s = { .req = req };
	int r = gw_restore_open(&s.from, a, req->url, req->passphrase, &req->fingerprint, req->snapshot, req->generation, err);

	r = r ?: find(&s, err);
	if (r == 0) {
		r = take(&s, err);
		if (r == 0) {
			r = gw_restore_bring(&s.from, s.g, req->paused, err);
			if (r < 0)
				undo(&s);
		}
		if (s.g)
			gw_guest_end(s.g);
	}
	if (r == 0) {
		gw_events_emit(a->events, "vm-resumed", s.g->name, "from %.200s, %s generation %llu", req->url, s.from.info->name,
			       (unsigned long long)s.from.info->generation);
		*ret = gw_steal_ptr(&s.g);
	}
	if (s.g)
		gw_guest_unref(s.g);
	gw_restore_release(&s.from);
	return r;
}

/* A VM of that name that is here already. */
static int check_none_here(const struct resume *s, struct gw_error *err)
{
	gw_autoguest *g = gw_guest_find(s->from.a, s->from.about->vm->config->name);
	int r = 0;

	if (!g)
		return 0;
	pthread_mutex_lock(&g->lock);
	if (g->record->state != GODWIT__VM_STATE__VM_MOVED)
		r = check_here_locked(s, g, err);
	pthread_mutex_unlock(&g->lock);
	return r;
}

int gw_resume_check(struct gw_agent *a, const Godwit__ResumeRequest *req, struct gw_error *err)
{
	struct resume s = { .req = req };
	struct gw_repo *repo = NULL;
	int r;

	if (!*req->snapshot) {
		r = gw_snapshot_repo(a, req->url, req->passphrase, &req->fingerprint, &repo, err);
		gw_repo_free(repo);
		return r;
	}
	r = gw_restore_open(&s.from, a, req->url, req->passphrase, &req->fingerprint, req->snapshot, req->generation, err);
	r = r ?: check_none_here(&s, err);
	r = r ?: check_needs(&s, err);
	gw_restore_release(&s.from);
	return r;
}

int gw_resume_elsewhere(struct gw_agent *a, const Godwit__ResumeRequest *req, Godwit__AgentReply **ret, struct gw_error *err)
{
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	Godwit__AgentRequest ask = GODWIT__AGENT_REQUEST__INIT;
	Godwit__ResumeRequest there = *req;
	int r = gw_peer_connect(a, req->host, gw_now_ns() + CONNECT_TIMEOUT, &c, NULL, err);

	there.host = (char *)"";
	ask.op_case = GODWIT__AGENT_REQUEST__OP_RESUME_SNAPSHOT;
	ask.resume_snapshot = &there;
	r = r ?: gw_ask(c, &ask, gw_now_ns() + RELAY_TIMEOUT, ret, err);
	return r < 0 ? gw_error_wrap(err, "host %s", req->host) : 0;
}
