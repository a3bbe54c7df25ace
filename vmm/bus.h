// SPDX-License-Identifier: Apache-2.0
/*
 * Address buses: port I/O and MMIO ranges with their handlers. Dispatch runs on vCPU threads, several at once; a device
 * takes its own lock. Ranges may be added and removed while vCPUs run (BARs move).
 */
#ifndef GW_VMM_BUS_H
#define GW_VMM_BUS_H

#include <stdint.h>

#include "lib/error.h"

struct gw_bus;

struct gw_bus_ops {
	/* `offset` into the range; len is 1 to 8 bytes (MMIO) or 1, 2, 4 (ports) and stays within the range. */
	void (*read)(void *dev, uint64_t offset, void *data, unsigned len);
	void (*write)(void *dev, uint64_t offset, const void *data, unsigned len);
};

struct gw_bus *gw_bus_new(void);
void gw_bus_free(struct gw_bus *bus);
/* -EEXIST when it overlaps another range, -ENOMEM. `ops` and `dev` are borrowed. */
int gw_bus_add(struct gw_bus *bus, uint64_t base, uint64_t size, const struct gw_bus_ops *ops, void *dev);
/* Waits until no handler of the range runs any more, unless called from within one. */
void gw_bus_remove(struct gw_bus *bus, uint64_t base);
/* A read of nothing gives all ones, a write to nothing is ignored. True when a range answered. */
int gw_bus_read(struct gw_bus *bus, uint64_t addr, void *data, unsigned len);
int gw_bus_write(struct gw_bus *bus, uint64_t addr, const void *data, unsigned len);

#endif
