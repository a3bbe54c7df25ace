// SPDX-License-Identifier: Apache-2.0
/* virtio-net (virtio 1.2 §5.1) on a tap. */
#ifndef GW_VMM_NET_H
#define GW_VMM_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "vmm/devhost.h"

struct gw_net_config;
struct gw_virtio;

/*
 * Opens the tap. While an `incoming` VM has not arrived, what comes is dropped: floods of the network, which would else fill
 * the tap's queue and be the first that the guest gets. A MAC address of zeroes is derived from `vm_name` (may be NULL) and the
 * device's name.
 */
int gw_net_new(const struct gw_net_config *config, const char *vm_name, bool incoming, const struct gw_devhost *host, struct gw_virtio **ret,
	       struct gw_error *err);
/* The same on an open descriptor that takes and gives one packet a write and read, each after a virtio header. Takes fd. */
int gw_net_new_on(int fd, const char *name, const uint8_t mac[6], bool incoming, const struct gw_devhost *host, struct gw_virtio **ret,
		  struct gw_error *err);
/* A locally administered address that depends on the names alone. */
void gw_net_default_mac(const char *vm_name, const char *name, uint8_t mac[6]);

#endif
