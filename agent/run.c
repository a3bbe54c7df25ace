// SPDX-License-Identifier: Apache-2.0
/* Starting, stopping and pausing; see run.h. */
#include "agent/run.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/bootfile.h"
#include "agent/loading.h"
#include "agent/net.h"
#include "agent/process.h"
#include "agent/vmconfig.h"
#include "agent/vmmargs.h"
#include "agent/vmmctl.h"
#include "agent/watch.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"
#include "migrate/journal.h"

#define START_TIMEOUT (60 * GW_NS_PER_SEC)
#define QUIT_TIMEOUT (5 * GW_NS_PER_SEC)
#define KILL_TIMEOUT (15 * GW_NS_PER_SEC)
#define PAUSE_PATIENCE (10 * GW_NS_PER_SEC)
/* A guest's news of its memory: of which age they will do, and how long to wait for newer ones. */
#define BALLOON_FRESH_MS 1000
#define BALLOON_WAIT GW_NS_PER_SEC
#define BALLOON_POLL_US 20000

int gw_run_create(struct gw_agent *a, const Godwit__VmConfig *config, struct gw_error *err)
{
	Godwit__VmRecord *rec;
	gw_autoguest *g = NULL;
	int r = gw_vmconfig_check(config, err);

	if (r < 0)
		return r;
	rec = malloc(sizeof(*rec));
	if (!rec)
		return gw_error_set(err, ENOMEM, "out of memory");
	godwit__vm_record__init(rec);
	rec->version = 1;
	rec->epoch = 1;
	rec->state = GODWIT__VM_STATE__VM_STOPPED;
	rec->config = gw_vmconfig_copy(config);
	if (!rec->config || gw_vmconfig_fill(rec->config) < 0) {
		godwit__vm_record__free_unpacked(rec, NULL);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	r = gw_guest_add(a, rec, NULL, false, &g, err);
	if (r == 0)
		gw_events_emit(a->events, "vm-created", g->name, "%s", "");
	return r;
}

/* Invariant 1: only what the journal says is ours, and nobody doubts, may be started. */
static int check_owned(struct gw_guest *g, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_path(g, "journal");
	struct gw_journal_entry j;
	int r = path ? gw_journal_read(path, &j, err) : gw_error_set(err, ENOMEM, "out of memory");

	if (r == -ENOENT)
		return 0; /* never started */
	if (r < 0)
		return r;
	if (j.state == GW_JOURNAL_RELEASED)
		return gw_error_set(err, EALREADY, "VM %s moved to %s", g->name, j.peer);
	if (j.state == GW_JOURNAL_SUSPENDED)
		return gw_error_set(err, EALREADY, "VM %s is suspended", g->name);
	if (j.state == GW_JOURNAL_COMMITTING)
		return gw_error_set(err, EUCLEAN, "whether VM %s is here or on %s is in doubt (see 'godwit resolve')", g->name, j.peer);
	if (j.state != GW_JOURNAL_OWNER && j.state != GW_JOURNAL_NONE)
		return gw_error_set(err, EALREADY, "the journal of VM %s says '%s', not that it is owned here", g->name,
				    gw_journal_state_name(j.state));
	return 0;
}

int gw_run_spawn(struct gw_guest *g, bool incoming, struct gw_error *err)
{
	gw_autofree char *lock = gw_guest_path(g, "lock");
	gw_autofree char *log = gw_guest_path(g, "vmm.log");
	gw_autofree char *older = gw_guest_path(g, "vmm.log.1");
	gw_autofree char *control = gw_guest_control(g);
	struct gw_vmm_args args;
	struct gw_process_spec spec = { .program = g->agent->conf->vmm, .argv = args.v, .lock = lock, .log = log };
	int pidfd = -1, r;
	pid_t pid;

	if (!lock || !log || !older || !control)
		return gw_error_set(err, ENOMEM, "out of memory");
	/* Taps of a VMM that may be alive must not be touched. */
	if (gw_process_alive(lock) != 0)
		return gw_error_set(err, EBUSY, "a VMM of VM %s is still alive", g->name);
	r = gw_net_setup(g, err);
	if (r < 0)
		return r;
	unlink(control);
	rename(log, older);
	pthread_mutex_lock(&g->lock);
	r = gw_pb_set_string(&g->record->boot_id, g->agent->boot_id);
	r = r < 0 ? r : gw_vmm_args_build(g, incoming, &args);
	if (r < 0)
		gw_error_set(err, r, "out of memory");
	else
		r = gw_guest_save_locked(g, err);
	r = r < 0 ? r : gw_process_start(&spec, &pid, &pidfd, err);
	if (r == 0) {
		r = gw_watch_start_locked(g, pid, pidfd, err);
		if (r < 0)
			gw_process_kill(pidfd, lock, gw_now_ns() + KILL_TIMEOUT);
	}
	pthread_mutex_unlock(&g->lock);
	gw_vmm_args_release(&args);
	if (r < 0)
		gw_net_teardown(g);
	return r;
}

static int check_file(const char *what, const char *path, struct gw_error *err)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return gw_error_errno(err, errno, "%s %s", what, path);
	if (!S_ISREG(st.st_mode))
		return gw_error_set(err, EINVAL, "%s %s is not a regular file", what, path);
	return 0;
}

