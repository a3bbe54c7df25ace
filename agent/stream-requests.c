// SPDX-License-Identifier: Apache-2.0
/* Requests whose answer streams: the progress of a move, of saving, of clones, events, the serial console. */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "agent/clone.h"
#include "agent/depart.h"
#include "agent/requests-internal.h"
#include "agent/run.h"
#include "agent/suspend.h"
#include "agent/vmconfig.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"

#define SEND_TIMEOUT (20 * GW_NS_PER_SEC)
/* At most that often. */
#define PROGRESS_NS (100 * GW_NS_PER_MS)
#define CONSOLE_CHUNK 4096

static int send_progress(struct gw_client *c, struct gw_guest *g, bool save)
{
	Godwit__AgentEvent ev = GODWIT__AGENT_EVENT__INIT;
	Godwit__MoveProgress *move = NULL;
	Godwit__SaveProgress *saving = NULL;
	int r = 0;

	pthread_mutex_lock(&g->lock);
	if (save && g->save)
		saving = (Godwit__SaveProgress *)gw_pb_copy(&g->save->base);
	if (!save && g->move)
		move = (Godwit__MoveProgress *)gw_pb_copy(&g->move->base);
	pthread_mutex_unlock(&g->lock);
	if (!move && !saving)
		return 0;
	ev.time_ns = gw_realtime_ns();
	ev.host = c->agent->conf->name;
	ev.kind = save ? (char *)"save-progress" : (char *)"move-progress";
	ev.vm = g->name;
	ev.move = move;
	ev.save = saving;
	r = gw_chan_send(c->chan, GW_FRAME_AGENT_EVENT, &ev.base, gw_now_ns() + SEND_TIMEOUT);
	if (move)
		godwit__move_progress__free_unpacked(move, NULL);
	if (saving)
		godwit__save_progress__free_unpacked(saving, NULL);
	return r;
}

/* Waits for news. False when it is over. */
static bool wait_progress(struct gw_guest *g)
{
	bool going;

	pthread_mutex_lock(&g->lock);
	if (g->departing)
		gw_guest_wait_locked(g, gw_now_ns() + GW_NS_PER_SEC);
	going = g->departing && !g->agent->stopping;
	pthread_mutex_unlock(&g->lock);
	return going;
}

/* Until the move or saving has ended: 0, or how it failed. GW_CLIENT_CLOSE: who asked has gone; it goes on. */
static int follow(struct gw_client *c, struct gw_guest *g, bool save, struct gw_error *err)
{
	uint64_t last_ns = 0;
	int r = 0;

	while (wait_progress(g)) {
		if (gw_now_ns() - last_ns < PROGRESS_NS)
			continue;
		last_ns = gw_now_ns();
		if (send_progress(c, g, save) < 0)
			return GW_CLIENT_CLOSE;
	}
	pthread_mutex_lock(&g->lock);
	if (g->departing)
		r = gw_error_set(err, EHOSTUNREACH, "the agent ends; %s goes on", save ? "saving" : "the move");
	else if (g->departed.code)
		r = gw_error_set(err, g->departed.code, "%s", gw_error_text(&g->departed));
	pthread_mutex_unlock(&g->lock);
	return r;
}

int gw_client_move(struct gw_client *c, const Godwit__AgentRequest *req, Godwit__AgentReply *rep, struct gw_error *err)
{
	gw_autoguest *g = gw_client_guest(c, req->move->name, err);
	int r = g ? gw_depart_start(g, req->move, err) : -ESRCH;

	if (r < 0 || req->move->detach)
		return r;
	r = follow(c, g, false, err);
	pthread_mutex_lock(&g->lock);
	if (g->move)
		rep->move = (Godwit__MoveProgress *)gw_pb_copy(&g->move->base);
	pthread_mutex_unlock(&g->lock);
	return r;
}

int gw_client_save(struct gw_client *c, const Godwit__AgentRequest *req, Godwit__AgentReply *rep, struct gw_error *err)
{
	gw_autoguest *g = gw_client_guest(c, req->save->name, err);
	int r = g ? gw_suspend_start(g, req->save, err) : -ESRCH;

	if (r < 0 || req->save->detach)
		return r;
	r = follow(c, g, true, err);
	pthread_mutex_lock(&g->lock);
	if (g->save)
		rep->save = (Godwit__SaveProgress *)gw_pb_copy(&g->save->base);
	pthread_mutex_unlock(&g->lock);
	return r;
}

/* Who asked has gone: then nobody waits for the others. */
static int send_clone(void *arg, const Godwit__CloneProgress *p, struct gw_error *err)
{
	struct gw_client *c = arg;
	Godwit__AgentEvent ev = GODWIT__AGENT_EVENT__INIT;

	ev.time_ns = gw_realtime_ns();
	ev.host = c->agent->conf->name;
	ev.kind = (char *)"clone-progress";
	ev.vm = p->name;
	ev.clone = (Godwit__CloneProgress *)p;
	if (gw_chan_closed(c->chan) || gw_chan_send(c->chan, GW_FRAME_AGENT_EVENT, &ev.base, gw_now_ns() + SEND_TIMEOUT) < 0)
		return gw_error_set(err, ECANCELED, "cancelled");
	return 0;
}

