// SPDX-License-Identifier: Apache-2.0
/* labd's files: put appears whole or not at all, get sends size, mode and bytes. */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>
#include "labd.h"

/* After a failed write (no space) the rest is read and dropped, so that the answer finds a client that listens. */
static int receive_file(int sock, int fd, uint64_t size)
{
	static char buf[1024 * 1024];
	int result = 0;

	while (size) {
		ssize_t n = read(sock, buf, size < sizeof(buf) ? (size_t)size : sizeof(buf));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -ECONNRESET;
		if (!result)
			result = labd_write_all(fd, buf, (size_t)n);
		size -= (uint64_t)n;
	}
	return result;
}

/* The file appears whole or not at all, and one that is being executed can be replaced: write beside it, then rename. */
void labd_serve_put(int sock, const char *request, size_t len)
{
	char temporary[4200];
	const char *path = request + 12;
	uint32_t mode;
	uint64_t size;
	int fd, r;

	if (len < 13 || strlen(path) > 4096) {
		labd_send_failure(sock, "put", EINVAL);
		return;
	}
	memcpy(&mode, request, sizeof(mode));
	memcpy(&size, request + 4, sizeof(size));
	snprintf(temporary, sizeof(temporary), "%s.put-%d", path, (int)getpid());
	fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0) {
		labd_send_failure(sock, path, errno);
		return;
	}
	r = receive_file(sock, fd, le64toh(size));
	if (!r && fchmod(fd, le32toh(mode) & 07777) < 0)
		r = -errno;
	close(fd);
	if (!r && rename(temporary, path) < 0)
		r = -errno;
	if (r < 0) {
		unlink(temporary);
		labd_send_failure(sock, path, -r);
		return;
	}
	labd_send_exit(sock, 0);
}

static int send_file(int sock, int fd, uint64_t size)
{
	while (size) {
		ssize_t n = sendfile(sock, fd, NULL, size < (1 << 30) ? (size_t)size : (1 << 30));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -EIO;
		size -= (uint64_t)n;
	}
	return 0;
}

/* Files of /proc and /sys say size 0 and still hold bytes, so that such a file is read into memory first. */
static int slurp_special(int fd, char **ret_data, size_t *ret_len)
{
	size_t room = 4 * 1024 * 1024, len = 0;
	char *data = malloc(room);
	ssize_t n;

	if (!data)
		return -ENOMEM;
	while (len < room && (n = read(fd, data + len, room - len)) > 0)
		len += (size_t)n;
	*ret_data = data;
	*ret_len = len;
	return 0;
}

void labd_serve_get(int sock, const char *path)
{
	struct { uint32_t mode; uint64_t size; } __attribute__((packed)) reply;
	char *special = NULL;
	size_t special_len = 0;
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st) < 0) {
		labd_send_failure(sock, path, errno);
		return;
	}
	if (!S_ISREG(st.st_mode)) {
		labd_send_failure(sock, path, S_ISDIR(st.st_mode) ? EISDIR : EINVAL);
		return;
	}
	if (st.st_size == 0 && slurp_special(fd, &special, &special_len) < 0) {
		labd_send_failure(sock, path, ENOMEM);
		return;
	}
	reply.mode = htole32(st.st_mode & 07777);
	reply.size = htole64(special ? special_len : (uint64_t)st.st_size);
	if (labd_send_frame(sock, 's', &reply, sizeof(reply)) < 0)
		return;
	if (special)
		labd_write_all(sock, special, special_len);
	else
		send_file(sock, fd, (uint64_t)st.st_size);
}
