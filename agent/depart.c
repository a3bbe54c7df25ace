// SPDX-License-Identifier: Apache-2.0
/* The source's part of a move; see depart.h. */
#include "agent/depart.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/rand.h>
#include <string.h>

#include "agent/chan.h"
#include "agent/dataport.h"
#include "agent/failpoints.h"
#include "agent/loading.h"
#include "agent/offer.h"
#include "agent/peers.h"
#include "agent/settle.h"
#include "agent/vmconfig.h"
#include "agent/vmmctl.h"
#include "agent/watch.h"
#include "lib/clock.h"
#include "lib/failpoint.h"
#include "lib/io.h"
#include "lib/tcp.h"
#include "lib/util.h"
#include "migrate/stream.h"
#include "migrate/tls.h"

#define DEFAULT_CHANNELS 2
#define CONNECT_TIMEOUT (10 * GW_NS_PER_SEC)
/* The destination hashes boot files and disks, and starts a VMM. */
#define STEP_TIMEOUT (90 * GW_NS_PER_SEC)
#define TELL_TIMEOUT (10 * GW_NS_PER_SEC)
/* How long `move` waits for the end of a doubt; the asking goes on after it. */
#define DOUBT_PATIENCE (30 * GW_NS_PER_SEC)
/* A VMM that has let go of its VM ends by itself. */
#define GONE_PATIENCE (10 * GW_NS_PER_SEC)

struct depart {
	struct gw_guest *g;            /* a reference */
	Godwit__MoveRequest *req;      /* NULL when it is resumed after a restart */
	struct gw_chan *peer;          /* to the destination's agent; NULL when there is none (any more) */
	bool offered;                  /* the destination knows of the move */
	uint8_t id[GW_ID_LEN];
};

static bool cancelled(void *arg)
{
	struct depart *d = arg;
	bool is;

	pthread_mutex_lock(&d->g->lock);
	is = d->g->cancel;
	pthread_mutex_unlock(&d->g->lock);
	return is || d->g->agent->stopping;
}

static int step(struct depart *d, const char *failpoint, struct gw_error *err)
{
	if (gw_failpoint(failpoint) < 0)
		return gw_error_set(err, EIO, "failpoint %s", failpoint);
	return cancelled(d) ? gw_error_set(err, ECANCELED, "cancelled") : 0;
}

/* A progress of our own until the VMM has one. With g->lock held. */
static int show_progress_locked(struct depart *d, Godwit__MoveProgress *p)
{
	Godwit__MoveProgress *copy;

	p->move_id.data = d->id;
	p->move_id.len = GW_ID_LEN;
	copy = (Godwit__MoveProgress *)gw_pb_copy(&p->base);
	if (!copy)
		return -ENOMEM;
	if (d->g->move)
		godwit__move_progress__free_unpacked(d->g->move, NULL);
	d->g->move = copy;
	return 0;
}

static int begin_progress_locked(struct depart *d)
{
	Godwit__MoveProgress p = GODWIT__MOVE_PROGRESS__INIT;

	p.phase = (char *)"connect";
	p.ram_bytes = d->g->record->config->memory;
	p.bytes_left = p.ram_bytes;
	return show_progress_locked(d, &p);
}

/* Durable before the destination or the VMM hears of the move: who restarts us must know whom to ask. */
static int note_move(struct depart *d, struct gw_error *err)
{
	struct gw_guest *g = d->g;
	int r;

	pthread_mutex_lock(&g->lock);
	r = begin_progress_locked(d);
	if (r == 0)
		r = gw_pb_set_bytes(&g->record->move_id, d->id, GW_ID_LEN);
	if (r == 0)
		r = gw_pb_set_string(&g->record->peer, gw_chan_peer(d->peer));
	if (r == 0)
		r = gw_pb_set_string(&g->record->peer_address, d->req->host);
	if (r < 0) {
		gw_error_set(err, r, "out of memory");
	} else {
		g->record->resolve_set = false;
		gw_guest_set_state_locked(g, GODWIT__VM_STATE__VM_MOVING, "to %s", gw_chan_peer(d->peer));
		r = gw_guest_save_locked(g, err);
	}
	pthread_mutex_unlock(&g->lock);
	return r;
}

