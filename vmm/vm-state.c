// SPDX-License-Identifier: Apache-2.0
/*
 * State that KVM keeps for the VM as a whole; see vm-state.h. Time is carried over by the algorithm of the kernel's
 * Documentation/virt/kvm/devices/vcpu.rst, "KVM_VCPU_TSC_OFFSET".
 */
#include "vmm/vm-state.h"

#include <errno.h>
#include <string.h>
#include <x86intrin.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "vmm/vm-internal.h"

static const struct gw_state_field fields[] = {
	GW_STATE_BYTES(struct gw_vm_state, pic_master.chip, 1),
	GW_STATE_BYTES(struct gw_vm_state, pic_slave.chip, 1),
	GW_STATE_BYTES(struct gw_vm_state, ioapic.chip, 1),
	GW_STATE_BYTES(struct gw_vm_state, pit, 1),
	GW_STATE_UINT(struct gw_vm_state, clock.kvmclock, 1),
	GW_STATE_UINT(struct gw_vm_state, clock.realtime, 1),
	GW_STATE_UINT(struct gw_vm_state, clock.tsc_khz, 1),
	{ }
};
static const struct gw_state_desc desc = { "machine", 1, 1, fields };

/* KVM's own tolerance when it decides whether a TSC rate is the host's: parts per million. */
#define TSC_TOLERANCE_PPM 250

int gw_vm_clock_now(struct gw_vm *vm, struct gw_vm_clock *ret, struct gw_error *err)
{
	struct kvm_clock_data data;
	int r;

	memset(&data, 0, sizeof(data));
	r = gw_kvm_ioctl(vm->fd, KVM_GET_CLOCK, &data);
	if (r < 0)
		return gw_error_errno(err, r, "cannot read the guest's clock");
	memset(ret, 0, sizeof(*ret));
	ret->kvmclock = data.clock;
	ret->tsc_khz = vm->tsc_khz;
	ret->exact = (data.flags & KVM_CLOCK_REALTIME) && (data.flags & KVM_CLOCK_HOST_TSC);
	/* Hosts that do not keep time by the TSC cannot tell both at once: then a few microseconds lie in between. */
	ret->realtime = ret->exact ? data.realtime : gw_realtime_ns();
	ret->host_tsc = ret->exact ? data.host_tsc : __rdtsc();
	return 0;
}

uint64_t gw_vm_clock_tsc(uint64_t tsc, const struct gw_vm_clock *then, const struct gw_vm_clock *now)
{
	/* Signed: the clocks' resolution may let the later instant appear a little before. */
	__int128 elapsed = (__int128)now->kvmclock - (__int128)then->kvmclock;

	return tsc + (uint64_t)(int64_t)(elapsed * then->tsc_khz / 1000000);
}

static int get_irqchip(struct gw_vm *vm, struct kvm_irqchip *chip, uint32_t id, struct gw_error *err)
{
	int r;

	memset(chip, 0, sizeof(*chip));
	chip->chip_id = id;
	r = gw_kvm_ioctl(vm->fd, KVM_GET_IRQCHIP, chip);
	return r < 0 ? gw_error_errno(err, r, "cannot read interrupt controller %u", id) : 0;
}

static int set_irqchip(struct gw_vm *vm, const struct kvm_irqchip *chip, uint32_t id, struct gw_error *err)
{
	struct kvm_irqchip copy = *chip;
	int r;

	copy.chip_id = id;
	r = gw_kvm_ioctl(vm->fd, KVM_SET_IRQCHIP, &copy);
	return r < 0 ? gw_error_errno(err, r, "cannot set interrupt controller %u", id) : 0;
}

