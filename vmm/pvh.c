// SPDX-License-Identifier: Apache-2.0
/* ELF kernels with a PVH entry; see pvh.h. */
#include "vmm/pvh.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"
#include "vmm/memmap.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18u
#define MAX_NOTE_SEGMENT (1u << 20)
#define HVM_START_MAGIC 0x336ec578u

/* struct hvm_start_info, version 1, and what it points to. All addresses are guest-physical. */
struct start_info {
	uint32_t magic;
	uint32_t version;
	uint32_t flags;
	uint32_t nr_modules;
	uint64_t modlist;
	uint64_t cmdline;
	uint64_t rsdp;
	uint64_t memmap;
	uint32_t memmap_entries;
	uint32_t reserved;
};
struct module {
	uint64_t gpa;
	uint64_t size;
	uint64_t cmdline;
	uint64_t reserved;
};
struct memmap_entry {
	uint64_t addr;
	uint64_t size;
	uint32_t type;
	uint32_t reserved;
};
struct boot_page {
	struct start_info info;
	struct module module;
	struct memmap_entry memmap[GW_MEM_RANGES_MAX];
};

bool gw_pvh_probe(const uint8_t *head, size_t len)
{
	return len >= EI_NIDENT && !memcmp(head, ELFMAG, SELFMAG);
}

/* The header's fields that matter, of either class. */
struct elf {
	bool is64;
	uint64_t phoff;
	unsigned phentsize;
	unsigned phnum;
};

static int parse_header(const struct gw_image *img, struct elf *elf, struct gw_error *err)
{
	union {
		unsigned char ident[EI_NIDENT];
		Elf32_Ehdr e32;
		Elf64_Ehdr e64;
	} h;
	unsigned machine, type;
	int r;

	memset(&h, 0, sizeof(h));
	r = gw_image_read(img, 0, &h.e32, sizeof(h.e32), err);
	if (r < 0)
		return r;
	elf->is64 = h.ident[EI_CLASS] == ELFCLASS64;
	if (memcmp(h.ident, ELFMAG, SELFMAG) || h.ident[EI_DATA] != ELFDATA2LSB ||
	    (!elf->is64 && h.ident[EI_CLASS] != ELFCLASS32))
		return gw_error_set(err, EINVAL, "%s is no little-endian ELF file of 32 or 64 bits", img->name);
	if (elf->is64) {
		r = gw_image_read(img, 0, &h.e64, sizeof(h.e64), err);
		if (r < 0)
			return r;
	}
	machine = elf->is64 ? h.e64.e_machine : h.e32.e_machine;
	type = elf->is64 ? h.e64.e_type : h.e32.e_type;
	if ((machine != EM_X86_64 && machine != EM_386) || (type != ET_EXEC && type != ET_DYN))
		return gw_error_set(err, EINVAL, "%s is an ELF file, but no x86 kernel (machine %u, type %u)", img->name, machine,
				    type);
	elf->phoff = elf->is64 ? h.e64.e_phoff : h.e32.e_phoff;
	elf->phentsize = elf->is64 ? h.e64.e_phentsize : h.e32.e_phentsize;
	elf->phnum = elf->is64 ? h.e64.e_phnum : h.e32.e_phnum;
	if (elf->phentsize != (elf->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)) || elf->phnum == 0 ||
	    elf->phnum > GW_PVH_MAX_SEGMENTS)
		return gw_error_set(err, EINVAL, "%s: the ELF header tells of %u program headers of %u bytes", img->name,
				    elf->phnum, elf->phentsize);
	return 0;
}

static int read_phdr(const struct gw_image *img, const struct elf *elf, unsigned i, Elf64_Phdr *out, struct gw_error *err)
{
	uint64_t at;
	Elf32_Phdr p32;
	int r;

	if (__builtin_add_overflow(elf->phoff, (uint64_t)i * elf->phentsize, &at))
		return gw_error_set(err, EINVAL, "%s: program headers at a senseless offset", img->name);
	if (elf->is64)
		return gw_image_read(img, at, out, sizeof(*out), err);
	r = gw_image_read(img, at, &p32, sizeof(p32), err);
	if (r < 0)
		return r;
	*out = (Elf64_Phdr){
		.p_type = p32.p_type,
		.p_offset = p32.p_offset,
		.p_paddr = p32.p_paddr,
		.p_filesz = p32.p_filesz,
		.p_memsz = p32.p_memsz,
		.p_align = p32.p_align,
	};
	return 0;
}

