// SPDX-License-Identifier: Apache-2.0
/*
 * Which pages vCPUs touch now: what a VM will touch first when it is resumed. KVM forgets its mappings of guest memory and makes them anew in small pages as
 * the guest goes on; the tracepoint kvm:kvm_page_fault tells each. The guest runs meanwhile, at the price of a fault for each page that it touches.
 *
 * Needs the right to read tracepoints (root, or CAP_PERFMON), tracefs, a kernel with soft-dirty tracking, and no more than 64 GiB of RAM: beyond that the guest
 * would stand still for too long. Not while written pages are tracked.
 */
#ifndef GW_VMM_WORKING_SET_H
#define GW_VMM_WORKING_SET_H

#include <stdint.h>

struct gw_vm;
struct gw_working_set;

/* Begins to watch. -errno where it cannot be had: nothing has changed then. */
int gw_working_set_new(struct gw_vm *vm, struct gw_working_set **ret);
/* ORs into `bitmap` (one bit a page index) what was touched since then, and what devices touch when they are resumed; of very many pages those that were touched first. */
void gw_working_set_read(struct gw_working_set *ws, uint64_t *bitmap);
/* Takes NULL. */
void gw_working_set_free(struct gw_working_set *ws);

#endif
