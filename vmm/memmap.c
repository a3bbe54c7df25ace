// SPDX-License-Identifier: Apache-2.0
/* The guest's memory map; see memmap.h. */
#include "vmm/memmap.h"

#include "lib/util.h"
#include "vmm/vm.h"

uint64_t gw_memmap_low_end(const struct gw_ram *ram)
{
	unsigned count;
	const struct gw_ram_region *regions = gw_ram_regions(ram, &count);

	return regions[0].gpa + regions[0].size;
}

unsigned gw_memmap(const struct gw_ram *ram, struct gw_mem_range out[GW_MEM_RANGES_MAX])
{
	unsigned count, n = 0;
	const struct gw_ram_region *regions = gw_ram_regions(ram, &count);
	uint64_t low_end = gw_memmap_low_end(ram);

	out[n++] = (struct gw_mem_range){ 0, GW_GPA_EBDA, GW_MEM_RAM };
	out[n++] = (struct gw_mem_range){ GW_GPA_EBDA, 0xa0000 - GW_GPA_EBDA, GW_MEM_RESERVED };
	out[n++] = (struct gw_mem_range){ GW_GPA_ACPI, GW_GPA_HIGH - GW_GPA_ACPI, GW_MEM_RESERVED };
	if (low_end > GW_GPA_HIGH)
		out[n++] = (struct gw_mem_range){ GW_GPA_HIGH, low_end - GW_GPA_HIGH, GW_MEM_RAM };
	/* Linux uses ECAM only where the map reserves it. */
	out[n++] = (struct gw_mem_range){ GW_GPA_ECAM, GW_GPA_ECAM_SIZE, GW_MEM_RESERVED };
	out[n++] = (struct gw_mem_range){ GW_GPA_IDENTITY, 4 * GW_PAGE_SIZE, GW_MEM_RESERVED };
	if (count > 1)
		out[n++] = (struct gw_mem_range){ regions[1].gpa, regions[1].size, GW_MEM_RAM };
	return n;
}
