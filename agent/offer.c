// SPDX-License-Identifier: Apache-2.0
/* The source's offer of a VM; see offer.h. */
#include "agent/offer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "agent/bootfile.h"
#include "agent/disks.h"
#include "agent/vmconfig.h"
#include "agent/vmmctl.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"
#include "migrate/tls.h"

static int describe_file(struct gw_guest *g, const char *path, const char *used, Godwit__BootFile **ret, char **ret_used,
			 struct gw_error *err)
{
	uint8_t digest[GW_SHA256_LEN];
	Godwit__BootFile file = GODWIT__BOOT_FILE__INIT;
	const char *have = *used ? used : path;

	file.path = (char *)path;
	if (*path) {
		/* The VM runs without the file; that it is gone must not hold it here. */
		if (gw_bootfile_digest(g->agent, have, digest, &file.size, err) == 0) {
			file.sha256.data = digest;
			file.sha256.len = sizeof(digest);
		} else {
			gw_events_emit(g->agent->events, "warning", g->name, "moves without its boot file: %s", gw_error_text(err));
		}
	}
	*ret = (Godwit__BootFile *)gw_pb_copy(&file.base);
	*ret_used = strdup(have);
	return *ret && *ret_used ? 0 : gw_error_set(err, ENOMEM, "out of memory");
}

static int describe_disks(struct gw_guest *g, Godwit__PeerPrepare *p, struct gw_error *err)
{
	const Godwit__VmConfig *c = p->config;

	p->disks = calloc(c->n_disks + 1, sizeof(Godwit__DiskIdentity *));
	if (!p->disks)
		return gw_error_set(err, ENOMEM, "out of memory");
	for (size_t i = 0; i < c->n_disks; i++) {
		int r = gw_disk_identify(g->agent, c->disks[i], true, &p->disks[i], err);

		if (r < 0)
			return r;
		p->n_disks = i + 1;
	}
	return 0;
}

static int describe_features(struct gw_guest *g, Godwit__PeerPrepare *p, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_control(g);
	Godwit__VmmReply *reply = NULL;
	int r = path ? gw_vmmctl_simple(path, GODWIT__VMM_REQUEST__OP_FEATURES, &reply, err) :
		       gw_error_set(err, ENOMEM, "out of memory");

	if (r < 0)
		return r;
	if (reply->features)
		p->features = (Godwit__VmmFeatures *)gw_pb_copy(&reply->features->base);
	godwit__vmm_reply__free_unpacked(reply, NULL);
	return p->features ? 0 : gw_error_set(err, EPROTO, "the VMM does not tell its features");
}

int gw_offer_build(struct gw_guest *g, const Godwit__MoveRequest *req, struct gw_offer *o, struct gw_error *err)
{
	gw_autofree char *kernel = NULL, *initrd = NULL;
	Godwit__PeerPrepare *p = malloc(sizeof(*p));
	bool paused;
	int r;

	memset(o, 0, sizeof(*o));
	if (!p)
		return gw_error_set(err, ENOMEM, "out of memory");
	godwit__peer_prepare__init(p);
	o->prepare = p;
	pthread_mutex_lock(&g->lock);
	p->config = gw_vmconfig_copy(g->record->config);
	kernel = strdup(g->record->kernel_file);
	initrd = strdup(g->record->initrd_file);
	p->balloon_before = g->record->balloon_before;
	p->balloon_asked = g->record->balloon_asked;
	paused = g->status && g->status->state == GODWIT__VMM_RUN_STATE__VMM_PAUSED;
	pthread_mutex_unlock(&g->lock);
	if (!p->config || !kernel || !initrd || gw_pb_set_string(&p->version, GW_AGENT_VERSION) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	p->channels = req->channels;
	p->clear = req->clear;
	p->paused = paused;
	r = describe_features(g, p, err);
	r = r ?: describe_file(g, p->config->kernel, kernel, &p->kernel, &o->kernel, err);
	r = r ?: describe_file(g, p->config->initrd, initrd, &p->initrd, &o->initrd, err);
	return r ?: describe_disks(g, p, err);
}

void gw_offer_release(struct gw_offer *o)
{
	if (o->prepare) {
		if (o->prepare->secret.data)
			explicit_bzero(o->prepare->secret.data, o->prepare->secret.len);
		godwit__peer_prepare__free_unpacked(o->prepare, NULL);
	}
	free(o->kernel);
	free(o->initrd);
	memset(o, 0, sizeof(*o));
}

/* All but the last piece go without an answer; a refusal of one shows as the answer to the last, or as a closed connection. */
static int send_file(struct gw_chan *c, const struct gw_offer *o, bool initrd, bool (*stop)(void *), void *arg,
		     uint64_t timeout_ns, struct gw_error *err)
{
	const char *path = initrd ? o->initrd : o->kernel;
	uint64_t size = initrd ? o->prepare->initrd->size : o->prepare->kernel->size;
	gw_autofd fd = open(path, O_RDONLY | O_CLOEXEC);
	gw_autofree uint8_t *buf = malloc(GW_BOOT_PIECE);
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__PeerBoot boot = GODWIT__PEER_BOOT__INIT;

	if (fd < 0 || !buf)
		return gw_error_errno(err, fd < 0 ? errno : ENOMEM, "%s", path);
	boot.move_id = o->prepare->move_id;
	boot.initrd = initrd;
	req.op_case = GODWIT__AGENT_REQUEST__OP_PEER_BOOT;
	req.peer_boot = &boot;
	while (!boot.last) {
		uint64_t deadline = gw_now_ns() + timeout_ns;
		ssize_t n = pread(fd, buf, GW_BOOT_PIECE, (off_t)boot.offset);
		int r;

		if (n <= 0)
			return gw_error_set(err, EIO, "cannot read %s, or it became shorter", path);
		if (stop(arg))
			return gw_error_set(err, ECANCELED, "cancelled");
		boot.data.data = buf;
		boot.data.len = (size_t)n;
		boot.last = boot.offset + (uint64_t)n >= size;
		r = boot.last ? gw_ask(c, &req, deadline, NULL, err) :
				gw_chan_send(c, GW_FRAME_AGENT_REQUEST, &req.base, deadline);
		if (r < 0)
			return boot.last ? r : gw_error_errno(err, r, "sending %s to %s", path, gw_chan_peer(c));
		boot.offset += (uint64_t)n;
	}
	return 0;
}

int gw_offer_make(struct gw_chan *c, const struct gw_offer *o, bool (*stop)(void *), void *arg, uint64_t timeout_ns,
		  struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	gw_autoreply *reply = NULL;
	int r;

	req.op_case = GODWIT__AGENT_REQUEST__OP_PEER_PREPARE;
	req.peer_prepare = o->prepare;
	r = gw_ask(c, &req, gw_now_ns() + timeout_ns, &reply, err);
	if (r < 0)
		return gw_error_wrap(err, "host %s refuses", gw_chan_peer(c));
	if (!reply->prepared)
		return gw_error_set(err, EPROTO, "host %s answers with something else", gw_chan_peer(c));
	if (reply->prepared->need_kernel)
		r = send_file(c, o, false, stop, arg, timeout_ns, err);
	if (r == 0 && reply->prepared->need_initrd)
		r = send_file(c, o, true, stop, arg, timeout_ns, err);
	return r;
}