static int check_start(struct gw_guest *g, struct gw_error *err)
{
	const Godwit__VmRecord *rec = g->record;
	const Godwit__VmConfig *c = rec->config;
	int r = check_owned(g, err);

	r = r ?: check_file("kernel", *rec->kernel_file ? rec->kernel_file : c->kernel, err);
	if (r == 0 && *c->initrd)
		r = check_file("initrd", *rec->initrd_file ? rec->initrd_file : c->initrd, err);
	for (size_t i = 0; r == 0 && i < c->n_disks; i++) {
		if (c->disks[i]->path[0] == '/' && access(c->disks[i]->path, c->disks[i]->readonly ? R_OK : R_OK | W_OK) < 0)
			r = gw_error_errno(err, errno, "[disk %s] %s", c->disks[i]->name, c->disks[i]->path);
	}
	return r ?: gw_memory_admit(g->agent, g, c->memory, err);
}

/* With g->lock held: until the VMM has said that the VM runs, or has died. */
static int wait_started_locked(struct gw_guest *g, struct gw_error *err)
{
	uint64_t deadline = gw_now_ns() + START_TIMEOUT;
	int r = 0;

	while (r == 0 && g->watched && g->record->state == GODWIT__VM_STATE__VM_STOPPED)
		r = gw_guest_wait_locked(g, deadline);
	if (g->record->state != GODWIT__VM_STATE__VM_STOPPED)
		return 0;
	if (r < 0) {
		g->stopping = true;
		gw_watch_kill_locked(g, gw_now_ns() + KILL_TIMEOUT);
		g->stopping = false;
		return gw_error_errno(err, r, "VM %s did not start within %llu s", g->name, START_TIMEOUT / GW_NS_PER_SEC);
	}
	return gw_error_set(err, EIO, "VM %s %s", g->name, *g->record->reason ? g->record->reason : "failed to start");
}

/* Hashes the boot files while nobody waits for it: a move names them by content, and finds it remembered. Takes its reference. */
static void learn_boot_files(void *arg)
{
	struct gw_guest *g = arg;
	const Godwit__VmRecord *rec = g->record;
	gw_autofree char *kernel = NULL, *initrd = NULL;
	uint8_t digest[GW_SHA256_LEN];
	uint64_t size;

	pthread_mutex_lock(&g->lock);
	kernel = strdup(*rec->kernel_file ? rec->kernel_file : rec->config->kernel);
	initrd = strdup(*rec->initrd_file ? rec->initrd_file : rec->config->initrd);
	pthread_mutex_unlock(&g->lock);
	if (kernel)
		(void)gw_bootfile_digest(g->agent, kernel, digest, &size, NULL);
	if (initrd && *initrd)
		(void)gw_bootfile_digest(g->agent, initrd, digest, &size, NULL);
	gw_guest_unref(g);
}

