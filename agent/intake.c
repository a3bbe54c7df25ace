// SPDX-License-Identifier: Apache-2.0
/* What is looked at before a host takes a VM in; see intake.h. */
#include "agent/intake.h"

#include <errno.h>
#include <string.h>

#include "agent/disks.h"
#include "agent/vmmctl.h"
#include "lib/clock.h"
#include "lib/util.h"

#define SPAWN_TIMEOUT (60 * GW_NS_PER_SEC)

int gw_intake_check_disks(struct gw_agent *a, const Godwit__PeerPrepare *req, struct gw_error *err)
{
	const Godwit__VmConfig *c = req->config;

	for (size_t i = 0; i < c->n_disks; i++) {
		const Godwit__DiskIdentity *theirs = NULL;
		int r;

		for (size_t j = 0; j < req->n_disks && !theirs; j++) {
			if (!strcmp(req->disks[j]->name, c->disks[i]->name))
				theirs = req->disks[j];
		}
		if (!theirs)
			return gw_error_set(err, EPROTO, "the source does not say which disk [disk %s] is", c->disks[i]->name);
		r = gw_disk_compare(a, c->disks[i], theirs, err);
		if (r < 0)
			return r;
	}
	return 0;
}

bool gw_intake_has_balloon(const Godwit__VmmFeatures *f)
{
	static const char kind[] = "virtio-balloon ";

	return f->devices.len && memmem(f->devices.data, f->devices.len, kind, sizeof(kind) - 1);
}

int gw_intake_wait_vmm(struct gw_guest *g, struct gw_error *err)
{
	uint64_t deadline = gw_now_ns() + SPAWN_TIMEOUT;
	gw_autofree char *last = NULL;
	int r = 0;

	pthread_mutex_lock(&g->lock);
	while (r == 0 && g->watched && !g->gone && !g->status)
		r = gw_guest_wait_locked(g, deadline);
	if (g->gone || (!g->status && !g->watched))
		r = gw_error_set(err, EIO, "the VMM did not start: %s", g->record->reason);
	else if (r < 0)
		gw_error_errno(err, r, "the VMM did not start");
	else if (g->status->state != GODWIT__VMM_RUN_STATE__VMM_INCOMING)
		r = gw_error_set(err, EPROTO, "the VMM does not wait for a VM");
	pthread_mutex_unlock(&g->lock);
	return r;
}

int gw_intake_check_features(struct gw_guest *g, const Godwit__VmmFeatures *theirs, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_control(g);
	Godwit__VmmReply *reply = NULL;
	const Godwit__VmmFeatures *ours;
	int r = path ? gw_vmmctl_simple(path, GODWIT__VMM_REQUEST__OP_FEATURES, &reply, err) :
		       gw_error_set(err, ENOMEM, "out of memory");

	if (r < 0)
		return r;
	ours = reply->features;
	/* The VMMs compare the rest, each bit of the CPU's features with it, before the first page. */
	if (!ours)
		r = gw_error_set(err, EPROTO, "the VMM does not tell its features");
	else if (ours->devices.len != theirs->devices.len ||
		 (ours->devices.len && memcmp(ours->devices.data, theirs->devices.data, ours->devices.len) != 0))
		r = gw_error_set(err, EXDEV, "this host's VMM makes other devices for this VM than the source's");
	else if (theirs->state_version > ours->state_version)
		r = gw_error_set(err, EXDEV, "the source saves device state of version %u, this host takes up to %u",
				 theirs->state_version, ours->state_version);
	else if (theirs->stream_version > ours->stream_version)
		r = gw_error_set(err, EXDEV, "the source's move stream has version %u, this host takes up to %u",
				 theirs->stream_version, ours->stream_version);
	godwit__vmm_reply__free_unpacked(reply, NULL);
	return r;
}
