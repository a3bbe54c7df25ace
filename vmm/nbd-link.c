// SPDX-License-Identifier: Apache-2.0
/*
 * The connection to an NBD server: made at the start with a clear error, and made again whenever it is lost; see blk-nbd.h.
 *
 * libnbd calls back while it holds its handle's lock, so callbacks only note that a command is finished.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "vmm/blk-nbd.h"
#include "vmm/iothread.h"

#define CONNECT_NS (10 * GW_NS_PER_SEC)
#define RETRY_NS (250 * GW_NS_PER_MS)
/* A peer that is silent for so long is gone; less than the time that operations wait. */
#define SILENCE_MS 20000
#define SECTOR 512

static void on_ready(void *arg, uint32_t events);

/* Whether the server's disk can be ours, on the first connection and on each later one. */
static int check_export(struct gw_nbd *nbd, struct gw_error *err)
{
	int64_t size = nbd_get_size(nbd->handle);
	int64_t min = nbd_get_block_size(nbd->handle, LIBNBD_SIZE_MINIMUM);

	if (size <= 0 || size % SECTOR)
		return gw_error_set(err, EINVAL, "%s has %lld bytes, which is no size of a disk", nbd->uri, (long long)size);
	if (nbd->be.size && nbd->be.size != (uint64_t)size)
		return gw_error_set(err, EINVAL, "%s has %lld bytes now, and had %llu", nbd->uri, (long long)size,
				    (unsigned long long)nbd->be.size);
	if (min > SECTOR)
		return gw_error_set(err, EINVAL, "%s takes blocks of at least %lld bytes, 512 are needed", nbd->uri,
				    (long long)min);
	if (!nbd->readonly && nbd_is_read_only(nbd->handle) != 0)
		return gw_error_set(err, EROFS, "%s is read-only (add 'ro' to use it so)", nbd->uri);
	nbd->be.size = (uint64_t)size;
	nbd->be.can_discard = nbd_can_trim(nbd->handle) == 1;
	/* The protocol's meaning of it: one cache for all connections. */
	nbd->be.shared = nbd_can_multi_conn(nbd->handle) == 1;
	nbd->be.can_zero = nbd_can_zero(nbd->handle) == 1;
	return 0;
}

/* A dead peer or a cut network must be noticed even when nothing is asked of the server. */
static void set_keepalive(int fd)
{
	const int on = 1, idle = 5, interval = 5, count = 3, silence = SILENCE_MS;

	/* All fail on a UNIX socket, which needs none of it. */
	(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &silence, sizeof(silence));
}

static int begin_connect(struct gw_nbd *nbd, struct gw_error *err)
{
	nbd->handle = nbd_create();
	if (!nbd->handle)
		return gw_error_set(err, ENOMEM, "%s", nbd_get_error() ?: "out of memory");
	/* Buffers are guest memory, which need not be cleared before it is read into. */
	(void)nbd_set_pread_initialize(nbd->handle, false);
	if (nbd_aio_connect_uri(nbd->handle, nbd->uri) < 0) {
		int r = gw_error_set(err, nbd_get_errno() ?: EIO, "%s: %s", nbd->uri, nbd_get_error() ?: "cannot connect");

		nbd_close(gw_steal_ptr(&nbd->handle));
		return r;
	}
	nbd->state = GW_NBD_CONNECTING;
	nbd->connect_by_ns = gw_now_ns() + CONNECT_NS;
	return 0;
}

/* 1 when the connection is ready, 0 when it needs time, negative errno when it failed. */
static int connect_result(struct gw_nbd *nbd, struct gw_error *err)
{
	int r;

	if (nbd_aio_is_ready(nbd->handle)) {
		r = check_export(nbd, err);
		if (r < 0)
			return r;
		set_keepalive(nbd_aio_get_fd(nbd->handle));
		nbd->state = GW_NBD_UP;
		return 1;
	}
	if (nbd_aio_is_dead(nbd->handle) || nbd_aio_is_closed(nbd->handle))
		return gw_error_set(err, ECONNREFUSED, "%s: %s", nbd->uri, nbd_get_error() ?: "cannot connect");
	if (gw_now_ns() >= nbd->connect_by_ns)
		return gw_error_set(err, ETIMEDOUT, "%s does not answer", nbd->uri);
	return 0;
}

int gw_nbd_connect_first(struct gw_nbd *nbd, struct gw_error *err)
{
	int r = begin_connect(nbd, err);

	/* Looked at before it is waited for: to begin may have been all, and then the server has nothing more to say. */
	while (r == 0) {
		r = connect_result(nbd, err);
		if (r == 0 && nbd_poll(nbd->handle, gw_ms_until(nbd->connect_by_ns)) < 0)
			return gw_error_set(err, nbd_get_errno() ?: EIO, "%s: %s", nbd->uri, nbd_get_error() ?: "cannot connect");
	}
	return r < 0 ? r : 0;
}