int gw_run_start(struct gw_guest *g, struct gw_error *err)
{
	Godwit__VmState state;
	bool begun;
	int r;

	pthread_mutex_lock(&g->lock);
	r = gw_guest_begin_locked(g, "start", err);
	state = g->record->state;
	begun = r == 0;
	if (r == 0 && state == GODWIT__VM_STATE__VM_MOVED)
		r = gw_error_set(err, EALREADY, "VM %s %s", g->name, g->record->reason);
	else if (r == 0 && state == GODWIT__VM_STATE__VM_SUSPENDED)
		r = gw_error_set(err, EALREADY, "VM %s is suspended %s; 'godwit resume %s --from %s' brings it back", g->name, g->record->reason,
				 g->record->suspension ? g->record->suspension->name : "SNAPSHOT",
				 g->record->suspension ? g->record->suspension->url : "REPOSITORY");
	else if (r == 0 && ((state != GODWIT__VM_STATE__VM_STOPPED && state != GODWIT__VM_STATE__VM_CRASHED) || g->watched))
		r = gw_error_set(err, EALREADY, "VM %s is %s already", g->name, gw_vm_state_word(state));
	if (r < 0) {
		if (begun)
			gw_guest_end_locked(g);
		pthread_mutex_unlock(&g->lock);
		return r;
	}
	pthread_mutex_unlock(&g->lock);

	r = check_start(g, err);
	pthread_mutex_lock(&g->lock);
	if (r == 0) {
		/* No event: whether it starts is yet to be seen. */
		g->record->state = GODWIT__VM_STATE__VM_STOPPED;
		gw_pb_set_string(&g->record->reason, "starting");
		g->starting = true;
		pthread_mutex_unlock(&g->lock);
		r = gw_run_spawn(g, false, err);
		pthread_mutex_lock(&g->lock);
	}
	if (r == 0)
		r = wait_started_locked(g, err);
	if (r < 0 && g->record->state == GODWIT__VM_STATE__VM_STOPPED)
		gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_STOPPED, "%s", gw_error_text(err));
	g->starting = false;
	gw_guest_end_locked(g);
	pthread_mutex_unlock(&g->lock);
	if (r == 0 && gw_agent_thread(g->agent, learn_boot_files, gw_guest_ref(g), NULL) < 0)
		gw_guest_unref(g);
	return r;
}

/* With g->lock held; begins operation `op` if the VM is in a state where it makes sense. */
static int begin_live(struct gw_guest *g, const char *op, struct gw_error *err)
{
	Godwit__VmState state;

	gw_guest_wait_left_locked(g);
	state = g->record->state;
	if (g->gone || g->op || state == GODWIT__VM_STATE__VM_DOUBT)
		return gw_guest_begin_locked(g, op, err);
	if (state == GODWIT__VM_STATE__VM_SUSPENDED && g->record->suspension)
		return gw_error_set(err, EALREADY, "VM %s is suspended %s; 'godwit resume %s --from %s' brings it back", g->name, g->record->reason,
				    g->record->suspension->name, g->record->suspension->url);
	if (!gw_vm_state_is_live(state) || !g->watched)
		return gw_error_set(err, EALREADY, "VM %s is not running (%s%s%s)", g->name, gw_vm_state_word(state),
				    *g->record->reason ? ": " : "", g->record->reason);
	return gw_guest_begin_locked(g, op, err);
}

static int ask(struct gw_guest *g, Godwit__VmmRequest__OpCase op, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_control(g);

	return path ? gw_vmmctl_simple(path, op, NULL, err) : gw_error_set(err, ENOMEM, "out of memory");
}

static int wait_dead(struct gw_guest *g, uint64_t deadline_ns)
{
	int r = 0;

	pthread_mutex_lock(&g->lock);
	while (r == 0 && g->watched)
		r = gw_guest_wait_locked(g, deadline_ns);
	r = g->watched ? r : 0;
	pthread_mutex_unlock(&g->lock);
	return r;
}