int gw_vm_state_get(struct gw_vm *vm, struct gw_vm_state *st, struct gw_error *err)
{
	int r;

	memset(st, 0, sizeof(*st));
	r = get_irqchip(vm, &st->pic_master, KVM_IRQCHIP_PIC_MASTER, err);
	if (r == 0)
		r = get_irqchip(vm, &st->pic_slave, KVM_IRQCHIP_PIC_SLAVE, err);
	if (r == 0)
		r = get_irqchip(vm, &st->ioapic, KVM_IRQCHIP_IOAPIC, err);
	if (r < 0)
		return r;
	r = gw_kvm_ioctl(vm->fd, KVM_GET_PIT2, &st->pit);
	if (r < 0)
		return gw_error_errno(err, r, "cannot read the timer chip");
	return gw_vm_clock_now(vm, &st->clock, err);
}

int gw_vm_state_set(struct gw_vm *vm, const struct gw_vm_state *st, struct gw_error *err)
{
	struct kvm_pit_state2 pit = st->pit;
	int r;

	r = set_irqchip(vm, &st->pic_master, KVM_IRQCHIP_PIC_MASTER, err);
	if (r == 0)
		r = set_irqchip(vm, &st->pic_slave, KVM_IRQCHIP_PIC_SLAVE, err);
	if (r == 0)
		r = set_irqchip(vm, &st->ioapic, KVM_IRQCHIP_IOAPIC, err);
	if (r < 0)
		return r;
	r = gw_kvm_ioctl(vm->fd, KVM_SET_PIT2, &pit);
	return r < 0 ? gw_error_errno(err, r, "cannot set the timer chip") : 0;
}

int gw_vm_state_save(struct gw_vm *vm, struct gw_vm_state *st, struct gw_state_writer *w, struct gw_error *err)
{
	int r = gw_vm_state_get(vm, st, err);

	if (r < 0)
		return r;
	r = gw_state_put(w, &desc, "0", st);
	return r < 0 ? gw_error_errno(err, r, "cannot save the machine's state") : 0;
}

/* The guest's TSC must go on at its rate: by the host's own one, or by hardware that scales it. */
int gw_vm_check_tsc(const struct gw_vm *vm, uint32_t khz, struct gw_error *err)
{
	uint64_t difference = khz > vm->host_tsc_khz ? khz - vm->host_tsc_khz : vm->host_tsc_khz - khz;

	if (khz == 0)
		return gw_error_set(err, EPROTO, "the state tells no rate of the TSC");
	if (difference * 1000000 <= (uint64_t)vm->host_tsc_khz * TSC_TOLERANCE_PPM || vm->kvm.caps.tsc_control)
		return 0;
	return gw_error_set(err, ENOTSUP, "the VM's TSC runs at %u kHz, this host's at %u kHz, and its processor cannot scale it",
			    khz, vm->host_tsc_khz);
}

static int set_clock(struct gw_vm *vm, const struct gw_vm_clock *then, struct gw_error *err)
{
	struct kvm_clock_data data;
	int r;

	memset(&data, 0, sizeof(data));
	data.clock = then->kvmclock;
	if (vm->kvm.caps.adjust_clock & KVM_CLOCK_REALTIME) {
		data.flags = KVM_CLOCK_REALTIME;
		data.realtime = then->realtime;
	} else {
		uint64_t now = gw_realtime_ns();

		data.clock += now > then->realtime ? now - then->realtime : 0;
	}
	r = gw_kvm_ioctl(vm->fd, KVM_SET_CLOCK, &data);
	return r < 0 ? gw_error_errno(err, r, "cannot set the guest's clock") : 0;
}

int gw_vm_state_load(struct gw_vm *vm, struct gw_state_reader *r, struct gw_vm_state *st, struct gw_vm_clock *now,
		     struct gw_error *err)
{
	int ret;

	memset(st, 0, sizeof(*st));
	ret = gw_state_get(r, &desc, "0", st, err);
	if (ret == 0)
		ret = gw_vm_check_tsc(vm, st->clock.tsc_khz, err);
	if (ret == 0)
		ret = set_clock(vm, &st->clock, err);
	if (ret < 0)
		return ret;
	vm->tsc_khz = vm->kvm.caps.tsc_control ? st->clock.tsc_khz : vm->host_tsc_khz;
	return gw_vm_clock_now(vm, now, err);
}
