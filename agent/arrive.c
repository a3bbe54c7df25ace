// SPDX-License-Identifier: Apache-2.0
/* The end of a move that comes: who has the VM; see arrive.h. The steps before are in session.c. */
#include "agent/arrive.h"

#include <errno.h>
#include <string.h>

#include "agent/failpoints.h"
#include "agent/net.h"
#include "agent/process.h"
#include "agent/vmconfig.h"
#include "agent/watch.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/util.h"
#include "migrate/journal.h"

#define DECIDE_TIMEOUT (25 * GW_NS_PER_SEC)

static bool is_move(const Godwit__VmRecord *rec, const uint8_t id[GW_ID_LEN])
{
	return rec->move_id.len == GW_ID_LEN && !memcmp(rec->move_id.data, id, GW_ID_LEN);
}

static int decide_locked(struct gw_guest *g, Godwit__MoveSide side, const char *reason, struct gw_error *err)
{
	const Godwit__VmRecord *rec = g->record;

	if (rec->move_id.len != GW_ID_LEN)
		return gw_error_set(err, EPROTO, "the record of VM %s names no move", g->name);
	return gw_outcome_decide(g->agent, rec->move_id.data, g->name, rec->peer, rec->epoch, side, reason, err);
}

/* It is ours from now on, whatever `state` it is in. */
static void own_locked(struct gw_guest *g, Godwit__VmState state, const char *reason)
{
	struct gw_error err = GW_ERROR_INIT;

	/* Should this fail, the record below says the same to whoever asks. */
	if (decide_locked(g, GODWIT__MOVE_SIDE__MOVE_DESTINATION, reason, &err) < 0)
		gw_events_emit(g->agent->events, "warning", g->name, "%s", gw_error_text(&err));
	gw_guest_failpoint_locked(g, GW_FP_DST_DECIDED);
	g->unconfirmed = true;
	gw_guest_set_state_locked(g, state, "%s", reason);
	gw_guest_end_locked(g);
	gw_guest_failpoint_locked(g, GW_FP_DST_COMMITTED);
}

void gw_arrive_arrived_locked(struct gw_guest *g, Godwit__VmState state)
{
	gw_guest_failpoint_locked(g, GW_FP_DST_ARRIVED);
	gw_events_emit(g->agent->events, "move-arrived", g->name, "from %s, epoch %llu", g->record->peer,
		       (unsigned long long)g->record->epoch);
	own_locked(g, state, "");
}

static void give_back_locked(struct gw_guest *g, const char *how)
{
	struct gw_error err = GW_ERROR_INIT;
	char reason[200];

	snprintf(reason, sizeof(reason), "%.190s", how);
	if (decide_locked(g, GODWIT__MOVE_SIDE__MOVE_SOURCE, reason, &err) < 0) {
		/* Nobody may be told what is not durable: it stays open until somebody asks again. */
		gw_events_emit(g->agent->events, "warning", g->name, "%s", gw_error_text(&err));
		return;
	}
	gw_events_emit(g->agent->events, "move-undone", g->name, "the move from %s came to nothing: %s", g->record->peer, reason);
	gw_guest_failpoint_locked(g, GW_FP_DST_UNDO);
	gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_STATE_NONE, "%s", reason);
}

/*
 * Decides by the journal of a dead VMM. 0: it is the source's, which the journal now says; -EEXIST: it is ours;
 * -EAGAIN: it depends on what the source knows.
 */
static int judge_locked(struct gw_guest *g, bool asked, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_path(g, "journal");
	const uint8_t *id = g->record->move_id.data;
	struct gw_journal_entry found = { .state = GW_JOURNAL_NONE };
	Godwit__MoveRecord *before = NULL;
	bool decided_here;
	int r;

	if (!path || g->record->move_id.len != GW_ID_LEN)
		return gw_error_set(err, EPROTO, "the record of VM %s names no move", g->name);
	r = gw_outcome_get(g->agent, id, &before, err);
	if (r < 0)
		return r;
	decided_here = before && before->side == GODWIT__MOVE_SIDE__MOVE_DESTINATION;
	if (before)
		godwit__move_record__free_unpacked(before, NULL);
	/* Decided before a crash of ours kept the record from saying so: then it is not to be undone. */
	if (decided_here)
		return -EEXIST;
	r = gw_journal_abort_if_not_owner(path, id, asked, &found, err);
	if (r == -EEXIST && !found.effect && !asked)
		return -EAGAIN;
	return r;
}

