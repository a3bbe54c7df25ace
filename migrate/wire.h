// SPDX-License-Identifier: Apache-2.0
/*
 * One connection of a move below encryption: a stream socket with large writes, deadlines, and a way out of every wait: `wake_fd`, an
 * eventfd shared by all connections of a move, which becomes readable when the move has been given up.
 */
#ifndef GW_MIGRATE_WIRE_H
#define GW_MIGRATE_WIRE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Batched until this much is there: small writes halve the speed (DESIGN.md, measured limits). */
#define GW_WIRE_BATCH (512u << 10)

struct gw_wire {
	int fd;                 /* owned */
	int wake_fd;            /* borrowed; -1 for none */
	bool ignore_wake;       /* to say good-bye after it was raised */
	uint8_t *out;           /* GW_WIRE_BATCH bytes, not yet sent: the first out_len */
	size_t out_len;
	uint64_t stall_ns;      /* a write that moves nothing for so long fails */
	uint64_t read_deadline; /* monotonic; GW_NO_DEADLINE for none */
	_Atomic(uint64_t) sent; /* bytes; read by other threads for progress */
	_Atomic(uint64_t) received;
	bool torn;              /* a write ended half-way: nothing can follow it */
	int error;              /* first failure, negative errno; sticks */
};

/* Takes fd, in failure too. 0 or -ENOMEM. */
int gw_wire_init(struct gw_wire *w, int fd, int wake_fd);
void gw_wire_release(struct gw_wire *w);

/* All return 0 or negative errno: -ECANCELED (woken), -ETIMEDOUT, -EPIPE (the other side is gone), ... */
int gw_wire_put(struct gw_wire *w, const void *data, size_t len);    /* sends when a batch is full */
int gw_wire_direct(struct gw_wire *w, const void *data, size_t len); /* sends the batch and this, without copying it */
int gw_wire_flush(struct gw_wire *w);
/* At least 1 and at most `len` bytes: their number. -EPIPE at the end of the stream. */
ssize_t gw_wire_get(struct gw_wire *w, void *data, size_t len);
/* Waits without reading; a failure does not stick. */
int gw_wire_wait_readable(struct gw_wire *w, uint64_t deadline_ns);

#endif
