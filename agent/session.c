// SPDX-License-Identifier: Apache-2.0
/* The steps of a move that comes, driven by the source's connection; see arrive.h. */
#include <errno.h>
#include <string.h>

#include "agent/arrive.h"
#include "agent/bootfile.h"
#include "agent/dataport.h"
#include "agent/failpoints.h"
#include "agent/intake.h"
#include "agent/net.h"
#include "agent/run.h"
#include "agent/vmconfig.h"
#include "agent/vmmctl.h"
#include "agent/watch.h"
#include "lib/clock.h"
#include "lib/failpoint.h"
#include "lib/util.h"
#include "migrate/stream.h"
#include "migrate/tls.h"

#define SPAWN_TIMEOUT (60 * GW_NS_PER_SEC)
/* Far from wrapping, whatever a peer says. */
#define EPOCH_MAX (1ull << 62)

enum step { STEP_PREPARED, STEP_SPAWNED };

struct gw_session {
	struct gw_agent *agent;
	struct gw_guest *g; /* a reference */
	uint8_t id[GW_ID_LEN];
	enum step step;
	Godwit__PeerPrepare *req;        /* a copy */
	struct gw_bootfile_in *boot[2];  /* kernel, initrd; NULL when it is here */
	struct gw_arrival *channels;
	uint64_t channels_deadline_ns;
};

/* Empty: the source has the file no more, and this host takes what it finds at the path. */
static bool digest_ok(const Godwit__BootFile *file)
{
	return file->sha256.len == GW_SHA256_LEN || file->sha256.len == 0;
}

static int check_request(const Godwit__PeerPrepare *req, struct gw_error *err)
{
	int r;

	if (req->move_id.len != GW_ID_LEN || req->secret.len != GW_MOVE_SECRET_LEN || !req->config || !req->features ||
	    !req->kernel || !req->initrd || !digest_ok(req->kernel) || !digest_ok(req->initrd) || req->channels < 1 ||
	    req->channels > GW_STREAM_MAX_CHANNELS || req->epoch < 2 || req->epoch > EPOCH_MAX)
		return gw_error_set(err, EPROTO, "the request to take a VM is malformed");
	r = gw_vmconfig_check(req->config, err);
	if (r < 0)
		return r;
#ifndef GW_BENCH_SWITCHES
	if (req->clear)
		return gw_error_set(err, EPERM, "moves in the clear are refused");
#endif
	return 0;
}

/* Everything that can be known before anything is made. */
static int check_host(struct gw_agent *a, const Godwit__PeerPrepare *req, struct gw_error *err)
{
	Godwit__MoveRecord *before = NULL;
	int r = gw_outcome_get(a, req->move_id.data, &before, err);

	if (before) {
		godwit__move_record__free_unpacked(before, NULL);
		return gw_error_set(err, EEXIST, "this move has ended already");
	}
	if (r == 0 && access(a->conf->vmm, X_OK) < 0)
		r = gw_error_errno(err, errno, "the VMM %s", a->conf->vmm);
	r = r ?: gw_net_check(req->config, err);
	r = r ?: gw_intake_check_disks(a, req, err);
	return r ?: gw_memory_admit(a, NULL, req->config->memory, err);
}

