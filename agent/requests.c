// SPDX-License-Identifier: Apache-2.0
/* Requests of clients and peers; see requests.h. The ones that stream are in stream-requests.c. */
#include "agent/requests.h"

#include <errno.h>
#include <string.h>

#include "agent/depart.h"
#include "agent/guest.h"
#include "agent/peers.h"
#include "agent/requests-internal.h"
#include "agent/resume.h"
#include "agent/run.h"
#include "agent/settle.h"
#include "agent/share.h"
#include "agent/suspend.h"
#include "agent/ticket.h"
#include "agent/vmconfig.h"
#include "agent/watch.h"
#include "lib/clock.h"
#include "lib/util.h"

#define REPLY_TIMEOUT (30 * GW_NS_PER_SEC)
#define DEFAULT_STOP_MS 90000
#define MAX_STOP_MS 3600000

typedef Godwit__AgentRequest Req;
typedef Godwit__AgentReply Rep;

struct gw_guest *gw_client_guest(struct gw_client *c, const char *name, struct gw_error *err)
{
	struct gw_guest *g = gw_guest_find(c->agent, name);

	if (!g)
		gw_error_set(err, ESRCH, "no VM '%.63s' on %s", name, c->agent->conf->name);
	return g;
}

int gw_client_add_info(Rep *rep, struct gw_guest *g)
{
	Godwit__VmInfo **grown = reallocarray(rep->vms, rep->n_vms + 1, sizeof(Godwit__VmInfo *));
	Godwit__VmInfo *info;

	if (!grown)
		return -ENOMEM;
	rep->vms = grown;
	info = gw_guest_info(g);
	if (!info)
		return -ENOMEM;
	grown[rep->n_vms++] = info;
	return 0;
}

/* After what changed a VM: its state goes with the reply. */
static int with_info(int r, Rep *rep, struct gw_guest *g, struct gw_error *err)
{
	if (r == 0 && gw_client_add_info(rep, g) < 0)
		r = gw_error_set(err, ENOMEM, "out of memory");
	return r;
}

static int do_hello(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	struct gw_agent *a = c->agent;
	Godwit__HostInfo h = GODWIT__HOST_INFO__INIT;
	struct gw_guest **list;
	unsigned n;

	h.name = a->conf->name;
	h.version = (char *)GW_AGENT_VERSION;
	h.protocol = GW_AGENT_PROTOCOL;
	gw_memory_read(&a->memory, &h.memory_total, &h.memory_available, NULL);
	h.cpus = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
	h.listen = a->tls_server ? a->conf->listen : (char *)"";
	h.data_port = a->data_port;
	if (gw_guest_list(a, &list, &n) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < n; i++) {
		pthread_mutex_lock(&list[i]->lock);
		h.vms += list[i]->record->state != GODWIT__VM_STATE__VM_MOVED;
		h.running += list[i]->watched;
		pthread_mutex_unlock(&list[i]->lock);
		gw_guest_unref(list[i]);
	}
	free(list);
	rep->host = (Godwit__HostInfo *)gw_pb_copy(&h.base);
	return rep->host ? 0 : gw_error_set(err, ENOMEM, "out of memory");
}

static int do_create(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	gw_autoguest *g = NULL;
	int r = gw_run_create(c->agent, req->create, err);

	if (r < 0)
		return r;
	g = gw_client_guest(c, req->create->name, err);
	return g ? with_info(0, rep, g, err) : -ESRCH;
}

static int do_start(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	gw_autoguest *g = gw_client_guest(c, req->start->name, err);

	return g ? with_info(gw_run_start(g, err), rep, g, err) : -ESRCH;
}

static int do_stop(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	gw_autoguest *g = gw_client_guest(c, req->stop->name, err);
	uint64_t ms = req->stop->timeout_ms ?: DEFAULT_STOP_MS;

	if (!g)
		return -ESRCH;
	return with_info(gw_run_stop(g, req->stop->force, GW_MIN(ms, (uint64_t)MAX_STOP_MS), err), rep, g, err);
}

static int do_pause(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	gw_autoguest *g = gw_client_guest(c, req->pause->name, err);

	return g ? with_info(gw_run_pause(g, true, err), rep, g, err) : -ESRCH;
}

static int do_resume(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	gw_autoguest *g = gw_client_guest(c, req->resume->name, err);

	return g ? with_info(gw_run_pause(g, false, err), rep, g, err) : -ESRCH;
}

static int do_remove(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	gw_autoguest *g = gw_client_guest(c, req->remove->name, err);

	return g ? gw_run_remove(g, err) : -ESRCH;
}

static int do_list(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	struct gw_guest **list;
	unsigned n;
	int r = gw_guest_list(c->agent, &list, &n);

	if (r < 0)
		return gw_error_set(err, r, "out of memory");
	for (unsigned i = 0; i < n; i++) {
		r = r < 0 ? r : with_info(0, rep, list[i], err);
		gw_guest_unref(list[i]);
	}
	free(list);
	return r;
}

