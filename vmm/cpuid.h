// SPDX-License-Identifier: Apache-2.0
/* What the guest learns of its processor: made from what the host's KVM supports, carried along by a move, and compared. */
#ifndef GW_VMM_CPUID_H
#define GW_VMM_CPUID_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"
#include "vmm/kvm.h"

#define GW_CPUID_MAX 128
/* Bytes of the largest serialised table. */
#define GW_CPUID_MAX_BYTES (8 + GW_CPUID_MAX * 28)

struct gw_cpuid {
	unsigned count;
	struct kvm_cpuid_entry2 entries[GW_CPUID_MAX];
};

/*
 * What this host's KVM supports, without what a guest of ours never gets: nested virtualisation, performance counters, processor
 * trace, SGX, and the invariant TSC (a guest that trusts it would count wrongly on a host whose TSC runs at another rate).
 */
int gw_cpuid_host(const struct gw_kvm *kvm, struct gw_cpuid *ret, struct gw_error *err);
/* The same for a guest of `cpus` processors: one package, one thread a core. Per-vCPU values are left zero. */
void gw_cpuid_guest(const struct gw_cpuid *host, unsigned cpus, struct gw_cpuid *ret);
/* Gives vCPU `index` (its APIC id too) of a VM this table, with its own APIC ids filled in. */
int gw_cpuid_apply(const struct gw_cpuid *cpuid, int vcpu_fd, unsigned index, struct gw_error *err);

/*
 * Serialised: u32 magic, u32 count, then seven u32 an entry: function, index, flags, eax, ebx, ecx, edx; little-endian. Parsing
 * checks the form alone (-EPROTO).
 */
int gw_cpuid_serialize(const struct gw_cpuid *cpuid, struct gw_buf *out);
int gw_cpuid_parse(const void *data, size_t len, struct gw_cpuid *ret, struct gw_error *err);

/*
 * Whether a guest that was told `guest` can run where `host` (gw_cpuid_host()) is what there is. -ENOTSUP names the vendor,
 * the first few features or the address width that the host lacks.
 */
int gw_cpuid_check(const struct gw_cpuid *guest, const struct gw_cpuid *host, struct gw_error *err);

/* The entry of (function, index), or NULL. */
const struct kvm_cpuid_entry2 *gw_cpuid_find(const struct gw_cpuid *cpuid, uint32_t function, uint32_t index);
/* Guest-physical address bits, 36 when the table does not tell. */
unsigned gw_cpuid_phys_bits(const struct gw_cpuid *cpuid);

#endif
