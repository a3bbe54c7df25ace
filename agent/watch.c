// SPDX-License-Identifier: Apache-2.0
/* The watcher threads; see watch.h. */
#include "agent/watch.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "agent/arrive.h"
#include "agent/depart.h"
#include "agent/failpoints.h"
#include "agent/net.h"
#include "agent/process.h"
#include "agent/settle.h"
#include "agent/share.h"
#include "agent/suspend.h"
#include "agent/vmconfig.h"
#include "agent/vmmctl.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/util.h"
#include "migrate/journal.h"
#include "proto/frame.h"

/* How often a VMM is asked for its state, should an event have been missed, and its log trimmed. */
#define TICK_MS 2000
#define FRAMES_PER_SEC 500
/* A VMM that was taken over by its guest may claim any epoch; each move and each doubt raises it by one or two. */
#define EPOCH_LEAP 8

static int subscribe(struct gw_guest *g, int *ret)
{
	Godwit__VmmRequest req = GODWIT__VMM_REQUEST__INIT;
	Godwit__Empty empty = GODWIT__EMPTY__INIT;
	gw_autofree char *path = gw_guest_control(g);
	gw_autofd fd = -1;
	int r = path ? gw_unix_connect(path, &fd, NULL) : -ENOMEM;

	if (r < 0)
		return r;
	req.op_case = GODWIT__VMM_REQUEST__OP_SUBSCRIBE;
	req.subscribe = &empty;
	r = gw_frame_send(fd, GW_FRAME_VMM_REQUEST, &req.base, NULL, 0, gw_now_ns() + GW_VMM_TIMEOUT);
	if (r < 0)
		return r;
	*ret = gw_steal_fd(&fd);
	return 0;
}

static Godwit__VmState state_of(Godwit__VmmRunState s)
{
	switch (s) {
	case GODWIT__VMM_RUN_STATE__VMM_RUNNING:
		return GODWIT__VM_STATE__VM_RUNNING;
	case GODWIT__VMM_RUN_STATE__VMM_PAUSED:
		return GODWIT__VM_STATE__VM_PAUSED;
	case GODWIT__VMM_RUN_STATE__VMM_MOVING:
		return GODWIT__VM_STATE__VM_MOVING;
	case GODWIT__VMM_RUN_STATE__VMM_DOUBT:
		return GODWIT__VM_STATE__VM_DOUBT;
	default:
		return GODWIT__VM_STATE__VM_STATE_NONE;
	}
}

/* With g->lock held: the guest belongs to this host, and its VMM says `state`. */
static void owned_state_locked(struct gw_guest *g, Godwit__VmState state, const char *reason)
{
	if (state == GODWIT__VM_STATE__VM_STATE_NONE || g->record->state == GODWIT__VM_STATE__VM_MOVED)
		return;
	if (state == GODWIT__VM_STATE__VM_DOUBT) {
		gw_guest_set_state_locked(g, state, "the move to %s was cut while ownership passed; asking %s who has it",
					  g->record->peer, g->record->peer);
		gw_settle_start_locked(g);
		return;
	}
	/* While a thread drives the move away, the record says "moving" until it knows the end. */
	if (!g->departing || g->record->state == GODWIT__VM_STATE__VM_DOUBT)
		gw_guest_set_state_locked(g, state, "%s", state == GODWIT__VM_STATE__VM_PAUSED ? reason : "");
}

