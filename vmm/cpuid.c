// SPDX-License-Identifier: Apache-2.0
/*
 * The guest's CPUID; see cpuid.h. Leaf numbers and bits: Intel SDM volume 2 "CPUID", AMD APM volume 3 appendix E, and the kernel's
 * Documentation/virt/kvm/x86/cpuid.rst for the hypervisor's leaves.
 */
#include "vmm/cpuid.h"

#include <errno.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"

#define MAGIC 0x44495043u /* "CPID" */
#define BIT(n) (1u << (n))

/* 1.ECX */
#define ECX1_VMX BIT(5)
#define ECX1_PDCM BIT(15)
#define ECX1_X2APIC BIT(21)
#define ECX1_TSC_DEADLINE BIT(24)
#define ECX1_OSXSAVE BIT(27)
#define ECX1_HYPERVISOR BIT(31)
/* 1.EDX */
#define EDX1_HTT BIT(28)
/* 7.0 */
#define EBX7_SGX BIT(2)
#define EBX7_PT BIT(25)
#define ECX7_OSPKE BIT(4)
#define ECX7_SGX_LC BIT(30)
#define EDX7_PCONFIG BIT(18)
#define EDX7_ARCH_LBR BIT(19)
/* 0x80000001 */
#define ECX8_CMP_LEGACY BIT(1)
#define ECX8_SVM BIT(2)
#define ECX8_TOPOEXT BIT(22)
#define ECX8_PERFCTR (BIT(23) | BIT(24) | BIT(28))
/* 0x80000007 */
#define EDX87_INVARIANT_TSC BIT(8)

const struct kvm_cpuid_entry2 *gw_cpuid_find(const struct gw_cpuid *cpuid, uint32_t function, uint32_t index)
{
	for (unsigned i = 0; i < cpuid->count; i++) {
		const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

		if (e->function == function && (e->index == index || !(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX)))
			return e;
	}
	return NULL;
}

unsigned gw_cpuid_phys_bits(const struct gw_cpuid *cpuid)
{
	const struct kvm_cpuid_entry2 *e = gw_cpuid_find(cpuid, 0x80000008, 0);
	unsigned bits = e ? e->eax & 0xff : 0;

	return bits ? bits : 36;
}

/* Leaves that describe what we take away altogether. */
static bool hidden_leaf(const struct kvm_cpuid_entry2 *e)
{
	switch (e->function) {
	case 0x0a:       /* performance monitoring */
	case 0x12:       /* SGX */
	case 0x14:       /* processor trace */
	case 0x1c:       /* last branch records */
	case 0x23:       /* performance monitoring, extended */
	case 0x80000022: /* the same of AMD */
	case 0x8000000a: /* SVM */
	case 0x8000001f: /* memory encryption */
		return true;
	default:
		return false;
	}
}

static void mask_features(struct kvm_cpuid_entry2 *e, const struct gw_kvm_caps *caps)
{
	switch (e->function) {
	case 1:
		e->ecx &= ~(ECX1_VMX | ECX1_PDCM | ECX1_OSXSAVE);
		/* KVM does not report this one by itself: its own LAPIC offers it (KVM API, KVM_GET_SUPPORTED_CPUID). */
		if (caps->tsc_deadline_timer)
			e->ecx |= ECX1_TSC_DEADLINE;
		e->ecx |= ECX1_X2APIC | ECX1_HYPERVISOR;
		break;
	case 7:
		if (e->index)
			break;
		e->ebx &= ~(EBX7_SGX | EBX7_PT);
		e->ecx &= ~(ECX7_OSPKE | ECX7_SGX_LC);
		e->edx &= ~(EDX7_PCONFIG | EDX7_ARCH_LBR);
		break;
	case 0x80000001:
		e->ecx &= ~(ECX8_SVM | ECX8_PERFCTR);
		break;
	case 0x80000007:
		e->edx &= ~EDX87_INVARIANT_TSC;
		break;
	default:
		break;
	}
}

int gw_cpuid_host(const struct gw_kvm *kvm, struct gw_cpuid *ret, struct gw_error *err)
{
	gw_autofree struct kvm_cpuid2 *raw = calloc(1, sizeof(*raw) + GW_CPUID_MAX * sizeof(raw->entries[0]));
	int r;

	if (!raw)
		return gw_error_set(err, ENOMEM, "out of memory");
	raw->nent = GW_CPUID_MAX;
	r = gw_kvm_ioctl(kvm->fd, KVM_GET_SUPPORTED_CPUID, raw);
	if (r < 0)
		return gw_error_errno(err, r, "cannot learn what the processor supports");
	memset(ret, 0, sizeof(*ret));
	for (unsigned i = 0; i < raw->nent && i < GW_CPUID_MAX; i++) {
		struct kvm_cpuid_entry2 *e = &ret->entries[ret->count];

		*e = raw->entries[i];
		memset(e->padding, 0, sizeof(e->padding));
		if (hidden_leaf(e))
			continue;
		mask_features(e, &kvm->caps);
		ret->count++;
	}
	if (!gw_cpuid_find(ret, 1, 0))
		return gw_error_set(err, ENOTSUP, "KVM tells nothing of the processor's features");
	return 0;
}

static unsigned bits_for(unsigned count)
{
	unsigned bits = 0;

	while ((1u << bits) < count)
		bits++;
	return bits;
}

/* Leaves 0xb and 0x1f: a level of one thread a core, then one of all cores in the package. */
static void set_topology_leaf(struct kvm_cpuid_entry2 *e, unsigned cpus)
{
	e->eax = e->ebx = 0;
	e->ecx = e->index;
	e->edx = 0;
	if (e->index == 0) {
		e->ebx = 1;
		e->ecx |= 1 << 8; /* SMT level */
	} else if (e->index == 1) {
		e->eax = bits_for(cpus);
		e->ebx = cpus;
		e->ecx |= 2 << 8; /* core level */
	}
}

