// SPDX-License-Identifier: Apache-2.0
/* Interrupts into the guest: ISA/IOAPIC lines and message-signalled ones by irqfd, and ioeventfds. */
#ifndef GW_VMM_IRQ_H
#define GW_VMM_IRQ_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"

struct gw_vm;

/* Sets the level of IOAPIC/PIC line 0 to 23 (KVM_IRQ_LINE). */
void gw_irq_set_line(struct gw_vm *vm, unsigned line, bool level);

/* A message-signalled interrupt: a GSI of its own whose route is the MSI message, raised by an eventfd (irqfd). */
struct gw_msi;
int gw_msi_new(struct gw_vm *vm, struct gw_msi **ret, struct gw_error *err);
void gw_msi_free(struct gw_msi *msi);
/* Sets the message (PCI 3.0 §6.8.2 address and data). Batched: several sets cost one KVM_SET_GSI_ROUTING at gw_msi_commit(). */
void gw_msi_set(struct gw_msi *msi, uint64_t addr, uint32_t data, bool masked);
int gw_msi_commit(struct gw_vm *vm, struct gw_error *err);
/* Raises it; from any thread. A masked one is ignored (the owner keeps the pending bit). */
void gw_msi_raise(struct gw_msi *msi);

/*
 * ioeventfd: a guest write of `len` bytes (0: any length) at MMIO address `addr` signals `fd` without an exit to us.
 * `add` false removes it again with the same values.
 */
int gw_ioeventfd(struct gw_vm *vm, uint64_t addr, unsigned len, int fd, bool add, struct gw_error *err);

#endif
