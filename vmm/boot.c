// SPDX-License-Identifier: Apache-2.0
/* Loading of kernels; see boot.h. The protocol is chosen by the file's content. */
#include "vmm/boot.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/bzimage.h"
#include "vmm/kvm.h"
#include "vmm/memmap.h"
#include "vmm/pvh.h"

#define CR0_PE (1ull << 0)
#define CR0_ET (1ull << 4)
#define CR0_PG (1ull << 31)
#define CR4_PAE (1ull << 5)
#define EFER_LME (1ull << 8)
#define EFER_LMA (1ull << 10)
#define PTE_PRESENT_WRITE 3ull
#define PTE_HUGE (1ull << 7)
#define RFLAGS_FIXED 2ull

/* Selectors as boot.rst prescribes: __BOOT_CS and __BOOT_DS. */
#define BOOT_CS 0x10
#define BOOT_DS 0x18
#define BOOT_TSS 0x20

/* Kinds of files that people take for a kernel. */
static const struct {
	const char *magic;
	size_t len;
	const char *what;
} others[] = {
	{ "\x1f\x8b", 2, "a gzip'ed file" },
	{ "\xfd" "7zXZ", 5, "an xz-compressed file" },
	{ "BZh", 3, "a bzip2-compressed file" },
	{ "\x28\xb5\x2f\xfd", 4, "a zstd-compressed file" },
	{ "\x04\x22\x4d\x18", 4, "an lz4-compressed file" },
	{ "\x89LZO", 4, "an lzop-compressed file" },
	{ "070701", 6, "a cpio archive (an initrd?)" },
	{ "QFI\xfb", 4, "a qcow2 disk image" },
	{ "!<arch>\n", 8, "a Debian package or ar archive" },
	{ "#!", 2, "a script" },
	{ "MZ", 2, "an EFI program" },
	{ "\xd0\x0d\xfe\xed", 4, "a device tree" },
};

static int explain_unknown(const struct gw_image *img, const uint8_t *head, size_t len, struct gw_error *err)
{
	if (len == 0)
		return gw_error_set(err, EINVAL, "%s is empty", img->name);
	for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
		if (len >= others[i].len && !memcmp(head, others[i].magic, others[i].len))
			return gw_error_set(err, EINVAL, "%s is %s, not a kernel", img->name, others[i].what);
	}
	return gw_error_set(err, EINVAL, "%s is not a kernel: neither a Linux bzImage nor an ELF file", img->name);
}

int gw_boot_load(struct gw_ram *ram, const struct gw_boot_request *req, struct gw_boot_entry *ret, struct gw_error *err)
{
	uint8_t head[GW_BZIMAGE_HEAD];
	size_t len = (size_t)GW_MIN(req->kernel->size, (uint64_t)sizeof(head));
	int r;

	r = gw_image_read(req->kernel, 0, head, len, err);
	if (r < 0)
		return r;
	if (gw_bzimage_probe(head, len))
		return gw_bzimage_load(ram, req, ret, err);
	if (gw_pvh_probe(head, len))
		return gw_pvh_load(ram, req, ret, err);
	return explain_unknown(req->kernel, head, len, err);
}

int gw_boot_load_files(struct gw_ram *ram, const char *kernel, const char *initrd, const char *cmdline, uint64_t rsdp,
		       struct gw_boot_entry *ret, struct gw_error *err)
{
	struct gw_image k, i = { .fd = -1 };
	struct gw_boot_request req = { .kernel = &k, .cmdline = cmdline, .rsdp = rsdp };
	int r;

	r = gw_image_open(&k, kernel, err);
	if (r < 0)
		return r;
	if (initrd) {
		r = gw_image_open(&i, initrd, err);
		if (r == 0 && i.size == 0)
			r = gw_error_set(err, EINVAL, "the initrd %s is empty", initrd);
		req.initrd = &i;
	}
	if (r == 0)
		r = gw_boot_load(ram, &req, ret, err);
	gw_image_close(&i);
	gw_image_close(&k);
	return r;
}

int gw_boot_put_cmdline(struct gw_ram *ram, const char *cmdline, uint64_t max, struct gw_error *err)
{
	size_t len = strlen(cmdline);

	max = GW_MIN(max, (uint64_t)GW_CMDLINE_MAX - 1);
	if (len > max)
		return gw_error_set(err, EINVAL, "the kernel's command line has %zu bytes, this kernel takes %llu", len,
				    (unsigned long long)max);
	return gw_ram_write(ram, GW_GPA_CMDLINE, cmdline, len + 1);
}