/*
 * Looks for the entry among notes: {u32 name size, u32 descriptor size, u32 type, name, descriptor}, each part padded to four bytes, or to
 * eight in segments that are aligned so. Returns true when found.
 */
static bool find_entry(const uint8_t *data, uint64_t len, uint64_t align, uint32_t *entry)
{
	uint64_t at = 0;

	align = align == 8 ? 8 : 4;
	while (len - at >= 12) {
		uint64_t name_size = gw_get_le32(data + at), desc_size = gw_get_le32(data + at + 4);
		uint32_t type = gw_get_le32(data + at + 8);
		uint64_t desc = GW_ALIGN_UP(at + 12 + name_size, align);

		if (desc > len || desc_size > len - desc)
			return false;
		if (type == XEN_ELFNOTE_PHYS32_ENTRY && name_size == 4 && !memcmp(data + at + 12, "Xen", 4) && desc_size >= 4) {
			*entry = gw_get_le32(data + desc);
			return true;
		}
		at = GW_ALIGN_UP(desc + desc_size, align);
		if (at > len)
			return false;
	}
	return false;
}

static int parse_notes(const struct gw_image *img, const Elf64_Phdr *ph, uint32_t *entry, bool *found, struct gw_error *err)
{
	gw_autofree uint8_t *data = NULL;
	int r;

	if (ph->p_filesz > MAX_NOTE_SEGMENT)
		return gw_error_set(err, EINVAL, "%s: notes of %llu bytes", img->name, (unsigned long long)ph->p_filesz);
	if (ph->p_filesz == 0)
		return 0;
	data = malloc(ph->p_filesz);
	if (!data)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_image_read(img, ph->p_offset, data, ph->p_filesz, err);
	if (r == 0)
		*found = find_entry(data, ph->p_filesz, ph->p_align, entry);
	return r;
}

static int add_segment(const struct gw_image *img, const Elf64_Phdr *ph, struct gw_pvh *pvh, struct gw_error *err)
{
	uint64_t end;

	if (ph->p_memsz == 0)
		return 0;
	if (ph->p_filesz > ph->p_memsz || __builtin_add_overflow(ph->p_paddr, ph->p_memsz, &end))
		return gw_error_set(err, EINVAL, "%s: a segment of %llu bytes (%llu in the file) at 0x%llx makes no sense", img->name,
				    (unsigned long long)ph->p_memsz, (unsigned long long)ph->p_filesz,
				    (unsigned long long)ph->p_paddr);
	if (ph->p_offset > img->size || ph->p_filesz > img->size - ph->p_offset)
		return gw_error_set(err, EINVAL, "%s is truncated: a segment of %llu bytes at offset %llu, the file has %llu",
				    img->name, (unsigned long long)ph->p_filesz, (unsigned long long)ph->p_offset,
				    (unsigned long long)img->size);
	pvh->segments[pvh->count++] = (struct gw_pvh_segment){ ph->p_offset, ph->p_filesz, ph->p_paddr, ph->p_memsz };
	pvh->end = GW_MAX(pvh->end, end);
	return 0;
}

int gw_pvh_parse(const struct gw_image *img, struct gw_pvh *ret, struct gw_error *err)
{
	struct elf elf = { 0 };
	bool found = false;
	int r;

	memset(ret, 0, sizeof(*ret));
	r = parse_header(img, &elf, err);
	for (unsigned i = 0; r == 0 && i < elf.phnum; i++) {
		Elf64_Phdr ph;

		r = read_phdr(img, &elf, i, &ph, err);
		if (r == 0 && ph.p_type == PT_LOAD)
			r = add_segment(img, &ph, ret, err);
		else if (r == 0 && ph.p_type == PT_NOTE && !found)
			r = parse_notes(img, &ph, &ret->entry, &found, err);
	}
	if (r < 0)
		return r;
	if (!found)
		return gw_error_set(err, ENOTSUP, "%s is an ELF file without a PVH entry (Linux: CONFIG_PVH)", img->name);
	if (ret->count == 0)
		return gw_error_set(err, EINVAL, "%s: an ELF file with nothing to load", img->name);
	return 0;
}

