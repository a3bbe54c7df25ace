// SPDX-License-Identifier: Apache-2.0
/* Tap interfaces of the host, with virtio headers on each packet. */
#ifndef GW_VMM_TAP_H
#define GW_VMM_TAP_H

#include <stdint.h>

#include "lib/error.h"

/* Length of struct virtio_net_hdr_v1, which goes before each packet in both directions. */
#define GW_TAP_HEADER 12

/* Attaches to the existing tap `name`; a non-blocking descriptor. */
int gw_tap_open(const char *name, int *ret, struct gw_error *err);
/* Which offloads the reader takes: TUN_F_* of <linux/if_tun.h>. Nothing on what is no tap. */
void gw_tap_set_offloads(int fd, unsigned flags);
/* Largest packet that comes without offloads, its Ethernet header included. */
unsigned gw_tap_frame_size(int fd);

#endif
