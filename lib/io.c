// SPDX-License-Identifier: Apache-2.0
/* Whole reads and writes, UNIX sockets and atomic files; see io.h. */
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "lib/clock.h"
#include "lib/util.h"

int gw_wait_fd(int fd, short events, uint64_t deadline_ns)
{
	struct pollfd p = { .fd = fd, .events = events };

	for (;;) {
		int ms = deadline_ns == GW_NO_DEADLINE ? -1 : gw_ms_until(deadline_ns);
		int n = poll(&p, 1, ms);

		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0 && ms == 0)
			return -ETIMEDOUT;
	}
}

/* True when the call is to be tried again, after waiting where needed; *r gets what waiting gave. */
static bool retry_io(int fd, short events, uint64_t deadline_ns, int *r)
{
	*r = 0;
	if (errno == EINTR)
		return true;
	if (errno != EAGAIN)
		return false;
	*r = gw_wait_fd(fd, events, deadline_ns);
	return true;
}

int gw_read_full(int fd, void *data, size_t len, uint64_t deadline_ns)
{
	uint8_t *p = data;
	int r;

	while (len > 0) {
		ssize_t n;

		/* A blocking descriptor would not come back at the deadline. */
		if (deadline_ns != GW_NO_DEADLINE && (r = gw_wait_fd(fd, POLLIN, deadline_ns)) < 0)
			return r;
		n = read(fd, p, len);
		if (n == 0)
			return -EPIPE;
		if (n < 0) {
			if (!retry_io(fd, POLLIN, deadline_ns, &r))
				return -errno;
			if (r < 0)
				return r;
			continue;
		}
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int gw_write_full(int fd, const void *data, size_t len, uint64_t deadline_ns)
{
	const uint8_t *p = data;
	int r;

	while (len > 0) {
		ssize_t n;

		if (deadline_ns != GW_NO_DEADLINE && (r = gw_wait_fd(fd, POLLOUT, deadline_ns)) < 0)
			return r;
		n = send(fd, p, len, MSG_NOSIGNAL | (deadline_ns != GW_NO_DEADLINE ? MSG_DONTWAIT : 0));
		if (n < 0 && errno == ENOTSOCK)
			n = write(fd, p, len);
		if (n < 0) {
			if (!retry_io(fd, POLLOUT, deadline_ns, &r))
				return -errno;
			if (r < 0)
				return r;
			continue;
		}
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int gw_send_fds(int sock, const void *data, size_t len, const int *fds, unsigned nfds, uint64_t deadline_ns)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(GW_MAX_FDS * sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = (void *)data, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;
	int r;

	if (nfds > GW_MAX_FDS || len == 0)
		return -EINVAL;
	if (nfds > 0) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
	}
	for (;;) {
		if (deadline_ns != GW_NO_DEADLINE && (r = gw_wait_fd(sock, POLLOUT, deadline_ns)) < 0)
			return r;
		n = sendmsg(sock, &msg, MSG_NOSIGNAL);
		if (n >= 0)
			break;
		if (!retry_io(sock, POLLOUT, deadline_ns, &r))
			return -errno;
		if (r < 0)
			return r;
	}
	/* The descriptors went with the first byte. */
	return gw_write_full(sock, (const uint8_t *)data + n, len - (size_t)n, deadline_ns);
}

static void close_all(const int *fds, unsigned nfds)
{
	for (unsigned i = 0; i < nfds; i++)
		close(fds[i]);
}

/* Appends the descriptors of `msg` to fds[]; surplus ones are closed and refused. */
static int take_fds(struct msghdr *msg, int fds[GW_MAX_FDS], unsigned *nfds)
{
	int r = msg->msg_flags & MSG_CTRUNC ? -E2BIG : 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		unsigned count;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		count = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		for (unsigned i = 0; i < count; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (*nfds < GW_MAX_FDS) {
				fds[(*nfds)++] = fd;
			} else {
				close(fd);
				r = -E2BIG;
			}
		}
	}
	return r;
}

int gw_recv_fds(int sock, void *data, size_t len, int fds[GW_MAX_FDS], unsigned *nfds, uint64_t deadline_ns)
{
	uint8_t *p = data;
	unsigned got = 0;
	int r;

	while (len > 0) {
		union {
			struct cmsghdr align;
			char space[CMSG_SPACE(GW_MAX_FDS * sizeof(int))];
		} control;
		struct iovec iov = { .iov_base = p, .iov_len = len };
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
				      .msg_controllen = sizeof(control) };
		ssize_t n;

		r = deadline_ns == GW_NO_DEADLINE ? 0 : gw_wait_fd(sock, POLLIN, deadline_ns);
		if (r < 0)
			goto fail;
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
		if (n < 0) {
			if (retry_io(sock, POLLIN, deadline_ns, &r) && r == 0)
				continue;
			r = r < 0 ? r : -errno;
			goto fail;
		}
		r = take_fds(&msg, fds, &got);
		if (r < 0)
			goto fail;
		if (n == 0) {
			r = -EPIPE;
			goto fail;
		}
		p += n;
		len -= (size_t)n;
	}
	*nfds = got;
	return 0;
fail:
	close_all(fds, got);
	return r;
}

static int fill_address(const char *path, struct sockaddr_un *addr, struct gw_error *err)
{
	size_t len = strlen(path);

	if (len >= sizeof(addr->sun_path))
		return gw_error_set(err, ENAMETOOLONG, "socket path %s is longer than %zu bytes", path,
				    sizeof(addr->sun_path) - 1);
	memset(addr, 0, sizeof(*addr));
	addr->sun_family = AF_UNIX;
	memcpy(addr->sun_path, path, len);
	return 0;
}

int gw_unix_connect(const char *path, int *ret, struct gw_error *err)
{
	gw_autofd fd = -1;
	struct sockaddr_un addr;
	int r;

	r = fill_address(path, &addr, err);
	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return gw_error_errno(err, errno, "cannot make a socket");
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return gw_error_errno(err, errno, "cannot connect to %s", path);
	*ret = gw_steal_fd(&fd);
	return 0;
}

int gw_unix_listen(const char *path, unsigned mode, int *ret, struct gw_error *err)
{
	gw_autofd fd = -1;
	gw_autofd probe = -1;
	struct sockaddr_un addr;
	int r;

	r = fill_address(path, &addr, err);
	if (r < 0)
		return r;
	if (gw_unix_connect(path, &probe, NULL) == 0)
		return gw_error_set(err, EADDRINUSE, "another process listens on %s already", path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return gw_error_errno(err, errno, "cannot make a socket");
	if (unlink(path) < 0 && errno != ENOENT)
		return gw_error_errno(err, errno, "cannot replace %s", path);
	/* fchmod() before bind() sets the mode of the socket file, so that there is no moment with a wider one. */
	if (fchmod(fd, mode) < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || chmod(path, mode) < 0 ||
	    listen(fd, 64) < 0)
		return gw_error_errno(err, errno, "cannot listen on %s", path);
	*ret = gw_steal_fd(&fd);
	return 0;
}

int gw_read_file(const char *path, size_t max, char **ret, size_t *len, struct gw_error *err)
{
	gw_autofree char *data = NULL;
	gw_autofd fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	size_t used = 0, cap;
	struct stat st;

	if (fd < 0)
		return gw_error_errno(err, errno, "cannot open %s", path);
	if (fstat(fd, &st) < 0)
		return gw_error_errno(err, errno, "cannot stat %s", path);
	if (!S_ISREG(st.st_mode))
		return gw_error_set(err, EINVAL, "%s is not a regular file", path);
	if ((uint64_t)st.st_size > max)
		return gw_error_set(err, EFBIG, "%s is larger than %zu bytes", path, max);
	/* Files of /proc and /sys say 0 and hold more. */
	cap = st.st_size > 0 ? (size_t)st.st_size + 1 : GW_MIN(max, (size_t)65536) + 1;
	data = malloc(cap + 1);
	if (!data)
		return gw_error_set(err, ENOMEM, "out of memory reading %s", path);
	while (used < cap) {
		ssize_t n = read(fd, data + used, cap - used);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return gw_error_errno(err, errno, "cannot read %s", path);
		if (n == 0)
			break;
		used += (size_t)n;
	}
	if (used == cap)
		return gw_error_set(err, EFBIG, "%s grew while it was read", path);
	data[used] = '\0';
	*ret = gw_steal_ptr(&data);
	*len = used;
	return 0;
}

static int sync_folder_of(const char *path)
{
	gw_autofree char *copy = strdup(path);
	gw_autofd fd = -1;

	if (!copy)
		return -ENOMEM;
	fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

int gw_write_file_atomic(const char *path, const void *data, size_t len, unsigned mode, struct gw_error *err)
{
	gw_autofree char *temp = NULL;
	gw_autofd fd = -1;
	int r;

	if (asprintf(&temp, "%s.new-XXXXXX", path) < 0) {
		temp = NULL;
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	fd = mkostemp(temp, O_CLOEXEC);
	if (fd < 0)
		return gw_error_errno(err, errno, "cannot write beside %s", path);
	r = gw_write_full(fd, data, len, GW_NO_DEADLINE);
	if (r == 0 && (fchmod(fd, mode) < 0 || fsync(fd) < 0 || rename(temp, path) < 0))
		r = -errno;
	if (r == 0)
		r = sync_folder_of(path);
	else
		unlink(temp);
	return r < 0 ? gw_error_errno(err, r, "cannot write %s", path) : 0;
}

int gw_mkdir_p(const char *path, unsigned mode)
{
	gw_autofree char *copy = strdup(path);

	if (!copy)
		return -ENOMEM;
	for (char *p = copy + 1; *p; p++) {
		if (*p != '/')
			continue;
		*p = '\0';
		if (mkdir(copy, mode) < 0 && errno != EEXIST)
			return -errno;
		*p = '/';
	}
	return mkdir(copy, mode) < 0 && errno != EEXIST ? -errno : 0;
}
