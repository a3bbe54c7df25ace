// SPDX-License-Identifier: Apache-2.0
/* The PCI bus: slots, host bridge, and the two ways to configuration space; see pci.h. */
#include <errno.h>
#include <linux/pci_regs.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"
#include "vmm/pci-internal.h"
#include "vmm/vm.h"

#define PORT_ADDRESS 0xcf8
#define PORT_COUNT 8 /* address 0xcf8 to 0xcfb, data 0xcfc to 0xcff */
#define ADDRESS_ENABLE 0x80000000u

static const struct gw_state_field bus_fields[] = {
	GW_STATE_UINT(struct gw_pci_bus, address, 1),
	{ },
};
static const struct gw_state_desc bus_state = { "pci-bus", 1, 1, bus_fields };

/* A generic PCI host bridge of no particular chip set, so that guests apply no quirks. */
static const struct gw_pci_id bridge_id = { 0x1b36, 0x0008, 0x1af4, 0x1100, 0, 0x060000 };
static const struct gw_pci_ops bridge_ops = { 0 };

int gw_pci_alloc_window(struct gw_pci_bus *bus, uint32_t size, uint64_t *ret, struct gw_error *err)
{
	uint64_t at = GW_ALIGN_UP(bus->window_next, (uint64_t)size);

	if (size < GW_PAGE_SIZE || (size & (size - 1)) || at + size > GW_GPA_PCI32 + GW_GPA_PCI32_SIZE)
		return gw_error_set(err, ENOSPC, "no room for a PCI window of %u bytes", size);
	bus->window_next = at + size;
	*ret = at;
	return 0;
}

void gw_pci_config_access(struct gw_pci_bus *bus, unsigned devfn, unsigned reg, void *data, unsigned len, bool write)
{
	struct gw_pci_dev *dev;

	if (!write)
		memset(data, 0xff, len);
	/* One function a slot; nothing in the extended space, as none is a PCI Express function. */
	if (devfn & 7 || devfn >> 3 >= GW_PCI_SLOTS)
		return;
	pthread_mutex_lock(&bus->lock);
	dev = bus->slots[devfn >> 3];
	if (dev && reg < GW_PCI_CONFIG_SIZE && len <= GW_PCI_CONFIG_SIZE - reg)
		gw_pci_dev_access(dev, reg, data, len, write);
	else if (dev && !write)
		memset(data, 0, len);
	pthread_mutex_unlock(&bus->lock);
}

/* ECAM (PCI Express 3.0 §7.2.2): bus << 20 | devfn << 12 | register. Only bus 0 has devices. */
static void ecam_access(struct gw_pci_bus *bus, uint64_t offset, void *data, unsigned len, bool write)
{
	unsigned reg = offset & 0xfff;

	if (offset >> 20 || reg + len > 0x1000) {
		if (!write)
			memset(data, 0xff, len);
		return;
	}
	gw_pci_config_access(bus, (unsigned)(offset >> 12) & 0xff, reg, data, len, write);
}

static void ecam_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	ecam_access(dev, offset, data, len, false);
}

static void ecam_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	uint8_t copy[8];

	memcpy(copy, data, len);
	ecam_access(dev, offset, copy, len, true);
}

static const struct gw_bus_ops ecam_ops = { ecam_read, ecam_write };

/* PCI 3.0 §3.2.2.3.2: a dword written to 0xcf8 selects the register that 0xcfc to 0xcff reach. */
static void port_data(struct gw_pci_bus *bus, unsigned offset, void *data, unsigned len, bool write)
{
	uint32_t address = __atomic_load_n(&bus->address, __ATOMIC_RELAXED);

	if (!(address & ADDRESS_ENABLE) || address >> 16 & 0xff)
		return;
	gw_pci_config_access(bus, address >> 8 & 0xff, (address & 0xfc) + offset, data, len, write);
}

static void port_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	struct gw_pci_bus *bus = dev;

	memset(data, 0xff, len);
	if (offset >= 4)
		port_data(bus, (unsigned)offset - 4, data, len, false);
	else if (offset == 0 && len == 4)
		gw_put_le32(data, __atomic_load_n(&bus->address, __ATOMIC_RELAXED));
}

