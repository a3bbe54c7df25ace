// SPDX-License-Identifier: Apache-2.0
/* What the control socket's requests do. */
#include <errno.h>
#include <linux/virtio_balloon.h>
#include <string.h>
#include <sys/socket.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "vmm/balloon.h"
#include "vmm/control-internal.h"
#include "vmm/move.h"
#include "vmm/state.h"
#include "vmm/tty.h"
#include "vmm/vm.h"

#define STREAM_VERSION 1

static int do_digest(struct gw_machine *m, struct gw_control_call *call)
{
	int r = gw_machine_digest(m, call->digest_bytes, &call->err);

	if (r < 0)
		return r;
	godwit__digest__init(&call->digest);
	call->digest.ram.data = call->digest_bytes;
	call->digest.ram.len = sizeof(call->digest_bytes);
	call->reply.digest = &call->digest;
	return 0;
}

static int do_features(struct gw_machine *m, struct gw_control_call *call)
{
	uint32_t khz;
	int r = gw_vm_features(gw_machine_vm(m), &call->cpuid, &call->devices, &khz, &call->err);

	if (r < 0)
		return r;
	godwit__vmm_features__init(&call->features);
	call->features.cpuid.data = call->cpuid.data;
	call->features.cpuid.len = call->cpuid.len;
	call->features.devices.data = call->devices.data;
	call->features.devices.len = call->devices.len;
	call->features.state_version = GW_STATE_VERSION;
	call->features.stream_version = STREAM_VERSION;
	call->features.tsc_khz = khz;
	call->reply.features = &call->features;
	return 0;
}

static void fill_memory(Godwit__GuestMemory *m, const struct gw_balloon_info *info)
{
	godwit__guest_memory__init(m);
	m->age_ms = info->stats_age_ms;
	m->total = info->stats[VIRTIO_BALLOON_S_MEMTOT];
	m->free = info->stats[VIRTIO_BALLOON_S_MEMFREE];
	m->available = info->stats[VIRTIO_BALLOON_S_AVAIL];
	m->caches = info->stats[VIRTIO_BALLOON_S_CACHES];
	m->swapped_in = info->stats[VIRTIO_BALLOON_S_SWAP_IN];
	m->swapped_out = info->stats[VIRTIO_BALLOON_S_SWAP_OUT];
	m->major_faults = info->stats[VIRTIO_BALLOON_S_MAJFLT];
	m->minor_faults = info->stats[VIRTIO_BALLOON_S_MINFLT];
	m->hugetlb_allocations = info->stats[VIRTIO_BALLOON_S_HTLB_PGALLOC];
	m->hugetlb_failures = info->stats[VIRTIO_BALLOON_S_HTLB_PGFAIL];
}

static int do_balloon(struct gw_machine *m, struct gw_control_call *call)
{
	struct gw_balloon_info info;
	int r = gw_machine_balloon(m, call->req->balloon->target, &info, &call->err);

	if (r < 0)
		return r;
	godwit__balloon_status__init(&call->balloon);
	call->balloon.target = info.target;
	call->balloon.actual = info.actual;
	call->balloon.reported = info.reported;
	call->balloon.driver = info.driver;
	if (info.has_stats) {
		fill_memory(&call->memory, &info);
		call->balloon.memory = &call->memory;
	}
	call->reply.balloon = &call->balloon;
	return 0;
}

static int do_share(struct gw_machine *m, struct gw_control_call *call)
{
	const Godwit__Share *req = call->req->share;
	struct gw_sharer_config config = {
		.interval_ns = req->interval_ms * GW_NS_PER_MS,
		.stall_ns = req->stall_us * 1000,
		.mappings = req->mappings,
		.image_only = req->image_only,
	};
	int fd;

	if (call->nfds != 1)
		return gw_error_set(&call->err, EINVAL, "sharing needs one descriptor, a socket to the page-store daemon");
	if (req->interval_ms > 24 * 3600 * 1000ull || req->stall_us > 1000000)
		return gw_error_set(&call->err, EINVAL, "passes are at most a day apart, and writers wait at most a second");
	config.cpu_percent = GW_MIN(req->cpu_percent, 100u);
	/* While it moves a VM shares nothing new; it is offered again afterwards. But one that waits may share what it will load. */
	config.loading = gw_vm_move_state(gw_machine_move(m)) == GW_VM_MOVE_WAITING && !req->image_only;
	if (gw_vm_move_state(gw_machine_move(m)) != GW_VM_MOVE_NONE && !config.loading)
		return gw_error_set(&call->err, EBUSY, "a move is under way");
	if (gw_vm_move_loading(gw_machine_move(m)))
		return gw_error_set(&call->err, EBUSY, "the VM's memory is still on its way from a repository");
	fd = call->fds[0];
	call->fds[0] = -1;
	return gw_vm_share(gw_machine_vm(m), &config, fd, &call->err);
}