static void take_status_locked(struct gw_guest *g, const Godwit__VmmStatus *status)
{
	Godwit__VmmStatus *copy = (Godwit__VmmStatus *)gw_pb_copy(&status->base);
	Godwit__VmState state = state_of(status->state);
	char reason[200];

	if (!copy)
		return;
	if (g->status)
		godwit__vmm_status__free_unpacked(g->status, NULL);
	g->status = copy;
	/* Old news of a VMM that has let go of it. One that resumes it has a newer epoch. */
	if (g->record->state == GODWIT__VM_STATE__VM_SUSPENDED && (state == GODWIT__VM_STATE__VM_STATE_NONE || status->epoch <= g->record->epoch))
		return;
	if (g->record->state == GODWIT__VM_STATE__VM_INCOMING) {
		if (state == GODWIT__VM_STATE__VM_RUNNING || state == GODWIT__VM_STATE__VM_PAUSED)
			gw_arrive_arrived_locked(g, state);
		return;
	}
	if (status->epoch > g->record->epoch && status->epoch - g->record->epoch <= EPOCH_LEAP &&
	    g->record->state != GODWIT__VM_STATE__VM_MOVED) {
		g->record->epoch = status->epoch;
		gw_guest_save_locked(g, NULL);
	}
	snprintf(reason, sizeof(reason), "%.190s", status->reason);
	owned_state_locked(g, state, reason);
}

static void take_move_locked(struct gw_guest *g, const Godwit__MoveProgress *move)
{
	Godwit__MoveProgress *copy = (Godwit__MoveProgress *)gw_pb_copy(&move->base);

	if (!copy)
		return;
	gw_make_printable(copy->phase);
	gw_make_printable(copy->message);
	gw_make_printable(copy->cipher);
	if (g->move)
		godwit__move_progress__free_unpacked(g->move, NULL);
	g->move = copy;
}

static void take_save_locked(struct gw_guest *g, const Godwit__SaveProgress *save)
{
	Godwit__SaveProgress *copy = save ? (Godwit__SaveProgress *)gw_pb_copy(&save->base) : NULL;

	if (!copy)
		return;
	gw_make_printable(copy->phase);
	gw_make_printable(copy->message);
	if (g->save)
		godwit__save_progress__free_unpacked(g->save, NULL);
	g->save = copy;
}

static void take_load_locked(struct gw_guest *g, const Godwit__LoadProgress *load)
{
	Godwit__LoadProgress *copy = load ? (Godwit__LoadProgress *)gw_pb_copy(&load->base) : NULL;

	if (!copy)
		return;
	gw_make_printable(copy->phase);
	gw_make_printable(copy->message);
	if (g->load)
		godwit__load_progress__free_unpacked(g->load, NULL);
	g->load = copy;
}

/* From a reply or an event (`ev`); either may be NULL. */
static void take_news(struct gw_guest *g, const Godwit__VmmStatus *status, const Godwit__VmmEvent *ev)
{
	pthread_mutex_lock(&g->lock);
	if (status && status->move)
		take_move_locked(g, status->move);
	if (ev && ev->move)
		take_move_locked(g, ev->move);
	take_save_locked(g, status ? status->save : NULL);
	take_save_locked(g, ev ? ev->save : NULL);
	take_load_locked(g, status ? status->load : NULL);
	take_load_locked(g, ev ? ev->load : NULL);
	if (status)
		take_status_locked(g, status);
	pthread_cond_broadcast(&g->changed);
	pthread_mutex_unlock(&g->lock);
}

int gw_watch_refresh(struct gw_guest *g, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_control(g);
	Godwit__VmmReply *reply = NULL;
	int r;

	if (!path)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_vmmctl_simple(path, GODWIT__VMM_REQUEST__OP_STATUS, &reply, err);
	if (r < 0)
		return r;
	take_news(g, reply->status, NULL);
	godwit__vmm_reply__free_unpacked(reply, NULL);
	return 0;
}

void gw_watch_back_from(struct gw_guest *g, Godwit__VmState busy)
{
	gw_watch_refresh(g, NULL);
	pthread_mutex_lock(&g->lock);
	if (g->record->state == busy && g->status) {
		bool paused = g->status->state == GODWIT__VMM_RUN_STATE__VMM_PAUSED;

		gw_guest_set_state_locked(g, paused ? GODWIT__VM_STATE__VM_PAUSED : GODWIT__VM_STATE__VM_RUNNING, "%s", "");
	}
	pthread_mutex_unlock(&g->lock);
}

