// SPDX-License-Identifier: Apache-2.0
/* Access to KVM; see kvm.h. The extensions' meaning is in the kernel's Documentation/virt/kvm/api.rst. */
#include "vmm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "lib/util.h"

#define KVM_DEVICE "/dev/kvm"

static const struct {
	int cap;
	const char *name;
} required[] = {
	{ KVM_CAP_IRQCHIP, "in-kernel interrupt controllers" },
	{ KVM_CAP_USER_MEMORY, "user memory" },
	{ KVM_CAP_SET_TSS_ADDR, "KVM_SET_TSS_ADDR" },
	{ KVM_CAP_SET_IDENTITY_MAP_ADDR, "KVM_SET_IDENTITY_MAP_ADDR" },
	{ KVM_CAP_EXT_CPUID, "KVM_GET_SUPPORTED_CPUID" },
	{ KVM_CAP_MP_STATE, "KVM_GET_MP_STATE" },
	{ KVM_CAP_IRQ_ROUTING, "interrupt routing" },
	{ KVM_CAP_IRQFD, "irqfd" },
	{ KVM_CAP_IOEVENTFD, "ioeventfd" },
	{ KVM_CAP_PIT2, "KVM_CREATE_PIT2" },
	{ KVM_CAP_PIT_STATE2, "KVM_GET_PIT2" },
	{ KVM_CAP_ADJUST_CLOCK, "KVM_GET_CLOCK" },
	{ KVM_CAP_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS" },
	{ KVM_CAP_DEBUGREGS, "KVM_GET_DEBUGREGS" },
	{ KVM_CAP_XSAVE, "KVM_GET_XSAVE" },
	{ KVM_CAP_XCRS, "KVM_GET_XCRS" },
	{ KVM_CAP_GET_TSC_KHZ, "KVM_GET_TSC_KHZ" },
	{ KVM_CAP_SIGNAL_MSI, "KVM_SIGNAL_MSI" },
	{ KVM_CAP_IMMEDIATE_EXIT, "immediate_exit" },
};

int gw_kvm_ioctl(int fd, unsigned long request, void *arg)
{
	int r;

	do
		r = ioctl(fd, request, arg);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

int gw_kvm_ioctl_value(int fd, unsigned long request, unsigned long value)
{
	int r;

	do
		r = ioctl(fd, request, value);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

static int check_cap(int fd, int cap)
{
	int r = gw_kvm_ioctl_value(fd, KVM_CHECK_EXTENSION, (unsigned long)cap);

	return r < 0 ? 0 : r;
}

static int explain_open(int code, struct gw_error *err)
{
	switch (code) {
	case ENOENT:
	case ENXIO:
	case ENODEV:
		return gw_error_set(err, code, "this host has no " KVM_DEVICE ": load the module (modprobe kvm_intel or "
				    "kvm_amd), switch virtualisation on in the firmware, or, inside a VM, let its host "
				    "offer nested virtualisation");
	case EACCES:
	case EPERM:
		return gw_error_set(err, code, "no permission to use " KVM_DEVICE ": join its group (usually: usermod -aG "
				    "kvm USER, then log in anew) or run as root");
	case EBUSY:
		return gw_error_set(err, code, KVM_DEVICE " is busy: another hypervisor holds the processor's "
				    "virtualisation (VirtualBox, VMware?)");
	default:
		return gw_error_errno(err, code, "cannot open " KVM_DEVICE);
	}
}

static void read_caps(int fd, struct gw_kvm_caps *caps)
{
	int ring = check_cap(fd, KVM_CAP_DIRTY_LOG_RING_ACQ_REL);

	caps->dirty_ring_acq_rel = ring > 0;
	/* x86 is strongly ordered: the older name promises the same there. */
	caps->dirty_ring = ring > 0 ? ring : check_cap(fd, KVM_CAP_DIRTY_LOG_RING);
	caps->xsave2 = check_cap(fd, KVM_CAP_XSAVE2);
	caps->sregs2 = check_cap(fd, KVM_CAP_SREGS2);
	caps->manual_dirty_protect = check_cap(fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
	caps->tsc_control = check_cap(fd, KVM_CAP_TSC_CONTROL);
	caps->vcpu_attributes = check_cap(fd, KVM_CAP_VCPU_ATTRIBUTES);
	caps->adjust_clock = check_cap(fd, KVM_CAP_ADJUST_CLOCK);
	caps->kvmclock_ctrl = check_cap(fd, KVM_CAP_KVMCLOCK_CTRL);
	caps->tsc_deadline_timer = check_cap(fd, KVM_CAP_TSC_DEADLINE_TIMER);
	caps->triple_fault_event = check_cap(fd, KVM_CAP_X86_TRIPLE_FAULT_EVENT);
	caps->exception_payload = check_cap(fd, KVM_CAP_EXCEPTION_PAYLOAD);
	caps->max_vcpus = check_cap(fd, KVM_CAP_MAX_VCPUS);
}

int gw_kvm_open(struct gw_kvm *kvm, struct gw_error *err)
{
	gw_autofd fd = open(KVM_DEVICE, O_RDWR | O_CLOEXEC);
	int r;

	kvm->fd = -1;
	if (fd < 0)
		return explain_open(errno, err);
	r = gw_kvm_ioctl_value(fd, KVM_GET_API_VERSION, 0);
	if (r != KVM_API_VERSION)
		return gw_error_set(err, ENOTSUP, KVM_DEVICE " speaks API version %d, this VMM needs %d", r, KVM_API_VERSION);
	for (size_t i = 0; i < ARRAY_SIZE(required); i++) {
		if (!check_cap(fd, required[i].cap))
			return gw_error_set(err, ENOTSUP, "this host's KVM lacks %s: a newer kernel is needed (5.10 or later)",
					    required[i].name);
	}
	r = gw_kvm_ioctl_value(fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (r < (int)sizeof(struct kvm_run))
		return gw_error_set(err, ENOTSUP, KVM_DEVICE ": a vCPU's shared area of %d bytes is too small", r);
	kvm->run_size = (size_t)r;
	read_caps(fd, &kvm->caps);
	kvm->fd = gw_steal_fd(&fd);
	return 0;
}

void gw_kvm_close(struct gw_kvm *kvm)
{
	gw_closep(&kvm->fd);
}

int gw_kvm_create_vm(const struct gw_kvm *kvm, int *ret, struct gw_error *err)
{
	int fd = gw_kvm_ioctl_value(kvm->fd, KVM_CREATE_VM, 0);

	if (fd < 0)
		return gw_error_errno(err, fd, "cannot create a VM");
	*ret = fd;
	return 0;
}