static int load_segment(struct gw_ram *ram, const struct gw_image *img, const struct gw_pvh_segment *s, struct gw_error *err)
{
	uint8_t *to = gw_ram_ptr(ram, s->gpa, s->memory_size);
	int r;

	/* Low memory holds the boot information and tables. */
	if (s->gpa < GW_GPA_HIGH || !to)
		return gw_error_set(err, ENOMEM, "%s needs memory at %llu to %llu MiB, the VM's goes from 1 to %llu MiB", img->name,
				    (unsigned long long)(s->gpa >> 20),
				    (unsigned long long)(((s->gpa + s->memory_size) >> 20) + 1),
				    (unsigned long long)(gw_memmap_low_end(ram) >> 20));
	r = gw_image_read(img, s->offset, to, s->file_size, err);
	if (r < 0)
		return r;
	/* The rest is zero already: RAM is fresh. An overlapping segment of a strange file only hurts its own guest. */
	gw_ram_mark_dirty(ram, s->gpa, s->memory_size);
	return 0;
}

static int put_start_info(struct gw_ram *ram, const struct gw_boot_request *req, uint64_t initrd, uint64_t initrd_size)
{
	struct gw_mem_range ranges[GW_MEM_RANGES_MAX];
	struct boot_page page;
	unsigned n = gw_memmap(ram, ranges);

	memset(&page, 0, sizeof(page));
	page.info = (struct start_info){
		.magic = HVM_START_MAGIC,
		.version = 1,
		.nr_modules = initrd_size ? 1 : 0,
		.modlist = initrd_size ? GW_GPA_BOOT_INFO + offsetof(struct boot_page, module) : 0,
		.cmdline = GW_GPA_CMDLINE,
		.rsdp = req->rsdp,
		.memmap = GW_GPA_BOOT_INFO + offsetof(struct boot_page, memmap),
		.memmap_entries = n,
	};
	page.module.gpa = initrd;
	page.module.size = initrd_size;
	for (unsigned i = 0; i < n; i++)
		page.memmap[i] = (struct memmap_entry){ ranges[i].gpa, ranges[i].size, ranges[i].type, 0 };
	return gw_ram_write(ram, GW_GPA_BOOT_INFO, &page, sizeof(page));
}

int gw_pvh_load(struct gw_ram *ram, const struct gw_boot_request *req, struct gw_boot_entry *ret, struct gw_error *err)
{
	const struct gw_image *kernel = req->kernel;
	struct gw_pvh pvh;
	uint64_t initrd, initrd_size;
	int r;

	r = gw_pvh_parse(kernel, &pvh, err);
	for (unsigned i = 0; r == 0 && i < pvh.count; i++)
		r = load_segment(ram, kernel, &pvh.segments[i], err);
	if (r < 0)
		return r;
	if (!gw_ram_ptr(ram, pvh.entry, 1))
		return gw_error_set(err, EINVAL, "%s: the entry at 0x%x is not in memory", kernel->name, pvh.entry);
	r = gw_boot_put_cmdline(ram, req->cmdline, GW_CMDLINE_MAX - 1, err);
	/* The kernel reads the modules through 32-bit addresses. */
	if (r == 0)
		r = gw_boot_put_initrd(ram, req->initrd, pvh.end, 1ull << 32, &initrd, &initrd_size, err);
	if (r < 0)
		return r;
	r = put_start_info(ram, req, initrd, initrd_size);
	if (r < 0)
		return gw_error_errno(err, r, "cannot write the boot parameters");
	*ret = (struct gw_boot_entry){ .mode = GW_BOOT_PROTECTED, .rip = pvh.entry, .info = GW_GPA_BOOT_INFO };
	return 0;
}
