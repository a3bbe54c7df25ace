// SPDX-License-Identifier: Apache-2.0
/* The loader of ELF kernels against any bytes, in VMs of several sizes. */
#include "lib/ram/ram.h"
#include "vmm/boot.h"
#include "vmm/pvh.h"
#include "vmm/vm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_boot_entry entry;
	struct gw_image kernel = { .name = "kernel", .fd = -1 }, initrd;
	struct gw_boot_request req = { .kernel = &kernel, .initrd = &initrd, .cmdline = "console=ttyS0", .rsdp = 0xe0000 };
	struct gw_ram *ram;

	if (size < 1)
		return 0;
	if (gw_ram_new(16ull << 20 << (data[0] % 4), GW_GPA_HOLE_START, GW_GPA_HOLE_END, &ram, &err) < 0)
		return 0;
	kernel.data = data + 1;
	kernel.size = size - 1;
	initrd = kernel;
	(void)gw_pvh_load(ram, &req, &entry, &err);
	gw_ram_free(ram);
	return 0;
}
