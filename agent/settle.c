// SPDX-License-Identifier: Apache-2.0
/* The end of a doubt; see settle.h. */
#include "agent/settle.h"

#include <errno.h>
#include <string.h>

#include "agent/arrive.h"
#include "agent/failpoints.h"
#include "agent/net.h"
#include "agent/peers.h"
#include "agent/vmmctl.h"
#include "agent/watch.h"
#include "lib/clock.h"
#include "lib/failpoint.h"
#include "lib/util.h"
#include "migrate/journal.h"

#define FIRST_WAIT (200 * GW_NS_PER_MS)
#define LONGEST_WAIT (5 * GW_NS_PER_SEC)
/* The other side may have to kill a VMM first. */
#define ASK_TIMEOUT (30 * GW_NS_PER_SEC)
#define APPLY_TIMEOUT (20 * GW_NS_PER_SEC)

static bool in_doubt(struct gw_guest *g)
{
	bool is;

	pthread_mutex_lock(&g->lock);
	is = !g->gone && g->record->state == GODWIT__VM_STATE__VM_DOUBT;
	pthread_mutex_unlock(&g->lock);
	return is;
}

/* What the operator has said, should a crash have kept it from being carried out. */
static bool operator_said(struct gw_guest *g, bool *here)
{
	bool said;

	pthread_mutex_lock(&g->lock);
	said = g->record->resolve_set;
	*here = g->record->resolve_here;
	pthread_mutex_unlock(&g->lock);
	return said;
}

/* The VMM is dead: its journal has to say what it would have written. With g->lock held. */
static int apply_dead_locked(struct gw_guest *g, bool here, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_path(g, "journal");
	struct gw_journal *j = NULL;
	struct gw_journal_entry e;
	int r = path ? gw_journal_open(path, &j, err) : gw_error_set(err, ENOMEM, "out of memory");

	if (r < 0)
		return r;
	e = *gw_journal_last(j);
	if (e.state != GW_JOURNAL_COMMITTING) {
		r = gw_error_set(err, EALREADY, "VM %s is not in doubt any more", g->name);
	} else {
		e.state = here ? GW_JOURNAL_OWNER : GW_JOURNAL_RELEASED;
		/* Newer than the one that was offered to the other side. */
		e.epoch += here;
		r = gw_journal_write(j, &e, err);
	}
	gw_journal_close(j);
	if (r < 0)
		return r;
	g->record->epoch = e.epoch;
	if (here)
		gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_CRASHED, "its VMM died during a move that came to nothing");
	else
		gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_MOVED, "moved to %s", g->record->peer);
	return 0;
}

/* Tells the waiting VMM, and waits until it has drawn the consequence. */
static int apply_live(struct gw_guest *g, bool here, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_control(g);
	Godwit__VmmRequest req = GODWIT__VMM_REQUEST__INIT;
	Godwit__Resolve resolve = GODWIT__RESOLVE__INIT;
	uint64_t deadline = gw_now_ns() + APPLY_TIMEOUT;
	int r;

	if (!path)
		return gw_error_set(err, ENOMEM, "out of memory");
	resolve.here = here;
	req.op_case = GODWIT__VMM_REQUEST__OP_RESOLVE;
	req.resolve = &resolve;
	r = gw_vmmctl_ask(path, &req, NULL, 0, NULL, NULL, err);
	if (r < 0)
		return r;
	if (here)
		gw_watch_refresh(g, NULL);
	pthread_mutex_lock(&g->lock);
	while (r == 0 && g->watched && g->record->state == GODWIT__VM_STATE__VM_DOUBT)
		r = gw_guest_wait_locked(g, deadline);
	pthread_mutex_unlock(&g->lock);
	return r < 0 ? gw_error_errno(err, r, "the VMM does not follow") : 0;
}

/*
 * Carries out a decision. The operator and the other side's answer may come at once: whoever is first has decided, and the second waits for what
 * comes of it.
 */
static int apply(struct gw_guest *g, bool here, struct gw_error *err)
{
	bool live, due;
	int r = 0;

	pthread_mutex_lock(&g->lock);
	while (g->deciding && r == 0)
		r = gw_guest_wait_locked(g, GW_NO_DEADLINE);
	live = g->watched;
	due = r == 0 && !g->gone && g->record->state == GODWIT__VM_STATE__VM_DOUBT;
	g->deciding |= due;
	if (due && !live)
		r = apply_dead_locked(g, here, err);
	pthread_mutex_unlock(&g->lock);
	if (!due)
		return r < 0 ? gw_error_errno(err, r, "the agent is ending") : 0;
	if (live)
		r = apply_live(g, here, err);
	/* The VMM may have had it from the other side. */
	if (r < 0 && !in_doubt(g))
		r = 0;
	if (r == 0 && !live)
		gw_net_teardown(g);
	pthread_mutex_lock(&g->lock);
	g->deciding = false;
	pthread_cond_broadcast(&g->changed);
	pthread_mutex_unlock(&g->lock);
	return r;
}

