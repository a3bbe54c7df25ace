// SPDX-License-Identifier: Apache-2.0
/*
 * The VM's virtio devices; see virtio-devices.h. Slots are fixed, so that the same configuration gives the same machine on
 * every host and in every version.
 */
#include "vmm/virtio-devices.h"

#include <assert.h>

#include "lib/util.h"
#include "vmm/balloon.h"
#include "vmm/blk.h"
#include "vmm/console.h"
#include "vmm/net.h"
#include "vmm/pci.h"
#include "vmm/rng.h"
#include "vmm/virtio-pci.h"
#include "vmm/virtio.h"
#include "vmm/vm.h"

enum {
	SLOT_RNG = 1,
	SLOT_CONSOLE = 2,
	SLOT_NET = 3,
	SLOT_DISK = SLOT_NET + GW_MAX_NETS,
	SLOT_BALLOON = SLOT_DISK + GW_MAX_DISKS,
};
static_assert(SLOT_BALLOON < GW_PCI_SLOTS, "all devices have a slot");

/* Puts a new device on the bus and the list; frees it when that fails. */
static int add(struct gw_vm *vm, struct gw_virtio *vd, unsigned slot, struct gw_error *err)
{
	const struct gw_device dev = gw_virtio_device(vd);
	int r;

	r = gw_virtio_pci_attach(vd, gw_vm_pci(vm), slot, err);
	if (r == 0)
		r = gw_vm_add_device(vm, &dev, err);
	if (r < 0)
		dev.ops->free(dev.self);
	return r;
}

static int add_disk(struct gw_vm *vm, const struct gw_vm_config *config, unsigned i, const struct gw_devhost *host,
		    struct gw_error *err)
{
	struct gw_blk *blk;
	int r = gw_blk_new(&config->disks[i], config->incoming, host, &blk, err);

	return r < 0 ? r : add(vm, gw_blk_virtio(blk), SLOT_DISK + i, err);
}

static int add_net(struct gw_vm *vm, const struct gw_vm_config *config, unsigned i, const struct gw_devhost *host,
		   struct gw_error *err)
{
	struct gw_virtio *vd;
	int r = gw_net_new(&config->nets[i], config->name, config->incoming, host, &vd, err);

	return r < 0 ? r : add(vm, vd, SLOT_NET + i, err);
}

int gw_virtio_devices_create(struct gw_vm *vm, const struct gw_vm_config *config, struct gw_error *err)
{
	const struct gw_devhost *host = gw_pci_bus_host(gw_vm_pci(vm));
	struct gw_virtio *vd;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < config->ndisks; i++)
		r = add_disk(vm, config, i, host, err);
	for (unsigned i = 0; r == 0 && i < config->nnets; i++)
		r = add_net(vm, config, i, host, err);
	if (r == 0)
		r = gw_rng_new(host, &vd, err);
	if (r == 0)
		r = add(vm, vd, SLOT_RNG, err);
	if (r == 0)
		r = gw_console_new(host, &vd, err);
	if (r == 0)
		r = add(vm, vd, SLOT_CONSOLE, err);
	if (r == 0 && !config->no_balloon) {
		r = gw_balloon_new(host, &vd, err);
		if (r == 0)
			r = add(vm, vd, SLOT_BALLOON, err);
	}
	return r;
}

struct gw_blk *gw_vm_disk(struct gw_vm *vm, unsigned index)
{
	struct gw_virtio *vd = index < GW_MAX_DISKS ? gw_virtio_pci_at(gw_vm_pci(vm), SLOT_DISK + index) : NULL;

	return vd ? gw_blk_from_virtio(vd) : NULL;
}

struct gw_virtio *gw_vm_balloon(struct gw_vm *vm)
{
	return gw_virtio_pci_at(gw_vm_pci(vm), SLOT_BALLOON);
}
