// SPDX-License-Identifier: Apache-2.0
/* A snapshot's part "machine", or a peer's: refused with a reason, or the very machine that is here. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/fake-host.h"
#include "vmm/blk.h"
#include "vmm/move-machine.h"
#include "vmm/vm-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct gw_vm_config config = {
	.name = (char *)"vm",
	.cpus = 1,
	.disks = { { .name = (char *)"vda" } },
	.ndisks = 1,
	.nets = { { .name = (char *)"eth0", .mac = { 0x52, 0x54, 0, 1, 2, 3 } } },
	.nnets = 1,
};

/* As many as a real one has, of the kinds that are compared by bits, by size and not at all. */
static void processor(struct gw_cpuid *c)
{
	const struct kvm_cpuid_entry2 entries[] = {
		{ .function = 0, .eax = 13, .ebx = 0x756e6547, .edx = 0x49656e69, .ecx = 0x6c65746e },
		{ .function = 1, .ecx = 0x7ffafbff, .edx = 0xbfebfbff },
		{ .function = 7, .index = 0, .ebx = 0xd19f4fbb },
		{ .function = 0xd, .index = 0, .eax = 7, .ebx = 832, .ecx = 832 },
		{ .function = 0x80000001, .ecx = 0x121, .edx = 0x2c100800 },
		{ .function = 0x80000008, .eax = 0x302e },
	};

	memcpy(c->entries, entries, sizeof(entries));
	c->count = sizeof(entries) / sizeof(*entries);
}

static struct gw_vm *machine(void)
{
	static struct gw_vm vm;

	if (vm.config)
		return &vm;
	vm.config = &config;
	vm.pci = fake_host_new()->pci;
	processor(&vm.cpuid);
	processor(&vm.host_cpuid);
	vm.devices[0] = (struct gw_device){ .kind = "serial", .instance = "0" };
	vm.devices[1] = (struct gw_device){ .kind = "virtio-blk", .instance = "vda" };
	vm.ndevices = 2;
	return &vm;
}

/* It has at least what it is here: what is not told, such as a disk's size, is not compared. */
static void compare(struct gw_vm *vm, const Godwit__StreamMachine *theirs)
{
	if (theirs->cpus != config.cpus || theirs->n_devices != vm->ndevices || theirs->n_disks != config.ndisks || theirs->n_nets != config.nnets ||
	    strcmp(theirs->devices[1], "virtio-blk vda") || strcmp(theirs->disks[0]->name, "vda") || strcmp(theirs->nets[0]->name, "eth0") ||
	    theirs->nets[0]->mac.len != 6)
		abort();
}

static bool accept(struct gw_vm *vm, const void *data, size_t size, bool clone)
{
	Godwit__StreamMachine *theirs = godwit__stream_machine__unpack(NULL, size, data);
	struct gw_error err = GW_ERROR_INIT;
	bool taken = theirs && gw_move_machine_accept(vm, theirs, clone, &err) == 0;

	if (taken)
		compare(vm, theirs);
	else if (theirs && !err.msg[0])
		abort();
	if (theirs)
		godwit__stream_machine__free_unpacked(theirs, NULL);
	return taken;
}

/* Its own description is accepted. */
static void own(struct gw_vm *vm)
{
	struct gw_error err = GW_ERROR_INIT;
	Godwit__StreamMachine *m = NULL;
	uint8_t packed[4096];
	size_t len;

	if (gw_move_machine_describe(vm, &m, &err) < 0 || godwit__stream_machine__get_packed_size(m) > sizeof(packed))
		abort();
	len = godwit__stream_machine__pack(m, packed);
	if (!accept(vm, packed, len, false))
		abort();
	godwit__stream_machine__free_unpacked(m, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct gw_vm *vm;

	if (!vm) {
		vm = machine();
		own(vm);
	}
	/* Whoever would be it is taken for a clone of it, too. */
	if (accept(vm, data, size, false) && !accept(vm, data, size, true))
		abort();
	accept(vm, data, size, true);
	return 0;
}
