// SPDX-License-Identifier: Apache-2.0
/* The real-time clock: a MC146818 with its CMOS memory at ports 0x70 and 0x71, in UTC. */
#ifndef GW_VMM_RTC_H
#define GW_VMM_RTC_H

#include "lib/error.h"

struct gw_vm;

/* Registers itself with the VM, which frees it. */
int gw_rtc_new(struct gw_vm *vm, struct gw_error *err);

#endif
