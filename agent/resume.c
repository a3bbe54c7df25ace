// SPDX-License-Identifier: Apache-2.0
/* Resuming a VM from a snapshot; see resume.h. */
#include "agent/resume.h"

#include <errno.h>
#include <string.h>

#include "agent/bootfile.h"
#include "agent/intake.h"
#include "agent/net.h"
#include "agent/peers.h"
#include "agent/run.h"
#include "agent/snapshot.h"
#include "agent/suspend.h"
#include "agent/vmconfig.h"
#include "agent/vmmctl.h"
#include "agent/watch.h"
#include "lib/clock.h"
#include "lib/util.h"
#include "migrate/journal.h"

#define CONNECT_TIMEOUT (10 * GW_NS_PER_SEC)
#define CLAIM_TIMEOUT (30 * GW_NS_PER_SEC)
/* From the hand-over until the VM runs: manifest, device state, and the pages that loading it touches. */
#define RUN_TIMEOUT (120 * GW_NS_PER_SEC)
#define KILL_TIMEOUT (15 * GW_NS_PER_SEC)
#define RELAY_TIMEOUT (300 * GW_NS_PER_SEC)

struct resume {
	struct gw_agent *a;
	const Godwit__ResumeRequest *req;
	struct gw_repo *repo;
	struct gw_snap *snap;
	const struct gw_snap_info *info; /* of it */
	Godwit__SnapshotAbout *about;
	struct gw_guest *g;    /* a reference, with operation "resume" begun */
	Godwit__VmState before; /* of one that was here */
	bool fresh;            /* it is not recorded here yet, or as one that left */
	uint64_t epoch;        /* of a fresh one: that its record gets */
};

static void release(struct resume *s)
{
	if (s->about)
		godwit__snapshot_about__free_unpacked(s->about, NULL);
	gw_snap_free(s->snap);
	gw_repo_free(s->repo);
	if (s->g)
		gw_guest_unref(s->g);
}

/* ---- whose it is ---- */

