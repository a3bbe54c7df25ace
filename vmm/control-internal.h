// SPDX-License-Identifier: Apache-2.0
/* What the socket side (control.c) and the meaning of requests (control-requests.c) share. */
#ifndef GW_VMM_CONTROL_INTERNAL_H
#define GW_VMM_CONTROL_INTERNAL_H

#include <stdbool.h>

#include "ksm/sharer.h"
#include "lib/io.h"
#include "proto/vmm.pb-c.h"
#include "vmm/machine.h"

enum { GW_CONTROL_REQUEST = 1, GW_CONTROL_REPLY = 2, GW_CONTROL_EVENT = 3 };

/* A request and what its handler finds or leaves. */
struct gw_control_call {
	const Godwit__VmmRequest *req;
	int *fds;         /* came along; the handler takes those it sets to -1 */
	unsigned nfds;
	int reply_fd;     /* to go with the reply, owned; -1: none */
	bool subscribe;   /* the client wants events from now on */
	bool quit;        /* end the VM once the reply is on its way */
	Godwit__VmmReply reply;
	/* What the reply points to. */
	struct gw_error err;
	struct gw_machine_status status;
	Godwit__Digest digest;
	uint8_t digest_bytes[16];
	Godwit__VmmFeatures features;
	Godwit__BalloonStatus balloon;
	Godwit__GuestMemory memory;
	Godwit__ShareStatus share;
	struct gw_sharer_stats sharer;
	struct gw_buf cpuid;
	struct gw_buf devices;
};

/* Fills call->reply. */
void gw_control_handle(struct gw_machine *m, struct gw_control_call *call);
void gw_control_call_release(struct gw_control_call *call);

#endif
