// SPDX-License-Identifier: Apache-2.0
/* Guest-physical memory as the guest is told of it, and where what we put into low memory lies. */
#ifndef GW_VMM_MEMMAP_H
#define GW_VMM_MEMMAP_H

#include <stdint.h>

#include "lib/ram/ram.h"

/* Below 640 KiB: the boot structures, which the kernel may overwrite once it has read them. */
#define GW_GPA_GDT 0x500ull
#define GW_GPA_BOOT_INFO 0x7000ull    /* zero page, or hvm_start_info */
#define GW_GPA_PAGE_TABLES 0x9000ull  /* 6 pages */
#define GW_GPA_CMDLINE 0x20000ull
#define GW_CMDLINE_MAX 0x10000u       /* bytes with the NUL */
#define GW_GPA_EBDA 0x9fc00ull        /* end of low memory */
/* Where a BIOS would be: the ACPI tables, RSDP first so that old kernels find it by searching. */
#define GW_GPA_ACPI 0xe0000ull
#define GW_ACPI_MAX 0x1f000u
/* Its last page, with nothing else in it: the generation ID (vmm/genid.h). */
#define GW_GPA_GENID 0xff000ull
#define GW_GPA_HIGH 0x100000ull       /* 1 MiB */

/* Types as in E820 and in struct hvm_memmap_table_entry. */
enum { GW_MEM_RAM = 1, GW_MEM_RESERVED = 2 };

struct gw_mem_range {
	uint64_t gpa;
	uint64_t size;
	uint32_t type;
};
#define GW_MEM_RANGES_MAX 8

/* Fills `out` in address order; returns how many. */
unsigned gw_memmap(const struct gw_ram *ram, struct gw_mem_range out[GW_MEM_RANGES_MAX]);
/* End of the RAM that begins at 0. */
uint64_t gw_memmap_low_end(const struct gw_ram *ram);

#endif
