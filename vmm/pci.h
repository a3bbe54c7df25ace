// SPDX-License-Identifier: Apache-2.0
/*
 * PCI bus 0 of the VM: a host bridge at 0:0.0 and one single-function device a slot, reached by ECAM and by ports
 * 0xcf8/0xcfc (PCI 3.0 §3.2.2.3.2). There is no firmware, so BARs have their addresses from the start, in the 32-bit window;
 * the guest may size, move and disable them like those of any device. INTx does not exist here: devices use MSI-X.
 *
 * Lock order: the bus's lock, then a device's own. No BAR handler may touch configuration space.
 */
#ifndef GW_VMM_PCI_H
#define GW_VMM_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "vmm/bus.h"
#include "vmm/devhost.h"
#include "vmm/state.h"

#define GW_PCI_CONFIG_SIZE 256
#define GW_PCI_SLOTS 32
#define GW_PCI_BARS 6

struct gw_pci_bus;
struct gw_pci_dev;
struct gw_vm;

/* Registers the bus with the VM's buses and device list. The bus must outlive its devices. */
int gw_pci_bus_new(struct gw_vm *vm, struct gw_pci_bus **ret, struct gw_error *err);
/* The same around any devhost, which is copied; registers with its buses only. */
int gw_pci_bus_new_on(const struct gw_devhost *host, struct gw_pci_bus **ret, struct gw_error *err);
void gw_pci_bus_free(struct gw_pci_bus *bus);
const struct gw_devhost *gw_pci_bus_host(const struct gw_pci_bus *bus);

struct gw_pci_id {
	uint16_t vendor;
	uint16_t device;
	uint16_t subsystem_vendor;
	uint16_t subsystem;
	uint8_t revision;
	uint32_t class; /* 24 bits: class, subclass, interface */
};

/* All run under the bus's lock; each may be NULL. */
struct gw_pci_ops {
	/* Before [reg, reg + len) is read: bring it up to date by gw_pci_config(). */
	void (*config_read)(void *arg, unsigned reg, unsigned len);
	/* After the writable bits of [reg, reg + len) were written. */
	void (*config_written)(void *arg, unsigned reg, unsigned len);
	/* BAR `bar` is now decoded at `addr`. It is not told when a BAR is switched off. */
	void (*bar_mapped)(void *arg, unsigned bar, uint64_t addr);
};

/* `name` is the instance of its state and is copied; ops and arg are borrowed. -EEXIST when the slot is taken. */
int gw_pci_dev_new(struct gw_pci_bus *bus, unsigned slot, const char *name, const struct gw_pci_id *id,
		   const struct gw_pci_ops *ops, void *arg, struct gw_pci_dev **ret, struct gw_error *err);
void gw_pci_dev_free(struct gw_pci_dev *dev);

/*
 * Building, before the guest runs. A BAR is memory of `size` bytes (a power of two, at least 4096); a 64-bit one takes
 * two indexes. Its handlers run without the bus's lock.
 */
int gw_pci_add_bar(struct gw_pci_dev *dev, unsigned bar, uint32_t size, bool is64, const struct gw_bus_ops *ops, void *arg,
		   struct gw_error *err);
/*
 * Appends a capability of `len` bytes, the two of its header included (PCI 3.0 §6.7). `body` holds them; the header's
 * id and next pointer are filled in. Returns its offset in configuration space, or -ENOSPC.
 */
int gw_pci_add_cap(struct gw_pci_dev *dev, uint8_t id, const void *body, unsigned len);
/* Configuration space and the mask of bits that the guest may write; for building and from within gw_pci_ops. */
uint8_t *gw_pci_config(struct gw_pci_dev *dev);
uint8_t *gw_pci_wmask(struct gw_pci_dev *dev);
/* The address that the BAR has from us. */
uint64_t gw_pci_bar_home(const struct gw_pci_dev *dev, unsigned bar);
/* Reads and writes a BAR as the CPU would, for capabilities that give a window to it. Nothing happens outside of it. */
void gw_pci_bar_access(struct gw_pci_dev *dev, unsigned bar, uint64_t offset, void *data, unsigned len, bool write);

/* The `arg` of the function in `slot`, or NULL. */
void *gw_pci_slot_arg(struct gw_pci_bus *bus, unsigned slot);

/* Power-on state. */
void gw_pci_dev_reset(struct gw_pci_dev *dev);
int gw_pci_dev_save(struct gw_pci_dev *dev, struct gw_state_writer *w, struct gw_error *err);
/* Takes the writable bits; -EPROTO when the rest shows another device. */
int gw_pci_dev_load(struct gw_pci_dev *dev, struct gw_state_reader *r, struct gw_error *err);

/* A configuration access: `devfn` is slot << 3 | function, `reg` + len within 4096; nothing there reads as all ones. */
void gw_pci_config_access(struct gw_pci_bus *bus, unsigned devfn, unsigned reg, void *data, unsigned len, bool write);

#endif
