// SPDX-License-Identifier: Apache-2.0
/* KVM's memory slots; see memslots.h. */
#include "vmm/memslots.h"

#include <linux/kvm.h>

#include "vmm/kvm.h"

int gw_memslots_set(int vm_fd, const struct gw_ram *ram, bool log_dirty, struct gw_error *err)
{
	unsigned count;
	const struct gw_ram_region *regions = gw_ram_regions(ram, &count);

	for (unsigned i = 0; i < count; i++) {
		struct kvm_userspace_memory_region slot = {
			.slot = i,
			.flags = log_dirty ? KVM_MEM_LOG_DIRTY_PAGES : 0,
			.guest_phys_addr = regions[i].gpa,
			.memory_size = regions[i].size,
			.userspace_addr = (uintptr_t)regions[i].hva,
		};
		int r = gw_kvm_ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot);

		if (r < 0)
			return gw_error_errno(err, r, "cannot give KVM the guest memory at 0x%llx",
					      (unsigned long long)regions[i].gpa);
	}
	return 0;
}
