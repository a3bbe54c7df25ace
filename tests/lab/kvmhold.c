// SPDX-License-Identifier: Apache-2.0
/*
 * kvmhold: keeps two idle VMs open in a lab host for as long as it is up.
 *
 * KVM patches its own code (static keys) when the first VM is made, when a local APIC is disabled or enabled for the first
 * time, and again when the last such VM goes. The emulation that carries a lab host does not keep code coherent between
 * its CPUs well enough for that: about one guest in ten found a stale breakpoint instruction in KVM_RUN and took the host down
 * with it ("Oops: int3" in kvm_arch_vcpu_ioctl_run). With these VMs in place the keys are changed once, while nothing runs:
 *   a vCPU without a local APIC                       kvm_has_noapic_vcpu
 *   a vCPU whose local APIC is disabled both ways     apic_sw_disabled, apic_hw_disabled
 *   a VM at all                                       preempt_notifier_key
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int fail(const char *what)
{
	fprintf(stderr, "kvmhold: %s: %s\n", what, strerror(errno));
	return 1;
}

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), plain, with_apic, vcpu;
	struct kvm_sregs sregs;

	if (kvm < 0)
		return fail("/dev/kvm");
	plain = ioctl(kvm, KVM_CREATE_VM, 0);
	if (plain < 0 || ioctl(plain, KVM_CREATE_VCPU, 0) < 0)
		return fail("a VM without local APIC");
	with_apic = ioctl(kvm, KVM_CREATE_VM, 0);
	if (with_apic < 0 || ioctl(with_apic, KVM_CREATE_IRQCHIP, 0) < 0)
		return fail("a VM with local APIC");
	vcpu = ioctl(with_apic, KVM_CREATE_VCPU, 0);
	if (vcpu < 0 || ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		return fail("a vCPU with local APIC");
	sregs.apic_base &= ~0x800ull;	/* IA32_APIC_BASE bit 11, global enable: APM volume 2, 16.3.1 */
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0)
		return fail("disabling the local APIC");
	if (daemon(0, 0) < 0)
		return fail("going to the background");
	for (;;)
		pause();
}