static int open_channel(const char *host, const char *port, const struct gw_preamble *pre, uint64_t deadline_ns, int *ret,
			struct gw_error *err)
{
	uint8_t raw[GW_PREAMBLE_LEN];
	gw_autofd fd = -1;
	int r = gw_tcp_connect(host, port, deadline_ns, &fd, err);

	if (r < 0)
		return r;
	gw_preamble_encode(pre, raw);
	r = gw_write_full(fd, raw, sizeof(raw), deadline_ns);
	if (r < 0)
		return gw_error_errno(err, r, "cannot open a channel to %s port %s", host, port);
	/* The VMM expects a descriptor that blocks. */
	if (fcntl(fd, F_SETFL, 0) < 0)
		return gw_error_errno(err, errno, "cannot set up a channel");
	*ret = gw_steal_fd(&fd);
	return 0;
}

static int open_channels(struct depart *d, const Godwit__PeerReady *ready, unsigned count, int *fds, struct gw_error *err)
{
	uint64_t deadline = gw_now_ns() + CONNECT_TIMEOUT;
	char address[280], want[256], host[256], port[6];
	struct gw_preamble pre = { .count = count };
	int r = gw_agent_peer_address(d->g->agent, d->req->host, address, want, err);

	if (r == 0)
		r = gw_parse_address(*ready->data_address ? ready->data_address : address, GW_DATA_PORT, host, port, err);
	if (r < 0)
		return r;
	if (ready->data_port == 0 || ready->data_port > 65535)
		return gw_error_set(err, EPROTO, "host %s names no port for the channels", d->req->host);
	snprintf(port, sizeof(port), "%u", ready->data_port);
	memcpy(pre.move_id, d->id, GW_ID_LEN);
	for (pre.number = 0; r == 0 && pre.number < count; pre.number++)
		r = open_channel(host, port, &pre, deadline, &fds[pre.number], err);
	return r;
}

static int hand_over(struct depart *d, const Godwit__PeerPrepare *prepare, const int *fds, unsigned count, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_control(d->g);
	Godwit__VmmRequest req = GODWIT__VMM_REQUEST__INIT;
	Godwit__MoveOut out = GODWIT__MOVE_OUT__INIT;

	if (!path)
		return gw_error_set(err, ENOMEM, "out of memory");
	out.move_id = prepare->move_id;
	out.secret = prepare->secret;
	out.epoch = prepare->epoch;
	out.channels = prepare->channels;
	out.downtime_ms = d->req->downtime_ms;
	out.timeout_ms = d->req->timeout_ms;
	out.policy = d->req->policy;
	out.bandwidth = d->req->bandwidth;
	out.digest = d->req->digest;
	out.clear = d->req->clear;
	out.peer = (char *)gw_chan_peer(d->peer);
	req.op_case = GODWIT__VMM_REQUEST__OP_MOVE_OUT;
	req.move_out = &out;
	return gw_vmmctl_ask(path, &req, fds, count, NULL, NULL, err);
}

static int ask_step(struct depart *d, Godwit__AgentRequest__OpCase op, Godwit__AgentReply **reply, struct gw_error *err)
{
	int r = gw_peer_step(d->peer, op, d->id, gw_now_ns() + STEP_TIMEOUT, reply, err);

	return r < 0 ? gw_error_wrap(err, "host %s", gw_chan_peer(d->peer)) : 0;
}

