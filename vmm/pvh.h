// SPDX-License-Identifier: Apache-2.0
/*
 * ELF kernels with a PVH entry: the note XEN_ELFNOTE_PHYS32_ENTRY names an address that is entered in 32-bit protected mode with
 * struct hvm_start_info (xen/include/public/arch-x86/hvm/start_info.h).
 */
#ifndef GW_VMM_PVH_H
#define GW_VMM_PVH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/boot.h"

#define GW_PVH_MAX_SEGMENTS 64

struct gw_pvh_segment {
	uint64_t offset;      /* in the file */
	uint64_t file_size;
	uint64_t gpa;
	uint64_t memory_size; /* at least file_size; the rest is zeros */
};

struct gw_pvh {
	uint32_t entry;
	uint64_t end; /* behind the highest segment */
	unsigned count;
	struct gw_pvh_segment segments[GW_PVH_MAX_SEGMENTS];
};

bool gw_pvh_probe(const uint8_t *head, size_t len);
/* Reads headers and notes; all values are checked against the file. Touches no RAM. */
int gw_pvh_parse(const struct gw_image *kernel, struct gw_pvh *ret, struct gw_error *err);

int gw_pvh_load(struct gw_ram *ram, const struct gw_boot_request *req, struct gw_boot_entry *ret, struct gw_error *err);

#endif
