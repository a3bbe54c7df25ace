// SPDX-License-Identifier: Apache-2.0
/* What the files of virtio-blk share. */
#ifndef GW_VMM_BLK_INTERNAL_H
#define GW_VMM_BLK_INTERNAL_H

#include "lib/buf.h"
#include "vmm/blk-backend.h"
#include "vmm/iothread.h"
#include "vmm/virtio.h"

#define GW_BLK_SECTOR 512
/* The most sectors of one discard or write-zeroes request: 2 GiB. */
#define GW_BLK_MAX_RANGE (1u << 22)

struct gw_blk {
	struct gw_virtio vd;
	struct gw_blk_backend *be;
	char *path;
	uint64_t size; /* bytes */
	bool readonly;
	bool refused;   /* somebody else writes the disk: fail all requests */
	bool unflushed; /* the flush at quiesce failed */
	/* Device thread. */
	uint64_t writes;        /* completed */
	uint64_t flushed;       /* of those, how many are durable */
	unsigned in_flight;
	struct gw_buf parked;   /* uint16_t heads of chains to submit again */
	struct gw_vq_chain chain;
};

/* Takes all available requests and submits them. */
void gw_blk_take_requests(struct gw_blk *blk);
void gw_blk_resubmit_parked(struct gw_blk *blk);

#endif
