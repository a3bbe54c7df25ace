// SPDX-License-Identifier: Apache-2.0
/* Frames between a client of a repository and the agent that keeps it; see remote.h. */
#include "migrate/repo/remote.h"

#include <errno.h>

#include "lib/bytes.h"
#include "lib/clock.h"
#include "lib/util.h"

uint64_t gw_remote_deadline(uint64_t bytes)
{
	return gw_now_ns() + GW_REMOTE_STALL + bytes * (GW_NS_PER_SEC / GW_REMOTE_SLOWEST);
}

int gw_remote_send(struct gw_channel *ch, uint16_t type, const ProtobufCMessage *msg)
{
	gw_autobuf buf = GW_BUF_INIT;
	int r = gw_frame_pack(&buf, type, msg);

	return r < 0 ? r : gw_channel_write(ch, buf.data, buf.len);
}

int gw_remote_send_data(struct gw_channel *ch, const void *data, uint64_t len)
{
	const uint8_t *p = data;

	while (len) {
		uint32_t n = (uint32_t)GW_MIN(len, (uint64_t)GW_REMOTE_PIECE);
		uint8_t raw[GW_FRAME_HEADER];
		int r;

		gw_put_le32(raw, n);
		gw_put_le16(raw + 4, GW_FRAME_REPO_DATA);
		gw_put_le16(raw + 6, GW_FRAME_VERSION);
		r = gw_channel_write(ch, raw, sizeof(raw));
		r = r ?: gw_channel_write(ch, p, n);
		if (r < 0)
			return r;
		p += n;
		len -= n;
	}
	return 0;
}

int gw_remote_check_header(const struct gw_frame_header *h)
{
	switch (h->type) {
	case GW_FRAME_REPO_REQUEST:
		return h->len <= GW_REMOTE_MAX_REQUEST ? 0 : -EPROTO;
	case GW_FRAME_REPO_REPLY:
		return h->len <= GW_REMOTE_MAX_REPLY ? 0 : -EPROTO;
	case GW_FRAME_REPO_DATA:
		return h->len && h->len <= GW_REMOTE_PIECE ? 0 : -EPROTO;
	default:
		return -EPROTO;
	}
}

int gw_remote_receive(struct gw_channel *ch, struct gw_frame_header *h, uint64_t deadline_ns)
{
	uint8_t raw[GW_FRAME_HEADER];
	int r = gw_channel_read(ch, raw, sizeof(raw), deadline_ns);

	r = r ?: gw_frame_parse_header(raw, h);
	return r ?: gw_remote_check_header(h);
}

int gw_remote_message(struct gw_channel *ch, const struct gw_frame_header *h, const ProtobufCMessageDescriptor *desc, ProtobufCMessage **ret,
		      uint64_t deadline_ns)
{
	gw_autofree uint8_t *body = malloc((size_t)h->len + 1);
	ProtobufCMessage *msg;
	int r = body ? gw_channel_read(ch, body, h->len, deadline_ns) : -ENOMEM;

	if (r < 0)
		return r;
	msg = protobuf_c_message_unpack(desc, NULL, h->len, body);
	if (!msg)
		return -EPROTO;
	*ret = msg;
	return 0;
}
