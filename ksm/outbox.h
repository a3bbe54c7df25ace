// SPDX-License-Identifier: Apache-2.0
/* Packets that wait for a client's socket. Bounded: a client that does not read loses its session, nobody else waits for it. */
#ifndef GW_KSM_OUTBOX_H
#define GW_KSM_OUTBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ksm/chunk.h"
#include "proto/share.h"

#define GW_OUTBOX_MAX (4u << 20)

struct gw_outbox_packet;

struct gw_outbox {
	struct gw_outbox_packet *first, **last;
	size_t bytes;
	uint32_t dones;  /* DONE packets in it */
	bool overflow;   /* something was lost: the session must end */
};

void gw_outbox_init(struct gw_outbox *o);
void gw_outbox_release(struct gw_outbox *o);
/* Queues one message of `count` entries of `size` bytes; with a chunk's descriptor when `chunk` is not NULL. Failure sets overflow. */
void gw_outbox_put(struct gw_outbox *o, enum gw_share_type type, uint32_t cookie, const void *entries, unsigned count, size_t size,
		   struct gw_chunk *chunk);
/* Sends what the socket takes. 0: empty now. -EAGAIN: more when it is writable. -EBUSY: try after a while. Else -errno: the session is over. */
int gw_outbox_flush(struct gw_outbox *o, int sock);

#endif
