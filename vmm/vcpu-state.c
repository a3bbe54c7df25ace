// SPDX-License-Identifier: Apache-2.0
/* A virtual processor's state; see vcpu-state.h. Nested virtualisation has no state here: guests are not offered it. */
#include "vmm/vcpu-state.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/msrs.h"
#include "vmm/vm-internal.h"

#define XSAVE_MIN 4096           /* struct kvm_xsave */
#define XSAVE_MAX (64u << 10)    /* AMX makes it 11 KiB today */

static const struct gw_state_field fields[] = {
	GW_STATE_BYTES(struct gw_vcpu_state, regs, 1),
	GW_STATE_BYTES(struct gw_vcpu_state, sregs, 1),
	GW_STATE_BUF(struct gw_vcpu_state, xsave, XSAVE_MAX, 1),
	GW_STATE_BYTES(struct gw_vcpu_state, xcrs, 1),
	GW_STATE_BYTES(struct gw_vcpu_state, debugregs, 1),
	GW_STATE_BYTES(struct gw_vcpu_state, lapic, 1),
	GW_STATE_BYTES(struct gw_vcpu_state, events, 1),
	GW_STATE_BYTES(struct gw_vcpu_state, mp_state, 1),
	GW_STATE_BUF(struct gw_vcpu_state, msrs, GW_MAX_MSRS * sizeof(struct kvm_msr_entry), 1),
	GW_STATE_UINT(struct gw_vcpu_state, tsc, 1),
	{ }
};
static const struct gw_state_desc desc = { "vcpu", 1, 1, fields };

struct gw_vcpu_state *gw_vcpu_state_new(void)
{
	return calloc(1, sizeof(struct gw_vcpu_state));
}

void gw_vcpu_state_free(struct gw_vcpu_state *st)
{
	if (!st)
		return;
	gw_buf_release(&st->xsave);
	gw_buf_release(&st->msrs);
	free(st);
}

/* One ioctl on the vCPU, with an error that names what it was about. */
static int call(struct gw_vcpu *vcpu, unsigned long request, void *arg, const char *what, struct gw_error *err)
{
	int r = gw_kvm_ioctl(gw_vcpu_fd(vcpu), request, arg);

	return r < 0 ? gw_error_errno(err, r, "vCPU %u: cannot %s", gw_vcpu_index(vcpu), what) : 0;
}

/* struct kvm_sregs begins as kvm_sregs2 does, up to and with apic_base. */
#define SREGS_COMMON offsetof(struct kvm_sregs2, flags)
static_assert(offsetof(struct kvm_sregs, interrupt_bitmap) == SREGS_COMMON, "kvm_sregs and kvm_sregs2 begin alike");

static int get_sregs(struct gw_vcpu *vcpu, struct kvm_sregs2 *out, struct gw_error *err)
{
	struct kvm_sregs old;
	int r;

	memset(out, 0, sizeof(*out));
	if (gw_vcpu_vm(vcpu)->kvm.caps.sregs2)
		return call(vcpu, KVM_GET_SREGS2, out, "read segment and control registers", err);
	r = call(vcpu, KVM_GET_SREGS, &old, "read segment and control registers", err);
	if (r == 0)
		memcpy(out, &old, SREGS_COMMON);
	return r;
}

static int set_sregs(struct gw_vcpu *vcpu, const struct kvm_sregs2 *in, struct gw_error *err)
{
	struct kvm_sregs2 copy = *in;
	struct kvm_sregs old;

	if (gw_vcpu_vm(vcpu)->kvm.caps.sregs2)
		return call(vcpu, KVM_SET_SREGS2, &copy, "set segment and control registers", err);
	/* An interrupt under way is told by kvm_vcpu_events; this bitmap is for user-space controllers. */
	memset(&old, 0, sizeof(old));
	memcpy(&old, in, SREGS_COMMON);
	return call(vcpu, KVM_SET_SREGS, &old, "set segment and control registers", err);
}

static size_t xsave_size(const struct gw_vm *vm)
{
	return GW_MAX((size_t)vm->kvm.caps.xsave2, (size_t)XSAVE_MIN);
}

static int get_xsave(struct gw_vcpu *vcpu, struct gw_buf *out, struct gw_error *err)
{
	struct gw_vm *vm = gw_vcpu_vm(vcpu);
	size_t size = xsave_size(vm);
	void *p;

	out->len = 0;
	p = gw_buf_reserve(out, size);
	if (!p)
		return gw_error_set(err, ENOMEM, "out of memory");
	memset(p, 0, size);
	out->len = size;
	return call(vcpu, vm->kvm.caps.xsave2 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, p, "read the extended state", err);
}