static int do_show(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	gw_autoguest *g = gw_client_guest(c, req->show->name, err);
	bool live;

	if (!g)
		return -ESRCH;
	pthread_mutex_lock(&g->lock);
	live = g->watched;
	pthread_mutex_unlock(&g->lock);
	/* A VMM that does not answer must not keep its VM from being shown. */
	if (live)
		gw_watch_refresh(g, NULL);
	return with_info(0, rep, g, err);
}

static int do_cancel(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	gw_autoguest *g = gw_client_guest(c, req->cancel->name, err);
	bool incoming;

	if (!g)
		return -ESRCH;
	pthread_mutex_lock(&g->lock);
	incoming = g->record->state == GODWIT__VM_STATE__VM_INCOMING;
	pthread_mutex_unlock(&g->lock);
	return incoming ? gw_arrive_cancel(g, err) : gw_depart_cancel(g, err);
}

static int do_resolve(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	gw_autoguest *g = gw_client_guest(c, req->resolve->name, err);

	return g ? with_info(gw_settle_resolve(g, req->resolve->here, err), rep, g, err) : -ESRCH;
}

static int do_resume_snapshot(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	const Godwit__ResumeRequest *resume = req->resume_snapshot;
	gw_autoreply *theirs = NULL;
	gw_autoguest *g = NULL;
	int r;

	if (!*resume->host || !strcmp(resume->host, c->agent->conf->name)) {
		r = gw_resume(c->agent, resume, &g, err);
		return with_info(r, rep, g, err);
	}
	if (gw_chan_role(c->chan) == GW_ROLE_HOST)
		return gw_error_set(err, EINVAL, "a host resumes for another one only on itself");
	r = gw_resume_elsewhere(c->agent, resume, &theirs, err);
	if (r == 0) {
		rep->vms = gw_steal_ptr(&theirs->vms);
		rep->n_vms = theirs->n_vms;
		theirs->n_vms = 0;
	}
	return r;
}

static int do_peer_claim(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	return gw_suspend_claim(c->agent, gw_chan_peer(c->chan), req->peer_claim, &rep->epoch, err);
}

static int do_release(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	gw_autobuf grant = GW_BUF_INIT;
	int r = gw_suspend_release(c->agent, req->release, &rep->epoch, &grant, err);

	if (r == 0 && gw_pb_set_bytes(&rep->grant, grant.data, grant.len) < 0)
		r = gw_error_set(err, ENOMEM, "out of memory");
	return r;
}

static int do_resume_check(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	return gw_resume_check(c->agent, req->resume_check, err);
}

static int do_ticket(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	const Godwit__TicketRequest *t = req->ticket;
	Godwit__RepositoryTicket m;
	struct gw_ticket ticket;
	int r;

	if (!*t->host || !strcmp(t->host, c->agent->conf->name))
		r = gw_ticket_grant(c->agent, t->name, t->create, gw_chan_role(c->chan) == GW_ROLE_LOCAL, &ticket, err);
	else if (gw_chan_role(c->chan) == GW_ROLE_HOST)
		r = gw_error_set(err, EINVAL, "a host asks for tickets only for itself");
	else
		r = gw_ticket_from_peer(c->agent, t->host, t->name, t->create, &ticket, err);
	if (r < 0)
		return r;
	gw_ticket_write(&ticket, &m);
	rep->ticket = (Godwit__RepositoryTicket *)gw_pb_copy(&m.base);
	explicit_bzero(&ticket, sizeof(ticket));
	return rep->ticket ? 0 : gw_error_set(err, ENOMEM, "out of memory");
}

static int do_balloon(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	gw_autoguest *g = gw_client_guest(c, req->balloon->name, err);

	return g ? gw_run_balloon(g, req->balloon->target, &rep->balloon, err) : -ESRCH;
}

static int do_share(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	return gw_sharing_info(c->agent, req->share->vm, req->share->domain, &rep->share, err);
}

static int do_peers(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	return gw_peers_status(c->agent, &rep->peers, &rep->n_peers, err);
}

static int do_peer_prepare(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	Godwit__PeerPrepared prepared = GODWIT__PEER_PREPARED__INIT;
	int r = gw_arrive_prepare(c->agent, gw_chan_peer(c->chan), req->peer_prepare, &c->session, &prepared, err);

	if (r == 0) {
		rep->prepared = (Godwit__PeerPrepared *)gw_pb_copy(&prepared.base);
		if (!rep->prepared)
			r = gw_error_set(err, ENOMEM, "out of memory");
	}
	return r;
}

