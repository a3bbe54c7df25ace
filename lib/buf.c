// SPDX-License-Identifier: Apache-2.0
/* A growable byte buffer; see buf.h. */
#include "lib/buf.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"

void *gw_buf_reserve(struct gw_buf *buf, size_t extra)
{
	size_t need, cap;
	uint8_t *data;

	if (__builtin_add_overflow(buf->len, extra, &need))
		return NULL;
	if (need > buf->cap) {
		cap = GW_MAX(buf->cap * 2, need);
		cap = GW_MAX(cap, (size_t)256);
		data = realloc(buf->data, cap);
		if (!data)
			return NULL;
		buf->data = data;
		buf->cap = cap;
	}
	return buf->data ? buf->data + buf->len : NULL;
}

int gw_buf_append(struct gw_buf *buf, const void *data, size_t len)
{
	void *to;

	if (len == 0)
		return 0;
	to = gw_buf_reserve(buf, len);
	if (!to)
		return -ENOMEM;
	memcpy(to, data, len);
	buf->len += len;
	return 0;
}

void gw_buf_consume(struct gw_buf *buf, size_t len)
{
	if (len == 0)
		return;
	memmove(buf->data, buf->data + len, buf->len - len);
	buf->len -= len;
}

void gw_buf_release(struct gw_buf *buf)
{
	free(buf->data);
	*buf = (struct gw_buf)GW_BUF_INIT;
}
