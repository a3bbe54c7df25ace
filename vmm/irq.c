// SPDX-License-Identifier: Apache-2.0
/*
 * Interrupts into the guest; see irq.h. KVM takes the whole routing table at once, so it is kept here: the fixed lines first, then one
 * entry for each message-signalled interrupt. A masked message has no route: raising it does nothing.
 */
#include "vmm/irq.h"

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>

#include "lib/log.h"
#include "lib/util.h"
#include "vmm/vm-internal.h"

#define LINES 24        /* of the IOAPIC */
#define PIC_LINES 16
#define FIRST_MSI_GSI LINES
#define MAX_MSI 1024

struct gw_msi {
	struct gw_vm *vm;
	unsigned gsi;
	int fd;
	bool routed; /* has a message and is not masked */
	uint64_t addr;
	uint32_t data;
};

struct gw_irq {
	struct gw_vm *vm;
	pthread_mutex_t lock;
	struct gw_msi *msi[MAX_MSI]; /* by GSI - FIRST_MSI_GSI */
	bool changed;                /* since the last commit */
	struct gw_ratelimit limit;
};

static struct kvm_irq_routing_entry *add_chip(struct kvm_irq_routing_entry *e, unsigned gsi, unsigned chip, unsigned pin)
{
	e->gsi = gsi;
	e->type = KVM_IRQ_ROUTING_IRQCHIP;
	e->u.irqchip.irqchip = chip;
	e->u.irqchip.pin = pin;
	return e + 1;
}

/* The wiring of a PC: ISA lines reach both controllers; the timer (line 0) is on pin 2 of the IOAPIC, see the MADT. */
static struct kvm_irq_routing_entry *add_lines(struct kvm_irq_routing_entry *e)
{
	for (unsigned i = 0; i < PIC_LINES; i++) {
		if (i < 8)
			e = add_chip(e, i, KVM_IRQCHIP_PIC_MASTER, i);
		else
			e = add_chip(e, i, KVM_IRQCHIP_PIC_SLAVE, i - 8);
	}
	for (unsigned i = 0; i < LINES; i++) {
		if (i != 2)
			e = add_chip(e, i, KVM_IRQCHIP_IOAPIC, i == 0 ? 2 : i);
	}
	return e;
}

static struct kvm_irq_routing_entry *add_msis(struct gw_irq *irq, struct kvm_irq_routing_entry *e)
{
	for (unsigned i = 0; i < MAX_MSI; i++) {
		const struct gw_msi *msi = irq->msi[i];

		if (!msi || !msi->routed)
			continue;
		e->gsi = msi->gsi;
		e->type = KVM_IRQ_ROUTING_MSI;
		e->u.msi.address_lo = (uint32_t)msi->addr;
		e->u.msi.address_hi = (uint32_t)(msi->addr >> 32);
		e->u.msi.data = msi->data;
		e++;
	}
	return e;
}

/* Under the lock. */
static int commit(struct gw_irq *irq, struct gw_error *err)
{
	const size_t max = PIC_LINES + LINES + MAX_MSI;
	gw_autofree struct kvm_irq_routing *table = NULL;
	struct kvm_irq_routing_entry *end;
	int r;

	table = calloc(1, sizeof(*table) + max * sizeof(table->entries[0]));
	if (!table)
		return gw_error_set(err, ENOMEM, "out of memory");
	end = add_msis(irq, add_lines(table->entries));
	table->nr = (uint32_t)(end - table->entries);
	r = gw_kvm_ioctl(irq->vm->fd, KVM_SET_GSI_ROUTING, table);
	if (r < 0)
		return gw_error_errno(err, r, "KVM refuses the interrupt routes");
	irq->changed = false;
	return 0;
}

int gw_irq_new(struct gw_vm *vm, struct gw_irq **ret, struct gw_error *err)
{
	struct gw_irq *irq = calloc(1, sizeof(*irq));
	int r;

	if (!irq)
		return gw_error_set(err, ENOMEM, "out of memory");
	irq->vm = vm;
	pthread_mutex_init(&irq->lock, NULL);
	r = commit(irq, err);
	if (r < 0) {
		gw_irq_free(irq);
		return r;
	}
	*ret = irq;
	return 0;
}

void gw_irq_free(struct gw_irq *irq)
{
	if (!irq)
		return;
	pthread_mutex_destroy(&irq->lock);
	free(irq);
}

