// SPDX-License-Identifier: Apache-2.0
/*
 * Second-level page tables made before the guest needs them. A guest that arrives by a move has its memory in place, but KVM maps it on the
 * guest's first touch, a fault each; the guest has most of those in the moments in which others wait for its first answer.
 */
#ifndef GW_VMM_PREFAULT_H
#define GW_VMM_PREFAULT_H

#include <stdint.h>

struct gw_vm;

/*
 * Maps one touched page of each 2 MiB of RAM: where the host has a huge page there, all of it. vCPUs are stopped. Best effort, for kernels
 * from 6.11 on (KVM API, KVM_PRE_FAULT_MEMORY): others, and what fails, cost the guest its faults.
 */
void gw_vm_prefault(struct gw_vm *vm);
/* The same of these pages, which are in place. */
void gw_vm_prefault_pages(struct gw_vm *vm, uint64_t first, uint64_t count);

#endif
