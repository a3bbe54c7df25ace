// SPDX-License-Identifier: Apache-2.0
/* The VM's part in sharing: see ksm/sharer.h. */
#include <unistd.h>

#include "vmm/vm-internal.h"

int gw_vm_share(struct gw_vm *vm, const struct gw_sharer_config *config, int fd, struct gw_error *err)
{
	struct gw_sharer *sharer = vm->sharer;

	if (!sharer) {
		int r = gw_sharer_new(vm->ram, config, &sharer, err);

		if (r < 0) {
			close(fd);
			return r;
		}
		/* Pairs with the load in gw_vm_note_disk_read(): device threads are running. */
		__atomic_store_n(&vm->sharer, sharer, __ATOMIC_RELEASE);
	}
	gw_sharer_attach(sharer, fd);
	return 0;
}

bool gw_vm_share_stats(const struct gw_vm *vm, struct gw_sharer_stats *ret)
{
	if (vm->sharer)
		gw_sharer_stats(vm->sharer, ret);
	return vm->sharer != NULL;
}

struct gw_lineage *gw_vm_lineage(struct gw_vm *vm)
{
	return vm->sharer ? gw_sharer_lineage(vm->sharer) : NULL;
}

void gw_vm_share_loaded(struct gw_vm *vm)
{
	if (vm->sharer)
		gw_sharer_loaded(vm->sharer);
}

void gw_vm_share_pause(struct gw_vm *vm)
{
	if (vm->sharer)
		gw_sharer_pause(vm->sharer);
}

void gw_vm_share_resume(struct gw_vm *vm)
{
	if (vm->sharer)
		gw_sharer_resume(vm->sharer);
}

void gw_vm_note_disk_read(struct gw_vm *vm, uint64_t gpa, uint64_t len)
{
	struct gw_sharer *sharer = __atomic_load_n(&vm->sharer, __ATOMIC_ACQUIRE);

	if (sharer)
		gw_sharer_disk_read(sharer, gpa, len);
}
