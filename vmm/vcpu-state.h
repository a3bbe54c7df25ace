// SPDX-License-Identifier: Apache-2.0
/* The complete state of one virtual processor: read, set back in the order that KVM needs, saved and loaded by table. */
#ifndef GW_VMM_VCPU_STATE_H
#define GW_VMM_VCPU_STATE_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"
#include "vmm/state.h"
#include "vmm/vm-state.h"

struct gw_vcpu;

struct gw_vcpu_state {
	struct kvm_regs regs;
	struct kvm_sregs2 sregs; /* the older kvm_sregs is converted where KVM lacks this one */
	struct gw_buf xsave;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp_state;
	struct gw_buf msrs;      /* struct kvm_msr_entry each */
	uint64_t tsc;            /* at the instant of the VM's saved clock */
};

struct gw_vcpu_state *gw_vcpu_state_new(void);
void gw_vcpu_state_free(struct gw_vcpu_state *st);

/* The vCPU is parked. `clock` is an instant just taken; NULL when time does not matter (tsc is then 0). */
int gw_vcpu_state_get(struct gw_vcpu *vcpu, const struct gw_vm_clock *clock, struct gw_vcpu_state *st, struct gw_error *err);
/* `then` and `now`: see gw_vm_state_load(); both NULL to leave the TSC as it runs. */
int gw_vcpu_state_set(struct gw_vcpu *vcpu, const struct gw_vcpu_state *st, const struct gw_vm_clock *then,
		      const struct gw_vm_clock *now, struct gw_error *err);

int gw_vcpu_save(struct gw_vcpu *vcpu, const struct gw_vm_clock *clock, struct gw_state_writer *w, struct gw_error *err);
int gw_vcpu_load(struct gw_vcpu *vcpu, const struct gw_vm_clock *then, const struct gw_vm_clock *now,
		 struct gw_state_reader *r, struct gw_error *err);

/* Tells the guest that it did not run for a while, so that its watchdogs do not bark. */
void gw_vcpu_note_pause(struct gw_vcpu *vcpu);

#endif
