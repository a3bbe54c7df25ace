// SPDX-License-Identifier: Apache-2.0
/* virtio-console with one port (virtio 1.2 §5.3): hvc0 of Linux guests. */
#ifndef GW_VMM_CONSOLE_H
#define GW_VMM_CONSOLE_H

#include "lib/error.h"
#include "vmm/devhost.h"

struct gw_virtio;

int gw_console_new(const struct gw_devhost *host, struct gw_virtio **ret, struct gw_error *err);
/*
 * Joins the console with a stream: what the guest wrote last (64 KiB) goes to it at once. Takes fd; -1 detaches. Output that the
 * stream does not take is dropped from it, never waited for. Any thread.
 */
void gw_console_attach(struct gw_virtio *vd, int fd);

#endif