int gw_boot_put_initrd(struct gw_ram *ram, const struct gw_image *initrd, uint64_t floor, uint64_t limit, uint64_t *gpa,
		       uint64_t *size, struct gw_error *err)
{
	uint64_t top = GW_ALIGN_DOWN(GW_MIN(gw_memmap_low_end(ram), limit), GW_PAGE_SIZE), at;
	int r;

	if (!initrd) {
		*gpa = *size = 0;
		return 0;
	}
	if (initrd->size > top || GW_ALIGN_DOWN(top - initrd->size, GW_PAGE_SIZE) < floor)
		return gw_error_set(err, ENOMEM, "%s has %llu MiB, which does not fit between the kernel's end at %llu MiB and %llu MiB",
				    initrd->name, (unsigned long long)((initrd->size >> 20) + 1),
				    (unsigned long long)(floor >> 20), (unsigned long long)(top >> 20));
	at = GW_ALIGN_DOWN(top - initrd->size, GW_PAGE_SIZE);
	r = gw_image_read(initrd, 0, gw_ram_ptr(ram, at, initrd->size), initrd->size, err);
	if (r < 0)
		return r;
	gw_ram_mark_dirty(ram, at, initrd->size);
	*gpa = at;
	*size = initrd->size;
	return 0;
}

/* Identity map of the first 4 GiB in pages of 2 MiB: one PML4, one PDPT, four directories. */
static int put_page_tables(struct gw_ram *ram)
{
	uint64_t table[512];
	int r;

	memset(table, 0, sizeof(table));
	table[0] = (GW_GPA_PAGE_TABLES + GW_PAGE_SIZE) | PTE_PRESENT_WRITE;
	r = gw_ram_write(ram, GW_GPA_PAGE_TABLES, table, sizeof(table));
	for (uint64_t i = 0; i < 4; i++)
		table[i] = (GW_GPA_PAGE_TABLES + (2 + i) * GW_PAGE_SIZE) | PTE_PRESENT_WRITE;
	if (r == 0)
		r = gw_ram_write(ram, GW_GPA_PAGE_TABLES + GW_PAGE_SIZE, table, sizeof(table));
	for (uint64_t d = 0; r == 0 && d < 4; d++) {
		for (uint64_t i = 0; i < 512; i++)
			table[i] = ((d << 30) + (i << 21)) | PTE_PRESENT_WRITE | PTE_HUGE;
		r = gw_ram_write(ram, GW_GPA_PAGE_TABLES + (2 + d) * GW_PAGE_SIZE, table, sizeof(table));
	}
	return r;
}

static struct kvm_segment flat_segment(uint16_t selector, uint8_t type, bool wide)
{
	return (struct kvm_segment){
		.limit = 0xffffffff,
		.selector = selector,
		.type = type,
		.present = 1,
		.s = 1,
		.g = 1,
		.l = wide,
		.db = !wide,
	};
}

/* A descriptor as it lies in memory (Intel SDM volume 3 §3.4.5). */
static uint64_t descriptor(const struct kvm_segment *s)
{
	uint64_t limit = s->g ? s->limit >> 12 : s->limit;

	return (limit & 0xffff) | (uint64_t)s->type << 40 | (uint64_t)s->s << 44 | (uint64_t)s->present << 47 |
	       (limit >> 16 & 0xf) << 48 | (uint64_t)s->l << 53 | (uint64_t)s->db << 54 | (uint64_t)s->g << 55;
}

static int set_segments(struct gw_ram *ram, struct kvm_sregs *sregs, bool wide)
{
	struct kvm_segment code = flat_segment(BOOT_CS, 0xb, wide), data = flat_segment(BOOT_DS, 0x3, false);
	struct kvm_segment tss = { .limit = 0x67, .selector = BOOT_TSS, .type = 0xb, .present = 1 };
	uint64_t gdt[5] = { 0, 0, descriptor(&code), descriptor(&data), descriptor(&tss) };

	sregs->cs = code;
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
	sregs->tr = tss;
	sregs->gdt.base = GW_GPA_GDT;
	sregs->gdt.limit = sizeof(gdt) - 1;
	sregs->idt.base = 0;
	sregs->idt.limit = 0;
	return gw_ram_write(ram, GW_GPA_GDT, gdt, sizeof(gdt));
}

int gw_boot_set_registers(int vcpu_fd, struct gw_ram *ram, const struct gw_boot_entry *entry, struct gw_error *err)
{
	struct kvm_regs regs = { .rip = entry->rip, .rflags = RFLAGS_FIXED };
	struct kvm_sregs sregs;
	int r;

	r = gw_kvm_ioctl(vcpu_fd, KVM_GET_SREGS, &sregs);
	if (r < 0)
		return gw_error_errno(err, r, "cannot read the boot processor's registers");
	r = set_segments(ram, &sregs, entry->mode == GW_BOOT_LONG);
	sregs.cr0 = CR0_PE | CR0_ET;
	if (r == 0 && entry->mode == GW_BOOT_LONG) {
		r = put_page_tables(ram);
		sregs.cr0 |= CR0_PG;
		sregs.cr3 = GW_GPA_PAGE_TABLES;
		sregs.cr4 = CR4_PAE;
		sregs.efer = EFER_LME | EFER_LMA;
		regs.rsi = entry->info;
	} else {
		regs.rbx = entry->info;
	}
	if (r < 0)
		return gw_error_errno(err, r, "cannot write the boot structures");
	r = gw_kvm_ioctl(vcpu_fd, KVM_SET_SREGS, &sregs);
	if (r == 0)
		r = gw_kvm_ioctl(vcpu_fd, KVM_SET_REGS, &regs);
	return r < 0 ? gw_error_errno(err, r, "cannot set the boot processor's registers") : 0;
}
