// SPDX-License-Identifier: Apache-2.0
/* PCI functions: configuration space, BARs, capabilities and their state; see pci.h. The bus is in pci-bus.c. */
#include "vmm/pci.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/log.h"
#include "lib/util.h"
#include "vmm/pci-internal.h"

static struct gw_ratelimit bar_limit;

static const struct gw_state_field pci_fields[] = {
	GW_STATE_BYTES(struct gw_pci_dev, config, 1),
	{ },
};
static const struct gw_state_desc pci_state = { "pci", 1, 1, pci_fields };

static void unmap_bar(struct gw_pci_dev *dev, struct gw_pci_bar *bar)
{
	if (bar->mapped_at)
		gw_bus_remove(dev->bus->host.mmio, bar->mapped_at);
	bar->mapped_at = 0;
}

static uint64_t bar_address(const struct gw_pci_dev *dev, unsigned index)
{
	const uint8_t *reg = dev->config + PCI_BASE_ADDRESS_0 + 4 * index;
	uint64_t addr = gw_get_le32(reg) & PCI_BASE_ADDRESS_MEM_MASK & UINT32_MAX;

	if (dev->bars[index].is64)
		addr |= (uint64_t)gw_get_le32(reg + 4) << 32;
	return addr;
}

/* Makes the memory bus agree with the command register and the BARs; under the bus's lock. */
static void map_bars(struct gw_pci_dev *dev)
{
	bool decode = gw_get_le16(dev->config + PCI_COMMAND) & PCI_COMMAND_MEMORY;

	for (unsigned i = 0; i < GW_PCI_BARS; i++) {
		struct gw_pci_bar *bar = &dev->bars[i];
		uint64_t addr = bar->size && decode ? bar_address(dev, i) : 0;
		int r;

		if (addr == bar->mapped_at)
			continue;
		unmap_bar(dev, bar);
		if (!addr)
			continue;
		r = gw_bus_add(dev->bus->host.mmio, addr, bar->size, bar->ops, bar->arg);
		if (r < 0) {
			/* Also what sizing a BAR with decoding on comes to: all ones is no place for it. */
			gw_warn_limited(&bar_limit, "%s: the guest put BAR %u at %#llx, where it cannot be", dev->name, i,
					(unsigned long long)addr);
			continue;
		}
		bar->mapped_at = addr;
		if (dev->ops->bar_mapped)
			dev->ops->bar_mapped(dev->arg, i, addr);
	}
}

static void set_bar(struct gw_pci_dev *dev, unsigned index, uint64_t addr)
{
	uint8_t *reg = dev->config + PCI_BASE_ADDRESS_0 + 4 * index;
	uint32_t type = dev->bars[index].is64 ? PCI_BASE_ADDRESS_MEM_TYPE_64 : PCI_BASE_ADDRESS_MEM_TYPE_32;

	gw_put_le32(reg, (uint32_t)addr | type);
	if (dev->bars[index].is64)
		gw_put_le32(reg + 4, (uint32_t)(addr >> 32));
}

int gw_pci_add_bar(struct gw_pci_dev *dev, unsigned index, uint32_t size, bool is64, const struct gw_bus_ops *ops, void *arg,
		   struct gw_error *err)
{
	struct gw_pci_bar *bar = &dev->bars[index];
	uint8_t *mask = dev->wmask + PCI_BASE_ADDRESS_0 + 4 * index;
	int r;

	r = gw_pci_alloc_window(dev->bus, size, &bar->home, err);
	if (r < 0)
		return r;
	bar->size = size;
	bar->is64 = is64;
	bar->ops = ops;
	bar->arg = arg;
	gw_put_le32(mask, ~(size - 1));
	if (is64)
		gw_put_le32(mask + 4, UINT32_MAX);
	set_bar(dev, index, bar->home);
	return 0;
}

int gw_pci_add_cap(struct gw_pci_dev *dev, uint8_t id, const void *body, unsigned len)
{
	unsigned at = GW_ALIGN_UP(dev->cap_end, 4);

	if (at + len > GW_PCI_CONFIG_SIZE)
		return -ENOSPC;
	memcpy(dev->config + at, body, len);
	dev->config[at] = id;
	/* In front of those before it: the list ends with the first one added. */
	dev->config[at + 1] = dev->config[PCI_CAPABILITY_LIST];
	dev->config[PCI_CAPABILITY_LIST] = (uint8_t)at;
	dev->config[PCI_STATUS] |= PCI_STATUS_CAP_LIST;
	dev->cap_end = at + len;
	return (int)at;
}

uint8_t *gw_pci_config(struct gw_pci_dev *dev)
{
	return dev->config;
}

uint8_t *gw_pci_wmask(struct gw_pci_dev *dev)
{
	return dev->wmask;
}

uint64_t gw_pci_bar_home(const struct gw_pci_dev *dev, unsigned bar)
{
	return dev->bars[bar].home;
}

void gw_pci_bar_access(struct gw_pci_dev *dev, unsigned index, uint64_t offset, void *data, unsigned len, bool write)
{
	const struct gw_pci_bar *bar = index < GW_PCI_BARS ? &dev->bars[index] : NULL;

	if (!bar || offset >= bar->size || len > bar->size - offset)
		return;
	if (write)
		bar->ops->write(bar->arg, offset, data, len);
	else
		bar->ops->read(bar->arg, offset, data, len);
}

