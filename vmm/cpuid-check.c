// SPDX-License-Identifier: Apache-2.0
/* Comparison of a guest's processor with a host's, by feature names as /proc/cpuinfo writes them. */
#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/cpuid.h"

enum reg { EAX, EBX, ECX, EDX };

/* Words of feature bits: what is set in the guest's must be set in the host's. */
static const struct word {
	uint32_t function;
	uint32_t index;
	enum reg reg;
	uint32_t ignore;         /* bits that are no features of the processor but made by us or by the guest */
	const char *names[32];
} words[] = {
	{ 1, 0, ECX, 1u << 31 | 1u << 27,
	  { "sse3", "pclmulqdq", "dtes64", "monitor", "ds_cpl", "vmx", "smx", "est", "tm2", "ssse3", "cid", "sdbg", "fma",
	    "cx16", "xtpr", "pdcm", NULL, "pcid", "dca", "sse4_1", "sse4_2", "x2apic", "movbe", "popcnt",
	    "tsc_deadline_timer", "aes", "xsave", "osxsave", "avx", "f16c", "rdrand", "hypervisor" } },
	{ 1, 0, EDX, 1u << 28,
	  { "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", NULL, "sep", "mtrr", "pge", "mca", "cmov",
	    "pat", "pse36", "pn", "clflush", NULL, "dts", "acpi", "mmx", "fxsr", "sse", "sse2", "ss", "ht", "tm", "ia64",
	    "pbe" } },
	{ 7, 0, EBX, 0,
	  { "fsgsbase", "tsc_adjust", "sgx", "bmi1", "hle", "avx2", "fdp_excptn_only", "smep", "bmi2", "erms", "invpcid",
	    "rtm", "cqm", "zero_fcs_fds", "mpx", "rdt_a", "avx512f", "avx512dq", "rdseed", "adx", "smap", "avx512ifma",
	    NULL, "clflushopt", "clwb", "intel_pt", "avx512pf", "avx512er", "avx512cd", "sha_ni", "avx512bw",
	    "avx512vl" } },
	{ 7, 0, ECX, 1u << 4,
	  { "prefetchwt1", "avx512vbmi", "umip", "pku", "ospke", "waitpkg", "avx512_vbmi2", "shstk", "gfni", "vaes",
	    "vpclmulqdq", "avx512_vnni", "avx512_bitalg", "tme", "avx512_vpopcntdq", NULL, "la57", NULL, NULL, NULL, NULL,
	    NULL, "rdpid", "kl", "bus_lock_detect", "cldemote", NULL, "movdiri", "movdir64b", "enqcmd", "sgx_lc", "pks" } },
	{ 7, 0, EDX, 0,
	  { NULL, NULL, "avx512_4vnniw", "avx512_4fmaps", "fsrm", "uintr", NULL, NULL, "avx512_vp2intersect",
	    "srbds_ctrl", "md_clear", NULL, NULL, NULL, "serialize", "hybrid_cpu", "tsxldtrk", NULL, "pconfig", "arch_lbr",
	    "ibt", NULL, "amx_bf16", "avx512_fp16", "amx_tile", "amx_int8", "spec_ctrl", "intel_stibp", "flush_l1d",
	    "arch_capabilities", "core_capabilities", "ssbd" } },
	{ 7, 1, EAX, 0, { [4] = "avx_vnni", [5] = "avx512_bf16", [7] = "cmpccxadd", [10] = "fzrm", [11] = "fsrs", [12] = "fsrc",
			  [21] = "amx_fp16", [23] = "avx_ifma" } },
	{ 7, 1, EDX, 0, { [4] = "avx_vnni_int8", [5] = "avx_ne_convert", [14] = "prefetchiti" } },
	{ 7, 2, EDX, 0, { "psfd", "ipred_ctrl", "rrsba_ctrl", "ddpd_u", "bhi_ctrl", "mcdt_no" } },
	{ 0xd, 0, EAX, 0, { "x87 state", "sse state", "avx state", "mpx bndregs state", "mpx bndcsr state", "avx512 opmask state",
			    "avx512 zmm_hi256 state", "avx512 hi16_zmm state", NULL, "pkru state" } },
	{ 0xd, 0, EDX, 0, { NULL } },
	{ 0xd, 1, EAX, 0, { "xsaveopt", "xsavec", "xgetbv1", "xsaves", "xfd" } },
	{ 0x80000001, 0, ECX, 1u << 1,
	  { "lahf_lm", "cmp_legacy", "svm", "extapic", "cr8_legacy", "abm", "sse4a", "misalignsse", "3dnowprefetch", "osvw",
	    "ibs", "xop", "skinit", "wdt", NULL, "lwp", "fma4", "tce", NULL, "nodeid_msr", NULL, "tbm", "topoext",
	    "perfctr_core", "perfctr_nb", NULL, "bpext", "ptsc", "perfctr_llc", "mwaitx" } },
	{ 0x80000001, 0, EDX, 0,
	  { [11] = "syscall", [19] = "mp", [20] = "nx", [22] = "mmxext", [25] = "fxsr_opt", [26] = "pdpe1gb", [27] = "rdtscp",
	    [29] = "lm", [30] = "3dnowext", [31] = "3dnow" } },
	{ 0x80000008, 0, EBX, 0,
	  { "clzero", "irperf", "xsaveerptr", NULL, "rdpru", NULL, NULL, NULL, NULL, "wbnoinvd", NULL, NULL, "amd_ibpb", NULL,
	    "amd_ibrs", "amd_stibp", NULL, "amd_stibp_always_on", NULL, NULL, NULL, NULL, NULL, "amd_ppin", "amd_ssbd",
	    "virt_ssbd", "amd_ssb_no", "cppc", "amd_psfd" } },
	{ 0x80000021, 0, EAX, 0,
	  { "no_nested_data_bp", NULL, "lfence_rdtsc", [6] = "null_sel_clr_base", [8] = "autoibrs", [9] = "no_smm_ctl_msr",
	    [27] = "sbpb", [28] = "ibpb_brtype", [29] = "srso_no" } },
	{ 0x40000001, 0, EAX, 0,
	  { "kvmclock", "kvm_nop_io_delay", "kvm_mmu_op", "kvmclock2", "kvm_asyncpf", "kvm_steal_time", "kvm_pv_eoi",
	    "kvm_pv_unhalt", NULL, "kvm_pv_tlb_flush", "kvm_asyncpf_vmexit", "kvm_pv_ipi", "kvm_poll_control",
	    "kvm_pv_sched_yield", "kvm_asyncpf_int", "kvm_msi_ext_dest_id", "kvm_hc_map_gpa_range",
	    "kvm_migration_control", [24] = "kvmclock_stable" } },
};

