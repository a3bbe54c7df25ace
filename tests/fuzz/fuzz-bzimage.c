// SPDX-License-Identifier: Apache-2.0
/* The loader of bzImages against any bytes, in VMs of several sizes. */
#include <stdlib.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/ram/ram.h"
#include "vmm/boot.h"
#include "vmm/bzimage.h"
#include "vmm/vm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Gives the file what a bzImage is known by, so that the rest of the header is what gets tried. */
static void sign(uint8_t *file, size_t size)
{
	if (size < 0x300)
		return;
	gw_put_le16(file + 0x1fe, 0xaa55);
	gw_put_le32(file + 0x202, 0x53726448);
	gw_put_le16(file + 0x206, 0x020f);
	file[0x211] |= 1;
	file[0x236] |= 1;
	file[0x1f1] %= 8;
	gw_put_le32(file + 0x1f4, gw_get_le32(file + 0x1f4) % 256);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_boot_entry entry;
	struct gw_image kernel = { .name = "kernel", .fd = -1 }, initrd;
	struct gw_boot_request req = { .kernel = &kernel, .initrd = &initrd, .cmdline = "console=ttyS0", .rsdp = 0xe0000 };
	struct gw_ram *ram;
	uint8_t *copy;

	if (size < 1 || !(copy = malloc(size)))
		return 0;
	memcpy(copy, data + 1, size - 1);
	if (data[0] & 4)
		sign(copy, size - 1);
	if (gw_ram_new(16ull << 20 << (data[0] % 4), GW_GPA_HOLE_START, GW_GPA_HOLE_END, &ram, &err) < 0)
		abort();
	kernel.data = copy;
	kernel.size = size - 1;
	initrd = kernel;
	(void)gw_bzimage_load(ram, &req, &entry, &err);
	gw_ram_free(ram);
	free(copy);
	return 0;
}
