// SPDX-License-Identifier: Apache-2.0
/* Mapping guest memory before the guest runs; see prefault.h. */
#include "vmm/prefault.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "lib/util.h"
#include "migrate/pages.h"
#include "vmm/vm-internal.h"

/* Not in the headers of older kernels. KVM API 4.143. */
#ifndef KVM_PRE_FAULT_MEMORY
struct kvm_pre_fault_memory {
	__u64 gpa, size, flags, padding[5];
};
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif

#define HUGE_PAGES 512u /* small pages in a huge one */

/* False when this kernel does not do it at all. */
static bool map(struct gw_vm *vm, uint64_t gpa, uint64_t size)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = size };
	int r = ioctl(gw_vcpu_fd(gw_vcpus_get(vm->vcpus, 0)), KVM_PRE_FAULT_MEMORY, &range);

	return r == 0 || errno == EINTR || errno == EAGAIN;
}

void gw_vm_prefault(struct gw_vm *vm)
{
	uint64_t pages = gw_ram_pages(vm->ram), next = 0;
	uint64_t *touched = malloc(gw_ram_bitmap_words(vm->ram) * sizeof(uint64_t));

	if (!touched)
		return;
	memset(touched, 0xff, gw_ram_bitmap_words(vm->ram) * sizeof(uint64_t));
	/* A page that was never touched would be mapped as the page of zeros, and fault again when it is written. */
	gw_pages_drop_untouched(vm->ram, touched);
	for (uint64_t i = 0; i < pages; i = next) {
		next = i + 1;
		if (!(touched[i / 64] >> (i % 64) & 1))
			continue;
		if (!map(vm, gw_ram_gpa(vm->ram, i), GW_PAGE_SIZE))
			break;
		next = (i / HUGE_PAGES + 1) * HUGE_PAGES;
	}
	free(touched);
}

void gw_vm_prefault_pages(struct gw_vm *vm, uint64_t first, uint64_t count)
{
	for (uint64_t n; count > 0; first += n, count -= n) {
		n = GW_MIN(count, gw_ram_contiguous(vm->ram, first));
		if (!map(vm, gw_ram_gpa(vm->ram, first), n << GW_PAGE_SHIFT))
			break;
	}
}
