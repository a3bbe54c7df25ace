// SPDX-License-Identifier: Apache-2.0
/* State that KVM keeps for the VM as a whole: interrupt controllers, timer chip, paravirtual clock; and the way time is carried over. */
#ifndef GW_VMM_VM_STATE_H
#define GW_VMM_VM_STATE_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "vmm/state.h"

struct gw_vm;

/*
 * One instant, seen on several clocks at once. Of a saved VM it is the instant that all its time values refer to; the guest's
 * TSC then is kept in its vCPUs' state.
 */
struct gw_vm_clock {
	uint64_t kvmclock; /* ns, the guest's monotonic clock */
	uint64_t realtime; /* ns since the epoch */
	uint64_t host_tsc; /* of this host; means nothing elsewhere */
	uint32_t tsc_khz;  /* rate of the guest's TSC */
	bool exact;        /* host_tsc was read by KVM at that very instant */
};

struct gw_vm_state {
	struct kvm_irqchip pic_master;
	struct kvm_irqchip pic_slave;
	struct kvm_irqchip ioapic;
	struct kvm_pit_state2 pit;
	struct gw_vm_clock clock;
};

/* The present instant. */
int gw_vm_clock_now(struct gw_vm *vm, struct gw_vm_clock *ret, struct gw_error *err);
/* The value that a TSC which showed `tsc` at the instant `then` shows at `now`, by the guest's clock. */
uint64_t gw_vm_clock_tsc(uint64_t tsc, const struct gw_vm_clock *then, const struct gw_vm_clock *now);

int gw_vm_state_get(struct gw_vm *vm, struct gw_vm_state *st, struct gw_error *err);
/* Everything but the clock. */
int gw_vm_state_set(struct gw_vm *vm, const struct gw_vm_state *st, struct gw_error *err);

int gw_vm_state_save(struct gw_vm *vm, struct gw_vm_state *st, struct gw_state_writer *w, struct gw_error *err);
/*
 * Takes the state and sets the guest's clock alone: to what it was plus the real time that passed since. st->clock is the saved
 * instant and *now the present one, for the vCPUs' TSCs. The rest is for gw_vm_state_set() after the vCPUs have theirs: the
 * IOAPIC then delivers what is pending, and needs the LAPICs for that.
 */
int gw_vm_state_load(struct gw_vm *vm, struct gw_state_reader *r, struct gw_vm_state *st, struct gw_vm_clock *now,
		     struct gw_error *err);
/* Whether a guest whose TSC runs at `khz` can run here. */
int gw_vm_check_tsc(const struct gw_vm *vm, uint32_t khz, struct gw_error *err);

#endif