/* From the offer to the hand-over of the channels; they are closed here in any case, the VMMs have their own. */
static int drive(struct depart *d, const struct gw_offer *offer, struct gw_error *err)
{
	unsigned count = offer->prepare->channels + 1;
	gw_autoreply *reply = NULL;
	int fds[GW_MAX_MOVE_CHANNELS];
	int r;

	for (unsigned i = 0; i < GW_MAX_MOVE_CHANNELS; i++)
		fds[i] = -1;
	d->offered = true;
	r = gw_offer_make(d->peer, offer, cancelled, d, STEP_TIMEOUT, err);
	r = r ?: step(d, GW_FP_SRC_PREPARED, err);
	r = r ?: ask_step(d, GODWIT__AGENT_REQUEST__OP_PEER_SPAWN, &reply, err);
	if (r == 0 && !reply->ready)
		r = gw_error_set(err, EPROTO, "host %s answers with something else", gw_chan_peer(d->peer));
	r = r ?: open_channels(d, reply->ready, count, fds, err);
	r = r ?: step(d, GW_FP_SRC_CONNECTED, err);
	r = r ?: ask_step(d, GODWIT__AGENT_REQUEST__OP_PEER_ATTACH, NULL, err);
	r = r ?: hand_over(d, offer->prepare, fds, count, err);
	for (unsigned i = 0; i < GW_MAX_MOVE_CHANNELS; i++)
		gw_closep(&fds[i]);
	return r;
}

static int reach(struct depart *d, struct gw_error *err)
{
	struct gw_agent *a = d->g->agent;
	int r = gw_peer_connect(a, d->req->host, gw_now_ns() + CONNECT_TIMEOUT, &d->peer, NULL, err);

	if (r == 0 && !strcmp(gw_chan_peer(d->peer), a->conf->name))
		r = gw_error_set(err, EEXIST, "VM %s is on %s already", d->g->name, a->conf->name);
	return r;
}

static void tell_waiting(void *arg, const Godwit__LoadProgress *p, const char *text)
{
	struct depart *d = arg;
	Godwit__MoveProgress m = GODWIT__MOVE_PROGRESS__INIT;

	m.phase = (char *)"memory";
	m.ram_bytes = p->bytes;
	m.bytes_left = p->bytes - GW_MIN(p->bytes_here, p->bytes);
	m.rate = p->rate;
	m.eta_ms = p->eta_ms;
	m.message = (char *)text;
	(void)show_progress_locked(d, &m);
}

/* Should its memory be on its way: until that is here. The peer's connection would not last as long, and is made anew. */
static int wait_memory(struct depart *d, struct gw_error *err)
{
	bool waits;
	int r;

	pthread_mutex_lock(&d->g->lock);
	waits = gw_loading_locked(d->g);
	pthread_mutex_unlock(&d->g->lock);
	if (!waits)
		return 0;
	gw_chan_free(gw_steal_ptr(&d->peer));
	pthread_mutex_lock(&d->g->lock);
	r = gw_loading_wait_locked(d->g, tell_waiting, d, err);
	pthread_mutex_unlock(&d->g->lock);
	return r ?: reach(d, err);
}

static int leave(struct depart *d, struct gw_error *err)
{
	struct gw_guest *g = d->g;
	uint8_t secret[GW_MOVE_SECRET_LEN];
	struct gw_offer offer = { 0 };
	int r = reach(d, err) ?: wait_memory(d, err);

	r = r ?: gw_offer_build(g, d->req, &offer, err);
	if (r == 0 && RAND_bytes(secret, sizeof(secret)) != 1)
		r = gw_ssl_error(err, EIO, "no randomness");
	if (r == 0) {
		pthread_mutex_lock(&g->lock);
		offer.prepare->epoch = g->record->epoch + 1;
		pthread_mutex_unlock(&g->lock);
		if (gw_pb_set_bytes(&offer.prepare->move_id, d->id, GW_ID_LEN) < 0 ||
		    gw_pb_set_bytes(&offer.prepare->secret, secret, sizeof(secret)) < 0)
			r = gw_error_set(err, ENOMEM, "out of memory");
		explicit_bzero(secret, sizeof(secret));
	}
	r = r ?: note_move(d, err);
	r = r ?: step(d, GW_FP_SRC_PREPARE, err);
	r = r ?: drive(d, &offer, err);
	gw_offer_release(&offer);
	return r;
}

static int cancel_vmm(struct gw_guest *g, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_control(g);

	return path ? gw_vmmctl_simple(path, GODWIT__VMM_REQUEST__OP_CANCEL, NULL, err) :
		      gw_error_set(err, ENOMEM, "out of memory");
}

