// SPDX-License-Identifier: Apache-2.0
/* The asking side of a VMM's control socket (proto/vmm.proto). The VMM is not trusted: its guest may have taken it over. */
#ifndef GW_AGENT_VMMCTL_H
#define GW_AGENT_VMMCTL_H

#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"
#include "lib/io.h"
#include "proto/vmm.pb-c.h"

#define GW_FRAME_VMM_REQUEST 1
#define GW_FRAME_VMM_REPLY 2
#define GW_FRAME_VMM_EVENT 3
/* Longest body that the agent takes from a VMM. */
#define GW_VMM_FRAME_MAX (1u << 20)
/* How long a VMM has for its answer, in ns. */
#define GW_VMM_TIMEOUT (10ull * 1000000000)

/* Receives one frame into `body`; *fd (may be NULL) gets a descriptor that came along, or -1. */
int gw_vmmctl_recv(int sock, uint16_t *type, struct gw_buf *body, int *fd, uint64_t deadline_ns);

/*
 * One request on a connection of its own to the socket at `path`: sends `fds` along, waits for the reply, fails when it
 * says so. `reply` and `fd` may be NULL; *reply is owned (godwit__vmm_reply__free_unpacked).
 */
int gw_vmmctl_ask(const char *path, const Godwit__VmmRequest *req, const int *fds, unsigned nfds, Godwit__VmmReply **reply,
		  int *fd, struct gw_error *err);
/* A request without parameters. */
int gw_vmmctl_simple(const char *path, Godwit__VmmRequest__OpCase op, Godwit__VmmReply **reply, struct gw_error *err);

#endif
