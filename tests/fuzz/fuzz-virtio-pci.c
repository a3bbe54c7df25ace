// SPDX-License-Identifier: Apache-2.0
/* Random configuration, port and BAR accesses of any width: a guest that pokes at the PCI bus and the virtio transport. */
#include <linux/pci_regs.h>
#include <string.h>

#include "lib/util.h"
#include "tests/unit/fake-host.h"
#include "vmm/bus.h"
#include "vmm/iothread.h"
#include "vmm/rng.h"
#include "vmm/console.h"
#include "vmm/virtio-pci.h"
#include "vmm/virtio.h"
#include "vmm/vm.h"

#define DEVICES 2

static struct fake_host *fake;
static struct gw_device devices[DEVICES];

static void attach(struct gw_virtio *vd, unsigned i)
{
	if (gw_virtio_pci_attach(vd, fake->pci, 1 + i, NULL) < 0)
		abort();
	devices[i] = gw_virtio_device(vd);
	devices[i].ops->resume(devices[i].self);
}

static void set_up(void)
{
	struct gw_virtio *vd;

	fake = fake_host_new();
	if (gw_rng_new(&fake->host, &vd, NULL) < 0)
		abort();
	attach(vd, 0);
	if (gw_console_new(&fake->host, &vd, NULL) < 0)
		abort();
	attach(vd, 1);
}

static uint64_t bar_of(unsigned slot, unsigned bar)
{
	unsigned reg = PCI_BASE_ADDRESS_0 + 4 * bar;

	return ((uint64_t)fake_config_read(fake, slot, reg + 4, 4) << 32 | fake_config_read(fake, slot, reg, 4)) & ~15ull;
}

static void nothing(void *arg)
{
}

/* One access: 12 bytes of input. */
struct op {
	uint8_t kind; /* bit 7: write; bits 5-6: width; bits 0-2: where */
	uint8_t slot;
	uint16_t offset;
	uint64_t value;
} __attribute__((packed));

static void run(const struct op *op)
{
	unsigned width = 1u << (op->kind >> 5 & 3), slot = op->slot % (DEVICES + 2);
	uint64_t value = op->value, at;
	bool write = op->kind & 0x80;

	switch (op->kind & 7) {
	case 0: /* configuration space */
		if (width > 4)
			width = 4;
		at = GW_GPA_ECAM + ((uint64_t)slot << 15) + op->offset % 4096;
		break;
	case 1: /* registers of the header and capabilities, where things happen */
		if (width > 4)
			width = 4;
		at = GW_GPA_ECAM + ((uint64_t)slot << 15) + op->offset % 0xa0;
		break;
	case 2: /* ports */
		width = width > 4 ? 4 : width;
		at = 0xcf8 + op->offset % 8;
		if (at + width > 0xd00)
			return;
		if (write)
			gw_bus_write(fake->host.pio, at, &value, width);
		else
			gw_bus_read(fake->host.pio, at, &value, width);
		return;
	case 3: /* rings in RAM now and then, so that kicks have something to do */
		fake_config_write(fake, slot, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
		return;
	case 4:
		at = bar_of(slot, 2) + op->offset % 0x2000;
		break;
	case 5: /* common configuration */
		at = bar_of(slot, 0) + op->offset % 64;
		break;
	default:
		at = bar_of(slot, 0) + op->offset % 0x4000;
		break;
	}
	if (write)
		fake_write(fake, at, value, width);
	else
		fake_read(fake, at, width);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct op op;

	if (!fake)
		set_up();
	for (unsigned n = 0; len >= sizeof(op) && n < 256; n++) {
		memcpy(&op, data, sizeof(op));
		data += sizeof(op);
		len -= sizeof(op);
		run(&op);
	}
	gw_iothread_call(fake->host.io, nothing, NULL);
	for (unsigned i = 0; i < DEVICES; i++) {
		devices[i].ops->reset(devices[i].self);
		/* Power-on state, whatever happened. */
		if (fake_config_read(fake, 1 + i, PCI_COMMAND, 2) || !bar_of(1 + i, 0))
			abort();
	}
	return 0;
}
