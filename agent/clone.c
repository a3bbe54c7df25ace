// SPDX-License-Identifier: Apache-2.0
/* Making clones; see clone.h. */
#include "agent/clone.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "agent/clone-disks.h"
#include "agent/net.h"
#include "agent/peers.h"
#include "agent/restore.h"
#include "agent/vmconfig.h"
#include "agent/watch.h"
#include "lib/clock.h"
#include "lib/util.h"

#define CONNECT_TIMEOUT (10 * GW_NS_PER_SEC)
#define KILL_TIMEOUT (15 * GW_NS_PER_SEC)
#define RELAY_TIMEOUT (300 * GW_NS_PER_SEC) /* for each clone */

struct clone {
	struct gw_restore from;
	const Godwit__CloneRequest *req;
	Godwit__VmConfig *configs[GW_CLONES_MAX]; /* of req->count clones */
};

/* ---- what they are ---- */

/*
 * A random one, locally administered and not of the prefix that others draw 24 bits under: of a million clones on one network two have the same with
 * a chance of 1 to 140.
 */
static int set_mac(Godwit__VmNet *n, struct gw_error *err)
{
	uint8_t mac[6];
	char text[18];

	if (getrandom(mac, sizeof(mac), 0) != sizeof(mac))
		return gw_error_set(err, EIO, "cannot draw a MAC address");
	mac[0] = (mac[0] & 0xfc) | 0x02;
	snprintf(text, sizeof(text), "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
	return gw_pb_set_string(&n->mac, text) < 0 ? gw_error_set(err, ENOMEM, "out of memory") : 0;
}

static int own_nets(Godwit__VmConfig *c, struct gw_error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < c->n_nets; i++) {
		if (!*c->nets[i]->bridge)
			return gw_error_set(err, EINVAL, "[net %s] is the tap %s, which only one VM can have; of a VM whose nets name a bridge each clone gets taps of its own",
					    c->nets[i]->name, c->nets[i]->tap);
		r = set_mac(c->nets[i], err);
	}
	return r;
}

