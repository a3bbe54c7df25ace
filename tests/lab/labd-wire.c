// SPDX-License-Identifier: Apache-2.0
/* labd's frames: one type byte, a 32-bit little-endian length and that many bytes. */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "labd.h"

int labd_write_all(int fd, const void *data, size_t len)
{
	const char *p = data;

	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int labd_read_all(int fd, void *data, size_t len)
{
	char *p = data;

	while (len) {
		ssize_t n = read(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ECONNRESET;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int labd_send_frame(int sock, char type, const void *data, uint32_t len)
{
	char head[5] = { type };
	uint32_t le = htole32(len);

	memcpy(head + 1, &le, sizeof(le));
	/* Header and body leave as one segment where they fit: MSG_MORE holds the header back. */
	if (send(sock, head, sizeof(head), MSG_NOSIGNAL | (len ? MSG_MORE : 0)) != sizeof(head))
		return -EPIPE;
	return labd_write_all(sock, data, len);
}

int labd_send_exit(int sock, uint32_t status)
{
	uint32_t le = htole32(status);

	return labd_send_frame(sock, 'x', &le, sizeof(le));
}

void labd_send_failure(int sock, const char *what, int error)
{
	char text[1024];
	int n = snprintf(text, sizeof(text), "%s: %s", what, strerror(error));

	if (n > 0)
		labd_send_frame(sock, 'f', text, (uint32_t)((size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1));
}