static void port_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct gw_pci_bus *bus = dev;
	uint8_t copy[8];

	memcpy(copy, data, len);
	if (offset >= 4)
		port_data(bus, (unsigned)offset - 4, copy, len, true);
	else if (offset == 0 && len == 4)
		__atomic_store_n(&bus->address, gw_get_le32(copy), __ATOMIC_RELAXED);
}

static const struct gw_bus_ops port_ops = { port_read, port_write };

static void bus_reset(void *self)
{
	struct gw_pci_bus *bus = self;

	bus->address = 0;
	gw_pci_dev_reset(bus->bridge);
}

static int bus_save(void *self, struct gw_state_writer *w, struct gw_error *err)
{
	struct gw_pci_bus *bus = self;
	int r = gw_state_put(w, &bus_state, "0", bus);

	return r < 0 ? gw_error_errno(err, r, "cannot save the PCI bus") : gw_pci_dev_save(bus->bridge, w, err);
}

static int bus_load(void *self, struct gw_state_reader *r, struct gw_error *err)
{
	struct gw_pci_bus *bus = self;
	int ret = gw_state_get(r, &bus_state, "0", bus, err);

	return ret < 0 ? ret : gw_pci_dev_load(bus->bridge, r, err);
}

/* The VM frees the bus itself, after all devices. */
static void bus_free_nothing(void *self)
{
}

static const struct gw_device_ops bus_device_ops = {
	.reset = bus_reset,
	.save = bus_save,
	.load = bus_load,
	.free = bus_free_nothing,
};

int gw_pci_bus_new_on(const struct gw_devhost *host, struct gw_pci_bus **ret, struct gw_error *err)
{
	struct gw_pci_bus *bus = calloc(1, sizeof(*bus));
	int r;

	if (!bus)
		return gw_error_set(err, ENOMEM, "out of memory");
	bus->host = *host;
	bus->window_next = GW_GPA_PCI32;
	pthread_mutex_init(&bus->lock, NULL);
	r = gw_pci_dev_new(bus, 0, "bridge", &bridge_id, &bridge_ops, NULL, &bus->bridge, err);
	if (r == 0) {
		r = gw_bus_add(host->mmio, GW_GPA_ECAM, GW_GPA_ECAM_SIZE, &ecam_ops, bus);
		bus->ecam = r == 0;
		if (r == 0)
			r = gw_bus_add(host->pio, PORT_ADDRESS, PORT_COUNT, &port_ops, bus);
		bus->ports = r == 0;
		if (r < 0)
			gw_error_errno(err, r, "cannot place the PCI bus");
	}
	if (r < 0) {
		gw_pci_bus_free(bus);
		return r;
	}
	*ret = bus;
	return 0;
}

int gw_pci_bus_new(struct gw_vm *vm, struct gw_pci_bus **ret, struct gw_error *err)
{
	const struct gw_devhost host = gw_devhost_of_vm(vm);
	struct gw_pci_bus *bus;
	int r;

	r = gw_pci_bus_new_on(&host, &bus, err);
	if (r < 0)
		return r;
	r = gw_vm_add_device(vm, &(struct gw_device){ "pci-bus", "0", &bus_device_ops, bus }, err);
	if (r < 0) {
		gw_pci_bus_free(bus);
		return r;
	}
	*ret = bus;
	return 0;
}

void gw_pci_bus_free(struct gw_pci_bus *bus)
{
	if (!bus)
		return;
	if (bus->ports)
		gw_bus_remove(bus->host.pio, PORT_ADDRESS);
	if (bus->ecam)
		gw_bus_remove(bus->host.mmio, GW_GPA_ECAM);
	gw_pci_dev_free(bus->bridge);
	pthread_mutex_destroy(&bus->lock);
	free(bus);
}

void *gw_pci_slot_arg(struct gw_pci_bus *bus, unsigned slot)
{
	return slot < GW_PCI_SLOTS && bus->slots[slot] ? bus->slots[slot]->arg : NULL;
}

const struct gw_devhost *gw_pci_bus_host(const struct gw_pci_bus *bus)
{
	return &bus->host;
}
