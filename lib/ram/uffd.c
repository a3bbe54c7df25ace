// SPDX-License-Identifier: Apache-2.0
/* userfaultfd; see uffd.h. */
#include "lib/ram/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "lib/util.h"

/* Linux 6.8, include/uapi/linux/userfaultfd.h: newer than Debian 12's headers. */
struct move {
	uint64_t dst, src, len, mode;
	int64_t move;
};
#define MOVE _IOWR(0xAA, 0x05, struct move) /* UFFDIO_MOVE */
#define DEV_NEW _IO(0xAA, 0x00) /* USERFAULTFD_IOC_NEW, Linux 6.1 */

static int open_any(void)
{
	gw_autofd dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd = dev >= 0 ? ioctl(dev, DEV_NEW, O_CLOEXEC | O_NONBLOCK) : -1;

	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

int gw_uffd_open(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = open_any();

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) < 0) {
		int r = -errno;

		close(fd);
		return r;
	}
	return fd;
}

int gw_uffd_register(int fd, uintptr_t start, uint64_t len)
{
	struct uffdio_register reg = { .range = { start, len }, .mode = UFFDIO_REGISTER_MODE_WP };

	return ioctl(fd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

int gw_uffd_unregister(int fd, uintptr_t start, uint64_t len)
{
	struct uffdio_range range = { start, len };

	return ioctl(fd, UFFDIO_UNREGISTER, &range) < 0 ? -errno : 0;
}

int gw_uffd_protect(int fd, uintptr_t start, uint64_t len)
{
	struct uffdio_writeprotect wp = { .range = { start, len }, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	int r;

	/* The kernel says EAGAIN while the address space is being copied (fork). */
	do
		r = ioctl(fd, UFFDIO_WRITEPROTECT, &wp);
	while (r < 0 && errno == EAGAIN);
	return r < 0 ? -errno : 0;
}

int gw_uffd_wake(int fd, uintptr_t start, uint64_t len)
{
	struct uffdio_range range = { start, len };

	return ioctl(fd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

int gw_uffd_register_missing(int fd, uintptr_t start, uint64_t len)
{
	struct uffdio_register reg = { .range = { start, len }, .mode = UFFDIO_REGISTER_MODE_MISSING };

	return ioctl(fd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

/* What to do after a placement of `len` bytes that placed `done`: how far to go on, or the error. */
static int64_t step(int fd, uintptr_t at, int64_t done, int error)
{
	if (done > 0)
		return done;
	/* Somebody else's, whoever waits for it included. */
	if (error == EEXIST || error == ENOENT) {
		gw_uffd_wake(fd, at, GW_PAGE_SIZE);
		return (int64_t)GW_PAGE_SIZE;
	}
	return error == EAGAIN ? 0 : -error; /* EAGAIN: the address space is being changed */
}

int gw_uffd_copy(int fd, uintptr_t to, const void *from, uint64_t len)
{
	for (uint64_t at = 0; at < len;) {
		struct uffdio_copy copy = { .dst = to + at, .src = (uintptr_t)from + at, .len = len - at };
		int error = ioctl(fd, UFFDIO_COPY, &copy) < 0 ? errno : 0;
		int64_t done = step(fd, to + at, copy.copy, error);

		if (done < 0)
			return (int)done;
		at += (uint64_t)done;
	}
	return 0;
}

int gw_uffd_zero(int fd, uintptr_t start, uint64_t len)
{
	for (uint64_t at = 0; at < len;) {
		struct uffdio_zeropage zero = { .range = { start + at, len - at } };
		int error = ioctl(fd, UFFDIO_ZEROPAGE, &zero) < 0 ? errno : 0;
		int64_t done = step(fd, start + at, zero.zeropage, error);

		if (done < 0)
			return (int)done;
		at += (uint64_t)done;
	}
	return 0;
}

int gw_uffd_move(int fd, uintptr_t to, void *from, uint64_t len, uint64_t *moved)
{
	struct move m = { .dst = to, .src = (uintptr_t)from, .len = len };
	int error = ioctl(fd, MOVE, &m) < 0 ? errno : 0;

	*moved = m.move > 0 ? (uint64_t)m.move : 0;
	return -error;
}
