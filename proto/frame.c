// SPDX-License-Identifier: Apache-2.0
/* Framed protobuf messages; see frame.h. */
#include "proto/frame.h"

#include <errno.h>

#include "lib/bytes.h"
#include "lib/util.h"

int gw_frame_pack(struct gw_buf *out, uint16_t type, const ProtobufCMessage *msg)
{
	size_t len = protobuf_c_message_get_packed_size(msg);
	uint8_t *p;

	if (len > GW_FRAME_MAX)
		return -EMSGSIZE;
	p = gw_buf_reserve(out, GW_FRAME_HEADER + len);
	if (!p)
		return -ENOMEM;
	gw_put_le32(p, (uint32_t)len);
	gw_put_le16(p + 4, type);
	gw_put_le16(p + 6, GW_FRAME_VERSION);
	protobuf_c_message_pack(msg, p + GW_FRAME_HEADER);
	out->len += GW_FRAME_HEADER + len;
	return 0;
}

int gw_frame_parse_header(const uint8_t raw[GW_FRAME_HEADER], struct gw_frame_header *ret)
{
	struct gw_frame_header h = {
		.len = gw_get_le32(raw),
		.type = gw_get_le16(raw + 4),
		.version = gw_get_le16(raw + 6),
	};

	if (h.len > GW_FRAME_MAX || h.version != GW_FRAME_VERSION)
		return -EPROTO;
	*ret = h;
	return 0;
}

int gw_frame_send(int sock, uint16_t type, const ProtobufCMessage *msg, const int *fds, unsigned nfds,
		  uint64_t deadline_ns)
{
	gw_autobuf buf = GW_BUF_INIT;
	int r;

	r = gw_frame_pack(&buf, type, msg);
	if (r < 0)
		return r;
	return gw_send_fds(sock, buf.data, buf.len, fds, nfds, deadline_ns);
}

int gw_frame_recv(int sock, uint16_t type, const ProtobufCMessageDescriptor *desc, ProtobufCMessage **ret,
		  int fds[GW_MAX_FDS], unsigned *nfds, uint64_t deadline_ns)
{
	gw_autofree uint8_t *body = NULL;
	uint8_t raw[GW_FRAME_HEADER];
	struct gw_frame_header h;
	int got[GW_MAX_FDS];
	unsigned ngot = 0;
	ProtobufCMessage *msg = NULL;
	int r;

	r = gw_recv_fds(sock, raw, sizeof(raw), got, &ngot, deadline_ns);
	if (r < 0)
		return r;
	r = gw_frame_parse_header(raw, &h);
	if (r == 0 && h.type != type)
		r = -EPROTO;
	if (r == 0) {
		body = malloc(h.len + 1);
		r = body ? gw_read_full(sock, body, h.len, deadline_ns) : -ENOMEM;
	}
	if (r == 0) {
		msg = protobuf_c_message_unpack(desc, NULL, h.len, body);
		r = msg ? 0 : -EPROTO;
	}
	if (r < 0 || !fds) {
		for (unsigned i = 0; i < ngot; i++)
			close(got[i]);
		if (r < 0)
			return r;
	} else {
		for (unsigned i = 0; i < ngot; i++)
			fds[i] = got[i];
		*nfds = ngot;
	}
	*ret = msg;
	return 0;
}
