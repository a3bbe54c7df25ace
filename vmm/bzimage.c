// SPDX-License-Identifier: Apache-2.0
/* Linux's bzImage; see bzimage.h. */
#include "vmm/bzimage.h"

#include <asm/bootparam.h>
#include <errno.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"
#include "vmm/memmap.h"

#define HEADER_AT 0x1f1u
#define BOOT_FLAG_AT 0x1feu
#define JUMP_AT 0x200u /* a short jump over the header: its target is the header's end */
#define MAGIC_AT 0x202u
#define MAGIC 0x53726448u /* "HdrS" */
/* 2.12 (Linux 3.8) brought the 64-bit entry's flag. */
#define MIN_VERSION 0x020cu
#define ENTRY_64 0x200u
/* Type of boot loader: none that is registered. */
#define LOADER_UNDEFINED 0xffu

bool gw_bzimage_probe(const uint8_t *head, size_t len)
{
	return len >= MAGIC_AT + 4 && gw_get_le16(head + BOOT_FLAG_AT) == 0xaa55 && gw_get_le32(head + MAGIC_AT) == MAGIC;
}

static int check_header(const char *name, const struct setup_header *h, struct gw_error *err)
{
	if (h->version < MIN_VERSION)
		return gw_error_set(err, ENOTSUP, "%s is a kernel of boot protocol %u.%02u, 2.12 or later (Linux 3.8) is needed",
				    name, h->version >> 8, h->version & 0xff);
	if (!(h->loadflags & LOADED_HIGH))
		return gw_error_set(err, ENOTSUP, "%s is a zImage, which only loads below 1 MiB", name);
	if (!(h->xloadflags & XLF_KERNEL_64))
		return gw_error_set(err, ENOTSUP, "%s is a 32-bit kernel: it has no 64-bit entry", name);
	if (h->kernel_alignment == 0 || (h->kernel_alignment & (h->kernel_alignment - 1)) || h->kernel_alignment > 1u << 30)
		return gw_error_set(err, EINVAL, "%s: the header asks for an alignment of 0x%x", name, h->kernel_alignment);
	if (h->init_size == 0)
		return gw_error_set(err, EINVAL, "%s: the header tells no size in memory", name);
	return 0;
}

int gw_bzimage_parse(const char *name, const uint8_t *head, size_t len, uint64_t file_size, struct gw_bzimage *ret,
		     struct gw_error *err)
{
	struct setup_header h;
	uint64_t setup_size, payload_size, init_size, alignment;
	uint32_t header_end;
	int r;

	if (!gw_bzimage_probe(head, len))
		return gw_error_set(err, EINVAL, "%s is not a Linux bzImage", name);
	if (len < JUMP_AT + 2 + 0xff)
		return gw_error_set(err, EINVAL, "%s is truncated: %zu bytes hold no whole header", name, len);
	header_end = JUMP_AT + 2 + head[JUMP_AT + 1];
	memset(&h, 0, sizeof(h));
	memcpy(&h, head + HEADER_AT, GW_MIN((size_t)(header_end - HEADER_AT), sizeof(h)));
	r = check_header(name, &h, err);
	if (r < 0)
		return r;
	/* boot.rst: 0 means 4 sectors, for backwards compatibility; the boot sector itself comes before them. */
	setup_size = ((h.setup_sects ? h.setup_sects : 4) + 1) * 512ull;
	payload_size = (uint64_t)h.syssize * 16;
	if (payload_size == 0)
		return gw_error_set(err, EINVAL, "%s: the header tells of no kernel behind it", name);
	/* syssize is rounded up to 16 bytes, the file need not be. */
	if (setup_size >= file_size || payload_size > file_size - setup_size + 15)
		return gw_error_set(err, EINVAL, "%s is truncated: the header says %llu bytes, the file has %llu", name,
				    (unsigned long long)(setup_size + payload_size), (unsigned long long)file_size);
	payload_size = GW_MIN(payload_size, file_size - setup_size);
	if (payload_size <= ENTRY_64)
		return gw_error_set(err, EINVAL, "%s: a kernel of %llu bytes has no 64-bit entry", name,
				    (unsigned long long)payload_size);
	init_size = GW_MAX((uint64_t)h.init_size, payload_size);
	alignment = GW_MAX((uint64_t)h.kernel_alignment, (uint64_t)GW_PAGE_SIZE);
	*ret = (struct gw_bzimage){
		.payload_offset = setup_size,
		.payload_size = payload_size,
		.init_size = init_size,
		.pref_address = h.pref_address,
		.alignment = alignment,
		.relocatable = h.relocatable_kernel,
		.initrd_max = h.initrd_addr_max ? h.initrd_addr_max : 0x37ffffff,
		.cmdline_max = h.cmdline_size ? h.cmdline_size : 255,
		.header_end = header_end,
	};
	return 0;
}

