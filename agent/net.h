// SPDX-License-Identifier: Apache-2.0
/* The network side of a guest on this host: its taps. */
#ifndef GW_AGENT_NET_H
#define GW_AGENT_NET_H

#include "agent/guest.h"

/* Whether this host has the bridges and taps that the configuration names. */
int gw_net_check(const Godwit__VmConfig *config, struct gw_error *err);
/* Makes the guest's taps and notes them in its record (durably). Undoes itself on failure. */
int gw_net_setup(struct gw_guest *g, struct gw_error *err);
/* Removes what setup made; fine when there is nothing. */
void gw_net_teardown(struct gw_guest *g);

#endif
