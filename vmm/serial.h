// SPDX-License-Identifier: Apache-2.0
/* The first serial port: a 16550A at ports 0x3f8 to 0x3ff, line 4. */
#ifndef GW_VMM_SERIAL_H
#define GW_VMM_SERIAL_H

#include "lib/error.h"
#include "vmm/tty.h"

struct gw_serial;
struct gw_vm;

/* Registers itself with the VM, which frees it. */
int gw_serial_new(struct gw_vm *vm, struct gw_serial **ret, struct gw_error *err);
/* Where consoles attach; borrowed. */
struct gw_tty *gw_serial_tty(struct gw_serial *serial);

#endif
