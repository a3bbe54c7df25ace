// SPDX-License-Identifier: Apache-2.0
/* One connection of a move below encryption; see wire.h. */
#include "migrate/wire.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"

#define DEFAULT_STALL (15 * GW_NS_PER_SEC)

/*
 * TCP options; a test's socket pair refuses them, which does not matter. Without user timeout and keep-alive a cut network would go
 * unnoticed for many minutes.
 */
static void tune(int fd)
{
	static const struct {
		int level, name, value;
	} options[] = {
		{ IPPROTO_TCP, TCP_NODELAY, 1 },
		{ IPPROTO_TCP, TCP_USER_TIMEOUT, 15000 }, /* ms */
		{ SOL_SOCKET, SO_KEEPALIVE, 1 },
		{ IPPROTO_TCP, TCP_KEEPIDLE, 5 }, /* s */
		{ IPPROTO_TCP, TCP_KEEPINTVL, 2 },
		{ IPPROTO_TCP, TCP_KEEPCNT, 5 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(options); i++)
		(void)setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int));
}

int gw_wire_init(struct gw_wire *w, int fd, int wake_fd)
{
	memset(w, 0, sizeof(*w));
	w->fd = fd;
	w->wake_fd = wake_fd;
	w->stall_ns = DEFAULT_STALL;
	w->read_deadline = GW_NO_DEADLINE;
	w->out = malloc(GW_WIRE_BATCH);
	if (!w->out) {
		gw_wire_release(w);
		return -ENOMEM;
	}
	tune(fd);
	return 0;
}

void gw_wire_release(struct gw_wire *w)
{
	gw_closep(&w->fd);
	free(w->out);
	w->out = NULL;
}

static int fail(struct gw_wire *w, int error)
{
	if (!w->error)
		w->error = error == -ECONNRESET ? -EPIPE : error;
	return w->error;
}

static int wait_for(struct gw_wire *w, short events, uint64_t deadline)
{
	struct pollfd p[2] = {
		{ .fd = w->fd, .events = events },
		{ .fd = w->ignore_wake ? -1 : w->wake_fd, .events = POLLIN },
	};

	for (;;) {
		int ms = deadline == GW_NO_DEADLINE ? -1 : gw_ms_until(deadline);
		int n = poll(p, 2, ms);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && p[1].revents)
			return -ECANCELED;
		if (n > 0)
			return 0;
		if (n == 0 && ms == 0)
			return -ETIMEDOUT;
	}
}

static int send_all(struct gw_wire *w, struct iovec *iov, unsigned count)
{
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = count };

	if (w->error)
		return w->error;
	while (msg.msg_iovlen > 0) {
		ssize_t n = sendmsg(w->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		int r;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			r = wait_for(w, POLLOUT, gw_now_ns() + w->stall_ns);
			if (r < 0) {
				w->torn = true;
				return fail(w, r);
			}
			continue;
		}
		if (n < 0)
			return fail(w, -errno);
		atomic_fetch_add_explicit(&w->sent, (uint64_t)n, memory_order_relaxed);
		while (msg.msg_iovlen > 0 && (size_t)n >= msg.msg_iov->iov_len) {
			n -= (ssize_t)msg.msg_iov->iov_len;
			msg.msg_iov++;
			msg.msg_iovlen--;
		}
		if (msg.msg_iovlen > 0) {
			msg.msg_iov->iov_base = (uint8_t *)msg.msg_iov->iov_base + n;
			msg.msg_iov->iov_len -= (size_t)n;
		}
	}
	return 0;
}

int gw_wire_flush(struct gw_wire *w)
{
	struct iovec iov = { .iov_base = w->out, .iov_len = w->out_len };

	w->out_len = 0;
	return iov.iov_len ? send_all(w, &iov, 1) : w->error;
}

int gw_wire_put(struct gw_wire *w, const void *data, size_t len)
{
	const uint8_t *p = data;

	while (len > 0) {
		size_t n = GW_MIN(len, GW_WIRE_BATCH - w->out_len);
		int r;

		memcpy(w->out + w->out_len, p, n);
		w->out_len += n;
		p += n;
		len -= n;
		if (w->out_len == GW_WIRE_BATCH && (r = gw_wire_flush(w)) < 0)
			return r;
	}
	return w->error;
}

int gw_wire_direct(struct gw_wire *w, const void *data, size_t len)
{
	struct iovec iov[2] = {
		{ .iov_base = w->out, .iov_len = w->out_len },
		{ .iov_base = (void *)data, .iov_len = len },
	};
	unsigned skip = w->out_len == 0;

	w->out_len = 0;
	return send_all(w, iov + skip, 2 - skip);
}

ssize_t gw_wire_get(struct gw_wire *w, void *data, size_t len)
{
	if (w->error)
		return w->error;
	for (;;) {
		ssize_t n = recv(w->fd, data, len, MSG_DONTWAIT);
		int r;

		if (n > 0) {
			atomic_fetch_add_explicit(&w->received, (uint64_t)n, memory_order_relaxed);
			return n;
		}
		if (n == 0)
			return fail(w, -EPIPE);
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return fail(w, -errno);
		r = wait_for(w, POLLIN, w->read_deadline);
		if (r < 0)
			return fail(w, r);
	}
}

int gw_wire_wait_readable(struct gw_wire *w, uint64_t deadline_ns)
{
	return wait_for(w, POLLIN, deadline_ns);
}