static int set_xsave(struct gw_vcpu *vcpu, const struct gw_buf *in, struct gw_error *err)
{
	size_t size = xsave_size(gw_vcpu_vm(vcpu));
	gw_autofree uint8_t *area = calloc(1, size);

	if (!area)
		return gw_error_set(err, ENOMEM, "out of memory");
	for (size_t i = size; i < in->len; i++) {
		if (in->data[i])
			return gw_error_set(err, ENOTSUP, "vCPU %u: its extended state of %zu bytes does not fit this "
					    "processor's %zu", gw_vcpu_index(vcpu), in->len, size);
	}
	memcpy(area, in->data, GW_MIN(size, in->len));
	return call(vcpu, KVM_SET_XSAVE, area, "set the extended state", err);
}

static int tsc_offset(struct gw_vcpu *vcpu, unsigned long request, uint64_t *offset)
{
	struct kvm_device_attr attr = {
		.group = KVM_VCPU_TSC_CTRL,
		.attr = KVM_VCPU_TSC_OFFSET,
		.addr = (uintptr_t)offset,
	};

	if (!gw_vcpu_vm(vcpu)->kvm.caps.vcpu_attributes)
		return -ENXIO;
	return gw_kvm_ioctl(gw_vcpu_fd(vcpu), request, &attr);
}

static int get_tsc(struct gw_vcpu *vcpu, const struct gw_vm_clock *clock, uint64_t *tsc, struct gw_error *err)
{
	uint64_t offset;

	if (tsc_offset(vcpu, KVM_GET_DEVICE_ATTR, &offset) == 0) {
		*tsc = clock->host_tsc + offset;
		return 0;
	}
	/* Older kernels: what it shows a moment after the instant. */
	if (gw_msr_read(gw_vcpu_fd(vcpu), GW_MSR_TSC, tsc) < 0)
		return gw_error_set(err, EIO, "vCPU %u: cannot read the TSC", gw_vcpu_index(vcpu));
	return 0;
}

static int set_tsc(struct gw_vcpu *vcpu, uint64_t tsc, const struct gw_vm_clock *then, const struct gw_vm_clock *now,
		   struct gw_error *err)
{
	struct gw_vm *vm = gw_vcpu_vm(vcpu);
	bool scale = then->tsc_khz != vm->host_tsc_khz && vm->kvm.caps.tsc_control;
	uint64_t offset;

	if (scale) {
		int r = gw_kvm_ioctl_value(gw_vcpu_fd(vcpu), KVM_SET_TSC_KHZ, then->tsc_khz);

		if (r < 0)
			return gw_error_errno(err, r, "vCPU %u: cannot set the TSC's rate", gw_vcpu_index(vcpu));
	}
	tsc = gw_vm_clock_tsc(tsc, then, now);
	/* The offset is added to the host's TSC after scaling; with scaling only KVM knows that product. */
	offset = tsc - now->host_tsc;
	if (!scale && tsc_offset(vcpu, KVM_SET_DEVICE_ATTR, &offset) == 0)
		return 0;
	if (gw_msr_write(gw_vcpu_fd(vcpu), GW_MSR_TSC, tsc) < 0)
		return gw_error_set(err, EIO, "vCPU %u: cannot set the TSC", gw_vcpu_index(vcpu));
	return 0;
}

int gw_vcpu_state_get(struct gw_vcpu *vcpu, const struct gw_vm_clock *clock, struct gw_vcpu_state *st, struct gw_error *err)
{
	struct gw_vm *vm = gw_vcpu_vm(vcpu);
	int r;

	/* First: KVM settles pending INITs and SIPIs here, and CR2 or DR6 of a pending exception there, which changes the rest. */
	r = call(vcpu, KVM_GET_MP_STATE, &st->mp_state, "read the run state", err);
	if (r == 0)
		r = call(vcpu, KVM_GET_VCPU_EVENTS, &st->events, "read pending events", err);
	if (r == 0)
		r = call(vcpu, KVM_GET_REGS, &st->regs, "read registers", err);
	if (r == 0)
		r = get_sregs(vcpu, &st->sregs, err);
	if (r == 0)
		r = get_xsave(vcpu, &st->xsave, err);
	if (r == 0)
		r = call(vcpu, KVM_GET_XCRS, &st->xcrs, "read XCR0", err);
	if (r == 0)
		r = call(vcpu, KVM_GET_DEBUGREGS, &st->debugregs, "read debug registers", err);
	if (r == 0)
		r = call(vcpu, KVM_GET_LAPIC, &st->lapic, "read the LAPIC", err);
	if (r == 0)
		r = gw_msrs_get(gw_vcpu_fd(vcpu), &vm->msr_list, &st->msrs, err);
	if (r == 0 && clock)
		r = get_tsc(vcpu, clock, &st->tsc, err);
	return r;
}