static int do_share_status(struct gw_machine *m, struct gw_control_call *call)
{
	const struct gw_sharer_stats *s = &call->sharer;

	godwit__share_status__init(&call->share);
	call->reply.share = &call->share;
	if (!gw_vm_share_stats(gw_machine_vm(m), &call->sharer)) {
		call->share.reason = "sharing was not begun";
		return 0;
	}
	call->share.reason = call->sharer.reason;
	call->share.limit = call->sharer.limit;
	call->share.attached = s->attached;
	call->share.tracks = s->tracks;
	call->share.image_only = s->image_only;
	call->share.pages = s->pages;
	call->share.zero_pages = s->zero_pages;
	call->share.shared_pages = s->shared_pages;
	call->share.broken_pages = s->broken_pages;
	call->share.lineage_pages = s->lineage_pages;
	call->share.hashed_pages = s->hashed_pages;
	call->share.merged_pages = s->merged_pages;
	call->share.again_pages = s->again_pages;
	call->share.differing_pages = s->differing_pages;
	call->share.busy_pages = s->busy_pages;
	call->share.over_budget_pages = s->over_budget_pages;
	call->share.failed_pages = s->failed_pages;
	call->share.chunks = s->chunks;
	call->share.mappings = s->mappings;
	call->share.mappings_budget = s->mappings_budget;
	call->share.passes = s->passes;
	call->share.pass_age_ms = s->pass_age_ns / GW_NS_PER_MS;
	call->share.pass_ms = s->pass_ns / GW_NS_PER_MS;
	call->share.cpu_ms = s->cpu_ns / GW_NS_PER_MS;
	call->share.metadata_bytes = s->metadata_bytes;
	call->share.windows = s->windows;
	call->share.stall_p50_us = s->stall_p50_ns / 1000;
	call->share.stall_p99_us = s->stall_p99_ns / 1000;
	call->share.stall_max_us = s->stall_max_ns / 1000;
	return 0;
}

static int do_console(struct gw_machine *m, struct gw_control_call *call)
{
	struct gw_tty_client client = { .owned = true, .socket = true, .replay = true };
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return gw_error_errno(&call->err, errno, "cannot make a console");
	client.in = client.out = pair[0];
	r = gw_tty_attach(gw_vm_console(gw_machine_vm(m)), &client, &call->err);
	if (r < 0) {
		close(pair[1]);
		return r;
	}
	call->reply_fd = pair[1];
	return 0;
}

/* The functions of a move take all descriptors, in every case. */
static void give_fds(struct gw_control_call *call)
{
	for (unsigned i = 0; i < call->nfds; i++)
		call->fds[i] = -1;
}

static int do_move(struct gw_machine *m, struct gw_control_call *call, bool out)
{
	int fds[GW_MAX_FDS];

	memcpy(fds, call->fds, call->nfds * sizeof(int));
	give_fds(call);
	if (out)
		return gw_vm_move_out(gw_machine_move(m), call->req->move_out, fds, call->nfds, &call->err);
	return gw_vm_move_in(gw_machine_move(m), call->req->move_in, fds, call->nfds, &call->err);
}

static int dispatch(struct gw_machine *m, struct gw_control_call *call)
{
	struct gw_error *err = &call->err;

	switch (call->req->op_case) {
	case GODWIT__VMM_REQUEST__OP_STATUS:
		gw_machine_status(m, true, &call->status);
		call->reply.status = &call->status.msg;
		return 0;
	case GODWIT__VMM_REQUEST__OP_PAUSE:
		return gw_machine_pause(m, err);
	case GODWIT__VMM_REQUEST__OP_RESUME:
		return gw_machine_resume(m, err);
	case GODWIT__VMM_REQUEST__OP_POWER_BUTTON:
		return gw_machine_power_button(m, err);
	case GODWIT__VMM_REQUEST__OP_QUIT:
		call->quit = true;
		return 0;
	case GODWIT__VMM_REQUEST__OP_RESET:
		return gw_machine_reset(m, err);
	case GODWIT__VMM_REQUEST__OP_MOVE_OUT:
		return do_move(m, call, true);
	case GODWIT__VMM_REQUEST__OP_MOVE_IN:
		return do_move(m, call, false);
	case GODWIT__VMM_REQUEST__OP_SAVE:
		return gw_vm_move_save(gw_machine_move(m), call->req->save, err);
	case GODWIT__VMM_REQUEST__OP_LOAD:
		return gw_vm_move_load(gw_machine_move(m), call->req->load, err);
	case GODWIT__VMM_REQUEST__OP_CANCEL:
		return gw_vm_move_cancel(gw_machine_move(m), err);
	case GODWIT__VMM_REQUEST__OP_RESOLVE:
		return gw_vm_move_resolve(gw_machine_move(m), call->req->resolve->here, err);
	case GODWIT__VMM_REQUEST__OP_CONSOLE:
		return do_console(m, call);
	case GODWIT__VMM_REQUEST__OP_SUBSCRIBE:
		call->subscribe = true;
		return 0;
	case GODWIT__VMM_REQUEST__OP_DIGEST:
		return do_digest(m, call);
	case GODWIT__VMM_REQUEST__OP_FEATURES:
		return do_features(m, call);
	case GODWIT__VMM_REQUEST__OP_BALLOON:
		return do_balloon(m, call);
	case GODWIT__VMM_REQUEST__OP_SHARE:
		return do_share(m, call);
	case GODWIT__VMM_REQUEST__OP_SHARE_STATUS:
		return do_share_status(m, call);
	default:
		return gw_error_set(err, ENOSYS, "this VMM does not know the request");
	}
}

void gw_control_handle(struct gw_machine *m, struct gw_control_call *call)
{
	int r;

	godwit__vmm_reply__init(&call->reply);
	r = dispatch(m, call);
	if (r < 0) {
		call->reply.error = -r;
		call->reply.message = (char *)gw_error_text(&call->err);
	}
}

void gw_control_call_release(struct gw_control_call *call)
{
	for (unsigned i = 0; i < call->nfds; i++)
		gw_closep(&call->fds[i]);
	gw_closep(&call->reply_fd);
	gw_buf_release(&call->cpuid);
	gw_buf_release(&call->devices);
}
