// SPDX-License-Identifier: Apache-2.0
/* A boot file to be parsed: bytes in memory or a file, read by range with every range checked. */
#ifndef GW_VMM_IMAGE_H
#define GW_VMM_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "lib/error.h"

struct gw_image {
	const char *name;    /* for messages; borrowed */
	int fd;              /* -1: the bytes are at `data` */
	const uint8_t *data;
	uint64_t size;
};

/* Opens a regular file. Its size is taken now: what is appended later is not seen. */
int gw_image_open(struct gw_image *img, const char *path, struct gw_error *err);
void gw_image_close(struct gw_image *img);
/* Reads exactly `len` bytes at `offset`; -EINVAL "truncated" when they are not all there. */
int gw_image_read(const struct gw_image *img, uint64_t offset, void *out, uint64_t len, struct gw_error *err);

#endif
