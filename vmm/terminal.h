// SPDX-License-Identifier: Apache-2.0
/* The terminal that the VMM was started on: raw while the guest has it, and always given back as it was. */
#ifndef GW_VMM_TERMINAL_H
#define GW_VMM_TERMINAL_H

#include <stdbool.h>

#include "lib/error.h"
#include "vmm/tty.h"

/*
 * Attaches standard input and output to the console. When standard input is a terminal in the foreground it becomes raw, and Ctrl-A x
 * calls quit(arg), on the console's thread. Call once; it is restored when the process exits, in whatever way.
 */
int gw_terminal_attach(struct gw_tty *tty, void (*quit)(void *arg), void *arg, struct gw_error *err);
/* Gives the terminal back now. Any time, any number of times; async-signal-safe. */
void gw_terminal_restore(void);

#endif
