// SPDX-License-Identifier: Apache-2.0
/* The virtio devices of a VM: which, in what order, and in which PCI slots. */
#ifndef GW_VMM_VIRTIO_DEVICES_H
#define GW_VMM_VIRTIO_DEVICES_H

#include "lib/error.h"

struct gw_blk;
struct gw_virtio;
struct gw_vm;
struct gw_vm_config;

/*
 * Makes the devices of `config`, puts them on the VM's PCI bus and adds them to its device list, which owns them from then
 * on. On failure those added so far stay with the list.
 */
int gw_virtio_devices_create(struct gw_vm *vm, const struct gw_vm_config *config, struct gw_error *err);

/* Disk `index` in the order of the configuration, or NULL. */
struct gw_blk *gw_vm_disk(struct gw_vm *vm, unsigned index);

/* The balloon (vmm/balloon.h), or NULL. */
struct gw_virtio *gw_vm_balloon(struct gw_vm *vm);

#endif
