// SPDX-License-Identifier: Apache-2.0
/*
 * godwit-ksmd's sockets: the agent's control connections (proto/share.proto), from which clients' sockets come, and the clients themselves
 * (proto/share.h). One loop, one thread; a packet a client and round, so that none keeps the others waiting for long; no call blocks.
 * What a client does wrong ends its session and nothing else.
 */
#ifndef GW_KSM_SERVER_H
#define GW_KSM_SERVER_H

#include <stdbool.h>
#include <systemd/sd-event.h>

#include "lib/error.h"

struct gw_share_server;

/* `loop` is borrowed. */
int gw_share_server_new(sd_event *loop, struct gw_share_server **ret, struct gw_error *err);
/* Ends all sessions. */
void gw_share_server_free(struct gw_share_server *s);

/* A connected UNIX stream socket (taken). When it ends and `last` is set, the loop is told to exit. */
int gw_share_server_control(struct gw_share_server *s, int fd, bool last, struct gw_error *err);
/* Listens for control connections at `path`. */
int gw_share_server_listen(struct gw_share_server *s, const char *path, struct gw_error *err);

#endif
