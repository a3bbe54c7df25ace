// SPDX-License-Identifier: Apache-2.0
/* A small virtio driver on a fake host: what a guest does to a device on the PCI bus. */
#ifndef GW_TESTS_UNIT_VIRTIO_GUEST_H
#define GW_TESTS_UNIT_VIRTIO_GUEST_H

#include <linux/virtio_ring.h>

#include "tests/unit/fake-host.h"
#include "vmm/virtio.h"

#define GUEST_QUEUE_SIZE 32
/* Interrupt messages: 0x100 * slot + vector; vector 0 is the configuration's. */
#define GUEST_MESSAGE(slot, vector) (0x100u * (slot) + (vector))

struct guest_queue {
	uint16_t size;
	uint64_t desc, avail, used; /* guest-physical */
	uint16_t next_desc, avail_idx, last_used;
};

struct guest {
	struct fake_host *fake;
	unsigned slot;
	uint64_t bar, msix;
	uint64_t features; /* agreed upon */
	unsigned nqueues;
	struct guest_queue q[GW_VIRTIO_MAX_QUEUES];
};

struct guest_buf {
	uint64_t gpa;
	uint32_t len;
	bool write; /* by the device */
};

/* Finds BARs, sets MSI-X up and goes up to DRIVER_OK with those of `features` that are offered. False when FEATURES_OK is refused. */
bool guest_start(struct guest *g, struct fake_host *fake, unsigned slot, uint64_t features);
/* Only the first part: BARs and MSI-X. */
void guest_probe(struct guest *g, struct fake_host *fake, unsigned slot);
void guest_reset(struct guest *g);
uint8_t guest_status(struct guest *g);
/* Registers of the common structure and of the device's configuration. */
void guest_common_write(struct guest *g, unsigned offset, uint32_t value, unsigned len);
uint32_t guest_common_read(struct guest *g, unsigned offset, unsigned len);
uint64_t guest_config_read(struct guest *g, unsigned offset, unsigned len);

/* Makes a chain available; returns its head. */
uint16_t guest_add(struct guest *g, unsigned queue, const struct guest_buf *bufs, unsigned n);
/* Writes one descriptor, and makes a head available, without any sense. */
void guest_desc(struct guest *g, unsigned queue, uint16_t index, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next);
void guest_avail(struct guest *g, unsigned queue, uint16_t head);
void guest_kick(struct guest *g, unsigned queue);
/* Waits up to 10 s for the next used element; false when none came. */
bool guest_used(struct guest *g, unsigned queue, uint16_t *head, uint32_t *len);
/* The same without waiting. */
bool guest_used_now(struct guest *g, unsigned queue, uint16_t *head, uint32_t *len);
/* Waits until the device says that it needs a reset. */
bool guest_broken(struct guest *g);
/* Address of guest memory. */
void *guest_ptr(struct guest *g, uint64_t gpa, uint64_t len);

#endif
