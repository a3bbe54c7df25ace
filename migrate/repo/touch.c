// SPDX-License-Identifier: Apache-2.0
/* The order of first touches; see touch.h. */
#include "migrate/repo/touch.h"

#include <errno.h>

#include "lib/util.h"
#include "migrate/repo/coding.h"

int gw_touch_encode(const struct gw_snap_range *ranges, size_t count, struct gw_buf *out)
{
	struct gw_enc e = { .buf = out };
	uint64_t end = 0;

	gw_enc_varint(&e, count);
	for (size_t i = 0; i < count; i++) {
		gw_enc_signed(&e, (int64_t)(ranges[i].page - end));
		gw_enc_varint(&e, ranges[i].count);
		end = ranges[i].page + ranges[i].count;
	}
	return e.error;
}

/* Ranges of set bits; `ret` may be NULL. Returns how many. */
static size_t find_ranges(const uint64_t *bitmap, uint64_t pages, struct gw_snap_range *ret)
{
	size_t count = 0;
	bool in = false;

	for (uint64_t page = 0; page < pages; page++) {
		bool set = bitmap[page / 64] >> (page % 64) & 1;

		if (set && !in && ret)
			ret[count] = (struct gw_snap_range){ page, 0 };
		if (set && ret)
			ret[count].count++;
		count += in && !set;
		in = set;
	}
	return count + in;
}

int gw_touch_encode_bitmap(const uint64_t *bitmap, uint64_t pages, struct gw_buf *out)
{
	size_t count = find_ranges(bitmap, pages, NULL);
	gw_autofree struct gw_snap_range *ranges = malloc((count + 1) * sizeof(*ranges));

	if (!ranges)
		return -ENOMEM;
	find_ranges(bitmap, pages, ranges);
	return gw_touch_encode(ranges, count, out);
}

int gw_touch_decode(const void *data, uint64_t len, uint64_t pages, struct gw_snap_range **ret, size_t *count)
{
	struct gw_dec d = { data, (const uint8_t *)data + len, false };
	uint64_t n = gw_dec_varint_max(&d, gw_dec_left(&d) / 2), end = 0;
	struct gw_snap_range *ranges = malloc((n + 1) * sizeof(*ranges));

	if (!ranges)
		return -ENOMEM;
	for (uint64_t i = 0; i < n && !d.bad; i++) {
		ranges[i].page = end + (uint64_t)gw_dec_signed(&d);
		ranges[i].count = gw_dec_varint(&d);
		if (ranges[i].page > pages || ranges[i].count > pages - ranges[i].page)
			d.bad = true;
		end = ranges[i].page + ranges[i].count;
	}
	if (d.bad || d.p != d.end) {
		free(ranges);
		return -EBADMSG;
	}
	*ret = ranges;
	*count = n;
	return 0;
}