static int do_peer_spawn(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	Godwit__PeerReady ready = GODWIT__PEER_READY__INIT;
	int r = gw_arrive_spawn(&c->session, req->peer_spawn, &ready, err);

	if (r == 0) {
		rep->ready = (Godwit__PeerReady *)gw_pb_copy(&ready.base);
		if (!rep->ready)
			r = gw_error_set(err, ENOMEM, "out of memory");
	}
	return r;
}

static int do_peer_attach(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	return gw_arrive_attach(&c->session, req->peer_attach, err);
}

static int check_id(const Godwit__PeerMove *m, struct gw_error *err)
{
	return m->move_id.len == GW_ID_LEN ? 0 : gw_error_set(err, EPROTO, "the request names no move");
}

static int do_peer_abort(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	int r = check_id(req->peer_abort, err);

	if (r < 0)
		return r;
	/* Prepared on this very connection, and not attached: it has no other end. */
	gw_session_end(gw_steal_ptr(&c->session));
	return gw_arrive_abort(c->agent, gw_chan_peer(c->chan), req->peer_abort->move_id.data, err);
}

static int do_peer_released(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	int r = check_id(req->peer_released, err);

	return r ?: gw_arrive_released(c->agent, gw_chan_peer(c->chan), req->peer_released->move_id.data, err);
}

static int do_peer_outcome(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err)
{
	Godwit__PeerOutcome outcome = GODWIT__PEER_OUTCOME__INIT;
	gw_autofree char *reason = NULL;
	int r = check_id(req->peer_outcome, err);

	r = r ?: gw_arrive_outcome(c->agent, gw_chan_peer(c->chan), req->peer_outcome->move_id.data, &outcome.side, &reason, err);
	if (r < 0)
		return r;
	if (outcome.side == GODWIT__MOVE_SIDE__MOVE_DESTINATION)
		gw_arrive_released(c->agent, gw_chan_peer(c->chan), req->peer_outcome->move_id.data, NULL);
	outcome.reason = reason;
	rep->outcome = (Godwit__PeerOutcome *)gw_pb_copy(&outcome.base);
	return rep->outcome ? 0 : gw_error_set(err, ENOMEM, "out of memory");
}

enum who { CLI = 1, PEER = 2 };

static const struct handler {
	Godwit__AgentRequest__OpCase op;
	unsigned who;
	int (*fn)(struct gw_client *c, const Req *req, Rep *rep, struct gw_error *err);
} handlers[] = {
	{ GODWIT__AGENT_REQUEST__OP_HELLO, CLI | PEER, do_hello },
	{ GODWIT__AGENT_REQUEST__OP_CREATE, CLI, do_create },
	{ GODWIT__AGENT_REQUEST__OP_START, CLI, do_start },
	{ GODWIT__AGENT_REQUEST__OP_STOP, CLI, do_stop },
	{ GODWIT__AGENT_REQUEST__OP_PAUSE, CLI, do_pause },
	{ GODWIT__AGENT_REQUEST__OP_RESUME, CLI, do_resume },
	{ GODWIT__AGENT_REQUEST__OP_REMOVE, CLI, do_remove },
	{ GODWIT__AGENT_REQUEST__OP_LIST, CLI, do_list },
	{ GODWIT__AGENT_REQUEST__OP_SHOW, CLI, do_show },
	{ GODWIT__AGENT_REQUEST__OP_MOVE, CLI, gw_client_move },
	{ GODWIT__AGENT_REQUEST__OP_CANCEL, CLI, do_cancel },
	{ GODWIT__AGENT_REQUEST__OP_CONSOLE, CLI, gw_client_console },
	{ GODWIT__AGENT_REQUEST__OP_EVENTS, CLI, gw_client_events },
	{ GODWIT__AGENT_REQUEST__OP_RESOLVE, CLI, do_resolve },
	{ GODWIT__AGENT_REQUEST__OP_PEERS, CLI, do_peers },
	{ GODWIT__AGENT_REQUEST__OP_BALLOON, CLI, do_balloon },
	{ GODWIT__AGENT_REQUEST__OP_SHARE, CLI, do_share },
	{ GODWIT__AGENT_REQUEST__OP_SAVE, CLI, gw_client_save },
	{ GODWIT__AGENT_REQUEST__OP_RESUME_SNAPSHOT, CLI | PEER, do_resume_snapshot },
	{ GODWIT__AGENT_REQUEST__OP_CLONE, CLI | PEER, gw_client_clone },
	{ GODWIT__AGENT_REQUEST__OP_RELEASE, CLI, do_release },
	{ GODWIT__AGENT_REQUEST__OP_RESUME_CHECK, CLI, do_resume_check },
	{ GODWIT__AGENT_REQUEST__OP_TICKET, CLI | PEER, do_ticket },
	{ GODWIT__AGENT_REQUEST__OP_PEER_CLAIM, PEER, do_peer_claim },
	{ GODWIT__AGENT_REQUEST__OP_PEER_PREPARE, PEER, do_peer_prepare },
	{ GODWIT__AGENT_REQUEST__OP_PEER_SPAWN, PEER, do_peer_spawn },
	{ GODWIT__AGENT_REQUEST__OP_PEER_ATTACH, PEER, do_peer_attach },
	{ GODWIT__AGENT_REQUEST__OP_PEER_ABORT, PEER, do_peer_abort },
	{ GODWIT__AGENT_REQUEST__OP_PEER_RELEASED, PEER, do_peer_released },
	{ GODWIT__AGENT_REQUEST__OP_PEER_OUTCOME, PEER, do_peer_outcome },
};

