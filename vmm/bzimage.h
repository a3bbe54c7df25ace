// SPDX-License-Identifier: Apache-2.0
/* Linux's bzImage (the kernel's Documentation/arch/x86/boot.rst), entered in 64-bit mode. */
#ifndef GW_VMM_BZIMAGE_H
#define GW_VMM_BZIMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/boot.h"

/* Bytes of the file's beginning that gw_bzimage_parse() wants. */
#define GW_BZIMAGE_HEAD 1024u

/* What the header tells, checked against the file's size. */
struct gw_bzimage {
	uint64_t payload_offset; /* in the file */
	uint64_t payload_size;
	uint64_t init_size;      /* bytes of RAM that the kernel needs from its load address on */
	uint64_t pref_address;
	uint64_t alignment;
	bool relocatable;
	uint64_t initrd_max;     /* highest address of the initrd's last byte */
	uint32_t cmdline_max;    /* without the NUL */
	uint32_t header_end;     /* file offset behind the set-up header */
};

bool gw_bzimage_probe(const uint8_t *head, size_t len);
/* Pure: `head` is the first `len` bytes of a file of `file_size`. `name` is for messages. */
int gw_bzimage_parse(const char *name, const uint8_t *head, size_t len, uint64_t file_size, struct gw_bzimage *ret,
		     struct gw_error *err);
/* Where it goes in RAM that ends at `low_end`; -ENOMEM when it does not fit. */
int gw_bzimage_place(const char *name, const struct gw_bzimage *bz, uint64_t low_end, uint64_t *gpa, struct gw_error *err);

int gw_bzimage_load(struct gw_ram *ram, const struct gw_boot_request *req, struct gw_boot_entry *ret, struct gw_error *err);

#endif
