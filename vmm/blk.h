// SPDX-License-Identifier: Apache-2.0
/* virtio-blk (virtio 1.2 §5.2) on any back end of blk-backend.h. */
#ifndef GW_VMM_BLK_H
#define GW_VMM_BLK_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "vmm/devhost.h"

struct gw_blk;
struct gw_disk_config;
struct gw_virtio;

/*
 * Opens the disk. Unless the VM is `incoming` it becomes its writer at once, so that a disk in use is an error here; an
 * incoming one does so at its first resume.
 */
int gw_blk_new(const struct gw_disk_config *config, bool incoming, const struct gw_devhost *host, struct gw_blk **ret,
	       struct gw_error *err);
struct gw_virtio *gw_blk_virtio(struct gw_blk *blk);
/* The reverse; `vd` must be a disk's. */
struct gw_blk *gw_blk_from_virtio(struct gw_virtio *vd);

/* What a source and a destination compare to see whether they have the same disk. Strings are borrowed from the disk. */
struct gw_blk_identity {
	const char *name;
	const char *kind; /* "file", "nbd" */
	const char *path; /* or URI */
	uint64_t size;    /* bytes */
	bool readonly;
};
void gw_blk_identity(const struct gw_blk *blk, struct gw_blk_identity *ret);

#define GW_BLK_SAMPLE_SIZE 4096
#define GW_BLK_SAMPLE_MAX 256
/*
 * SHA-256 over the blocks of GW_BLK_SAMPLE_SIZE bytes at `offsets` (multiples of 512 within the disk; a block is cut at the disk's
 * end). Reads by the disk's own back end; at most some seconds. Main thread, running or stopped.
 */
int gw_blk_sample(struct gw_blk *blk, const uint64_t *offsets, unsigned n, uint8_t digest[32], struct gw_error *err);
/* Has all writes so far durable; makes the flush within quiesce short. Main thread or a migration thread, VM running. */
int gw_blk_flush(struct gw_blk *blk, struct gw_error *err);

#endif