static bool is_this(const struct resume *s, const Godwit__Suspension *to)
{
	return to && to->id.len == sizeof(s->info->id) && !memcmp(to->id.data, s->info->id, sizeof(s->info->id));
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

static int claim(struct resume *s, struct gw_error *err)
{
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__PeerClaim claim = GODWIT__PEER_CLAIM__INIT;
	gw_autoreply *reply = NULL;
	int r = gw_peer_connect(s->a, s->info->host, gw_now_ns() + CONNECT_TIMEOUT, &c, NULL, err);

	if (r == 0 && strcmp(gw_chan_peer(c), s->info->host) != 0)
		r = gw_error_set(err, EACCES, "host %s answers where %s was", gw_chan_peer(c), s->info->host);
	claim.vm = s->about->vm->config->name;
	claim.snapshot = (ProtobufCBinaryData){ sizeof(s->info->id), (uint8_t *)s->info->id };
	req.op_case = GODWIT__AGENT_REQUEST__OP_PEER_CLAIM;
	req.peer_claim = &claim;
	r = r ?: gw_ask(c, &req, gw_now_ns() + CLAIM_TIMEOUT, &reply, err);
	if (r < 0)
		return gw_error_wrap(err, "host %s, which has suspended it, does not hand it over (--force if it surely runs nowhere)", s->info->host);
	s->epoch = reply->epoch;
	return 0;
}

/* No VM of that name is here. */
static int check_elsewhere(struct resume *s, struct gw_error *err)
{
	if (s->req->force)
		return 0;
	if (!s->about->suspended)
		return gw_error_set(err, EALREADY, "%s is a snapshot of a VM that went on; --force resumes it, if that surely runs nowhere and its "
				    "disks are as they were", s->info->name);
	if (!strcmp(s->info->host, s->a->conf->name))
		return gw_error_set(err, EALREADY, "VM %s was suspended here, and is not any more; --force resumes it, if it surely runs nowhere",
				    s->about->vm->config->name);
	return claim(s, err);
}

/* Finds the VM, or whom to ask for it, and begins the operation on one that is here. */
static int find(struct resume *s, struct gw_error *err)
{
	struct gw_guest *g = gw_guest_find(s->a, s->about->vm->config->name);
	int r = 0;

	s->fresh = true;
	s->epoch = s->about->vm->epoch + 1;
	if (g) {
		pthread_mutex_lock(&g->lock);
		gw_guest_wait_left_locked(g);
		s->before = g->record->state;
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

static int check_host(struct resume *s, struct gw_error *err)
{
	const Godwit__PeerPrepare *vm = s->about->vm;
	int r = 0;

	if (access(s->a->conf->vmm, X_OK) < 0)
		r = gw_error_errno(err, errno, "the VMM %s", s->a->conf->vmm);
	r = r ?: gw_net_check(vm->config, err);
	r = r ?: gw_intake_check_disks(s->a, vm, err);
	return r ?: gw_memory_admit(s->a, s->g, vm->config->memory, err);
}

/* The guest needs it again only when it reboots; but then the very same. *found is owned, NULL: as configured. */
static int find_boot(struct resume *s, const Godwit__BootFile *file, const char *path, char **found, struct gw_error *err)
{
	gw_autofree char *at = NULL;
	int r;

	if (!*path || file->sha256.len == 0)
		return 0;
	r = gw_bootfile_locate(s->a, path, file->sha256.data, &at, err);
	if (r == 0 && !at)
		r = gw_error_set(err, ENOENT, "%s of VM %s is not on this host as the VM knows it; copy it here first", path,
				 s->about->vm->config->name);
	if (r == 0 && strcmp(at, path))
		*found = gw_steal_ptr(&at);
	return r;
}

static Godwit__VmRecord *new_record(struct resume *s, char *kernel, char *initrd)
{
	const Godwit__PeerPrepare *vm = s->about->vm;
	Godwit__VmRecord *rec = malloc(sizeof(*rec));

	if (!rec)
		return NULL;
	godwit__vm_record__init(rec);
	rec->version = 1;
	rec->epoch = s->epoch;
	rec->state = GODWIT__VM_STATE__VM_SUSPENDED;
	rec->config = gw_vmconfig_copy(vm->config);
	if (!rec->config || (kernel && gw_pb_set_string(&rec->kernel_file, kernel) < 0) || (initrd && gw_pb_set_string(&rec->initrd_file, initrd) < 0)) {
		godwit__vm_record__free_unpacked(rec, NULL);
		return NULL;
	}
	rec->config->no_balloon |= !gw_intake_has_balloon(vm->features);
	return rec;
}

/* Where it is, so that it can be resumed again should this fail. */
static int set_suspension(struct resume *s, Godwit__VmRecord *rec)
{
	Godwit__Suspension to = GODWIT__SUSPENSION__INIT, *copy;

	to.url = s->req->url;
	to.name = (char *)s->info->name;
	to.generation = s->info->generation;
	to.id = (ProtobufCBinaryData){ sizeof(s->info->id), (uint8_t *)s->info->id };
	copy = (Godwit__Suspension *)gw_pb_copy(&to.base);
	if (!copy)
		return -ENOMEM;
	if (rec->suspension)
		godwit__suspension__free_unpacked(rec->suspension, NULL);
	rec->suspension = copy;
	return 0;
}

/* It is recorded here as suspended, and the operation is begun, when this returns 0. */
static int take(struct resume *s, struct gw_error *err)
{
	const Godwit__PeerPrepare *vm = s->about->vm;
	gw_autofree char *kernel = NULL, *initrd = NULL;
	Godwit__VmRecord *rec;
	int r = check_host(s, err);

	r = r ?: find_boot(s, vm->kernel, vm->config->kernel, &kernel, err);
	r = r ?: find_boot(s, vm->initrd, vm->config->initrd, &initrd, err);
	if (r == 0 && s->fresh)
		r = check_elsewhere(s, err);
	if (r < 0)
		return r;
	if (s->fresh) {
		rec = new_record(s, kernel, initrd);
		if (!rec || set_suspension(s, rec) < 0) {
			if (rec)
				godwit__vm_record__free_unpacked(rec, NULL);
			return gw_error_set(err, ENOMEM, "out of memory");
		}
		r = gw_guest_add(s->a, rec, "resume", true, &s->g, err);
		s->before = GODWIT__VM_STATE__VM_SUSPENDED;
	}
	if (r < 0)
		return r;
	pthread_mutex_lock(&s->g->lock);
	if (!s->fresh && set_suspension(s, s->g->record) < 0)
		r = gw_error_set(err, ENOMEM, "out of memory");
	if (r == 0)
		gw_suspend_describe_locked(s->g);
	if (s->g->load)
		godwit__load_progress__free_unpacked(gw_steal_ptr(&s->g->load), NULL);
	pthread_mutex_unlock(&s->g->lock);
	return r;
}

/* ---- bringing it here ---- */

static int hand_over(struct resume *s, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_control(s->g);
	Godwit__VmmRequest req = GODWIT__VMM_REQUEST__INIT;
	Godwit__Load load = GODWIT__LOAD__INIT;

	if (!path)
		return gw_error_set(err, ENOMEM, "out of memory");
	load.url = s->req->url;
	load.key = (ProtobufCBinaryData){ GW_REPO_KEY_LEN, (uint8_t *)gw_repo_key(s->repo) };
	load.name = (char *)s->info->name;
	load.generation = s->info->generation;
	load.id = (ProtobufCBinaryData){ sizeof(s->info->id), (uint8_t *)s->info->id };
	pthread_mutex_lock(&s->g->lock);
	load.epoch = s->g->record->epoch + 1;
	pthread_mutex_unlock(&s->g->lock);
	load.paused = s->req->paused || s->about->vm->paused;
	req.op_case = GODWIT__VMM_REQUEST__OP_LOAD;
	req.load = &load;
	return gw_vmmctl_ask(path, &req, NULL, 0, NULL, NULL, err);
}

/* Until the VMM says that the VM runs, or has died. */
static int wait_running(struct resume *s, struct gw_error *err)
{
	struct gw_guest *g = s->g;
	uint64_t deadline = gw_now_ns() + RUN_TIMEOUT;
	int r = 0;

	pthread_mutex_lock(&g->lock);
	while (r == 0 && g->watched && g->record->state == GODWIT__VM_STATE__VM_SUSPENDED)
		r = gw_guest_wait_locked(g, deadline);
	if (gw_vm_state_is_live(g->record->state))
		r = 0;
	else if (r < 0)
		gw_error_errno(err, r, "VM %s did not run within %llu s", g->name, RUN_TIMEOUT / GW_NS_PER_SEC);
	else
		r = gw_error_set(err, EIO, "VM %s was not resumed: %.300s", g->name,
				 g->load && *g->load->message ? g->load->message : g->record->reason);
	pthread_mutex_unlock(&g->lock);
	return r;
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

static int bring(struct resume *s, struct gw_error *err)
{
	int r = gw_run_spawn(s->g, true, err);

	r = r ?: gw_intake_wait_vmm(s->g, err);
	r = r ?: gw_intake_check_features(s->g, s->about->vm->features, err);
	r = r ?: hand_over(s, err);
	r = r ?: wait_running(s, err);
	if (r < 0)
		undo(s);
	return r;
}

static int open_snapshot(struct resume *s, struct gw_error *err)
{
	int r = gw_snapshot_repo(s->a, s->req->url, s->req->passphrase, &s->req->fingerprint, &s->repo, err);

	r = r ?: gw_snap_open(s->repo, s->req->snapshot, s->req->generation, &s->snap, err);
	if (r < 0)
		return r;
	s->info = gw_snap_info(s->snap);
	return gw_snapshot_about(s->snap, &s->about, err);
}

int gw_resume(struct gw_agent *a, const Godwit__ResumeRequest *req, struct gw_guest **ret, struct gw_error *err)
{
	struct resume s = { .a = a, .req = req };
	int r = open_snapshot(&s, err);

	r = r ?: find(&s, err);
	if (r < 0) {
		release(&s);
		return r;
	}
	r = take(&s, err);
	r = r ?: bring(&s, err);
	if (s.g)
		gw_guest_end(s.g);
	if (r == 0) {
		gw_events_emit(a->events, "vm-resumed", s.g->name, "from %.200s, %s generation %llu", req->url, s.info->name,
			       (unsigned long long)s.info->generation);
		*ret = gw_steal_ptr(&s.g);
	}
	release(&s);
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