/* One frame of the subscribed connection. */
static int take_frame(struct gw_guest *g, int fd, struct gw_buf *body)
{
	uint16_t type;
	int r = gw_vmmctl_recv(fd, &type, body, NULL, gw_now_ns() + GW_VMM_TIMEOUT);

	if (r < 0)
		return r;
	if (type == GW_FRAME_VMM_EVENT) {
		Godwit__VmmEvent *ev = godwit__vmm_event__unpack(NULL, body->len, body->data);

		if (!ev)
			return -EPROTO;
		take_news(g, ev->status, ev);
		if (!strcmp(ev->kind, "warning") || !strcmp(ev->kind, "reset"))
			gw_events_emit(g->agent->events, ev->kind, g->name, "%.300s",
				       ev->message);
		godwit__vmm_event__free_unpacked(ev, NULL);
	} else if (type == GW_FRAME_VMM_REPLY) {
		Godwit__VmmReply *reply = godwit__vmm_reply__unpack(NULL, body->len, body->data);

		if (!reply)
			return -EPROTO;
		take_news(g, reply->status, NULL);
		godwit__vmm_reply__free_unpacked(reply, NULL);
	}
	return 0;
}

/* No VMM has more to tell than this; one that its guest has taken over would keep us busy. */
static void pace(uint64_t *second_ns, unsigned *frames)
{
	if (gw_now_ns() - *second_ns >= GW_NS_PER_SEC) {
		*second_ns = gw_now_ns();
		*frames = 0;
	}
	if (++*frames > FRAMES_PER_SEC)
		usleep(10000);
}

static void trim_log(struct gw_guest *g)
{
	gw_autofree char *log = gw_guest_path(g, "vmm.log");

	if (log)
		gw_process_trim_log(log);
}

/* An arrival whose channels never came must not wait here for ever. Killing it before it owns the VM is always safe. */
static void check_arrival(struct gw_guest *g, int pidfd)
{
	gw_autofree char *lock = gw_guest_path(g, "lock");
	bool late;

	pthread_mutex_lock(&g->lock);
	if (g->move && *g->move->phase)
		g->attached = true;
	late = g->record->state == GODWIT__VM_STATE__VM_INCOMING && !g->attached && gw_now_ns() >= g->attach_deadline_ns;
	pthread_mutex_unlock(&g->lock);
	if (late && lock)
		gw_process_kill(pidfd, lock, gw_now_ns() + 5 * GW_NS_PER_SEC);
}

/* Until the VMM is dead (true) or the agent ends (false). */
static bool follow(struct gw_guest *g, int pidfd)
{
	gw_autobuf body = GW_BUF_INIT;
	gw_autofd fd = -1;
	uint64_t next_tick = 0, second_ns = 0, begin_ns = gw_now_ns();
	unsigned frames = 0;
	bool tick;

	while (!g->agent->stopping) {
		struct pollfd p[3] = { { .fd = pidfd, .events = POLLIN }, { .fd = g->agent->stop_fd, .events = POLLIN } };
		int wait_ms;

		if (fd < 0 && subscribe(g, &fd) == 0)
			next_tick = 0;
		tick = fd >= 0 && gw_now_ns() >= next_tick;
		if (tick) {
			gw_watch_refresh(g, NULL);
			trim_log(g);
			next_tick = gw_now_ns() + TICK_MS * GW_NS_PER_MS;
		}
		check_arrival(g, pidfd);
		gw_sharing_check(g, tick);
		p[2] = (struct pollfd){ .fd = fd, .events = POLLIN };
		/* A VMM that has just been started makes its socket within milliseconds. */
		wait_ms = fd >= 0 ? gw_ms_until(next_tick) : gw_now_ns() - begin_ns < 5 * GW_NS_PER_SEC ? 10 : 500;
		if (poll(p, 3, wait_ms) < 0 && errno != EINTR)
			return false;
		if (p[2].revents) {
			pace(&second_ns, &frames);
			if (take_frame(g, fd, &body) == 0)
				continue; /* all that it had to say comes before its death */
			gw_closep(&fd);
		}
		if (p[0].revents)
			return true;
	}
	return false;
}

