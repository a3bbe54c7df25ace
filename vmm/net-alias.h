// SPDX-License-Identifier: Apache-2.0
/*
 * The address of a clone's network card. A driver reads it once, when it starts, so that a guest which goes on from a snapshot keeps the one that the VM
 * had which was saved, and so do all its clones. Outside each clone has another one, its alias: in all frames between tap and guest the two addresses change places,
 * both ways. What the guest sends has the alias; what is for the alias is the guest's; and whoever really has the guest's address outside (the VM that was saved)
 * appears to it under the alias, so that the two can talk to each other.
 *
 * Addresses are exchanged in the Ethernet header and where protocols repeat them: ARP and RARP, IPv6 neighbour discovery, DHCP for IPv4. IP addresses and names are the guest's own
 * affair, which it learns to settle by its generation ID (genid.h). It reads the alias as its address when its driver starts anew.
 */
#ifndef GW_VMM_NET_ALIAS_H
#define GW_VMM_NET_ALIAS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* So much of a packet (with its virtio header) has all places where an address may stand, unless DHCP options are longer than a client may expect (RFC 2131 §2). */
#define GW_NET_ALIAS_HEAD 672

/*
 * Exchanges the two addresses in the first `len` bytes of a packet: a virtio header and a frame, of which anything may be missing or wrong. Checksums go along. Whether
 * anything has changed.
 */
bool gw_net_alias_swap(const uint8_t a[6], const uint8_t b[6], uint8_t *packet, size_t len);

#endif
