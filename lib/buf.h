// SPDX-License-Identifier: Apache-2.0
/* A growable byte buffer. */
#ifndef GW_LIB_BUF_H
#define GW_LIB_BUF_H

#include <stddef.h>
#include <stdint.h>

struct gw_buf {
	uint8_t *data;
	size_t len;
	size_t cap;
};
#define GW_BUF_INIT { NULL, 0, 0 }

/* Makes room for `extra` more bytes; returns where they go, or NULL when out of memory. Does not change len. */
void *gw_buf_reserve(struct gw_buf *buf, size_t extra);
/* Appends; returns 0 or -ENOMEM. */
int gw_buf_append(struct gw_buf *buf, const void *data, size_t len);
/* Drops the first `len` bytes. */
void gw_buf_consume(struct gw_buf *buf, size_t len);
void gw_buf_release(struct gw_buf *buf);

#define gw_autobuf __attribute__((cleanup(gw_buf_release))) struct gw_buf

#endif
