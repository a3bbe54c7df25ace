// SPDX-License-Identifier: Apache-2.0
/* Boot files; see image.h. */
#include "vmm/image.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/util.h"

int gw_image_open(struct gw_image *img, const char *path, struct gw_error *err)
{
	/* O_NONBLOCK: a FIFO must not hold us up before it is refused. */
	gw_autofd fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;

	if (fd < 0)
		return gw_error_errno(err, errno, "cannot open %s", path);
	if (fstat(fd, &st) < 0)
		return gw_error_errno(err, errno, "cannot look at %s", path);
	if (!S_ISREG(st.st_mode))
		return gw_error_set(err, EINVAL, "%s is not a regular file", path);
	*img = (struct gw_image){ .name = path, .fd = gw_steal_fd(&fd), .size = (uint64_t)st.st_size };
	return 0;
}

void gw_image_close(struct gw_image *img)
{
	if (img->fd >= 0)
		close(img->fd);
	img->fd = -1;
}

int gw_image_read(const struct gw_image *img, uint64_t offset, void *out, uint64_t len, struct gw_error *err)
{
	uint8_t *p = out;

	if (offset > img->size || len > img->size - offset)
		return gw_error_set(err, EINVAL, "%s is truncated: %llu bytes at offset %llu are needed, the file has %llu",
				    img->name, (unsigned long long)len, (unsigned long long)offset,
				    (unsigned long long)img->size);
	if (img->fd < 0) {
		if (len)
			memcpy(out, img->data + offset, len);
		return 0;
	}
	while (len) {
		ssize_t n = pread(img->fd, p, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return gw_error_errno(err, errno, "cannot read %s", img->name);
		if (n == 0)
			return gw_error_set(err, EINVAL, "%s was truncated while it was read", img->name);
		p += n;
		offset += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}
