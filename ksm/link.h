// SPDX-License-Identifier: Apache-2.0
/* The client's end of the share protocol (proto/share.h): packets out, packets in, each checked for type and length before it is handed on. */
#ifndef GW_KSM_LINK_H
#define GW_KSM_LINK_H

#include <stdint.h>

#include "lib/error.h"
#include "proto/share.h"

struct gw_link;

/* One message of the daemon. `body` points to head.count entries of the type's structure and is valid until the next receive. */
struct gw_link_message {
	struct gw_share_head head;
	const void *body;
	int fd; /* CHUNK only: owned by the receiver */
};

/* Takes fd, a SOCK_SEQPACKET socket. -ENOMEM; fd is closed on failure. */
int gw_link_new(int fd, struct gw_link **ret);
void gw_link_free(struct gw_link *l);
int gw_link_fd(const struct gw_link *l); /* for poll() */

/*
 * Sends one packet of `count` entries, `fd` along with it unless it is -1. Waits while the socket is full, at most 10 s: the daemon always reads
 * on. 0, -EPIPE when it is gone, -ETIMEDOUT.
 */
int gw_link_send(struct gw_link *l, enum gw_share_type type, uint32_t cookie, const void *entries, unsigned count, int fd);
/* The same without waiting: -EAGAIN when the socket is full. Any thread. */
int gw_link_post(struct gw_link *l, enum gw_share_type type, uint32_t cookie, const void *entries, unsigned count, int fd);
/* PAGES straight out of guest memory: `count` pages with their addresses. */
int gw_link_send_pages(struct gw_link *l, uint32_t cookie, const uint64_t *pages, const void *const *bytes, unsigned count);
/*
 * The next packet: 1 when there is one, 0 when there is none within timeout_ms (0: now, -1: for ever), -EPIPE when the daemon is gone, -EPROTO
 * when it said what no daemon says.
 */
int gw_link_receive(struct gw_link *l, int timeout_ms, struct gw_link_message *ret, struct gw_error *err);

#endif
