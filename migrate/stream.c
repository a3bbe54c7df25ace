// SPDX-License-Identifier: Apache-2.0
/* Frames of the data channels; see stream.h. */
#include "migrate/stream.h"

#include <errno.h>

#include "lib/bytes.h"
#include "lib/util.h"

#define FLAG_LAST 1u

void gw_page_frame_encode(const struct gw_page_frame *f, uint8_t raw[GW_STREAM_HEADER])
{
	raw[0] = (uint8_t)f->type;
	raw[1] = f->last ? FLAG_LAST : 0;
	gw_put_le16(raw + 2, 0);
	gw_put_le32(raw + 4, f->count);
	gw_put_le64(raw + 8, f->index);
}

int gw_page_frame_decode(const uint8_t raw[GW_STREAM_HEADER], uint64_t pages, struct gw_page_frame *ret,
			 struct gw_error *err)
{
	struct gw_page_frame f = {
		.type = (enum gw_page_type)raw[0],
		.last = raw[1] & FLAG_LAST,
		.count = gw_get_le32(raw + 4),
		.index = gw_get_le64(raw + 8),
	};

	if (f.type < GW_PAGE_RAW || f.type > GW_PAGE_ACK)
		return gw_error_set(err, EPROTO, "page stream: unknown frame type %u", raw[0]);
	if (raw[1] & (f.type == GW_PAGE_END ? ~FLAG_LAST : ~0u) || gw_get_le16(raw + 2))
		return gw_error_set(err, EPROTO, "page stream: unknown flags in a frame of type %u", raw[0]);
	if (f.type == GW_PAGE_RAW || f.type == GW_PAGE_ZERO) {
		if (f.count == 0 || f.count > GW_STREAM_MAX_RUN || f.index >= pages || f.count > pages - f.index)
			return gw_error_set(err, EPROTO, "page stream: %u pages from %llu on do not fit %llu pages", f.count,
					    (unsigned long long)f.index, (unsigned long long)pages);
	} else if (f.count != 0 || f.index == 0 || f.index > UINT32_MAX) {
		return gw_error_set(err, EPROTO, "page stream: malformed end of a round");
	}
	*ret = f;
	return 0;
}