static bool overlaps(unsigned reg, unsigned len, unsigned first, unsigned size)
{
	return reg < first + size && first < reg + len;
}

void gw_pci_dev_access(struct gw_pci_dev *dev, unsigned reg, uint8_t *data, unsigned len, bool write)
{
	if (!write) {
		if (dev->ops->config_read)
			dev->ops->config_read(dev->arg, reg, len);
		memcpy(data, dev->config + reg, len);
		return;
	}
	for (unsigned i = 0; i < len; i++) {
		uint8_t mask = dev->wmask[reg + i];

		dev->config[reg + i] = (uint8_t)((dev->config[reg + i] & ~mask) | (data[i] & mask));
	}
	if (overlaps(reg, len, PCI_COMMAND, 2) || overlaps(reg, len, PCI_BASE_ADDRESS_0, 4 * GW_PCI_BARS))
		map_bars(dev);
	if (dev->ops->config_written)
		dev->ops->config_written(dev->arg, reg, len);
}

static void fill_header(struct gw_pci_dev *dev, const struct gw_pci_id *id)
{
	uint8_t *c = dev->config;

	gw_put_le16(c + PCI_VENDOR_ID, id->vendor);
	gw_put_le16(c + PCI_DEVICE_ID, id->device);
	gw_put_le32(c + PCI_CLASS_REVISION, id->class << 8 | id->revision);
	c[PCI_HEADER_TYPE] = PCI_HEADER_TYPE_NORMAL;
	gw_put_le16(c + PCI_SUBSYSTEM_VENDOR_ID, id->subsystem_vendor);
	gw_put_le16(c + PCI_SUBSYSTEM_ID, id->subsystem);
	gw_put_le16(dev->wmask + PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
	dev->wmask[PCI_CACHE_LINE_SIZE] = 0xff;
	dev->wmask[PCI_LATENCY_TIMER] = 0xff;
	dev->wmask[PCI_INTERRUPT_LINE] = 0xff;
}

int gw_pci_dev_new(struct gw_pci_bus *bus, unsigned slot, const char *name, const struct gw_pci_id *id,
		   const struct gw_pci_ops *ops, void *arg, struct gw_pci_dev **ret, struct gw_error *err)
{
	struct gw_pci_dev *dev;

	if (slot >= GW_PCI_SLOTS || bus->slots[slot])
		return gw_error_set(err, EEXIST, "PCI slot %u is taken", slot);
	dev = calloc(1, sizeof(*dev));
	if (!dev || !(dev->name = strdup(name))) {
		free(dev);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	dev->bus = bus;
	dev->slot = slot;
	dev->ops = ops;
	dev->arg = arg;
	dev->cap_end = PCI_STD_HEADER_SIZEOF;
	fill_header(dev, id);
	bus->slots[slot] = dev;
	*ret = dev;
	return 0;
}

void gw_pci_dev_free(struct gw_pci_dev *dev)
{
	if (!dev)
		return;
	pthread_mutex_lock(&dev->bus->lock);
	for (unsigned i = 0; i < GW_PCI_BARS; i++)
		unmap_bar(dev, &dev->bars[i]);
	dev->bus->slots[dev->slot] = NULL;
	pthread_mutex_unlock(&dev->bus->lock);
	free(dev->name);
	free(dev);
}

void gw_pci_dev_reset(struct gw_pci_dev *dev)
{
	pthread_mutex_lock(&dev->bus->lock);
	/* Every writable register is 0 at power-on but for the BARs, whose addresses firmware would have set. */
	for (unsigned i = 0; i < GW_PCI_CONFIG_SIZE; i++)
		dev->config[i] &= (uint8_t)~dev->wmask[i];
	for (unsigned i = 0; i < GW_PCI_BARS; i++) {
		if (dev->bars[i].size)
			set_bar(dev, i, dev->bars[i].home);
	}
	map_bars(dev);
	pthread_mutex_unlock(&dev->bus->lock);
}

int gw_pci_dev_save(struct gw_pci_dev *dev, struct gw_state_writer *w, struct gw_error *err)
{
	int r = gw_state_put(w, &pci_state, dev->name, dev);

	return r < 0 ? gw_error_errno(err, r, "cannot save %s", dev->name) : 0;
}

int gw_pci_dev_load(struct gw_pci_dev *dev, struct gw_state_reader *r, struct gw_error *err)
{
	gw_autofree struct gw_pci_dev *in = calloc(1, sizeof(*in));
	int ret;

	if (!in)
		return gw_error_set(err, ENOMEM, "out of memory");
	ret = gw_state_get(r, &pci_state, dev->name, in, err);
	if (ret < 0)
		return ret;
	pthread_mutex_lock(&dev->bus->lock);
	for (unsigned i = 0; i < GW_PCI_CONFIG_SIZE; i++) {
		if ((in->config[i] ^ dev->config[i]) & ~dev->wmask[i] & 0xff) {
			ret = gw_error_set(err, EPROTO, "PCI device %s is another one there (register %#x differs)",
					   dev->name, i);
			break;
		}
	}
	if (ret == 0) {
		memcpy(dev->config, in->config, sizeof(dev->config));
		map_bars(dev);
	}
	pthread_mutex_unlock(&dev->bus->lock);
	return ret;
}