static void set_topology(struct kvm_cpuid_entry2 *e, unsigned cpus)
{
	switch (e->function) {
	case 1:
		e->ebx = (e->ebx & 0x0000ffff) | cpus << 16;
		e->edx = cpus > 1 ? e->edx | EDX1_HTT : e->edx & ~EDX1_HTT;
		break;
	case 4:
		/* Cores of the package; caches of levels 1 and 2 belong to one thread, the last one to all. */
		e->eax &= 0x3fff;
		if ((e->eax & 0x1f) == 0)
			break;
		e->eax |= ((1u << bits_for(cpus)) - 1) << 26;
		if ((e->eax >> 5 & 7) >= 3)
			e->eax |= ((1u << bits_for(cpus)) - 1) << 14;
		break;
	case 0x0b:
	case 0x1f:
		set_topology_leaf(e, cpus);
		break;
	case 0x80000001:
		e->ecx &= ~ECX8_TOPOEXT;
		e->ecx = cpus > 1 ? e->ecx | ECX8_CMP_LEGACY : e->ecx & ~ECX8_CMP_LEGACY;
		break;
	case 0x80000008:
		/* ECX: number of cores less one, and how many bits of the APIC id number them (AMD). */
		e->ecx = (e->ecx & ~0xf0ffu) | bits_for(cpus) << 12 | (cpus - 1);
		break;
	default:
		break;
	}
}

/* Leaves with AMD's extended topology go with its feature bit. */
static bool topoext_leaf(const struct kvm_cpuid_entry2 *e)
{
	return e->function == 0x8000001d || e->function == 0x8000001e || e->function == 0x80000026;
}

void gw_cpuid_guest(const struct gw_cpuid *host, unsigned cpus, struct gw_cpuid *ret)
{
	const struct kvm_cpuid_entry2 *vendor = gw_cpuid_find(host, 0, 0);
	bool intel = vendor && vendor->ebx == 0x756e6547; /* "Genu" */

	memset(ret, 0, sizeof(*ret));
	for (unsigned i = 0; i < host->count; i++) {
		struct kvm_cpuid_entry2 *e = &ret->entries[ret->count];

		*e = host->entries[i];
		if (topoext_leaf(e))
			continue;
		set_topology(e, cpus);
		if (e->function == 0x80000001 && intel)
			e->ecx &= ~ECX8_CMP_LEGACY;
		if (e->function == 0x80000008 && intel)
			e->ecx = 0;
		ret->count++;
	}
}

int gw_cpuid_apply(const struct gw_cpuid *cpuid, int vcpu_fd, unsigned index, struct gw_error *err)
{
	gw_autofree struct kvm_cpuid2 *table = calloc(1, sizeof(*table) + GW_CPUID_MAX * sizeof(table->entries[0]));
	int r;

	if (!table)
		return gw_error_set(err, ENOMEM, "out of memory");
	table->nent = cpuid->count;
	for (unsigned i = 0; i < cpuid->count; i++) {
		struct kvm_cpuid_entry2 *e = &table->entries[i];

		*e = cpuid->entries[i];
		if (e->function == 1)
			e->ebx = (e->ebx & 0x00ffffff) | index << 24;
		if (e->function == 0x0b || e->function == 0x1f)
			e->edx = index;
	}
	r = gw_kvm_ioctl(vcpu_fd, KVM_SET_CPUID2, table);
	return r < 0 ? gw_error_errno(err, r, "KVM refuses the processor features of vCPU %u", index) : 0;
}

int gw_cpuid_serialize(const struct gw_cpuid *cpuid, struct gw_buf *out)
{
	uint8_t *p = gw_buf_reserve(out, 8 + cpuid->count * 28);

	if (!p)
		return -ENOMEM;
	out->len += 8 + cpuid->count * 28;
	gw_put_le32(p, MAGIC);
	gw_put_le32(p + 4, cpuid->count);
	p += 8;
	for (unsigned i = 0; i < cpuid->count; i++, p += 28) {
		const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];
		const uint32_t v[7] = { e->function, e->index, e->flags, e->eax, e->ebx, e->ecx, e->edx };

		for (unsigned k = 0; k < ARRAY_SIZE(v); k++)
			gw_put_le32(p + 4 * k, v[k]);
	}
	return 0;
}

int gw_cpuid_parse(const void *data, size_t len, struct gw_cpuid *ret, struct gw_error *err)
{
	const uint8_t *p = data;
	uint32_t count;

	if (len < 8 || gw_get_le32(p) != MAGIC)
		return gw_error_set(err, EPROTO, "the table of processor features is damaged");
	count = gw_get_le32(p + 4);
	if (count > GW_CPUID_MAX || len != 8 + (size_t)count * 28)
		return gw_error_set(err, EPROTO, "the table of processor features has a wrong size");
	memset(ret, 0, sizeof(*ret));
	ret->count = count;
	p += 8;
	for (uint32_t i = 0; i < count; i++, p += 28) {
		ret->entries[i] = (struct kvm_cpuid_entry2){
			.function = gw_get_le32(p),
			.index = gw_get_le32(p + 4),
			.flags = gw_get_le32(p + 8),
			.eax = gw_get_le32(p + 12),
			.ebx = gw_get_le32(p + 16),
			.ecx = gw_get_le32(p + 20),
			.edx = gw_get_le32(p + 24),
		};
	}
	return 0;
}
