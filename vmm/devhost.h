// SPDX-License-Identifier: Apache-2.0
/*
 * What PCI and virtio devices need of the VM around them: its RAM, buses and device thread, and the edge to KVM (message
 * interrupts, ioeventfds). Devices know only this, so that they run without KVM in tests and fuzzers, which bring an edge of
 * their own.
 */
#ifndef GW_VMM_DEVHOST_H
#define GW_VMM_DEVHOST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "lib/error.h"

struct gw_bus;
struct gw_devhost;
struct gw_iothread;
struct gw_msi;
struct gw_ram;
struct gw_vm;

/* As the functions of the same names in vmm/irq.h. */
struct gw_devhost_ops {
	int (*msi_new)(const struct gw_devhost *host, struct gw_msi **ret, struct gw_error *err);
	void (*msi_free)(struct gw_msi *msi);
	void (*msi_set)(struct gw_msi *msi, uint64_t addr, uint32_t data, bool masked);
	int (*msi_commit)(const struct gw_devhost *host, struct gw_error *err);
	void (*msi_raise)(struct gw_msi *msi);
	int (*ioeventfd)(const struct gw_devhost *host, uint64_t addr, unsigned len, int fd, bool add, struct gw_error *err);
	/* A frame was handed to the guest, or leaves it (`said`): what lies in the buffers behind `offset` bytes. */
	void (*note_frame)(const struct gw_devhost *host, const struct iovec *iov, unsigned niov, uint64_t offset, bool said);
	/* A disk's content came into guest RAM. */
	void (*disk_read)(const struct gw_devhost *host, uint64_t gpa, uint64_t len);
	/* The guest gets too little of the processors to answer in time (vmm/talk.h). */
	bool (*overdue)(const struct gw_devhost *host);
	/* A device can not go on: the VM must not run any further. */
	void (*failed)(const struct gw_devhost *host, const char *reason);
};

struct gw_devhost {
	struct gw_vm *vm; /* NULL in tests */
	struct gw_ram *ram;
	struct gw_iothread *io;
	struct gw_bus *mmio;
	struct gw_bus *pio;
	const struct gw_devhost_ops *ops;
};

/* The parts of `vm` and KVM's edge. Everything is borrowed from the VM. */
struct gw_devhost gw_devhost_of_vm(struct gw_vm *vm);

#endif
