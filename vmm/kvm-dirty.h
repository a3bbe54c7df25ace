// SPDX-License-Identifier: Apache-2.0
/*
 * KVM's two ways to tell which pages vCPUs wrote, each as a dirty source together with the devices' own log (gw_ram_log_*): the
 * dirty ring, and the bitmap for hosts without it.
 */
#ifndef GW_VMM_KVM_DIRTY_H
#define GW_VMM_KVM_DIRTY_H

#include "lib/error.h"
#include "lib/ram/dirty.h"
#include "lib/ram/ram.h"
#include "vmm/kvm.h"

struct gw_dirty_bitmap;
struct gw_dirty_ring;

/* Before the first vCPU exists. -ENOTSUP where KVM has no ring. ram is borrowed. */
int gw_dirty_ring_new(const struct gw_kvm *kvm, int vm_fd, struct gw_ram *ram, struct gw_dirty_ring **ret,
		      struct gw_error *err);
void gw_dirty_ring_free(struct gw_dirty_ring *ring);
/* Maps the ring of a new vCPU. */
int gw_dirty_ring_add_vcpu(struct gw_dirty_ring *ring, int vcpu_fd, struct gw_error *err);
/* A vCPU left the guest because its ring is full: empties all. From any vCPU's thread. */
void gw_dirty_ring_full(struct gw_dirty_ring *ring);
/* Which vCPUs wrote pages that were not in the log, since the last call (bit = index). Re-arms nothing. Any thread. */
uint32_t gw_dirty_ring_writers(struct gw_dirty_ring *ring);
extern const struct gw_dirty_ops gw_dirty_ring_ops;

int gw_dirty_bitmap_new(const struct gw_kvm *kvm, int vm_fd, struct gw_ram *ram, struct gw_dirty_bitmap **ret,
			struct gw_error *err);
void gw_dirty_bitmap_free(struct gw_dirty_bitmap *bm);
extern const struct gw_dirty_ops gw_dirty_bitmap_ops;

#endif
