// SPDX-License-Identifier: Apache-2.0
/* What pci.c and pci-bus.c share: the bus and its functions. */
#ifndef GW_VMM_PCI_INTERNAL_H
#define GW_VMM_PCI_INTERNAL_H

#include <pthread.h>

#include "vmm/pci.h"

struct gw_pci_bar {
	uint32_t size; /* 0: not there */
	bool is64;
	uint64_t home;
	uint64_t mapped_at; /* on the memory bus; 0: nowhere */
	const struct gw_bus_ops *ops;
	void *arg;
};

struct gw_pci_dev {
	struct gw_pci_bus *bus;
	unsigned slot;
	char *name;
	const struct gw_pci_ops *ops;
	void *arg;
	unsigned cap_end; /* next free byte for a capability */
	struct gw_pci_bar bars[GW_PCI_BARS];
	uint8_t config[GW_PCI_CONFIG_SIZE]; /* under the bus's lock, like all that the guest changes */
	uint8_t wmask[GW_PCI_CONFIG_SIZE];
};

struct gw_pci_bus {
	struct gw_devhost host;
	pthread_mutex_t lock;
	struct gw_pci_dev *slots[GW_PCI_SLOTS];
	struct gw_pci_dev *bridge;
	uint64_t window_next; /* first free address for BARs */
	uint32_t address;     /* port 0xcf8; under lock */
	bool ports, ecam;     /* registered */
};

/* An address in the 32-bit window for a BAR of `size` bytes. */
int gw_pci_alloc_window(struct gw_pci_bus *bus, uint32_t size, uint64_t *ret, struct gw_error *err);
/* A configuration access within the 256 bytes of `dev`; under the bus's lock. */
void gw_pci_dev_access(struct gw_pci_dev *dev, unsigned reg, uint8_t *data, unsigned len, bool write);

#endif
