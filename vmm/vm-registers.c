// SPDX-License-Identifier: Apache-2.0
/* What the vCPUs are doing, for a person: registers, and what lies on the stack, in the log. */
#include <linux/kvm.h>

#include "lib/bytes.h"
#include "lib/log.h"
#include "lib/util.h"
#include "vmm/vm-internal.h"

#define STACK_WORDS 32u
#define CODE_BYTES 16u

/* Guest memory at a guest-virtual address, up to the end of its page. */
static unsigned read_virtual(const struct gw_vm *vm, int fd, uint64_t at, void *data, unsigned len)
{
	struct kvm_translation t = { .linear_address = at };

	len = (unsigned)GW_MIN((uint64_t)len, GW_PAGE_SIZE - at % GW_PAGE_SIZE);
	if (gw_kvm_ioctl(fd, KVM_TRANSLATE, &t) < 0 || !t.valid || gw_ram_read(vm->ram, t.physical_address, data, len) < 0)
		return 0;
	return len;
}

static void tell_memory(const struct gw_vm *vm, int fd, const struct kvm_regs *r)
{
	uint8_t code[CODE_BYTES], stack[STACK_WORDS * 8];
	char text[STACK_WORDS * 17 + 1] = "";
	unsigned n = read_virtual(vm, fd, r->rip, code, sizeof(code)), at = 0;

	for (unsigned i = 0; i < n; i++)
		at += (unsigned)snprintf(text + at, sizeof(text) - at, " %02x", code[i]);
	gw_info("  code%s", text);
	text[0] = '\0';
	n = read_virtual(vm, fd, r->rsp, stack, sizeof(stack));
	for (unsigned i = at = 0; i + 8 <= n; i += 8)
		at += (unsigned)snprintf(text + at, sizeof(text) - at, " %llx", (unsigned long long)gw_get_le64(stack + i));
	gw_info("  stack%s", text);
}

static void tell_vcpu(const struct gw_vm *vm, unsigned i, const struct gw_vcpu_state *st)
{
	const struct kvm_regs *r = &st->regs;
	const struct kvm_lapic_state *a = &st->lapic;

	gw_info("vcpu%u: rip %llx rsp %llx rflags %llx rax %llx rbx %llx rcx %llx rdx %llx rsi %llx rdi %llx rbp %llx", i,
		(unsigned long long)r->rip, (unsigned long long)r->rsp, (unsigned long long)r->rflags, (unsigned long long)r->rax,
		(unsigned long long)r->rbx, (unsigned long long)r->rcx, (unsigned long long)r->rdx, (unsigned long long)r->rsi,
		(unsigned long long)r->rdi, (unsigned long long)r->rbp);
	gw_info("  cs %x cr0 %llx cr2 %llx cr3 %llx cr4 %llx efer %llx gs %llx mp state %u, exception %u/%u/%u interrupt %u/%u shadow %u nmi %u/%u/%u",
		st->sregs.cs.selector, (unsigned long long)st->sregs.cr0, (unsigned long long)st->sregs.cr2, (unsigned long long)st->sregs.cr3,
		(unsigned long long)st->sregs.cr4, (unsigned long long)st->sregs.efer, (unsigned long long)st->sregs.gs.base, st->mp_state.mp_state,
		st->events.exception.injected, st->events.exception.pending, st->events.exception.nr, st->events.interrupt.injected,
		st->events.interrupt.nr, st->events.interrupt.shadow, st->events.nmi.injected, st->events.nmi.pending, st->events.nmi.masked);
	/* Registers' offsets: Intel SDM volume 3, table 11-1. */
	gw_info("  apic tpr %x svr %x timer lvt %x initial %x current %x, irr %08x %08x %08x %08x %08x %08x %08x %08x, isr %08x %08x", gw_get_le32(a->regs + 0x80),
		gw_get_le32(a->regs + 0xf0), gw_get_le32(a->regs + 0x320), gw_get_le32(a->regs + 0x380), gw_get_le32(a->regs + 0x390),
		gw_get_le32(a->regs + 0x200), gw_get_le32(a->regs + 0x210), gw_get_le32(a->regs + 0x220), gw_get_le32(a->regs + 0x230),
		gw_get_le32(a->regs + 0x240), gw_get_le32(a->regs + 0x250), gw_get_le32(a->regs + 0x260), gw_get_le32(a->regs + 0x270),
		gw_get_le32(a->regs + 0x160), gw_get_le32(a->regs + 0x170));
	tell_memory(vm, gw_vcpu_fd(gw_vcpus_get(vm->vcpus, i)), r);
}

void gw_vm_tell_registers(struct gw_vm *vm)
{
	bool running = gw_vm_running(vm);
	struct gw_error err = GW_ERROR_INIT;

	gw_vm_stop(vm);
	for (unsigned i = 0; i < vm->config->cpus; i++) {
		struct gw_vcpu_state *st = gw_vcpu_state_new();

		if (st && gw_vcpu_state_get(gw_vcpus_get(vm->vcpus, i), NULL, st, &err) == 0)
			tell_vcpu(vm, i, st);
		else
			gw_warn("vcpu%u: %s", i, gw_error_text(&err));
		gw_vcpu_state_free(st);
	}
	if (running)
		gw_vm_run(vm);
}