static bool client_allowed(const struct gw_conf *conf, const char *name)
{
	for (unsigned i = 0; i < conf->nallow_cli; i++) {
		if (!strcmp(conf->allow_cli[i], name))
			return true;
	}
	return conf->nallow_cli == 0;
}

static int check_permission(struct gw_client *c, unsigned who, struct gw_error *err)
{
	enum gw_role role = gw_chan_role(c->chan);
	const char *name = gw_chan_peer(c->chan);

	if (role == GW_ROLE_CLIENT && !client_allowed(c->agent->conf, name))
		return gw_error_set(err, EACCES, "client '%s' is not in allow-cli of host %s", name, c->agent->conf->name);
	if (role == GW_ROLE_HOST ? who & PEER : who & CLI)
		return 0;
	if (role == GW_ROLE_HOST)
		return gw_error_set(err, EACCES, "'%s' shows a host's certificate, and commands take a client's", name);
	return gw_error_set(err, EACCES, "only other hosts may ask that");
}

int gw_client_reply(struct gw_client *c, int r, const struct gw_error *err, Rep *rep, int fd)
{
	uint64_t deadline = gw_now_ns() + REPLY_TIMEOUT;

	rep->error = -r;
	if (r < 0 && gw_pb_set_string(&rep->message, gw_error_text(err)) < 0)
		return -ENOMEM;
	gw_make_printable(rep->message);
	if (fd >= 0 && gw_chan_role(c->chan) == GW_ROLE_LOCAL)
		return gw_frame_send(gw_chan_fd(c->chan), GW_FRAME_AGENT_REPLY, &rep->base, &fd, 1, deadline);
	return gw_chan_send(c->chan, GW_FRAME_AGENT_REPLY, &rep->base, deadline);
}

/* A piece of a boot file has an answer only when it is the last, or wrong; after a wrong one nothing can follow. */
static int boot_piece(struct gw_client *c, const Godwit__PeerBoot *boot, Rep *rep)
{
	struct gw_error err = GW_ERROR_INIT;
	int r = check_permission(c, PEER, &err) ?: gw_arrive_boot(&c->session, boot, &err);

	if (r < 0) {
		gw_client_reply(c, r, &err, rep, -1);
		return -ECONNABORTED;
	}
	return boot->last ? gw_client_reply(c, 0, &err, rep, -1) : 0;
}

static int handle(struct gw_client *c, const Req *req, Rep *rep)
{
	struct gw_error err = GW_ERROR_INIT;
	int r;

	if (req->op_case == GODWIT__AGENT_REQUEST__OP_PEER_BOOT)
		return boot_piece(c, req->peer_boot, rep);
	for (size_t i = 0; i < ARRAY_SIZE(handlers); i++) {
		if (handlers[i].op != req->op_case)
			continue;
		r = check_permission(c, handlers[i].who, &err) ?: handlers[i].fn(c, req, rep, &err);
		if (r == GW_CLIENT_ANSWERED)
			return 0;
		if (r == GW_CLIENT_CLOSE)
			return -ECONNABORTED;
		return gw_client_reply(c, r, &err, rep, -1);
	}
	r = gw_error_set(&err, ENOSYS, "agent %s (version %s) does not know this request", c->agent->conf->name, GW_AGENT_VERSION);
	return gw_client_reply(c, r, &err, rep, -1);
}

int gw_client_request(struct gw_client *c, const uint8_t *data, size_t len)
{
	Req *req = godwit__agent_request__unpack(NULL, len, data);
	Rep *rep = malloc(sizeof(*rep));
	int r = !req ? -EPROTO : !rep ? -ENOMEM : 0;

	if (rep)
		godwit__agent_reply__init(rep);
	if (r == 0)
		r = handle(c, req, rep);
	if (req)
		godwit__agent_request__free_unpacked(req, NULL);
	if (rep)
		godwit__agent_reply__free_unpacked(rep, NULL);
	return r;
}

void gw_client_end(struct gw_client *c)
{
	gw_session_end(gw_steal_ptr(&c->session));
}