void gw_arrive_ended_locked(struct gw_guest *g, const char *how, bool asked)
{
	struct gw_error err = GW_ERROR_INIT;
	char words[256] = "", reason[400];
	gw_autofree char *log = gw_guest_path(g, "vmm.log");
	int r = judge_locked(g, asked, &err);

	if (log)
		gw_process_last_words(log, words, sizeof(words));
	snprintf(reason, sizeof(reason), "its VMM %s%s%s", *how ? how : "ended", *words ? ": " : "", words);
	if (r == 0)
		give_back_locked(g, reason);
	else if (r == -EEXIST)
		own_locked(g, GODWIT__VM_STATE__VM_CRASHED, reason);
	else if (r == -EAGAIN)
		gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_INCOMING,
					  "its VMM died just after taking over; %s has to say whether it let go", g->record->peer);
	else
		gw_events_emit(g->agent->events, "warning", g->name, "cannot decide how the move from %s ended: %s",
			       g->record->peer, gw_error_text(&err));
}

static struct gw_guest *find_by_move(struct gw_agent *a, const uint8_t id[GW_ID_LEN])
{
	struct gw_guest **list, *found = NULL;
	unsigned n;

	if (gw_guest_list(a, &list, &n) < 0)
		return NULL;
	for (unsigned i = 0; i < n; i++) {
		bool is;

		pthread_mutex_lock(&list[i]->lock);
		/* A move away has an id as well; only the other side decides about that one. */
		is = is_move(list[i]->record, id) && list[i]->record->state != GODWIT__VM_STATE__VM_MOVED;
		pthread_mutex_unlock(&list[i]->lock);
		if (is && !found)
			found = list[i];
		else
			gw_guest_unref(list[i]);
	}
	free(list);
	return found;
}

/* With g->lock held: whether the journal of an arrival's VMM says that it owns the VM; *effect: and that it may have acted on that. */
static bool owns_locked(struct gw_guest *g, bool *effect)
{
	gw_autofree char *path = gw_guest_path(g, "journal");
	struct gw_journal_entry j = { .state = GW_JOURNAL_NONE };
	bool owns = path && gw_journal_read(path, &j, NULL) == 0 && j.state == GW_JOURNAL_OWNER &&
		    !memcmp(j.move_id, g->record->move_id.data, GW_ID_LEN);

	*effect = owns && j.effect;
	return owns;
}

/* Brings about a decision on an open move of the guest. With g->lock held, which it drops while it waits. */
static void settle_locked(struct gw_guest *g, uint64_t deadline_ns)
{
	bool owns, effect;

	while (!g->gone && g->record->state == GODWIT__VM_STATE__VM_INCOMING && gw_now_ns() < deadline_ns) {
		owns = owns_locked(g, &effect);
		if (g->watched && effect) {
			if (decide_locked(g, GODWIT__MOVE_SIDE__MOVE_DESTINATION, "", NULL) == 0)
				return;
		} else if (g->watched) {
			/*
			 * Below OWNER it may be killed at any time; if it gets there first, its journal will say so. An owner that has not
			 * run the VM yet is about to, or dies first: then the source, which may live, takes it back.
			 */
			if (!owns)
				gw_watch_kill_locked(g, deadline_ns);
		} else if (!g->session) {
			gw_arrive_ended_locked(g, "is gone", true);
			if (g->record->state == GODWIT__VM_STATE__VM_INCOMING)
				return;
		}
		if (g->record->state == GODWIT__VM_STATE__VM_INCOMING && gw_guest_wait_locked(g, deadline_ns) < 0)
			return;
	}
	if (!g->gone && g->record->state != GODWIT__VM_STATE__VM_INCOMING && g->record->state != GODWIT__VM_STATE__VM_STATE_NONE)
		decide_locked(g, GODWIT__MOVE_SIDE__MOVE_DESTINATION, "", NULL);
}

/* A guest that was given back while no watcher was there to remove it. */
static void remove_if_given_back(struct gw_guest *g)
{
	bool remove;

	pthread_mutex_lock(&g->lock);
	remove = !g->gone && !g->watched && !g->session && g->record->state == GODWIT__VM_STATE__VM_STATE_NONE;
	pthread_mutex_unlock(&g->lock);
	if (remove) {
		gw_net_teardown(g);
		gw_guest_remove(g);
	}
}

