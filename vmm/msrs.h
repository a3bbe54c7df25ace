// SPDX-License-Identifier: Apache-2.0
/* Model-specific registers: which ones belong to a vCPU's state, read and written in bulk. */
#ifndef GW_VMM_MSRS_H
#define GW_VMM_MSRS_H

#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"

struct gw_ram;
struct gw_vm;

#define GW_MSR_TSC 0x10u
#define GW_MSR_TSC_DEADLINE 0x6e0u
/* More than any KVM lists. */
#define GW_MAX_MSRS 1024

/* What this host's KVM lets be read and set back. */
struct gw_msr_list {
	unsigned count;
	uint32_t index[GW_MAX_MSRS];
};

/* Asks KVM and tries each on the (new, never run) vCPU `vcpu_fd`. */
int gw_msr_list_init(int kvm_fd, int vcpu_fd, struct gw_msr_list *list, struct gw_error *err);

/* One register: 0, or -EIO when KVM refuses it. */
int gw_msr_read(int vcpu_fd, uint32_t index, uint64_t *value);
int gw_msr_write(int vcpu_fd, uint32_t index, uint64_t value);

/* Reads all of the list into `out` as struct kvm_msr_entry. */
int gw_msrs_get(int vcpu_fd, const struct gw_msr_list *list, struct gw_buf *out, struct gw_error *err);
/*
 * Sets what gw_msrs_get() gave, here or on another host; but the TSC deadline, which must follow the LAPIC: it is put in
 * *deadline (0 when there was none). A register that this host does not know is an error unless its value is zero.
 */
int gw_msrs_set(int vcpu_fd, struct gw_ram *ram, const struct gw_buf *msrs, uint64_t *deadline, struct gw_error *err);

#endif