static int stop_by_force(struct gw_guest *g, struct gw_error *err)
{
	int r;

	/* The VMM may be beyond answering; then the signal does it. */
	if (ask(g, GODWIT__VMM_REQUEST__OP_QUIT, NULL) == 0 && wait_dead(g, gw_now_ns() + QUIT_TIMEOUT) == 0)
		return 0;
	pthread_mutex_lock(&g->lock);
	r = gw_watch_kill_locked(g, gw_now_ns() + KILL_TIMEOUT);
	pthread_mutex_unlock(&g->lock);
	return r < 0 ? gw_error_errno(err, r, "VM %s does not die", g->name) : 0;
}

int gw_run_stop(struct gw_guest *g, bool force, uint64_t timeout_ms, struct gw_error *err)
{
	int r;

	pthread_mutex_lock(&g->lock);
	r = begin_live(g, "stop", err);
	if (r == 0 && !force && g->record->state == GODWIT__VM_STATE__VM_PAUSED) {
		r = gw_error_set(err, EBUSY, "VM %s is paused and cannot hear its power button; resume it first, or use --force",
				 g->name);
		gw_guest_end_locked(g);
	}
	g->stopping = r == 0 && force;
	pthread_mutex_unlock(&g->lock);
	if (r < 0)
		return r;
	if (force) {
		r = stop_by_force(g, err);
	} else {
		r = ask(g, GODWIT__VMM_REQUEST__OP_POWER_BUTTON, err);
		if (r == 0 && wait_dead(g, gw_now_ns() + timeout_ms * GW_NS_PER_MS) < 0)
			r = gw_error_set(err, ETIMEDOUT, "VM %s did not power off within %llu s (--force pulls the plug)", g->name,
					 (unsigned long long)timeout_ms / 1000);
	}
	pthread_mutex_lock(&g->lock);
	g->stopping = false;
	gw_guest_end_locked(g);
	pthread_mutex_unlock(&g->lock);
	return r;
}

/* Whose memory is on its way stands still once it has what it waits for just now. */
static int wait_paused(struct gw_guest *g, bool pause, struct gw_error *err)
{
	Godwit__VmState to = pause ? GODWIT__VM_STATE__VM_PAUSED : GODWIT__VM_STATE__VM_RUNNING;
	uint64_t deadline = gw_now_ns() + PAUSE_PATIENCE;
	int r = 0;

	pthread_mutex_lock(&g->lock);
	while (r == 0 && g->watched && g->record->state != to)
		r = gw_guest_wait_locked(g, deadline);
	if (r == 0 && g->record->state != to)
		r = gw_error_set(err, EIO, "VM %s %s: %s", g->name, gw_vm_state_word(g->record->state), g->record->reason);
	else if (r == -ETIMEDOUT)
		gw_error_set(err, ETIMEDOUT, "VM %s waits for memory from its repository and is not paused yet; it will be, unless 'godwit resume %s' takes that "
			     "back", g->name, g->name);
	else if (r < 0)
		gw_error_errno(err, r, "VM %s", g->name);
	pthread_mutex_unlock(&g->lock);
	return r;
}

int gw_run_pause(struct gw_guest *g, bool pause, struct gw_error *err)
{
	Godwit__VmState from = pause ? GODWIT__VM_STATE__VM_RUNNING : GODWIT__VM_STATE__VM_PAUSED;
	int r;

	pthread_mutex_lock(&g->lock);
	r = begin_live(g, pause ? "pause" : "resume", err);
	/* While memory is on its way a pause may be asked for that has not come yet. */
	if (r == 0 && g->record->state != from && (pause || !gw_loading_locked(g))) {
		r = gw_error_set(err, EALREADY, "VM %s is %s", g->name, gw_vm_state_word(g->record->state));
		gw_guest_end_locked(g);
	}
	pthread_mutex_unlock(&g->lock);
	if (r < 0)
		return r;
	r = ask(g, pause ? GODWIT__VMM_REQUEST__OP_PAUSE : GODWIT__VMM_REQUEST__OP_RESUME, err);
	if (r == 0)
		r = gw_watch_refresh(g, err) ?: wait_paused(g, pause, err);
	gw_guest_end(g);
	return r;
}