static int ask_peer(struct gw_guest *g, bool *here, char reason[256], struct gw_error *err)
{
	struct gw_agent *a = g->agent;
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	gw_autoreply *reply = NULL;
	gw_autofree char *host = NULL;
	uint8_t id[GW_ID_LEN] = { 0 };
	char peer[64];
	int r = 0;

	pthread_mutex_lock(&g->lock);
	host = strdup(g->record->peer_address);
	snprintf(peer, sizeof(peer), "%s", g->record->peer);
	if (g->record->move_id.len == GW_ID_LEN)
		memcpy(id, g->record->move_id.data, GW_ID_LEN);
	else
		r = gw_error_set(err, EPROTO, "the record names no move");
	pthread_mutex_unlock(&g->lock);
	if (r == 0 && !host)
		r = gw_error_set(err, ENOMEM, "out of memory");
	r = r ?: gw_peer_connect(a, host, gw_now_ns() + LONGEST_WAIT, &c, NULL, err);
	if (r == 0 && strcmp(gw_chan_peer(c), peer) != 0)
		r = gw_error_set(err, EACCES, "host %s answers where %s was", gw_chan_peer(c), peer);
	r = r ?: gw_peer_step(c, GODWIT__AGENT_REQUEST__OP_PEER_OUTCOME, id, gw_now_ns() + ASK_TIMEOUT, &reply, err);
	if (r < 0)
		return r;
	if (!reply->outcome || (reply->outcome->side != GODWIT__MOVE_SIDE__MOVE_SOURCE &&
				reply->outcome->side != GODWIT__MOVE_SIDE__MOVE_DESTINATION))
		return gw_error_set(err, EPROTO, "host %s answers with something else", peer);
	*here = reply->outcome->side == GODWIT__MOVE_SIDE__MOVE_SOURCE;
	snprintf(reason, 256, "%.255s", reply->outcome->reason);
	return 0;
}

static void settle(void *arg)
{
	struct gw_guest *g = arg;
	uint64_t wait = FIRST_WAIT;
	bool told = false;

	while (in_doubt(g)) {
		struct gw_error err = GW_ERROR_INIT;
		char reason[256] = "";
		bool here = false;
		bool said = operator_said(g, &here);
		int r = said ? apply(g, here, &err) : ask_peer(g, &here, reason, &err);

		if (r == 0 && !said) {
			gw_failpoint(GW_FP_SRC_DOUBT);
			gw_events_emit(g->agent->events, "doubt-answered", g->name, "it belongs to %s%s%s",
				       here ? g->agent->conf->name : g->record->peer, *reason ? ": " : "", reason);
			r = apply(g, here, &err);
		}
		if (r < 0 && !told) {
			gw_events_emit(g->agent->events, "warning", g->name, "in doubt, and %s; asking on", gw_error_text(&err));
			told = true;
		}
		if (r == 0 || gw_agent_sleep(g->agent, gw_now_ns() + wait))
			break;
		wait = GW_MIN(wait * 2, LONGEST_WAIT);
	}
	pthread_mutex_lock(&g->lock);
	g->settling = false;
	/* A doubt that came back between the last look and here. */
	if (!g->agent->stopping && g->record->state == GODWIT__VM_STATE__VM_DOUBT && !g->gone)
		gw_settle_start_locked(g);
	pthread_cond_broadcast(&g->changed);
	pthread_mutex_unlock(&g->lock);
	gw_guest_unref(g);
}

void gw_settle_start_locked(struct gw_guest *g)
{
	struct gw_error err = GW_ERROR_INIT;

	if (g->settling)
		return;
	g->settling = true;
	gw_guest_ref(g);
	if (gw_agent_thread(g->agent, settle, g, &err) < 0) {
		g->settling = false;
		gw_guest_unref(g);
		gw_events_emit(g->agent->events, "warning", g->name, "%s", gw_error_text(&err));
	}
}

void gw_settle_tell(struct gw_guest *g, bool here)
{
	gw_autofree char *host = NULL;
	uint8_t id[GW_ID_LEN];
	bool known;

	pthread_mutex_lock(&g->lock);
	known = g->record->move_id.len == GW_ID_LEN;
	if (known)
		memcpy(id, g->record->move_id.data, GW_ID_LEN);
	host = strdup(g->record->peer_address);
	pthread_mutex_unlock(&g->lock);
	if (known && host)
		gw_peer_tell(g->agent, host,
			     here ? GODWIT__AGENT_REQUEST__OP_PEER_ABORT : GODWIT__AGENT_REQUEST__OP_PEER_RELEASED, id);
}

int gw_settle_resolve(struct gw_guest *g, bool here, struct gw_error *err)
{
	Godwit__VmState state;
	bool unconfirmed;
	int r;

	pthread_mutex_lock(&g->lock);
	state = g->record->state;
	unconfirmed = g->unconfirmed;
	if (state == GODWIT__VM_STATE__VM_DOUBT) {
		g->record->resolve_set = true;
		g->record->resolve_here = here;
		gw_guest_save_locked(g, NULL);
	} else if (here && unconfirmed) {
		g->unconfirmed = false;
	}
	pthread_mutex_unlock(&g->lock);
	if (state == GODWIT__VM_STATE__VM_INCOMING)
		return gw_arrive_resolve(g, here, err);
	if (state != GODWIT__VM_STATE__VM_DOUBT)
		return here && unconfirmed ? 0 :
					     gw_error_set(err, EALREADY, "VM %s is not in doubt (%s)", g->name, gw_vm_state_word(state));
	gw_events_emit(g->agent->events, "doubt-resolved", g->name, "by the operator: it belongs to %s",
		       here ? g->agent->conf->name : g->record->peer);
	r = apply(g, here, err);
	if (r == 0)
		gw_settle_tell(g, here);
	return r;
}
