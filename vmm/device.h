// SPDX-License-Identifier: Apache-2.0
/*
 * What the VM asks of every device. Devices register themselves with gw_vm_add_device() while the VM is built, in one fixed order.
 *
 * Life: created -> [load] -> resume <-> quiesce -> free. A new device is quiesced: it must not touch guest memory or its
 * back end before the first resume.
 */
#ifndef GW_VMM_DEVICE_H
#define GW_VMM_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "vmm/state.h"

struct gw_vm;

/* Takes packets that came for a device. */
struct gw_packet_sink {
	void (*fn)(void *arg, unsigned device, const void *data, size_t len);
	void *arg;
	unsigned device;
};

struct gw_device_ops {
	/* Power-on state; vCPUs are stopped and the device is quiesced. */
	void (*reset)(void *dev);
	/*
	 * What it does can be seen from outside (packets, disk writes): on arrival by a move it is resumed after the vCPUs run, when the source is
	 * known to have let go.
	 */
	bool outside;
	/* Begins or goes on working (kicks its queues: work may be waiting). May be NULL. */
	void (*resume)(void *dev);
	/*
	 * Returns only when nothing of the device, the kernel's work for it included, touches guest memory, its
	 * queues or its back end any more; disks have then flushed what the guest was told is durable. May be NULL.
	 */
	void (*quiesce)(void *dev);
	/* Write or check-and-take state; the device is quiesced. A hostile state must fail with a clear error. */
	int (*save)(void *dev, struct gw_state_writer *w, struct gw_error *err);
	int (*load)(void *dev, struct gw_state_reader *r, struct gw_error *err);
	/* Loaded, as a clone's: what only one may be that is seen from outside, it is by its own configuration from now on. May be NULL. */
	void (*clone)(void *dev);
	/*
	 * The VM runs here for the first time after a move: network devices announce their address (RARP) at once.
	 * Called after vCPUs run. May be NULL.
	 */
	void (*announce)(void *dev);
	/* Quiesced: hands over what has come from outside since, which is gone here then. May be NULL. */
	void (*drain)(void *dev, const struct gw_packet_sink *sink);
	/* Resumed: what came for it elsewhere; from an untrusted peer. May be NULL. */
	void (*deliver)(void *dev, const void *data, size_t len);
	/* ORs into `bitmap`, one bit a page index, the guest memory that it touches whenever it is resumed. The VM may run. May be NULL. */
	void (*mark)(void *dev, uint64_t *bitmap);
	void (*free)(void *dev);
};

struct gw_device {
	const char *kind;     /* "serial", "virtio-blk" */
	const char *instance; /* unique within kind; owned by the device */
	const struct gw_device_ops *ops;
	void *self;
};

#endif