bool gw_watch_released_locked(struct gw_guest *g)
{
	gw_autofree char *path = gw_guest_path(g, "journal");
	struct gw_journal_entry j;

	if (!path || gw_journal_read(path, &j, NULL) < 0 || j.state != GW_JOURNAL_RELEASED || j.epoch <= g->record->epoch)
		return false;
	gw_guest_failpoint_locked(g, GW_FP_SRC_RELEASED);
	g->record->epoch = j.epoch;
	/* Who claims what was suspended here must find itself named. */
	if (*j.peer)
		(void)gw_pb_set_string(&g->record->peer, j.peer);
	gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_MOVED, "moved to %s", g->record->peer);
	return true;
}

/* With g->lock held: a VMM of a guest that belongs here (as far as we knew) is dead; its journal says whose it is. */
static void conclude_locked(struct gw_guest *g, bool well, const char *how)
{
	gw_autofree char *path = gw_guest_path(g, "journal");
	gw_autofree char *log = gw_guest_path(g, "vmm.log");
	struct gw_journal_entry j = { 0 };
	char words[256] = "";
	bool owned;
	int r;

	/* It may have been seen to let go before it ended. */
	if (g->record->state == GODWIT__VM_STATE__VM_MOVED || gw_watch_released_locked(g) || gw_suspend_seen_locked(g))
		return;
	r = path ? gw_journal_read(path, &j, NULL) : -ENOMEM;
	/* It was resumed, and died before it could say so. */
	owned = r == 0 && j.state == GW_JOURNAL_OWNER && j.epoch > g->record->epoch;
	if (owned && g->record->state == GODWIT__VM_STATE__VM_SUSPENDED)
		g->record->epoch = j.epoch;
	if (log)
		gw_process_last_words(log, words, sizeof(words));
	if (r == 0 && j.state == GW_JOURNAL_COMMITTING) {
		gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_DOUBT,
					  "its VMM died while ownership passed to %s; asking %s who has it", g->record->peer,
					  g->record->peer);
		gw_settle_start_locked(g);
	} else if (g->record->cloning && !owned) {
		gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_STATE_NONE, "it was not made%s%s", *words ? ": " : "", words);
	} else if (g->record->state == GODWIT__VM_STATE__VM_SUSPENDED && !owned) {
		/* It was to be resumed, and never ran. */
		gw_suspend_describe_locked(g);
	} else if (g->starting) {
		/* Whoever starts it says why it failed. */
		gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_STOPPED, "failed to start: %s", *words ? words : how);
	} else if (well || g->stopping) {
		gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_STOPPED, "%s", g->stopping ? "stopped" : "powered off");
	} else {
		gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_CRASHED, "the VMM %s%s%s", *how ? how : "died",
					  *words ? "; its last words: " : "", words);
	}
}

static void vmm_ended(struct gw_guest *g, int pidfd)
{
	gw_autofree char *lock = gw_guest_path(g, "lock");
	gw_autofree char *control = gw_guest_control(g);
	bool well, said_bye;
	char how[64];

	/* Dead is dead only when the kernel has let go of its files. */
	while (lock && gw_process_kill(pidfd, lock, gw_now_ns() + 10 * GW_NS_PER_SEC) < 0)
		gw_warn("VM %s: the VMM does not die", g->name);
	well = gw_process_reap(pidfd, how, sizeof(how));
	pthread_mutex_lock(&g->lock);
	said_bye = g->status && g->status->state == GODWIT__VMM_RUN_STATE__VMM_ENDED && !*how;
	if (g->record->state == GODWIT__VM_STATE__VM_INCOMING)
		gw_arrive_ended_locked(g, how, false);
	else
		conclude_locked(g, well || said_bye, how);
	pthread_mutex_unlock(&g->lock);
	/* Before anybody can start it again. */
	gw_net_teardown(g);
	if (control)
		unlink(control);
}

