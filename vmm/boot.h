// SPDX-License-Identifier: Apache-2.0
/* Loading of a kernel into guest RAM, by whatever boot protocol its file speaks, and the registers that it starts with. */
#ifndef GW_VMM_BOOT_H
#define GW_VMM_BOOT_H

#include <linux/kvm.h>
#include <stdint.h>

#include "lib/error.h"
#include "lib/ram/ram.h"
#include "vmm/image.h"

/* How the boot processor enters the kernel. */
enum gw_boot_mode {
	GW_BOOT_LONG,      /* 64-bit, paging by an identity map; rsi = info */
	GW_BOOT_PROTECTED, /* 32-bit, flat segments, no paging; ebx = info */
};

struct gw_boot_entry {
	enum gw_boot_mode mode;
	uint64_t rip;
	uint64_t info; /* gpa of the zero page or of hvm_start_info */
};

struct gw_boot_request {
	const struct gw_image *kernel;
	const struct gw_image *initrd; /* may be NULL */
	const char *cmdline;
	uint64_t rsdp;                 /* gpa of the ACPI root pointer */
};

/* Loads kernel, initrd, command line and boot information. Errors name the file and what is wrong with it. */
int gw_boot_load(struct gw_ram *ram, const struct gw_boot_request *req, struct gw_boot_entry *ret, struct gw_error *err);
/* The same, by paths; initrd may be NULL. */
int gw_boot_load_files(struct gw_ram *ram, const char *kernel, const char *initrd, const char *cmdline, uint64_t rsdp,
		       struct gw_boot_entry *ret, struct gw_error *err);
/* Puts the registers of the (fresh) boot processor to the kernel's entry. */
int gw_boot_set_registers(int vcpu_fd, struct gw_ram *ram, const struct gw_boot_entry *entry, struct gw_error *err);

/* Shared by the protocols. */
int gw_boot_put_cmdline(struct gw_ram *ram, const char *cmdline, uint64_t max, struct gw_error *err);
/*
 * Loads the initrd as high as it may lie: below `limit` (exclusive) and the end of low RAM, above `floor`. 0 for both when
 * there is none.
 */
int gw_boot_put_initrd(struct gw_ram *ram, const struct gw_image *initrd, uint64_t floor, uint64_t limit, uint64_t *gpa,
		       uint64_t *size, struct gw_error *err);

#endif