/* The phase of this move as the VMM tells it, "" before it does. With g->lock held. */
static const char *phase_locked(const struct depart *d)
{
	const Godwit__MoveProgress *m = d->g->move;

	return m && m->move_id.len == GW_ID_LEN && !memcmp(m->move_id.data, d->id, GW_ID_LEN) ? m->phase : "";
}

static int failed_locked(const struct depart *d, const char *phase, struct gw_error *err)
{
	const char *why = d->g->move ? d->g->move->message : "";

	if (!strcmp(phase, "cancelled"))
		return gw_error_set(err, ECANCELED, "the move was cancelled; VM %s stays here", d->g->name);
	return gw_error_set(err, EIO, "the move failed, VM %s stays here: %.300s", d->g->name, *why ? why : "no reason given");
}

/*
 * Follows the VMM, which has the channels, to the end of the move. With g->lock held. 0: the VM has moved; -EUCLEAN: in doubt
 * still; else it stays here.
 */
static int follow_locked(struct depart *d, struct gw_error *err)
{
	struct gw_guest *g = d->g;
	uint64_t doubt_ns = 0, gone_ns = 0;

	for (;;) {
		Godwit__VmState state = g->record->state;
		const char *phase = phase_locked(d);

		if (state == GODWIT__VM_STATE__VM_MOVED)
			return 0;
		if (state == GODWIT__VM_STATE__VM_DOUBT) {
			doubt_ns = doubt_ns ?: gw_now_ns();
			if (gw_now_ns() - doubt_ns > DOUBT_PATIENCE)
				return gw_error_set(err, EUCLEAN, "VM %s is in doubt: %s (see 'godwit resolve')", g->name,
						    g->record->reason);
		} else if (!g->watched) {
			return gw_error_set(err, EIO, "the move failed: VM %s %s: %s", g->name, gw_vm_state_word(state),
					    g->record->reason);
		} else if (doubt_ns) {
			return gw_error_set(err, EIO, "the move was cut and %s has not got VM %s, which stays here", g->record->peer,
					    g->name);
		} else if (!strcmp(phase, "failed") || !strcmp(phase, "cancelled")) {
			return failed_locked(d, phase, err);
		} else if (!d->req && !*phase && g->status && g->status->state != GODWIT__VMM_RUN_STATE__VMM_MOVING) {
			return gw_error_set(err, ECANCELED, "the agent was restarted before the move began; VM %s stays here", g->name);
		} else if (!strcmp(phase, "done")) {
			if (gw_watch_released_locked(g))
				return 0;
			gone_ns = gone_ns ?: gw_now_ns();
			if (gw_now_ns() - gone_ns > GONE_PATIENCE)
				gw_watch_kill_locked(g, gw_now_ns() + GONE_PATIENCE);
		}
		/* The end of the agent ends our following, not the move. */
		if (gw_guest_wait_locked(g, GW_NO_DEADLINE) == -ESHUTDOWN)
			return gw_error_set(err, EHOSTUNREACH, "the agent ends; the move of VM %s goes on", g->name);
	}
}

/* On the connection that is there; should it have broken, in the background. */
static void tell_peer(struct depart *d, Godwit__AgentRequest__OpCase op)
{
	gw_autofree char *host = NULL;
	int r = -EHOSTUNREACH;

	if (d->peer)
		r = gw_peer_step(d->peer, op, d->id, gw_now_ns() + TELL_TIMEOUT, NULL, NULL);
	if (r == 0 || r == -EEXIST)
		return;
	pthread_mutex_lock(&d->g->lock);
	host = strdup(d->g->record->peer_address);
	pthread_mutex_unlock(&d->g->lock);
	if (host)
		gw_peer_tell(d->g->agent, host, op, d->id);
}

