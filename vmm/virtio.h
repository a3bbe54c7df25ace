// SPDX-License-Identifier: Apache-2.0
/*
 * The common part of all virtio devices (virtio 1.2 §2): status, features, queues, and when a device works.
 *
 * A device is active while its driver has set DRIVER_OK and the VM runs. start, stop and kick run on the device thread
 * only, and between stop and the next start nothing of the device touches guest memory. The transport (virtio-pci.c) runs on
 * vCPU threads under `lock`, and hands everything that concerns an active device to the device thread.
 * Lock order: lock, then the device thread's calls. The device thread never takes `lock`.
 */
#ifndef GW_VMM_VIRTIO_H
#define GW_VMM_VIRTIO_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "lib/log.h"
#include "vmm/device.h"
#include "vmm/devhost.h"
#include "vmm/state.h"
#include "vmm/virtqueue.h"

#define GW_VIRTIO_MAX_QUEUES 5
#define GW_VIRTIO_NO_VECTOR 0xffff

struct gw_io_source;
struct gw_msix;
struct gw_virtio;
struct gw_virtio_pci;

struct gw_virtio_ops {
	const char *kind;   /* "virtio-blk" */
	uint16_t id;        /* virtio 1.2 §5 */
	uint32_t pci_class; /* 24 bits */

	/* Device thread. NULL: nothing to do. */
	void (*start)(struct gw_virtio *vd);
	/* Ends what is in flight and gives back what was taken; may push. */
	void (*stop)(struct gw_virtio *vd);
	/* Chains may wait in queue `index`, which is enabled; the device is active. */
	void (*kick)(struct gw_virtio *vd, unsigned index);
	/* The driver reset the device, which is stopped. */
	void (*reset)(struct gw_virtio *vd);

	/* vCPU thread, under lock. [offset, offset + len) of the device's configuration, which is zeroes where nothing is. */
	void (*config_read)(struct gw_virtio *vd, uint64_t offset, void *data, unsigned len);
	void (*config_write)(struct gw_virtio *vd, uint64_t offset, const void *data, unsigned len);

	/* Main thread; see vmm/device.h. NULL: nothing to do. */
	void (*resume)(struct gw_virtio *vd);  /* before start */
	void (*quiesce)(struct gw_virtio *vd); /* after stop */
	int (*save)(struct gw_virtio *vd, struct gw_state_writer *w, struct gw_error *err);
	/* Also checks that the number of chains in flight is what this device can have (gw_virtio_check_in_flight()). */
	int (*load)(struct gw_virtio *vd, struct gw_state_reader *r, struct gw_error *err);
	void (*clone)(struct gw_virtio *vd);
	void (*announce)(struct gw_virtio *vd);
	/* As in struct gw_device_ops. May be NULL. */
	void (*drain)(struct gw_virtio *vd, const struct gw_packet_sink *sink);
	void (*deliver)(struct gw_virtio *vd, const void *data, size_t len);
	/* Frees the whole device, of which `vd` is a part. */
	void (*free)(struct gw_virtio *vd);
};

struct gw_virtio_queue {
	struct gw_vq vq;
	struct gw_virtio *vd;
	unsigned index;
	uint16_t vector; /* atomic */
	int kick;        /* eventfd */
	struct gw_io_source *source;
};

struct gw_virtio {
	const struct gw_virtio_ops *ops;
	struct gw_devhost host;
	char *name; /* instance */
	pthread_mutex_t lock;
	struct gw_virtio_pci *pci;
	struct gw_msix *msix; /* borrowed from pci */

	uint64_t offered;         /* features */
	uint64_t driver_features; /* under lock; constant while active */
	uint32_t device_feature_select, driver_feature_select, queue_select; /* under lock */
	uint8_t status;           /* atomic */
	uint8_t isr;              /* atomic */
	uint8_t generation;       /* atomic */
	uint16_t config_vector;   /* atomic */
	bool resumed;             /* under lock */
	bool loaded;              /* state came from elsewhere; under lock */
	bool active;              /* device thread */

	unsigned nqueues;
	struct gw_virtio_queue queues[GW_VIRTIO_MAX_QUEUES];
	uint64_t violations; /* device thread: what the guest did wrong */
	struct gw_ratelimit limit;
};

/* `features` are those of the device type; the common ones are added. `name` is copied. */
int gw_virtio_init(struct gw_virtio *vd, const struct gw_virtio_ops *ops, const char *name, const struct gw_devhost *host,
		   unsigned nqueues, uint16_t queue_size, uint64_t features, struct gw_error *err);
void gw_virtio_release(struct gw_virtio *vd);
/* The device as the VM knows it; self is vd. */
struct gw_device gw_virtio_device(struct gw_virtio *vd);

static inline bool gw_virtio_has(const struct gw_virtio *vd, unsigned feature)
{
	return vd->driver_features >> feature & 1;
}

/* For devices, on the device thread. */
/* Takes the next chain of an enabled queue. False when there is none, or when the guest broke the rules. */
bool gw_virtio_pop(struct gw_virtio *vd, unsigned index, struct gw_vq_chain *chain);
/* Asks for a kick with the next chain. False when that is all; true when chains came meanwhile and are to be taken now. */
bool gw_virtio_wait_for_kick(struct gw_virtio *vd, unsigned index);
/* Shows the guest what was pushed and interrupts it where it wants that. */
void gw_virtio_notify(struct gw_virtio *vd, unsigned index);
/* Has kick called again for the queue, after other work had its turn. */
void gw_virtio_kick_again(struct gw_virtio *vd, unsigned index);
/* The chain taken last from the queue breaks the rules: it goes back, and the device is broken. */
void gw_virtio_refuse(struct gw_virtio *vd, unsigned index, const char *what);
/* The guest broke the rules: the device does nothing more until it is reset. */
void gw_virtio_broken(struct gw_virtio *vd, const char *what);
/* The device's configuration changed; any thread. */
void gw_virtio_config_changed(struct gw_virtio *vd);
/* Runs fn(vd) on the device thread and waits. */
void gw_virtio_call(struct gw_virtio *vd, void (*fn)(void *vd));
/* -EPROTO unless exactly `count` chains of the queue are in flight, in a loaded state. */
int gw_virtio_check_in_flight(struct gw_virtio *vd, unsigned index, unsigned count, struct gw_error *err);

/* For the transport, under lock. */
void gw_virtio_set_status(struct gw_virtio *vd, uint8_t status);
void gw_virtio_enable_queue(struct gw_virtio *vd, unsigned index);

/* Copies the part of a configuration structure that is asked for; helper for config_read. */
void gw_virtio_config_slice(const void *config, size_t size, uint64_t offset, void *data, unsigned len);

/* virtio-state.c */
int gw_virtio_save(struct gw_virtio *vd, struct gw_state_writer *w, struct gw_error *err);
int gw_virtio_load(struct gw_virtio *vd, struct gw_state_reader *r, struct gw_error *err);

#endif
