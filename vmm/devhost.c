// SPDX-License-Identifier: Apache-2.0
/* Devices' edge to KVM; see devhost.h. */
#include "vmm/devhost.h"

#include "vmm/irq.h"
#include "vmm/talk.h"
#include "vmm/virtqueue.h"
#include "vmm/vm.h"

static int msi_new(const struct gw_devhost *host, struct gw_msi **ret, struct gw_error *err)
{
	return gw_msi_new(host->vm, ret, err);
}

static int msi_commit(const struct gw_devhost *host, struct gw_error *err)
{
	return gw_msi_commit(host->vm, err);
}

static int ioeventfd(const struct gw_devhost *host, uint64_t addr, unsigned len, int fd, bool add, struct gw_error *err)
{
	return gw_ioeventfd(host->vm, addr, len, fd, add, err);
}

static void note_frame(const struct gw_devhost *host, const struct iovec *iov, unsigned niov, uint64_t offset, bool said)
{
	uint8_t head[GW_TALK_HEAD];

	if (__builtin_expect(atomic_load_explicit(&gw_talk_noted, memory_order_relaxed), 0))
		gw_talk_packet(head, gw_iov_read(iov, niov, offset, head, sizeof(head)), said);
}

static void disk_read(const struct gw_devhost *host, uint64_t gpa, uint64_t len)
{
	gw_vm_note_disk_read(host->vm, gpa, len);
}

static bool overdue(const struct gw_devhost *host)
{
	return gw_talk_overdue();
}

static void failed(const struct gw_devhost *host, const char *reason)
{
	gw_vm_post_event(host->vm, GW_VM_CRASHED, reason);
}

static const struct gw_devhost_ops kvm_edge = {
	.msi_new = msi_new,
	.msi_free = gw_msi_free,
	.msi_set = gw_msi_set,
	.msi_commit = msi_commit,
	.msi_raise = gw_msi_raise,
	.ioeventfd = ioeventfd,
	.note_frame = note_frame,
	.disk_read = disk_read,
	.overdue = overdue,
	.failed = failed,
};

struct gw_devhost gw_devhost_of_vm(struct gw_vm *vm)
{
	return (struct gw_devhost){
		.vm = vm,
		.ram = gw_vm_ram(vm),
		.io = gw_vm_iothread(vm),
		.mmio = gw_vm_mmio(vm),
		.pio = gw_vm_pio(vm),
		.ops = &kvm_edge,
	};
}
