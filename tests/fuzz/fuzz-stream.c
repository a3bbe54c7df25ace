// SPDX-License-Identifier: Apache-2.0
/* The destination's side of a data channel and its control messages, fed with anything. */
#include <errno.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"
#include "migrate/receiver.h"
#include "migrate/stream.h"
#include "proto/frame.h"
#include "proto/stream.pb-c.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *p;
	size_t left;
};

static int take(void *self, void *data, size_t len)
{
	struct input *in = self;

	if (len > in->left)
		return -EPIPE;
	memcpy(data, in->p, len);
	in->p += len;
	in->left -= len;
	return 0;
}

static int drop(void *self, const void *data, size_t len)
{
	return 0;
}

static void page_stream(const uint8_t *data, size_t size)
{
	/* Two regions, so that runs cross from one into the other. */
	static struct gw_ram *ram;
	struct input in = { data, size };
	const struct gw_page_io io = { take, drop, &in };
	struct gw_error err = GW_ERROR_INIT;
	uint32_t round = 0;
	uint64_t pages = 0;

	if (!ram && gw_ram_new(64 * GW_PAGE_SIZE, 40 * GW_PAGE_SIZE, 1 << 20, &ram, &err) < 0)
		return;
	while (gw_receive_frame(&io, ram, &round, &pages, &err) == 0)
		;
}

static void control_stream(const uint8_t *data, size_t size)
{
	static const ProtobufCMessageDescriptor *const types[] = {
		&godwit__stream_hello__descriptor,   &godwit__stream_hello_reply__descriptor, &godwit__stream_ping__descriptor,
		&godwit__stream_state__descriptor,   &godwit__stream_ready__descriptor,       &godwit__stream_commit__descriptor,
		&godwit__stream_running__descriptor, &godwit__stream_abort__descriptor,       &godwit__stream_packets__descriptor,
	};

	while (size >= GW_FRAME_HEADER) {
		struct gw_frame_header h;
		ProtobufCMessage *msg;

		if (gw_frame_parse_header(data, &h) < 0 || h.len > size - GW_FRAME_HEADER)
			return;
		msg = protobuf_c_message_unpack(types[h.type % ARRAY_SIZE(types)], NULL, h.len, data + GW_FRAME_HEADER);
		if (msg)
			protobuf_c_message_free_unpacked(msg, NULL);
		data += GW_FRAME_HEADER + h.len;
		size -= GW_FRAME_HEADER + h.len;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size == 0)
		return 0;
	if (data[0] & 1)
		page_stream(data + 1, size - 1);
	else
		control_stream(data + 1, size - 1);
	return 0;
}
