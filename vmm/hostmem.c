// SPDX-License-Identifier: Apache-2.0
/* The host's memory; see hostmem.h. */
#include "vmm/hostmem.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/util.h"

int gw_meminfo_available(const char *text, uint64_t *ret)
{
	static const char key[] = "MemAvailable:";
	const char *line = strstr(text, key);
	unsigned long long kib;

	if (!line || sscanf(line + sizeof(key) - 1, "%llu kB", &kib) != 1)
		return -ENOENT;
	*ret = (uint64_t)kib << 10;
	return 0;
}

int gw_hostmem_check(uint64_t bytes, struct gw_error *err)
{
	FILE *f = fopen("/proc/meminfo", "re");
	char text[4096];
	uint64_t available;
	size_t n;

	if (!f)
		return 0; /* no /proc: then there is nothing to be told by */
	n = fread(text, 1, sizeof(text) - 1, f);
	fclose(f);
	text[n] = '\0';
	if (gw_meminfo_available(text, &available) < 0 || bytes <= available)
		return 0;
	return gw_error_set(err, ENOMEM, "the VM's memory of %llu MiB is more than this host has available (%llu MiB); give it less, "
			    "or --overcommit if you know that it will not use it",
			    (unsigned long long)(bytes >> 20), (unsigned long long)(available >> 20));
}

#define STEP_PAGES 4096u

static uint64_t region_resident(const struct gw_ram_region *region)
{
	unsigned char vec[STEP_PAGES];
	uint64_t resident = 0;

	for (uint64_t at = 0; at < region->size; at += STEP_PAGES * GW_PAGE_SIZE) {
		uint64_t len = GW_MIN(region->size - at, STEP_PAGES * GW_PAGE_SIZE);

		if (mincore(region->hva + at, len, vec) < 0)
			continue;
		for (uint64_t i = 0; i < len / GW_PAGE_SIZE; i++)
			resident += vec[i] & 1;
	}
	return resident * GW_PAGE_SIZE;
}

uint64_t gw_hostmem_resident(const struct gw_ram *ram)
{
	unsigned count;
	const struct gw_ram_region *regions = gw_ram_regions(ram, &count);
	uint64_t resident = 0;

	for (unsigned i = 0; i < count; i++)
		resident += region_resident(&regions[i]);
	return resident;
}
