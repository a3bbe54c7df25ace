// SPDX-License-Identifier: Apache-2.0
/*
 * keyhold: keeps a lab host's kernel from patching its own code while guests run.
 *
 * Linux patches code where a static key changes, which happens when the first user of something comes and when the last one
 * goes. The emulation that carries a lab host does not keep code coherent between its CPUs well enough for that: about one guest
 * start in ten made another CPU run into a stale breakpoint instruction and took the host down ("Oops: int3" in KVM_RUN). So this
 * program is the first user of what tests start and stop all the time, from boot on and for ever:
 *   a VM                                              preempt_notifier_key
 *   a vCPU without a local APIC                       kvm_has_noapic_vcpu
 *   a vCPU whose local APIC is disabled both ways     apic_sw_disabled, apic_hw_disabled
 *   an io_uring                                       io_key_has_sqarray
 *   a socket that wants timestamps                    netstamp_needed_key
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void fail(const char *what)
{
	fprintf(stderr, "keyhold: %s: %s\n", what, strerror(errno));
}

static void hold_kvm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), plain, with_apic, vcpu;
	struct kvm_sregs sregs;

	plain = ioctl(kvm, KVM_CREATE_VM, 0);
	if (plain < 0 || ioctl(plain, KVM_CREATE_VCPU, 0) < 0)
		fail("a VM without local APIC");
	with_apic = ioctl(kvm, KVM_CREATE_VM, 0);
	if (with_apic < 0 || ioctl(with_apic, KVM_CREATE_IRQCHIP, 0) < 0)
		fail("a VM with local APIC");
	vcpu = ioctl(with_apic, KVM_CREATE_VCPU, 0);
	if (vcpu < 0 || ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0) {
		fail("a vCPU with local APIC");
		return;
	}
	/* IA32_APIC_BASE bit 11 is the global enable (AMD APM volume 2, 16.3.1). */
	sregs.apic_base &= ~0x800ull;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0)
		fail("disabling the local APIC");
}

static void hold_io_uring(void)
{
	struct io_uring_params p = { 0 };

	if (syscall(SYS_io_uring_setup, 1, &p) < 0)
		fail("io_uring");
}

static void hold_timestamps(void)
{
	int one = 1, sock = socket(AF_INET, SOCK_DGRAM, 0);

	if (sock < 0 || setsockopt(sock, SOL_SOCKET, SO_TIMESTAMP, &one, sizeof(one)) < 0)
		fail("timestamps");
}

int main(void)
{
	/* What can be had is held even if something else fails: the message is on the console. */
	hold_kvm();
	hold_io_uring();
	hold_timestamps();
	if (daemon(0, 0) < 0)
		fail("going to the background");
	for (;;)
		pause();
}