static void watcher(void *arg)
{
	struct gw_guest *g = arg;
	bool undo;
	int pidfd;

	pthread_mutex_lock(&g->lock);
	pidfd = g->pidfd;
	pthread_mutex_unlock(&g->lock);
	if (follow(g, pidfd))
		vmm_ended(g, pidfd);
	pthread_mutex_lock(&g->lock);
	undo = g->record->state == GODWIT__VM_STATE__VM_STATE_NONE;
	pthread_mutex_unlock(&g->lock);
	/* An arrival that was given back leaves nothing, nor does half a clone, and nobody hears of its end before. */
	if (undo)
		gw_guest_remove(g);
	pthread_mutex_lock(&g->lock);
	if (g->status)
		godwit__vmm_status__free_unpacked(g->status, NULL);
	g->status = NULL;
	gw_sharing_ended_locked(g);
	g->watched = false;
	gw_closep(&g->pidfd);
	g->pid = 0;
	pthread_cond_broadcast(&g->changed);
	pthread_mutex_unlock(&g->lock);
	gw_guest_unref(g);
}

int gw_watch_start_locked(struct gw_guest *g, pid_t pid, int pidfd, struct gw_error *err)
{
	int r;

	if (g->load)
		godwit__load_progress__free_unpacked(gw_steal_ptr(&g->load), NULL);
	g->watched = true;
	g->pid = pid;
	g->pidfd = pidfd;
	gw_guest_ref(g);
	r = gw_agent_thread(g->agent, watcher, g, err);
	if (r < 0) {
		g->watched = false;
		gw_closep(&g->pidfd);
		gw_guest_unref(g);
	}
	return r;
}

int gw_watch_kill_locked(struct gw_guest *g, uint64_t deadline_ns)
{
	gw_autofree char *lock = gw_guest_path(g, "lock");
	int r = 0;

	if (!lock)
		return -ENOMEM;
	if (g->watched) {
		/* The lock keeps the watcher from closing it meanwhile; SIGKILL needs no waiting. */
		r = gw_process_kill(g->pidfd, lock, gw_now_ns());
		r = 0;
	}
	while (g->watched && r == 0)
		r = gw_guest_wait_locked(g, deadline_ns);
	return r;
}

/* With g->lock held: the VM of a record that says suspended was resumed, by its journal; it got *epoch. */
static bool resumed_locked(struct gw_guest *g, uint64_t *epoch)
{
	gw_autofree char *path = gw_guest_path(g, "journal");
	struct gw_journal_entry j;

	if (!path || gw_journal_read(path, &j, NULL) < 0 || j.state != GW_JOURNAL_OWNER || j.epoch <= g->record->epoch)
		return false;
	*epoch = j.epoch;
	return true;
}

/* With g->lock held: no VMM lives, and none was seen to die. */
static void adopt_dead_locked(struct gw_guest *g)
{
	bool rebooted = strcmp(g->record->boot_id, g->agent->boot_id) != 0;
	struct gw_journal_entry j = { 0 };
	gw_autofree char *path = gw_guest_path(g, "journal");
	bool ran;

	if (g->record->state == GODWIT__VM_STATE__VM_INCOMING) {
		gw_arrive_ended_locked(g, "died while the agent was away", false);
		return;
	}
	/* A clone has been here if it says so itself; else it was never made. */
	if (g->record->cloning) {
		conclude_locked(g, true, "");
		return;
	}
	/* It was handed to another host, or it was resumed and died, which the record does not say yet. */
	ran = g->record->state == GODWIT__VM_STATE__VM_SUSPENDED && !gw_watch_released_locked(g) && resumed_locked(g, &g->record->epoch);
	if (!ran && !gw_vm_state_is_live(g->record->state))
		return;
	if (path && gw_journal_read(path, &j, NULL) == 0 &&
	    (j.state == GW_JOURNAL_COMMITTING || j.state == GW_JOURNAL_SUSPENDED || (j.state == GW_JOURNAL_RELEASED && j.epoch > g->record->epoch)))
		conclude_locked(g, true, "");
	else
		gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_STOPPED, "%s",
					  rebooted ? "the host was restarted" : "ended while the agent was away");
}

