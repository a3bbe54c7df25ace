// SPDX-License-Identifier: Apache-2.0
/* /dev/kvm: opened with an explanation when it cannot be, and what the host's KVM can do. */
#ifndef GW_VMM_KVM_H
#define GW_VMM_KVM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/error.h"

/* Values of KVM_CHECK_EXTENSION that the code asks for later; 0 is "no". */
struct gw_kvm_caps {
	int xsave2;              /* bytes of the XSAVE area that vCPUs will have */
	int sregs2;
	int dirty_ring;          /* bytes, the largest ring */
	bool dirty_ring_acq_rel; /* the extension's newer name works */
	int manual_dirty_protect; /* KVM_DIRTY_LOG_* flags */
	int tsc_control;
	int vcpu_attributes;
	int adjust_clock;        /* KVM_CLOCK_* flags that KVM_GET_CLOCK may report */
	int kvmclock_ctrl;
	int tsc_deadline_timer;
	int triple_fault_event;
	int exception_payload;
	int max_vcpus;
};

struct gw_kvm {
	int fd; /* /dev/kvm */
	size_t run_size; /* bytes of a vCPU's shared area */
	struct gw_kvm_caps caps;
};

/* Opens /dev/kvm, checks the API and every extension that is required. Sets kvm->fd to -1 on failure. */
int gw_kvm_open(struct gw_kvm *kvm, struct gw_error *err);
void gw_kvm_close(struct gw_kvm *kvm);
/* Creates a VM; *ret is its descriptor. */
int gw_kvm_create_vm(const struct gw_kvm *kvm, int *ret, struct gw_error *err);

/* ioctl() that repeats on EINTR; the result, or a negative errno. Not for KVM_RUN. */
int gw_kvm_ioctl(int fd, unsigned long request, void *arg);
/* The same for requests whose argument is a number. */
int gw_kvm_ioctl_value(int fd, unsigned long request, unsigned long value);

#endif