static void unwatch(struct gw_nbd *nbd)
{
	gw_io_remove(gw_steal_ptr(&nbd->source));
	gw_closep(&nbd->watched);
	nbd->fd = -1;
}

void gw_nbd_watch(struct gw_nbd *nbd)
{
	unsigned direction = nbd->handle ? nbd_aio_get_direction(nbd->handle) : 0;
	int fd = nbd->handle ? nbd_aio_get_fd(nbd->handle) : -1;
	uint32_t events = 0;

	if (direction & LIBNBD_AIO_DIRECTION_READ)
		events |= EPOLLIN;
	if (direction & LIBNBD_AIO_DIRECTION_WRITE)
		events |= EPOLLOUT;
	/* While it connects libnbd may go from one address to the next, whose socket may have the same number. */
	if (nbd->source && fd == nbd->fd && nbd->state == GW_NBD_UP && gw_io_modify(nbd->source, events) == 0)
		return;
	unwatch(nbd);
	if (fd < 0)
		return;
	nbd->watched = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (nbd->watched >= 0 && gw_io_add(nbd->io, nbd->watched, events, on_ready, nbd, &nbd->source) == 0)
		nbd->fd = fd;
}

static void arm(struct gw_nbd *nbd, bool on)
{
	struct itimerspec when = { .it_interval.tv_nsec = on ? RETRY_NS : 0, .it_value.tv_nsec = on ? RETRY_NS : 0 };

	(void)timerfd_settime(nbd->timer, 0, &when, NULL);
}

void gw_nbd_link_close(struct gw_nbd *nbd)
{
	unwatch(nbd);
	/* After this libnbd touches no buffer any more. */
	if (nbd->handle)
		nbd_close(gw_steal_ptr(&nbd->handle));
	nbd->state = GW_NBD_DOWN;
	for (unsigned i = 0; i < GW_NBD_COMMANDS; i++) {
		struct gw_nbd_command *c = &nbd->commands[i];

		if (c->io && !c->finished) {
			c->finished = true;
			c->error = ENOTCONN;
		}
	}
}

void gw_nbd_link_drop(struct gw_nbd *nbd, const char *why)
{
	uint64_t now = gw_now_ns();

	if (nbd->state == GW_NBD_UP) {
		gw_warn_limited(&nbd->limit, "disk %s: connection to %s lost, requests wait for it: %s", nbd->name, nbd->uri,
				why);
		nbd->down_since_ns = now;
		nbd->retry_ns = now; /* at once, then in intervals */
	} else {
		nbd->retry_ns = now + RETRY_NS;
	}
	gw_nbd_link_close(nbd);
	arm(nbd, true);
}

static void announce_up(struct gw_nbd *nbd)
{
	if (nbd->down_since_ns)
		gw_info("disk %s: connected to %s again after %llu ms", nbd->name, nbd->uri,
			(unsigned long long)((gw_now_ns() - nbd->down_since_ns) / GW_NS_PER_MS));
	nbd->down_since_ns = 0;
	arm(nbd, false);
}

void gw_nbd_link_step(struct gw_nbd *nbd)
{
	struct gw_error err = GW_ERROR_INIT;
	int r;

	if (nbd->state == GW_NBD_UP && (nbd_aio_is_dead(nbd->handle) || nbd_aio_is_closed(nbd->handle)))
		gw_nbd_link_drop(nbd, nbd_get_error() ?: "closed by the server");
	if (nbd->state == GW_NBD_DOWN && gw_now_ns() >= nbd->retry_ns && begin_connect(nbd, &err) < 0)
		gw_nbd_link_drop(nbd, gw_error_text(&err));
	if (nbd->state == GW_NBD_CONNECTING) {
		r = connect_result(nbd, &err);
		if (r < 0) {
			gw_debug("disk %s: %s", nbd->name, gw_error_text(&err));
			gw_nbd_link_drop(nbd, gw_error_text(&err));
		} else if (r > 0) {
			announce_up(nbd);
		}
	}
}

static void on_ready(void *arg, uint32_t events)
{
	struct gw_nbd *nbd = arg;
	unsigned direction = nbd_aio_get_direction(nbd->handle);

	/* Errors are found by reading. */
	if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) && (direction & LIBNBD_AIO_DIRECTION_READ))
		(void)nbd_aio_notify_read(nbd->handle);
	else if ((events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) && (direction & LIBNBD_AIO_DIRECTION_WRITE))
		(void)nbd_aio_notify_write(nbd->handle);
	gw_nbd_link_step(nbd);
	if (gw_nbd_pump(nbd))
		nbd->batch_done(nbd->owner);
}

void gw_nbd_link_wait(struct gw_nbd *nbd, int ms)
{
	if (nbd->handle) {
		(void)nbd_poll(nbd->handle, ms);
	} else {
		struct timespec pause = { .tv_nsec = ms < 10 ? ms * 1000000l : 10000000l };

		nanosleep(&pause, NULL);
	}
	gw_nbd_link_step(nbd);
}