/*
 * With g->lock held: a VMM of a suspended VM, whose agent died while it was to be resumed. Below OWNER it has nothing; if it gets there first, its journal will
 * say so.
 */
static void end_resume_locked(struct gw_guest *g, int pidfd)
{
	gw_autofree char *lock = gw_guest_path(g, "lock");
	uint64_t epoch;

	if (lock && !resumed_locked(g, &epoch))
		(void)gw_process_kill(pidfd, lock, gw_now_ns());
}

/* -ESRCH when nothing holds the lock. One that is dying may hold it for a while after /proc shows its descriptors no more. */
static int find_vmm(struct gw_guest *g, const char *lock, pid_t *pid, int *pidfd)
{
	uint64_t deadline = gw_now_ns() + 10 * GW_NS_PER_SEC;
	int r = gw_process_find(lock, pid, pidfd);

	if (r == -ESRCH && gw_process_alive(lock) != 0)
		gw_info("VM %s: something holds its lock that is not to be found; waiting for its end", g->name);
	while (r == -ESRCH && gw_process_alive(lock) != 0 && gw_now_ns() < deadline) {
		usleep(1000);
		r = gw_process_find(lock, pid, pidfd);
	}
	return r;
}

void gw_watch_adopt(struct gw_guest *g)
{
	gw_autofree char *lock = gw_guest_path(g, "lock");
	struct gw_error err = GW_ERROR_INIT;
	int pidfd = -1, r;
	Godwit__VmState before;
	bool undo, live, ended, moved;
	pid_t pid = 0;

	r = lock ? find_vmm(g, lock, &pid, &pidfd) : -ENOMEM;
	pthread_mutex_lock(&g->lock);
	before = g->record->state;
	if (r == 0) {
		gw_info("VM %s: adopting its VMM, process %d", g->name, (int)pid);
		g->attach_deadline_ns = gw_now_ns() + GW_ATTACH_TIMEOUT;
		if (g->record->state == GODWIT__VM_STATE__VM_INCOMING)
			g->op = "move";
		r = gw_watch_start_locked(g, pid, pidfd, &err);
		if (r == 0 && g->record->state == GODWIT__VM_STATE__VM_MOVING)
			gw_depart_resume_locked(g);
		if (r == 0 && g->record->state == GODWIT__VM_STATE__VM_SAVING)
			gw_suspend_resume_locked(g);
		if (r == 0 && g->record->state == GODWIT__VM_STATE__VM_SUSPENDED)
			end_resume_locked(g, pidfd);
	} else if (lock && gw_process_alive(lock) == 0) {
		adopt_dead_locked(g);
	} else {
		/* Alive, and not to be found: leave everything as it is; `start` will find the lock held. */
		gw_events_emit(g->agent->events, "warning", g->name, "its VMM is alive but was not found");
	}
	if (r < 0 && err.code)
		gw_events_emit(g->agent->events, "warning", g->name, "%s", gw_error_text(&err));
	undo = g->record->state == GODWIT__VM_STATE__VM_STATE_NONE;
	ended = before == GODWIT__VM_STATE__VM_MOVING && !g->watched && g->record->state != GODWIT__VM_STATE__VM_DOUBT;
	moved = g->record->state == GODWIT__VM_STATE__VM_MOVED;
	live = g->watched || gw_vm_state_is_live(g->record->state);
	pthread_mutex_unlock(&g->lock);
	if (!live)
		gw_net_teardown(g);
	if (undo)
		gw_guest_remove(g);
	/* A move ended while we were away. */
	if (ended)
		gw_settle_tell(g, !moved);
}