static void pass_on(void *arg, const Godwit__AgentEvent *ev)
{
	struct gw_client *c = arg;

	(void)gw_chan_send(c->chan, GW_FRAME_AGENT_EVENT, &ev->base, gw_now_ns() + SEND_TIMEOUT);
}

static int clone_elsewhere(struct gw_client *c, const Godwit__CloneRequest *req, Godwit__AgentReply *rep, struct gw_error *err)
{
	gw_autoreply *theirs = NULL;
	int r;

	if (gw_chan_role(c->chan) == GW_ROLE_HOST)
		return gw_error_set(err, EINVAL, "a host makes clones for another one only on itself");
	r = gw_clone_elsewhere(c->agent, req, pass_on, c, &theirs, err);
	if (theirs) {
		rep->vms = gw_steal_ptr(&theirs->vms);
		rep->n_vms = theirs->n_vms;
		theirs->n_vms = 0;
	}
	return r;
}

int gw_client_clone(struct gw_client *c, const Godwit__AgentRequest *req, Godwit__AgentReply *rep, struct gw_error *err)
{
	const Godwit__CloneRequest *clone = req->clone;
	struct gw_guest *list[GW_CLONES_MAX];
	unsigned made;
	int r;

	if (*clone->host && strcmp(clone->host, c->agent->conf->name) != 0)
		return clone_elsewhere(c, clone, rep, err);
	r = gw_clone(c->agent, clone, send_clone, c, list, &made, err);
	for (unsigned i = 0; i < made; i++) {
		if (gw_client_add_info(rep, list[i]) < 0 && r == 0)
			r = gw_error_set(err, ENOMEM, "out of memory");
		gw_guest_unref(list[i]);
	}
	return r;
}

int gw_client_events(struct gw_client *c, const Godwit__AgentRequest *req, Godwit__AgentReply *rep, struct gw_error *err)
{
	struct gw_events *events = c->agent->events;
	uint64_t seq = gw_events_seq(events, req->events->last);
	uint64_t end = gw_events_seq(events, 0);

	for (;;) {
		Godwit__AgentEvent *ev = NULL;
		int r;

		if (!req->events->follow && seq >= end)
			return 0;
		r = gw_events_next(events, seq, req->events->follow ? 500 : 0, &ev);
		if (r == 0) {
			seq = ev->seq + 1;
			r = gw_chan_send(c->chan, GW_FRAME_AGENT_EVENT, &ev->base, gw_now_ns() + SEND_TIMEOUT);
			godwit__agent_event__free_unpacked(ev, NULL);
		} else if (r == -ETIMEDOUT) {
			if (!req->events->follow)
				return 0;
			r = gw_chan_closed(c->chan) ? -EPIPE : 0;
		}
		if (r < 0)
			return GW_CLIENT_CLOSE;
	}
}

/* Moves what is there from the console to the client; negative at either's end. */
static int from_console(struct gw_client *c, int fd)
{
	uint8_t buf[CONSOLE_CHUNK];
	ssize_t n = read(fd, buf, sizeof(buf));

	if (n <= 0)
		return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -EPIPE;
	return gw_chan_write(c->chan, buf, (size_t)n, gw_now_ns() + SEND_TIMEOUT);
}

static int to_console(struct gw_client *c, int fd)
{
	uint8_t buf[CONSOLE_CHUNK];
	ssize_t n = gw_chan_read(c->chan, buf, sizeof(buf));

	if (n < 0)
		return n == -EAGAIN ? 0 : (int)n;
	return gw_write_full(fd, buf, (size_t)n, gw_now_ns() + SEND_TIMEOUT);
}

/* After the reply the connection carries the console's bytes, both ways, until one side closes. */
static void relay(struct gw_client *c, int fd)
{
	int r = 0;

	while (r == 0) {
		struct pollfd p[3] = { { .fd = fd, .events = POLLIN },
				       { .fd = gw_chan_fd(c->chan), .events = POLLIN },
				       { .fd = c->agent->stop_fd, .events = POLLIN } };
		bool waiting = gw_chan_pending(c->chan);

		if (poll(p, 3, waiting ? 0 : -1) < 0 && errno != EINTR)
			return;
		if (p[2].revents)
			return;
		if (p[0].revents)
			r = from_console(c, fd);
		if (r == 0 && (waiting || p[1].revents))
			r = to_console(c, fd);
	}
}

int gw_client_console(struct gw_client *c, const Godwit__AgentRequest *req, Godwit__AgentReply *rep, struct gw_error *err)
{
	gw_autoguest *g = gw_client_guest(c, req->console->name, err);
	gw_autofd fd = -1;
	int r = g ? gw_run_console(g, &fd, err) : -ESRCH;

	if (r < 0)
		return r;
	r = gw_client_reply(c, 0, err, rep, fd);
	if (r < 0)
		return GW_CLIENT_CLOSE;
	if (gw_chan_role(c->chan) == GW_ROLE_LOCAL)
		return GW_CLIENT_ANSWERED;
	relay(c, fd);
	return GW_CLIENT_CLOSE;
}