static void report(struct gw_guest *g, int r, const struct gw_error *err)
{
	const char *kind = r == 0 ? "move-done" : r == -EUCLEAN ? "move-doubt" : r == -ECANCELED ? "move-cancelled" : "move-failed";

	if (r < 0) {
		gw_events_emit(g->agent->events, kind, g->name, "%s", gw_error_text(err));
		return;
	}
	pthread_mutex_lock(&g->lock);
	gw_events_emit(g->agent->events, kind, g->name, "to %s in %llu ms, %llu bytes, %u rounds, blackout %.1f ms%s%s",
		       g->record->peer, g->move ? (unsigned long long)g->move->elapsed_ms : 0,
		       g->move ? (unsigned long long)g->move->bytes_sent : 0, g->move ? g->move->round : 0,
		       g->move ? (double)g->move->blackout_us / 1000 : 0.0, g->move && *g->move->cipher ? ", " : "",
		       g->move ? g->move->cipher : "");
	pthread_mutex_unlock(&g->lock);
}

/* The operator's move is over; what follows is ours. With g->lock held. */
static void answer_locked(struct gw_guest *g, int r, const struct gw_error *err)
{
	g->departed = *err;
	g->departed.code = -r;
	g->departing = false;
	g->leaving = r == 0;
	pthread_cond_broadcast(&g->changed);
}

/* The VMM has let go of its VM and ends by itself. With g->lock held. */
static void wait_ended_locked(struct gw_guest *g)
{
	uint64_t deadline = gw_now_ns() + GONE_PATIENCE;
	int r = 0;

	while (g->watched && r == 0)
		r = gw_guest_wait_locked(g, deadline);
	if (r == -ETIMEDOUT)
		gw_watch_kill_locked(g, gw_now_ns() + GONE_PATIENCE);
}

static void set_handed(struct gw_guest *g, bool handed)
{
	pthread_mutex_lock(&g->lock);
	g->handed = handed;
	pthread_mutex_unlock(&g->lock);
}

static void depart(void *arg)
{
	struct depart *d = arg;
	struct gw_guest *g = d->g;
	struct gw_error err = GW_ERROR_INIT;
	bool handed = true;
	int r = 0;

	if (d->req) {
		gw_events_emit(g->agent->events, "move-started", g->name, "to %s", d->req->host);
		r = leave(d, &err);
		handed = r == 0;
		/* Whoever cancels from here on tells the VMM; who did before left only the wish. */
		set_handed(g, handed);
		if (handed && step(d, GW_FP_SRC_HANDED, NULL) < 0)
			cancel_vmm(g, NULL);
	}
	if (handed) {
		pthread_mutex_lock(&g->lock);
		r = follow_locked(d, &err);
		pthread_mutex_unlock(&g->lock);
	}
	if (r == 0) {
		gw_failpoint(GW_FP_SRC_RECORDED);
		/* Answered when the destination has it on record: whoever goes on there next finds the VM. */
		tell_peer(d, GODWIT__AGENT_REQUEST__OP_PEER_RELEASED);
	} else if (r != -EUCLEAN && !g->agent->stopping) {
		gw_failpoint(GW_FP_SRC_FAILED);
		gw_watch_back_from(g, GODWIT__VM_STATE__VM_MOVING);
		if (d->offered || !d->req)
			tell_peer(d, GODWIT__AGENT_REQUEST__OP_PEER_ABORT);
	}
	report(g, r, &err);
	pthread_mutex_lock(&g->lock);
	answer_locked(g, r, &err);
	if (r == 0)
		wait_ended_locked(g);
	gw_guest_end_locked(g);
	pthread_mutex_unlock(&g->lock);
	gw_chan_free(d->peer);
	if (d->req)
		godwit__move_request__free_unpacked(d->req, NULL);
	gw_guest_unref(g);
	free(d);
}

