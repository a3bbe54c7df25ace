// SPDX-License-Identifier: Apache-2.0
/* KVM's memory slots: one for each region of guest RAM, numbered alike; their dirty logging goes on and off. */
#ifndef GW_VMM_MEMSLOTS_H
#define GW_VMM_MEMSLOTS_H

#include <stdbool.h>

#include "lib/error.h"
#include "lib/ram/ram.h"

int gw_memslots_set(int vm_fd, const struct gw_ram *ram, bool log_dirty, struct gw_error *err);

#endif
