// SPDX-License-Identifier: Apache-2.0
/* Packets that follow a VM; see packets.h. */
#include "migrate/packets.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"

struct gathered {
	Godwit__StreamPacket *list[GW_STREAM_MAX_PACKETS];
	size_t count, bytes;
};

static void gather(void *arg, unsigned device, const void *data, size_t len)
{
	Godwit__StreamPacket *p;
	struct gathered *g = arg;

	if (g->count == GW_STREAM_MAX_PACKETS || len > GW_STREAM_MAX_PACKET_BYTES - g->bytes)
		return;
	p = malloc(sizeof(*p) + len);
	if (!p)
		return;
	godwit__stream_packet__init(p);
	p->device = device;
	p->data = (ProtobufCBinaryData){ len, (uint8_t *)(p + 1) };
	memcpy(p + 1, data, len);
	g->list[g->count++] = p;
	g->bytes += len;
}

int gw_packets_forward(struct gw_move *mv, struct gw_error *err)
{
	Godwit__StreamPackets msg = GODWIT__STREAM_PACKETS__INIT;
	struct gathered g = { .count = 0 };
	int r = 0;

	if (!mv->vm.ops->drain || mv->version < GW_STREAM_VERSION_PACKETS)
		return 0;
	mv->vm.ops->drain(mv->vm.self, gather, &g);
	msg.packets = g.list;
	msg.n_packets = g.count;
	if (g.count)
		r = gw_channel_send(mv->control, GW_STREAM_PACKETS, &msg.base, err);
	for (size_t i = 0; i < g.count; i++)
		free(g.list[i]);
	return r;
}

int gw_packets_take(const struct gw_frame_header *h, const uint8_t *body, Godwit__StreamPackets **ret, struct gw_error *err)
{
	Godwit__StreamPackets *p;
	ProtobufCMessage *msg;
	size_t bytes = 0;
	int r = gw_move_unpack(h, body, &godwit__stream_packets__descriptor, &msg, err);

	if (r < 0)
		return r;
	p = (Godwit__StreamPackets *)msg;
	for (size_t i = 0; i < p->n_packets; i++)
		bytes += p->packets[i]->data.len;
	if (p->n_packets > GW_STREAM_MAX_PACKETS || bytes > GW_STREAM_MAX_PACKET_BYTES) {
		r = gw_error_set(err, EPROTO, "%zu packets of %zu bytes follow the VM: %u of %u bytes are the most", p->n_packets, bytes,
				 GW_STREAM_MAX_PACKETS, GW_STREAM_MAX_PACKET_BYTES);
		godwit__stream_packets__free_unpacked(p, NULL);
		return r;
	}
	*ret = p;
	return 0;
}

void gw_packets_deliver(struct gw_move *mv, const Godwit__StreamPackets *p)
{
	for (size_t i = 0; p && mv->vm.ops->deliver && i < p->n_packets; i++)
		mv->vm.ops->deliver(mv->vm.self, p->packets[i]->device, p->packets[i]->data.data, p->packets[i]->data.len);
}