int gw_arrive_outcome(struct gw_agent *a, const char *peer, const uint8_t id[GW_ID_LEN], Godwit__MoveSide *side,
		      char **reason, struct gw_error *err)
{
	Godwit__MoveRecord *rec = NULL;
	gw_autoguest *g = NULL;
	int r = gw_outcome_get(a, id, &rec, err);

	if (r < 0)
		return r;
	g = rec ? NULL : find_by_move(a, id);
	if (!rec && g) {
		pthread_mutex_lock(&g->lock);
		if (strcmp(g->record->peer, peer) != 0)
			r = gw_error_set(err, EACCES, "this move is not from %s", peer);
		else
			settle_locked(g, gw_now_ns() + DECIDE_TIMEOUT);
		pthread_mutex_unlock(&g->lock);
		if (r < 0)
			return r;
		remove_if_given_back(g);
	} else if (!rec) {
		/* Never heard of: then it never will be owned here by this move. */
		r = gw_outcome_decide(a, id, "", peer, 0, GODWIT__MOVE_SIDE__MOVE_SOURCE, "the move never began here", err);
		if (r < 0)
			return r;
	}
	if (!rec)
		r = gw_outcome_get(a, id, &rec, err);
	if (r == 0 && !rec)
		return gw_error_set(err, EAGAIN, "the end of this move is not decided yet");
	if (r == 0 && strcmp(rec->peer, peer) != 0)
		r = gw_error_set(err, EACCES, "this move is not from %s", peer);
	if (r == 0) {
		*side = rec->side;
		*reason = strdup(rec->reason);
		if (!*reason)
			r = gw_error_set(err, ENOMEM, "out of memory");
	}
	if (rec)
		godwit__move_record__free_unpacked(rec, NULL);
	return r;
}

int gw_arrive_abort(struct gw_agent *a, const char *peer, const uint8_t id[GW_ID_LEN], struct gw_error *err)
{
	gw_autofree char *reason = NULL;
	Godwit__MoveSide side;
	int r = gw_arrive_outcome(a, peer, id, &side, &reason, err);

	if (r == 0 && side != GODWIT__MOVE_SIDE__MOVE_SOURCE)
		r = gw_error_set(err, EEXIST, "the VM belongs to %s already", a->conf->name);
	return r;
}

int gw_arrive_released(struct gw_agent *a, const char *peer, const uint8_t id[GW_ID_LEN], struct gw_error *err)
{
	gw_autoguest *g = find_by_move(a, id);
	uint64_t deadline = gw_now_ns() + 10 * GW_NS_PER_SEC;
	bool effect;
	int r = 0;

	if (!g)
		return 0; /* it came, and has left or was removed since */
	pthread_mutex_lock(&g->lock);
	if (strcmp(g->record->peer, peer) != 0)
		r = gw_error_set(err, EACCES, "this move is not from %s", peer);
	/* The VMM's news of it is on its way to the watcher; or it was left open and this is the answer. */
	while (r == 0 && g->record->state == GODWIT__VM_STATE__VM_INCOMING) {
		if (!g->watched && !g->session && owns_locked(g, &effect)) {
			own_locked(g, GODWIT__VM_STATE__VM_CRASHED, "its VMM died just after taking over");
			break;
		}
		r = gw_guest_wait_locked(g, deadline);
		if (r < 0)
			gw_error_errno(err, r, "the VMM has not said that the VM runs");
	}
	if (r == 0) {
		g->unconfirmed = false;
		pthread_cond_broadcast(&g->changed);
	}
	pthread_mutex_unlock(&g->lock);
	return r;
}

int gw_arrive_resolve(struct gw_guest *g, bool here, struct gw_error *err)
{
	bool effect;
	int r = 0;

	pthread_mutex_lock(&g->lock);
	if (g->record->state != GODWIT__VM_STATE__VM_INCOMING || g->watched || g->session)
		r = gw_error_set(err, EALREADY, "VM %s is not in doubt here (%s)", g->name, gw_vm_state_word(g->record->state));
	else if (!here)
		gw_arrive_ended_locked(g, "is gone", true);
	else if (owns_locked(g, &effect))
		own_locked(g, GODWIT__VM_STATE__VM_CRASHED, "taken by the operator's word");
	else
		r = gw_error_set(err, EALREADY, "VM %s never arrived whole; it can only belong to %s", g->name, g->record->peer);
	pthread_mutex_unlock(&g->lock);
	if (r == 0)
		remove_if_given_back(g);
	return r;
}

int gw_arrive_cancel(struct gw_guest *g, struct gw_error *err)
{
	uint8_t id[GW_ID_LEN];
	char peer[64];
	bool ok;

	pthread_mutex_lock(&g->lock);
	ok = g->record->state == GODWIT__VM_STATE__VM_INCOMING && g->record->move_id.len == GW_ID_LEN && g->watched;
	if (ok)
		memcpy(id, g->record->move_id.data, GW_ID_LEN);
	snprintf(peer, sizeof(peer), "%s", g->record->peer);
	pthread_mutex_unlock(&g->lock);
	if (!ok)
		return gw_error_set(err, EALREADY, "no move of VM %s is under way", g->name);
	return gw_arrive_abort(g->agent, peer, id, err);
}
