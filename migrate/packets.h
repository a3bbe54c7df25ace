// SPDX-License-Identifier: Apache-2.0
/* Packets that follow a VM to where it has moved (GW_STREAM_PACKETS). */
#ifndef GW_MIGRATE_PACKETS_H
#define GW_MIGRATE_PACKETS_H

#include "migrate/move-internal.h"

/* Source: sends what has come for the stopped VM; nothing when there is nothing. */
int gw_packets_forward(struct gw_move *mv, struct gw_error *err);
/* Destination: unpacks and checks. *ret is owned (godwit__stream_packets__free_unpacked). */
int gw_packets_take(const struct gw_frame_header *h, const uint8_t *body, Godwit__StreamPackets **ret, struct gw_error *err);
/* Hands them to the VM; NULL is fine. */
void gw_packets_deliver(struct gw_move *mv, const Godwit__StreamPackets *p);

#endif
