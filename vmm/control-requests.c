// SPDX-License-Identifier: Apache-2.0
/* What the control socket's requests do. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "lib/util.h"
#include "vmm/control-internal.h"
#include "vmm/move.h"
#include "vmm/tty.h"
#include "vmm/vm.h"

#define STATE_VERSION 1
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
	call->features.state_version = STATE_VERSION;
	call->features.stream_version = STREAM_VERSION;
	call->features.tsc_khz = khz;
	call->reply.features = &call->features;
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
