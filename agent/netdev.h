// SPDX-License-Identifier: Apache-2.0
/* Taps for VMs, attached to a bridge. Needs CAP_NET_ADMIN. */
#ifndef GW_AGENT_NETDEV_H
#define GW_AGENT_NETDEV_H

#include "lib/error.h"

/* Makes the tap `name` (replacing one that a crash left behind), attaches it to `bridge` with its MTU and sets it up. */
int gw_tap_make(const char *name, const char *bridge, struct gw_error *err);
/* Removes it; fine when there is none. */
void gw_tap_remove(const char *name);
/* -ENODEV with a clear message when it is not there or is no bridge; likewise for taps. */
int gw_bridge_check(const char *name, struct gw_error *err);
int gw_tap_check(const char *name, struct gw_error *err);

#endif
