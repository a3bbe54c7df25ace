// SPDX-License-Identifier: Apache-2.0
/*
 * The control socket: frames of proto/vmm.proto on the main loop, any number of clients up to 32. Nothing here ever waits for a
 * client: replies and events are queued, and a client that lets a mebibyte pile up is dropped.
 */
#ifndef GW_VMM_CONTROL_H
#define GW_VMM_CONTROL_H

#include <systemd/sd-event.h>

#include "lib/error.h"
#include "vmm/machine.h"

struct gw_control;

/* Listens at `path` (mode 0600). Clients are served once the loop runs and gw_control_attach() was called. */
int gw_control_new(const char *path, sd_event *loop, struct gw_control **ret, struct gw_error *err);
/* Serves requests for this machine, and tells its events to those that subscribed. */
int gw_control_attach(struct gw_control *c, struct gw_machine *m, struct gw_error *err);
/* Gives replies and events on their way a moment, then closes all and removes the socket. Takes NULL. */
void gw_control_free(struct gw_control *c);

#endif