int gw_run_remove(struct gw_guest *g, struct gw_error *err)
{
	gw_autofree char *lock = gw_guest_path(g, "lock");
	Godwit__VmState state;
	int r;

	if (!lock)
		return gw_error_set(err, ENOMEM, "out of memory");
	pthread_mutex_lock(&g->lock);
	gw_guest_wait_left_locked(g);
	state = g->record->state;
	if (g->gone || g->op || state == GODWIT__VM_STATE__VM_DOUBT)
		r = gw_guest_begin_locked(g, "remove", err);
	else if (gw_vm_state_is_live(state) || g->watched || gw_process_alive(lock) != 0)
		r = gw_error_set(err, EBUSY, "VM %s is %s; stop it first", g->name, gw_vm_state_word(state));
	else
		r = gw_guest_begin_locked(g, "remove", err);
	pthread_mutex_unlock(&g->lock);
	if (r < 0)
		return r;
	gw_net_teardown(g);
	gw_guest_remove(g);
	gw_events_emit(g->agent->events, "vm-removed", g->name, "%s", "");
	gw_bootfile_sweep(g->agent);
	return 0;
}

/* Whether there is a VMM to ask, at `path`. */
static int check_watched(struct gw_guest *g, const char *path, struct gw_error *err)
{
	bool live;

	pthread_mutex_lock(&g->lock);
	live = g->watched;
	pthread_mutex_unlock(&g->lock);
	return live && path ? 0 : gw_error_set(err, EALREADY, "VM %s is not running", g->name);
}

static bool is_fresh(const Godwit__BalloonStatus *b)
{
	return !b->driver || (b->memory && b->memory->age_ms <= BALLOON_FRESH_MS);
}

int gw_run_balloon(struct gw_guest *g, uint64_t target, Godwit__BalloonStatus **ret, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_control(g);
	Godwit__VmmRequest req = GODWIT__VMM_REQUEST__INIT;
	Godwit__Balloon balloon = GODWIT__BALLOON__INIT;
	uint64_t deadline = gw_now_ns() + BALLOON_WAIT;
	int r = check_watched(g, path, err);

	req.op_case = GODWIT__VMM_REQUEST__OP_BALLOON;
	req.balloon = &balloon;
	balloon.target = target;
	for (;;) {
		Godwit__VmmReply *reply = NULL;
		Godwit__BalloonStatus *b;

		r = r ?: gw_vmmctl_ask(path, &req, NULL, 0, &reply, NULL, err);
		if (r < 0)
			return r;
		b = gw_steal_ptr(&reply->balloon);
		godwit__vmm_reply__free_unpacked(reply, NULL);
		if (!b)
			return gw_error_set(err, EPROTO, "the VMM does not tell its balloon");
		if (is_fresh(b) || gw_now_ns() >= deadline) {
			*ret = b;
			return 0;
		}
		godwit__balloon_status__free_unpacked(b, NULL);
		balloon.target = 0;
		usleep(BALLOON_POLL_US);
	}
}

int gw_run_console(struct gw_guest *g, int *fd, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_control(g);
	Godwit__VmmRequest req = GODWIT__VMM_REQUEST__INIT;
	Godwit__Empty empty = GODWIT__EMPTY__INIT;
	int r = check_watched(g, path, err);

	req.op_case = GODWIT__VMM_REQUEST__OP_CONSOLE;
	req.console = &empty;
	r = r ?: gw_vmmctl_ask(path, &req, NULL, 0, NULL, fd, err);
	if (r == 0 && *fd < 0)
		r = gw_error_set(err, EPROTO, "the VMM gave no console");
	return r;
}