static int new_record(const char *peer, const Godwit__PeerPrepare *req, Godwit__VmRecord **ret, struct gw_error *err)
{
	Godwit__VmRecord *rec = malloc(sizeof(*rec));

	if (!rec)
		return gw_error_set(err, ENOMEM, "out of memory");
	godwit__vm_record__init(rec);
	rec->version = 1;
	rec->epoch = req->epoch;
	rec->state = GODWIT__VM_STATE__VM_INCOMING;
	rec->paused = req->paused;
	rec->config = gw_vmconfig_copy(req->config);
	if (!rec->config || gw_pb_set_bytes(&rec->move_id, req->move_id.data, req->move_id.len) < 0 ||
	    gw_pb_set_string(&rec->peer, peer) < 0) {
		godwit__vm_record__free_unpacked(rec, NULL);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	rec->balloon_before = req->balloon_before;
	rec->balloon_asked = req->balloon_asked;
	/* Older VMMs have none, and do not say so. Such a VM stays what it is. */
	rec->config->no_balloon |= !gw_intake_has_balloon(req->features);
	*ret = rec;
	return 0;
}

/* Finds the file here or gets ready to take it; notes its path in the record when it is not the configured one. */
static int prepare_boot(struct gw_session *s, const Godwit__BootFile *file, const char *path, int which, struct gw_error *err)
{
	char **field = which ? &s->g->record->initrd_file : &s->g->record->kernel_file;
	gw_autofree char *found = NULL;
	int r;

	if (file->sha256.len == 0)
		return 0;
	r = gw_bootfile_locate(s->agent, path, file->sha256.data, &found, err);

	if (r < 0)
		return r;
	if (!found)
		return gw_bootfile_begin(s->agent, file->sha256.data, file->size, &s->boot[which], err);
	if (!strcmp(found, path))
		return 0;
	pthread_mutex_lock(&s->g->lock);
	r = gw_pb_set_string(field, found);
	pthread_mutex_unlock(&s->g->lock);
	return r < 0 ? gw_error_set(err, r, "out of memory") : 0;
}

void gw_session_end(struct gw_session *s)
{
	struct gw_guest *g;
	bool remove = false;

	if (!s)
		return;
	gw_bootfile_free(s->boot[0]);
	gw_bootfile_free(s->boot[1]);
	gw_arrival_free(s->channels);
	g = s->g;
	if (g) {
		pthread_mutex_lock(&g->lock);
		g->session = false;
		if (!g->attached && g->record->state == GODWIT__VM_STATE__VM_INCOMING) {
			if (g->watched)
				gw_watch_kill_locked(g, gw_now_ns() + 20 * GW_NS_PER_SEC);
			else
				gw_arrive_ended_locked(g, "never got the channels", false);
		}
		remove = !g->gone && !g->watched && g->record->state == GODWIT__VM_STATE__VM_STATE_NONE;
		pthread_cond_broadcast(&g->changed);
		pthread_mutex_unlock(&g->lock);
		if (remove) {
			gw_net_teardown(g);
			gw_guest_remove(g);
		}
		gw_guest_unref(g);
	}
	if (s->req) {
		explicit_bzero(s->req->secret.data, s->req->secret.len);
		godwit__peer_prepare__free_unpacked(s->req, NULL);
	}
	free(s);
}

static int fail(struct gw_session **s, int r)
{
	gw_session_end(*s);
	*s = NULL;
	return r;
}

int gw_arrive_prepare(struct gw_agent *a, const char *peer, const Godwit__PeerPrepare *req, struct gw_session **ret,
		      Godwit__PeerPrepared *reply, struct gw_error *err)
{
	Godwit__VmRecord *rec = NULL;
	struct gw_session *s;
	int r;

	if (*ret)
		return gw_error_set(err, EPROTO, "a move is under way on this connection already");
	r = check_request(req, err) ?: check_host(a, req, err);
	if (r == 0 && gw_failpoint(GW_FP_DST_PREPARE) < 0)
		r = gw_error_set(err, EIO, "failpoint");
	r = r ?: new_record(peer, req, &rec, err);
	if (r < 0)
		return r;
	s = calloc(1, sizeof(*s));
	if (!s) {
		godwit__vm_record__free_unpacked(rec, NULL);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	s->agent = a;
	memcpy(s->id, req->move_id.data, GW_ID_LEN);
	s->req = (Godwit__PeerPrepare *)gw_pb_copy(&req->base);
	r = gw_guest_add(a, rec, "move", true, &s->g, err);
	if (r == 0) {
		pthread_mutex_lock(&s->g->lock);
		s->g->session = true;
		pthread_mutex_unlock(&s->g->lock);
		gw_events_emit(a->events, "move-prepared", s->g->name, "from %s", peer);
	}
	if (r == 0 && !s->req)
		r = gw_error_set(err, ENOMEM, "out of memory");
	r = r ?: prepare_boot(s, req->kernel, req->config->kernel, 0, err);
	if (r == 0 && *req->config->initrd)
		r = prepare_boot(s, req->initrd, req->config->initrd, 1, err);
	if (r == 0 && gw_failpoint(GW_FP_DST_PREPARED) < 0)
		r = gw_error_set(err, EIO, "failpoint");
	if (r < 0)
		return fail(&s, r);
	reply->need_kernel = s->boot[0] != NULL;
	reply->need_initrd = s->boot[1] != NULL;
	*ret = s;
	return 0;
}

static int check_session(struct gw_session *s, const ProtobufCBinaryData *id, enum step step, struct gw_error *err)
{
	if (!s || s->step != step || id->len != GW_ID_LEN || memcmp(id->data, s->id, GW_ID_LEN) != 0)
		return gw_error_set(err, EPROTO, "a step of a move comes out of turn");
	return 0;
}

int gw_arrive_boot(struct gw_session **ps, const Godwit__PeerBoot *req, struct gw_error *err)
{
	struct gw_session *s = *ps;
	int which = req->initrd ? 1 : 0;
	char *path = NULL;
	int r = check_session(s, &req->move_id, STEP_PREPARED, err);

	if (r == 0 && !s->boot[which])
		r = gw_error_set(err, EPROTO, "a boot file comes that was not asked for");
	r = r ?: gw_bootfile_piece(s->boot[which], req->offset, req->data.data, req->data.len, err);
	if (r == 0 && req->last) {
		r = gw_bootfile_finish(s->boot[which], &path, err);
		gw_bootfile_free(s->boot[which]);
		s->boot[which] = NULL;
	}
	if (r == 0 && path) {
		char **field = which ? &s->g->record->initrd_file : &s->g->record->kernel_file;

		pthread_mutex_lock(&s->g->lock);
		r = gw_pb_set_string(field, path);
		pthread_mutex_unlock(&s->g->lock);
		if (r < 0)
			gw_error_set(err, r, "out of memory");
	}
	free(path);
	return r < 0 ? fail(ps, r) : 0;
}

int gw_arrive_spawn(struct gw_session **ps, const Godwit__PeerMove *req, Godwit__PeerReady *reply, struct gw_error *err)
{
	struct gw_session *s = *ps;
	int r = check_session(s, &req->move_id, STEP_PREPARED, err);

	if (r == 0 && (s->boot[0] || s->boot[1]))
		r = gw_error_set(err, EPROTO, "a boot file has not come");
	r = r ?: gw_arrival_expect(s->agent, s->id, s->req->channels + 1, &s->channels, err);
	if (r == 0) {
		pthread_mutex_lock(&s->g->lock);
		s->g->attach_deadline_ns = gw_now_ns() + SPAWN_TIMEOUT + GW_ATTACH_TIMEOUT;
		pthread_mutex_unlock(&s->g->lock);
		r = gw_run_spawn(s->g, true, err);
	}
	r = r ?: gw_intake_wait_vmm(s->g, err);
	r = r ?: gw_intake_check_features(s->g, s->req->features, err);
	if (r == 0 && gw_failpoint(GW_FP_DST_SPAWNED) < 0)
		r = gw_error_set(err, EIO, "failpoint");
	if (r < 0)
		return fail(ps, r);
	s->channels_deadline_ns = gw_now_ns() + GW_CHANNELS_TIMEOUT;
	s->step = STEP_SPAWNED;
	reply->data_port = s->agent->data_port;
	if (s->agent->conf->data_address)
		reply->data_address = s->agent->conf->data_address;
	return 0;
}

static int hand_over(struct gw_session *s, const int *fds, unsigned nfds, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_control(s->g);
	Godwit__VmmRequest req = GODWIT__VMM_REQUEST__INIT;
	Godwit__MoveIn in = GODWIT__MOVE_IN__INIT;

	if (!path)
		return gw_error_set(err, ENOMEM, "out of memory");
	in.move_id = s->req->move_id;
	in.secret = s->req->secret;
	in.epoch = s->req->epoch;
	in.channels = s->req->channels;
	in.clear = s->req->clear;
	in.paused = s->req->paused;
	in.peer = s->g->record->peer;
	req.op_case = GODWIT__VMM_REQUEST__OP_MOVE_IN;
	req.move_in = &in;
	return gw_vmmctl_ask(path, &req, fds, nfds, NULL, NULL, err);
}

int gw_arrive_attach(struct gw_session **ps, const Godwit__PeerMove *req, struct gw_error *err)
{
	struct gw_session *s = *ps;
	int fds[GW_MAX_MOVE_CHANNELS];
	unsigned n = 0;
	int r = check_session(s, &req->move_id, STEP_SPAWNED, err);

	if (r == 0)
		r = gw_arrival_wait(s->channels, s->channels_deadline_ns, fds, err);
	if (r < 0)
		return fail(ps, r);
	n = s->req->channels + 1;
	if (gw_failpoint(GW_FP_DST_CONNECTED) < 0)
		r = gw_error_set(err, EIO, "failpoint");
	r = r ?: hand_over(s, fds, n, err);
	for (unsigned i = 0; i < n; i++)
		close(fds[i]);
	if (r == 0 && gw_failpoint(GW_FP_DST_HANDED) < 0)
		r = gw_error_set(err, EIO, "failpoint");
	if (r < 0)
		return fail(ps, r);
	pthread_mutex_lock(&s->g->lock);
	s->g->attached = true;
	pthread_mutex_unlock(&s->g->lock);
	gw_session_end(s);
	*ps = NULL;
	return 0;
}