/* With g->lock held and operation "move" begun; takes req, which may be NULL. */
static int launch_locked(struct gw_guest *g, Godwit__MoveRequest *req, const uint8_t id[GW_ID_LEN], struct gw_error *err)
{
	struct depart *d = calloc(1, sizeof(*d));
	int r;

	if (!d) {
		if (req)
			godwit__move_request__free_unpacked(req, NULL);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	d->g = gw_guest_ref(g);
	d->req = req;
	memcpy(d->id, id, GW_ID_LEN);
	g->departing = true;
	g->cancel = false;
	g->handed = !req;
	g->departed = (struct gw_error)GW_ERROR_INIT;
	r = gw_agent_thread(g->agent, depart, d, err);
	if (r < 0) {
		g->departing = false;
		if (req)
			godwit__move_request__free_unpacked(req, NULL);
		gw_guest_unref(g);
		free(d);
	}
	return r;
}

static int check_request(struct gw_guest *g, const Godwit__MoveRequest *req, struct gw_error *err)
{
	if (!*req->host)
		return gw_error_set(err, EINVAL, "the move names no host");
	if (req->channels > GW_STREAM_MAX_CHANNELS)
		return gw_error_set(err, EINVAL, "%u channels; there can be %u", req->channels, GW_STREAM_MAX_CHANNELS);
	if (!strcmp(req->host, g->agent->conf->name))
		return gw_error_set(err, EEXIST, "VM %s is on %s already", g->name, req->host);
#ifndef GW_BENCH_SWITCHES
	if (req->clear)
		return gw_error_set(err, EPERM, "moves in the clear are refused");
#endif
	return 0;
}

/* Each has a thread of its own at both ends; on a host of one processor more of them would only take it from the VM. */
static uint32_t default_channels(void)
{
	return sysconf(_SC_NPROCESSORS_ONLN) < DEFAULT_CHANNELS ? 1 : DEFAULT_CHANNELS;
}

int gw_depart_start(struct gw_guest *g, const Godwit__MoveRequest *req, struct gw_error *err)
{
	Godwit__MoveRequest *copy = (Godwit__MoveRequest *)gw_pb_copy(&req->base);
	uint8_t id[GW_ID_LEN];
	Godwit__VmState state;
	bool begun;
	int r = check_request(g, req, err);

	if (r == 0 && (!copy || RAND_bytes(id, sizeof(id)) != 1))
		r = gw_error_set(err, ENOMEM, "out of memory");
	if (r < 0) {
		if (copy)
			godwit__move_request__free_unpacked(copy, NULL);
		return r;
	}
	copy->channels = copy->channels ?: default_channels();
	pthread_mutex_lock(&g->lock);
	state = g->record->state;
	r = gw_guest_begin_locked(g, "move", err);
	begun = r == 0;
	if (r == 0 && (!g->watched || (state != GODWIT__VM_STATE__VM_RUNNING && state != GODWIT__VM_STATE__VM_PAUSED)))
		r = gw_error_set(err, EALREADY, "VM %s is not running (%s%s%s)", g->name, gw_vm_state_word(state),
				 *g->record->reason ? ": " : "", g->record->reason);
	if (r == 0 && req->no_wait)
		r = gw_loading_refuse_locked(g, err);
	if (r == 0)
		r = launch_locked(g, gw_steal_ptr(&copy), id, err);
	if (r < 0 && begun)
		gw_guest_end_locked(g);
	pthread_mutex_unlock(&g->lock);
	if (copy)
		godwit__move_request__free_unpacked(copy, NULL);
	return r;
}

void gw_depart_resume_locked(struct gw_guest *g)
{
	struct gw_error err = GW_ERROR_INIT;

	if (g->record->move_id.len != GW_ID_LEN)
		return;
	g->op = "move";
	if (launch_locked(g, NULL, g->record->move_id.data, &err) < 0) {
		g->op = NULL;
		gw_events_emit(g->agent->events, "warning", g->name, "%s", gw_error_text(&err));
	}
}

int gw_depart_cancel(struct gw_guest *g, struct gw_error *err)
{
	bool handed;

	pthread_mutex_lock(&g->lock);
	if (!g->departing) {
		pthread_mutex_unlock(&g->lock);
		return gw_error_set(err, EALREADY, "nothing that could be cancelled is under way for VM %s", g->name);
	}
	if (g->record->state == GODWIT__VM_STATE__VM_DOUBT) {
		pthread_mutex_unlock(&g->lock);
		return gw_error_set(err, EUCLEAN, "too late: whether VM %s is here or there is in doubt", g->name);
	}
	g->cancel = true;
	handed = g->handed;
	pthread_cond_broadcast(&g->changed);
	pthread_mutex_unlock(&g->lock);
	/* Not yet handed over: our own steps see the wish. */
	return handed ? cancel_vmm(g, err) : 0;
}
