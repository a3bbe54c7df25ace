// SPDX-License-Identifier: Apache-2.0
/* The host's memory: how much is left for a VM, and how much of a mapping is resident. */
#ifndef GW_VMM_HOSTMEM_H
#define GW_VMM_HOSTMEM_H

#include <stdint.h>

#include "lib/error.h"
#include "lib/ram/ram.h"

/* MemAvailable of a text in the form of /proc/meminfo, in bytes; -ENOENT when it does not tell. Pure. */
int gw_meminfo_available(const char *text, uint64_t *ret);
/* -ENOMEM with advice when the host has less than `bytes` available. */
int gw_hostmem_check(uint64_t bytes, struct gw_error *err);
/* Bytes of guest RAM that are resident. */
uint64_t gw_hostmem_resident(const struct gw_ram *ram);

#endif