int gw_bzimage_place(const char *name, const struct gw_bzimage *bz, uint64_t low_end, uint64_t *gpa, struct gw_error *err)
{
	uint64_t at = bz->pref_address;

	if (at >= GW_GPA_HIGH && at < low_end && bz->init_size <= low_end - at) {
		*gpa = at;
		return 0;
	}
	at = GW_ALIGN_UP(GW_GPA_HIGH, bz->alignment);
	if (!bz->relocatable || at >= low_end || bz->init_size > low_end - at)
		return gw_error_set(err, ENOMEM, "%s needs %llu MiB of memory at %llu MiB, the VM's ends at %llu MiB", name,
				    (unsigned long long)((bz->init_size >> 20) + 1),
				    (unsigned long long)((bz->relocatable ? at : bz->pref_address) >> 20),
				    (unsigned long long)(low_end >> 20));
	*gpa = at;
	return 0;
}

static void fill_e820(const struct gw_ram *ram, struct boot_params *zero)
{
	struct gw_mem_range ranges[GW_MEM_RANGES_MAX];
	unsigned n = gw_memmap(ram, ranges);

	for (unsigned i = 0; i < n; i++) {
		zero->e820_table[i].addr = ranges[i].gpa;
		zero->e820_table[i].size = ranges[i].size;
		zero->e820_table[i].type = ranges[i].type;
	}
	zero->e820_entries = (uint8_t)n;
}

/* The zero page (boot.rst, "64-bit Boot Protocol"): zeros, the file's header, and what a loader has to tell. */
static int put_zero_page(struct gw_ram *ram, const struct gw_boot_request *req, const struct gw_bzimage *bz,
			 const uint8_t *head, uint64_t initrd, uint64_t initrd_size)
{
	struct boot_params zero;

	memset(&zero, 0, sizeof(zero));
	memcpy((uint8_t *)&zero + HEADER_AT, head + HEADER_AT,
	       GW_MIN((size_t)(bz->header_end - HEADER_AT), sizeof(zero.hdr)));
	zero.hdr.type_of_loader = LOADER_UNDEFINED;
	zero.hdr.loadflags &= (uint8_t)~(CAN_USE_HEAP | QUIET_FLAG);
	zero.hdr.cmd_line_ptr = (uint32_t)GW_GPA_CMDLINE;
	zero.hdr.setup_data = 0;
	zero.hdr.ramdisk_image = (uint32_t)initrd;
	zero.hdr.ramdisk_size = (uint32_t)initrd_size;
	zero.ext_ramdisk_image = (uint32_t)(initrd >> 32);
	zero.ext_ramdisk_size = (uint32_t)(initrd_size >> 32);
	zero.acpi_rsdp_addr = req->rsdp;
	fill_e820(ram, &zero);
	return gw_ram_write(ram, GW_GPA_BOOT_INFO, &zero, sizeof(zero));
}

int gw_bzimage_load(struct gw_ram *ram, const struct gw_boot_request *req, struct gw_boot_entry *ret, struct gw_error *err)
{
	const struct gw_image *kernel = req->kernel;
	uint8_t head[GW_BZIMAGE_HEAD];
	size_t len = (size_t)GW_MIN(kernel->size, (uint64_t)sizeof(head));
	uint64_t low_end = gw_memmap_low_end(ram), gpa, initrd, initrd_size;
	struct gw_bzimage bz;
	int r;

	r = gw_image_read(kernel, 0, head, len, err);
	if (r == 0)
		r = gw_bzimage_parse(kernel->name, head, len, kernel->size, &bz, err);
	if (r == 0)
		r = gw_bzimage_place(kernel->name, &bz, low_end, &gpa, err);
	if (r < 0)
		return r;
	r = gw_image_read(kernel, bz.payload_offset, gw_ram_ptr(ram, gpa, bz.payload_size), bz.payload_size, err);
	if (r < 0)
		return r;
	gw_ram_mark_dirty(ram, gpa, bz.payload_size);
	r = gw_boot_put_cmdline(ram, req->cmdline, bz.cmdline_max, err);
	if (r == 0)
		r = gw_boot_put_initrd(ram, req->initrd, gpa + bz.init_size, bz.initrd_max + 1, &initrd, &initrd_size, err);
	if (r < 0)
		return r;
	r = put_zero_page(ram, req, &bz, head, initrd, initrd_size);
	if (r < 0)
		return gw_error_errno(err, r, "cannot write the boot parameters");
	*ret = (struct gw_boot_entry){ .mode = GW_BOOT_LONG, .rip = gpa + ENTRY_64, .info = GW_GPA_BOOT_INFO };
	return 0;
}