#define MAX_NAMED 8

static uint32_t get(const struct gw_cpuid *cpuid, const struct word *w)
{
	const struct kvm_cpuid_entry2 *e = gw_cpuid_find(cpuid, w->function, w->index);

	if (!e)
		return 0;
	switch (w->reg) {
	case EAX:
		return e->eax;
	case EBX:
		return e->ebx;
	case ECX:
		return e->ecx;
	case EDX:
		return e->edx;
	}
	return 0;
}

/* Appends one missing feature to the list in `out`, which is `size` bytes. */
static void append_name(char *out, size_t size, const struct word *w, unsigned bit)
{
	static const char *const regs[] = { "EAX", "EBX", "ECX", "EDX" };
	size_t len = strlen(out);

	if (w->names[bit])
		snprintf(out + len, size - len, "%s%s", len ? ", " : "", w->names[bit]);
	else
		snprintf(out + len, size - len, "%sCPUID 0x%x.%u %s bit %u", len ? ", " : "", w->function, w->index,
			 regs[w->reg], bit);
}

static unsigned list_missing(const struct gw_cpuid *guest, const struct gw_cpuid *host, char *out, size_t size)
{
	unsigned count = 0;

	out[0] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		const struct word *w = &words[i];
		uint32_t missing = get(guest, w) & ~get(host, w) & ~w->ignore;

		for (unsigned bit = 0; bit < 32; bit++) {
			if (!(missing & 1u << bit))
				continue;
			if (count++ < MAX_NAMED)
				append_name(out, size, w, bit);
		}
	}
	return count;
}

static void vendor_name(const struct gw_cpuid *cpuid, char out[13])
{
	const struct kvm_cpuid_entry2 *e = gw_cpuid_find(cpuid, 0, 0);
	uint32_t v[3] = { 0, 0, 0 };

	if (e) {
		v[0] = e->ebx;
		v[1] = e->edx;
		v[2] = e->ecx;
	}
	memcpy(out, v, 12);
	out[12] = '\0';
	for (int i = 0; i < 12; i++) {
		if (out[i] < ' ' || out[i] > '~')
			out[i] = '?';
	}
}

int gw_cpuid_check(const struct gw_cpuid *guest, const struct gw_cpuid *host, struct gw_error *err)
{
	char guest_vendor[13], host_vendor[13], missing[320];
	unsigned count;

	vendor_name(guest, guest_vendor);
	vendor_name(host, host_vendor);
	/* Instructions, MSRs and the guest's workarounds differ between makers beyond what feature bits tell. */
	if (strcmp(guest_vendor, host_vendor))
		return gw_error_set(err, ENOTSUP, "the VM was started on a processor of %s, this host has one of %s",
				    guest_vendor, host_vendor);
	count = list_missing(guest, host, missing, sizeof(missing));
	if (count > MAX_NAMED)
		return gw_error_set(err, ENOTSUP, "this host's processor lacks %s and %u more", missing, count - MAX_NAMED);
	if (count)
		return gw_error_set(err, ENOTSUP, "this host's processor lacks %s", missing);
	if (gw_cpuid_phys_bits(guest) > gw_cpuid_phys_bits(host))
		return gw_error_set(err, ENOTSUP, "the VM has %u bits of physical address, this host's processor only %u",
				    gw_cpuid_phys_bits(guest), gw_cpuid_phys_bits(host));
	return 0;
}
