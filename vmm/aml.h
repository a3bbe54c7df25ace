// SPDX-License-Identifier: Apache-2.0
/*
 * A small encoder of AML, the byte code of ACPI tables (ACPI 6.4 §20). Everything appends to a buffer; a failed append makes all
 * that follow no-ops and is told by gw_aml_failed(). Packages (scopes, devices, methods) are opened and closed.
 */
#ifndef GW_VMM_AML_H
#define GW_VMM_AML_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/buf.h"

struct gw_aml {
	struct gw_buf *out;
	bool failed;
};

/* An open package: where its length goes. */
struct gw_aml_mark {
	size_t at;
};

bool gw_aml_failed(const struct gw_aml *aml);

/* Names are one segment of four characters, or paths such as "\\_SB_" or "\\_SB_.PCI0". */
struct gw_aml_mark gw_aml_scope(struct gw_aml *aml, const char *path);
struct gw_aml_mark gw_aml_device(struct gw_aml *aml, const char *name);
/* Method(name), without arguments. */
struct gw_aml_mark gw_aml_method(struct gw_aml *aml, const char *name);
void gw_aml_end(struct gw_aml *aml, struct gw_aml_mark mark);
/* Notify(path, value), in a method. */
void gw_aml_notify(struct gw_aml *aml, const char *path, uint8_t value);

/* Name(name, value) in the forms that are needed here. */
void gw_aml_name_int(struct gw_aml *aml, const char *name, uint64_t value);
void gw_aml_name_string(struct gw_aml *aml, const char *name, const char *text);
/* "PNP0A08" as a compressed EISA id (ACPI 6.4 §19.3.4). */
void gw_aml_name_eisaid(struct gw_aml *aml, const char *name, const char *id);
void gw_aml_name_package(struct gw_aml *aml, const char *name, const uint64_t *values, unsigned count);

/* Name(_CRS, ResourceTemplate() { ... }): open, add descriptors (ACPI 6.4 §6.4), close. */
struct gw_aml_crs {
	struct gw_buf items;
};
void gw_aml_crs_io(struct gw_aml *aml, struct gw_aml_crs *crs, uint16_t base, uint8_t len);
void gw_aml_crs_irq(struct gw_aml *aml, struct gw_aml_crs *crs, unsigned line);
void gw_aml_crs_memory32_fixed(struct gw_aml *aml, struct gw_aml_crs *crs, uint32_t base, uint32_t len);
void gw_aml_crs_bus(struct gw_aml *aml, struct gw_aml_crs *crs, uint16_t first, uint16_t last);
void gw_aml_crs_io_window(struct gw_aml *aml, struct gw_aml_crs *crs, uint16_t first, uint16_t last);
void gw_aml_crs_memory32_window(struct gw_aml *aml, struct gw_aml_crs *crs, uint32_t base, uint32_t len);
void gw_aml_crs_memory64_window(struct gw_aml *aml, struct gw_aml_crs *crs, uint64_t base, uint64_t len);
/* Writes it as `_CRS` and releases the items. */
void gw_aml_name_crs(struct gw_aml *aml, struct gw_aml_crs *crs);

#endif
