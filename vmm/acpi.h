// SPDX-License-Identifier: Apache-2.0
/*
 * ACPI tables: what the guest learns of processors, interrupt controllers, PCI and power. Like all BIOS data they are written
 * once into guest memory; there is no run-time part.
 */
#ifndef GW_VMM_ACPI_H
#define GW_VMM_ACPI_H

#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"
#include "lib/ram/ram.h"

struct gw_acpi_config {
	unsigned cpus;
	uint64_t pci64_base; /* window of 64-bit BARs; size 0: none */
	uint64_t pci64_size;
};

/* Appends all tables as they are to lie at `gpa`, the RSDP first. Pure. */
int gw_acpi_build(const struct gw_acpi_config *config, uint64_t gpa, struct gw_buf *out, struct gw_error *err);
/* Builds them at GW_GPA_ACPI; that is the RSDP's address. */
int gw_acpi_load(struct gw_ram *ram, const struct gw_acpi_config *config, struct gw_error *err);

#endif