static int configure(struct clone *s, unsigned number, struct gw_error *err)
{
	const Godwit__VmConfig *saved = s->from.about->vm->config;
	Godwit__VmConfig *c = gw_vmconfig_copy(saved);
	gw_autofree char *name = NULL;
	gw_autoguest *g = NULL;
	int r;

	s->configs[number - 1] = c;
	if (!c || asprintf(&name, "%s-%u", *s->req->prefix ? s->req->prefix : saved->name, number) < 0 || gw_pb_set_string(&c->name, name) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_clone_map_disks(c, s->req, number, err) ?: own_nets(c, err) ?: gw_vmconfig_check(c, err);
	if (r < 0)
		return r;
	g = gw_guest_find(s->from.a, c->name);
	return g ? gw_error_set(err, EEXIST, "VM %s exists here already; --name gives clones another name", c->name) : 0;
}

static int prepare(struct clone *s, struct gw_error *err)
{
	const Godwit__PeerPrepare *saved = s->from.about->vm;
	unsigned n = s->req->count;
	int r = 0;

	for (unsigned i = 1; r == 0 && i <= n; i++)
		r = configure(s, i, err);
	r = r ?: gw_clone_check_disks(s->from.a, s->req, saved, s->configs, n, err);
	r = r ?: gw_restore_check_host(&s->from, s->configs[0], err);
	if (r == 0 && gw_memory_admit(s->from.a, NULL, saved->config->memory * n, err) < 0)
		r = gw_error_wrap(err, "%u clones", n);
	return r;
}

/* ---- making them ---- */

/* Nothing is left of it, not even where it has run for a moment. */
static void undo(struct gw_guest *g)
{
	bool rests;

	pthread_mutex_lock(&g->lock);
	if (g->watched && !g->agent->stopping)
		gw_watch_kill_locked(g, gw_now_ns() + KILL_TIMEOUT);
	/* What there is when the agent ends is looked at by the next one, as after a crash. */
	rests = !g->watched && !g->gone;
	pthread_mutex_unlock(&g->lock);
	if (!rests)
		return;
	gw_net_teardown(g);
	gw_guest_remove(g);
}

static int make(struct clone *s, unsigned number, struct gw_guest **ret, struct gw_error *err)
{
	const Godwit__VmConfig *c = s->configs[number - 1];
	Godwit__VmRecord *rec = gw_restore_record(&s->from, c, 1);
	struct gw_guest *g = NULL;
	int r;

	if (!rec || gw_pb_set_string(&rec->reason, "is being made") < 0) {
		if (rec)
			godwit__vm_record__free_unpacked(rec, NULL);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	rec->cloning = true;
	r = gw_guest_add(s->from.a, rec, "clone", false, &g, err);
	if (r < 0)
		return r;
	r = gw_clone_recheck_disks(g, err) ?: gw_memory_admit(s->from.a, g, c->memory, err) ?: gw_restore_bring(&s->from, g, s->req->paused, err);
	if (r < 0) {
		undo(g);
		gw_guest_end(g);
		gw_guest_unref(g);
		return r;
	}
	gw_guest_end(g);
	gw_events_emit(s->from.a->events, "vm-cloned", g->name, "from %.200s, %s generation %llu", s->req->url, s->from.info->name,
		       (unsigned long long)s->from.info->generation);
	*ret = g;
	return 0;
}

/* What failed, and what there is all the same. */
static int tell_made(const struct clone *s, unsigned made, struct gw_error *err)
{
	const char *first = s->configs[0]->name;

	if (made == 0)
		return gw_error_wrap(err, "no clone was made");
	if (made == 1)
		return gw_error_wrap(err, "%s was made, no further one", first);
	return gw_error_wrap(err, "%s to %s were made, no further one", first, s->configs[made - 1]->name);
}

int gw_clone(struct gw_agent *a, const Godwit__CloneRequest *req, gw_clone_fn *fn, void *arg, struct gw_guest *ret[GW_CLONES_MAX],
	     unsigned *made, struct gw_error *err)
{
	gw_autofree struct clone *s = calloc(1, sizeof(*s));
	Godwit__CloneProgress p = GODWIT__CLONE_PROGRESS__INIT;
	int r;

	*made = 0;
	if (!s)
		return gw_error_set(err, ENOMEM, "out of memory");
	if (req->count < 1 || req->count > GW_CLONES_MAX)
		// cppcheck-suppress memleak ; s is freed on the way out
		return gw_error_set(err, ERANGE, "%u clones: 1 to %d are made at a time", req->count, GW_CLONES_MAX);
	s->req = req;
	r = gw_restore_open(&s->from, a, req->url, req->passphrase, &req->fingerprint, req->snapshot, req->generation, err) ?: prepare(s, err);
	p.count = req->count;
	for (; r == 0 && *made < req->count; *made += r == 0) {
		p.made = *made;
		p.name = s->configs[*made]->name;
		r = a->stopping ? gw_error_set(err, EHOSTUNREACH, "the agent ends") : fn(arg, &p, err);
		r = r ?: make(s, *made + 1, &ret[*made], err);
		if (r < 0)
			tell_made(s, *made, err);
	}
	for (unsigned i = 0; i < req->count; i++)
		gw_vmconfig_free(s->configs[i]);
	gw_restore_release(&s->from);
	return r;
}

int gw_clone_elsewhere(struct gw_agent *a, const Godwit__CloneRequest *req, gw_call_event_fn *fn, void *arg, Godwit__AgentReply **ret,
		       struct gw_error *err)
{
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	Godwit__AgentRequest ask = GODWIT__AGENT_REQUEST__INIT;
	Godwit__CloneRequest there = *req;
	int r = gw_peer_connect(a, req->host, gw_now_ns() + CONNECT_TIMEOUT, &c, NULL, err);

	there.host = (char *)"";
	ask.op_case = GODWIT__AGENT_REQUEST__OP_CLONE;
	ask.clone = &there;
	r = r ?: gw_call(c, &ask, fn, arg, gw_now_ns() + (1 + GW_MIN(req->count, (uint32_t)GW_CLONES_MAX)) * RELAY_TIMEOUT, ret, err);
	r = r ?: gw_reply_check(*ret, err);
	return r < 0 ? gw_error_wrap(err, "host %s", req->host) : 0;
}