void gw_irq_set_line(struct gw_vm *vm, unsigned line, bool level)
{
	struct kvm_irq_level arg = { .irq = line, .level = level };
	int r;

	if (line >= LINES)
		return;
	r = gw_kvm_ioctl(vm->fd, KVM_IRQ_LINE, &arg);
	if (r < 0)
		gw_warn_limited(&vm->irq->limit, "cannot set interrupt line %u: errno %d", line, -r);
}

static int attach_irqfd(const struct gw_msi *msi, bool on)
{
	struct kvm_irqfd arg = { .fd = (uint32_t)msi->fd, .gsi = msi->gsi, .flags = on ? 0 : KVM_IRQFD_FLAG_DEASSIGN };

	return gw_kvm_ioctl(msi->vm->fd, KVM_IRQFD, &arg);
}

static int take_gsi(struct gw_irq *irq, struct gw_msi *msi)
{
	int r = -ENOSPC;

	pthread_mutex_lock(&irq->lock);
	for (unsigned i = 0; i < MAX_MSI; i++) {
		if (irq->msi[i])
			continue;
		irq->msi[i] = msi;
		msi->gsi = FIRST_MSI_GSI + i;
		r = 0;
		break;
	}
	pthread_mutex_unlock(&irq->lock);
	return r;
}

int gw_msi_new(struct gw_vm *vm, struct gw_msi **ret, struct gw_error *err)
{
	struct gw_msi *msi = calloc(1, sizeof(*msi));
	int r;

	if (!msi)
		return gw_error_set(err, ENOMEM, "out of memory");
	msi->vm = vm;
	msi->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (msi->fd < 0) {
		r = gw_error_errno(err, errno, "cannot make an eventfd");
		free(msi);
		return r;
	}
	r = take_gsi(vm->irq, msi);
	if (r < 0) {
		gw_error_set(err, ENOSPC, "more than %u message-signalled interrupts", MAX_MSI);
	} else {
		r = attach_irqfd(msi, true);
		if (r < 0)
			gw_error_errno(err, r, "cannot attach an irqfd");
	}
	if (r < 0) {
		gw_msi_free(msi);
		return r;
	}
	*ret = msi;
	return 0;
}

void gw_msi_free(struct gw_msi *msi)
{
	struct gw_irq *irq;

	if (!msi)
		return;
	irq = msi->vm->irq;
	if (msi->gsi) {
		(void)attach_irqfd(msi, false);
		pthread_mutex_lock(&irq->lock);
		irq->msi[msi->gsi - FIRST_MSI_GSI] = NULL;
		irq->changed |= msi->routed; /* its route goes with the next commit */
		pthread_mutex_unlock(&irq->lock);
	}
	gw_closep(&msi->fd);
	free(msi);
}

void gw_msi_set(struct gw_msi *msi, uint64_t addr, uint32_t data, bool masked)
{
	struct gw_irq *irq = msi->vm->irq;
	/* Only what lies in the LAPICs' window is an interrupt (Intel SDM vol. 3 §11.11.1); elsewhere nothing listens. */
	bool routed = !masked && (addr & 0xfff00000u) == 0xfee00000u;

	pthread_mutex_lock(&irq->lock);
	if (msi->routed != routed || (routed && (msi->addr != addr || msi->data != data)))
		irq->changed = true;
	msi->addr = addr;
	msi->data = data;
	msi->routed = routed;
	pthread_mutex_unlock(&irq->lock);
}

int gw_msi_commit(struct gw_vm *vm, struct gw_error *err)
{
	struct gw_irq *irq = vm->irq;
	int r = 0;

	pthread_mutex_lock(&irq->lock);
	if (irq->changed)
		r = commit(irq, err);
	pthread_mutex_unlock(&irq->lock);
	return r;
}

void gw_msi_raise(struct gw_msi *msi)
{
	const uint64_t one = 1;

	/* A full counter means that an interrupt is on its way already. */
	if (write(msi->fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		gw_warn_limited(&msi->vm->irq->limit, "cannot raise an interrupt: errno %d", errno);
}

int gw_ioeventfd(struct gw_vm *vm, uint64_t addr, unsigned len, int fd, bool add, struct gw_error *err)
{
	struct kvm_ioeventfd arg = {
		.addr = addr,
		.len = len,
		.fd = fd,
		.flags = add ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN,
	};
	int r = gw_kvm_ioctl(vm->fd, KVM_IOEVENTFD, &arg);

	return r < 0 ? gw_error_errno(err, r, "cannot %s an ioeventfd at 0x%llx", add ? "add" : "remove",
				      (unsigned long long)addr) : 0;
}