int gw_vcpu_state_set(struct gw_vcpu *vcpu, const struct gw_vcpu_state *st, const struct gw_vm_clock *then,
		      const struct gw_vm_clock *now, struct gw_error *err)
{
	struct gw_vm *vm = gw_vcpu_vm(vcpu);
	struct gw_vcpu_state copy = *st; /* ioctls take pointers to non-const */
	uint64_t deadline = 0;
	int r;

	r = call(vcpu, KVM_SET_REGS, &copy.regs, "set registers", err);
	if (r == 0)
		r = set_sregs(vcpu, &st->sregs, err);
	/* XCR0 says which parts of the extended state are taken. */
	if (r == 0)
		r = call(vcpu, KVM_SET_XCRS, &copy.xcrs, "set XCR0", err);
	if (r == 0)
		r = set_xsave(vcpu, &st->xsave, err);
	if (r == 0 && then)
		r = set_tsc(vcpu, st->tsc, then, now, err);
	if (r == 0)
		r = gw_msrs_set(gw_vcpu_fd(vcpu), vm->ram, &st->msrs, &deadline, err);
	/* After the base address (sregs), before the deadline: KVM drops a deadline unless the LAPIC's timer is in that mode. */
	if (r == 0)
		r = call(vcpu, KVM_SET_LAPIC, &copy.lapic, "set the LAPIC", err);
	if (r == 0 && deadline && gw_msr_write(gw_vcpu_fd(vcpu), GW_MSR_TSC_DEADLINE, deadline) < 0)
		r = gw_error_set(err, EIO, "vCPU %u: cannot set the TSC deadline", gw_vcpu_index(vcpu));
	if (r == 0)
		r = call(vcpu, KVM_SET_DEBUGREGS, &copy.debugregs, "set debug registers", err);
	if (r == 0)
		r = call(vcpu, KVM_SET_VCPU_EVENTS, &copy.events, "set pending events", err);
	/* Last: it decides whether all of the above runs. */
	if (r == 0)
		r = call(vcpu, KVM_SET_MP_STATE, &copy.mp_state, "set the run state", err);
	return r;
}

static void instance_name(const struct gw_vcpu *vcpu, char name[12])
{
	snprintf(name, 12, "%u", gw_vcpu_index(vcpu));
}

int gw_vcpu_save(struct gw_vcpu *vcpu, const struct gw_vm_clock *clock, struct gw_state_writer *w, struct gw_error *err)
{
	struct gw_vcpu_state *st = gw_vcpu_state_new();
	char name[12];
	int r;

	if (!st)
		return gw_error_set(err, ENOMEM, "out of memory");
	instance_name(vcpu, name);
	r = gw_vcpu_state_get(vcpu, clock, st, err);
	if (r == 0) {
		r = gw_state_put(w, &desc, name, st);
		if (r < 0)
			gw_error_errno(err, r, "cannot save the state of vCPU %s", name);
	}
	gw_vcpu_state_free(st);
	return r;
}

int gw_vcpu_load(struct gw_vcpu *vcpu, const struct gw_vm_clock *then, const struct gw_vm_clock *now,
		 struct gw_state_reader *r, struct gw_error *err)
{
	struct gw_vcpu_state *st = gw_vcpu_state_new();
	char name[12];
	int ret;

	if (!st)
		return gw_error_set(err, ENOMEM, "out of memory");
	instance_name(vcpu, name);
	ret = gw_state_get(r, &desc, name, st, err);
	if (ret == 0)
		ret = gw_vcpu_state_set(vcpu, st, then, now, err);
	gw_vcpu_state_free(st);
	return ret;
}

void gw_vcpu_note_pause(struct gw_vcpu *vcpu)
{
	/* -EINVAL: the guest has no paravirtual clock. */
	(void)gw_kvm_ioctl_value(gw_vcpu_fd(vcpu), KVM_KVMCLOCK_CTRL, 0);
}
