// SPDX-License-Identifier: Apache-2.0
/*
 * Disks on NBD servers, by libnbd; see blk-backend.h and blk-nbd.h.
 *
 * An operation waits until a command is free, then goes to the server in pieces of at most 1 MiB. When the connection is lost
 * its unfinished piece is sent again over the next one; an operation that waited for a minute fails. To send a write twice is
 * harmless: the guest does not use the blocks otherwise until it has the answer.
 */
#include "vmm/blk-nbd.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "vmm/iothread.h"
#include "vmm/virtqueue.h"

#define OPERATION_NS (60 * GW_NS_PER_SEC)
/* A piece of guest memory that long goes without a copy even when it is not all. */
#define DIRECT_MIN (128u << 10)

static struct gw_nbd *to_nbd(struct gw_blk_backend *be)
{
	return gw_container_of(be, struct gw_nbd, be);
}

static bool nbd_match(const char *uri)
{
	return !strncmp(uri, "nbd://", 6) || !strncmp(uri, "nbd+unix://", 11);
}

static void wait_last(struct gw_nbd *nbd, struct gw_blk_io *io)
{
	io->next = NULL;
	*nbd->tail = io;
	nbd->tail = &io->next;
}

static void wait_first(struct gw_nbd *nbd, struct gw_blk_io *io)
{
	io->next = nbd->waiting;
	nbd->waiting = io;
	if (!io->next)
		nbd->tail = &io->next;
}

static struct gw_blk_io *take_waiting(struct gw_nbd *nbd)
{
	struct gw_blk_io *io = nbd->waiting;

	if (io) {
		nbd->waiting = io->next;
		if (!nbd->waiting)
			nbd->tail = &nbd->waiting;
	}
	return io;
}

/* Called by libnbd under its lock: it may only take notes. */
static int command_done(void *arg, int *error)
{
	struct gw_nbd_command *c = arg;

	c->error = *error;
	c->finished = true;
	return 1; /* libnbd forgets the command */
}

/* Chooses the next piece of a read or write and where its data is. */
static void *prepare_data(struct gw_nbd_command *c)
{
	struct gw_blk_io *io = c->io;
	uint64_t left = io->len - io->progress, first = io->iov[0].iov_len;

	c->len = GW_MIN(left, (uint64_t)GW_NBD_CHUNK);
	c->bounced = first < c->len && first < DIRECT_MIN;
	if (!c->bounced) {
		c->len = GW_MIN(c->len, first);
		return io->iov[0].iov_base;
	}
	if (!c->bounce && !(c->bounce = malloc(GW_NBD_CHUNK))) {
		/* Slower, in the pieces that are there. */
		c->bounced = false;
		c->len = first;
		return io->iov[0].iov_base;
	}
	if (io->op == GW_BLK_WRITE)
		gw_iov_read(io->iov, io->niov, 0, c->bounce, (size_t)c->len);
	return c->bounce;
}

static void issue(struct gw_nbd *nbd, struct gw_nbd_command *c, struct gw_blk_io *io)
{
	const nbd_completion_callback done = { .callback = command_done, .user_data = c };
	const uint64_t at = io->offset + io->progress;
	int64_t cookie = -1;
	void *data;

	c->io = io;
	c->finished = c->bounced = false;
	c->error = 0;
	c->len = io->len;
	c->sequence = nbd->sequence++;
	nbd->issued++;
	switch (io->op) {
	case GW_BLK_READ:
		data = prepare_data(c);
		cookie = nbd_aio_pread(nbd->handle, data, (size_t)c->len, at, done, 0);
		break;
	case GW_BLK_WRITE:
		data = prepare_data(c);
		cookie = nbd_aio_pwrite(nbd->handle, data, (size_t)c->len, at, done, 0);
		break;
	case GW_BLK_FLUSH:
		/* A server without flush has nothing volatile. */
		cookie = nbd_can_flush(nbd->handle) == 1 ? nbd_aio_flush(nbd->handle, done, 0) : 0;
		c->finished = cookie == 0;
		break;
	case GW_BLK_DISCARD:
		cookie = nbd_aio_trim(nbd->handle, io->len, at, done, 0);
		break;
	case GW_BLK_ZERO:
		cookie = nbd_aio_zero(nbd->handle, io->len, at, done, io->unmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE);
		break;
	}
	/* Refused before it was sent; when it died on the way the callback may have come already. */
	if (cookie < 0 && !c->finished) {
		c->finished = true;
		c->error = nbd_get_errno() ?: EIO;
	}
}

static bool connection_error(int error)
{
	return error == ENOTCONN || error == ESHUTDOWN || error == EPIPE || error == ECONNRESET;
}

/* True when the operation is complete. */
static bool finish_command(struct gw_nbd *nbd, struct gw_nbd_command *c)
{
	struct gw_blk_io *io = gw_steal_ptr(&c->io);
	int error = c->error;

	nbd->issued--;
	if (connection_error(error) && gw_now_ns() < io->deadline_ns) {
		wait_first(nbd, io);
		return false;
	}
	if (error) {
		io->done(io, connection_error(error) ? -EIO : error == ENOTSUP ? -EOPNOTSUPP : -error);
		return true;
	}
	if (io->op == GW_BLK_READ && c->bounced)
		gw_iov_write(io->iov, io->niov, 0, c->bounce, (size_t)c->len);
	io->progress += c->len;
	if (io->progress < io->len && (io->op == GW_BLK_READ || io->op == GW_BLK_WRITE)) {
		io->iov = gw_iov_advance(io->iov, &io->niov, c->len);
		wait_first(nbd, io);
		return false;
	}
	io->done(io, 0);
	return true;
}

/* The finished command that was issued last: what goes back to the front of the line keeps its order. */
static struct gw_nbd_command *next_finished(struct gw_nbd *nbd)
{
	struct gw_nbd_command *found = NULL;

	for (unsigned i = 0; i < GW_NBD_COMMANDS; i++) {
		struct gw_nbd_command *c = &nbd->commands[i];

		if (c->io && c->finished && (!found || c->sequence > found->sequence))
			found = c;
	}
	return found;
}

static struct gw_nbd_command *free_command(struct gw_nbd *nbd)
{
	for (unsigned i = 0; i < GW_NBD_COMMANDS; i++) {
		if (!nbd->commands[i].io)
			return &nbd->commands[i];
	}
	return NULL;
}

bool gw_nbd_pump(struct gw_nbd *nbd)
{
	struct gw_nbd_command *c;
	struct gw_blk_io *io;
	bool completed = false;

	for (;;) {
		while ((c = next_finished(nbd)))
			completed |= finish_command(nbd, c);
		if (nbd->state != GW_NBD_UP || !nbd->waiting || !(c = free_command(nbd)))
			break;
		io = take_waiting(nbd);
		issue(nbd, c, io);
		/* A death while sending: what comes back waits for the next connection. */
		gw_nbd_link_step(nbd);
	}
	gw_nbd_watch(nbd);
	return completed;
}

static void nbd_submit(struct gw_blk_backend *be, struct gw_blk_io *io)
{
	io->progress = 0;
	io->deadline_ns = gw_now_ns() + OPERATION_NS;
	wait_last(to_nbd(be), io);
}

static void nbd_commit(struct gw_blk_backend *be)
{
	gw_nbd_pump(to_nbd(be));
}

static void expire(struct gw_nbd *nbd)
{
	uint64_t now = gw_now_ns();
	struct gw_blk_io *list = nbd->waiting;

	nbd->waiting = NULL;
	nbd->tail = &nbd->waiting;
	while (list) {
		struct gw_blk_io *io = list;

		list = io->next;
		if (now >= io->deadline_ns)
			io->done(io, -EIO);
		else
			wait_last(nbd, io);
	}
}

static void on_timer(void *arg, uint32_t events)
{
	struct gw_nbd *nbd = arg;
	uint64_t count;

	if (read(nbd->timer, &count, sizeof(count)) != sizeof(count))
		return;
	gw_nbd_link_step(nbd);
	gw_nbd_pump(nbd);
	if (nbd->state != GW_NBD_UP)
		expire(nbd);
	nbd->batch_done(nbd->owner);
}

static bool nbd_settle(struct gw_blk_backend *be, uint64_t deadline_ns)
{
	struct gw_nbd *nbd = to_nbd(be);

	gw_nbd_pump(nbd);
	while ((nbd->issued > 0 || nbd->waiting) && gw_now_ns() < deadline_ns) {
		gw_nbd_link_wait(nbd, GW_MIN(gw_ms_until(deadline_ns), 100));
		gw_nbd_pump(nbd);
	}
	return nbd->issued == 0 && !nbd->waiting;
}

static void nbd_cancel(struct gw_blk_backend *be)
{
	struct gw_nbd *nbd = to_nbd(be);
	struct gw_nbd_command *c;
	struct gw_blk_io *io;

	/* What the server has can only be taken back by ending the connection. */
	if (nbd->issued > 0)
		gw_nbd_link_drop(nbd, "requests were not answered in time");
	while ((c = next_finished(nbd)))
		finish_command(nbd, c);
	while ((io = take_waiting(nbd)))
		io->done(io, -ECANCELED);
	gw_nbd_watch(nbd);
}

/* NBD has no locks; who may write is settled by the agents. Nothing of the disk is cached here. */
static int nbd_acquire(struct gw_blk_backend *be, struct gw_error *err)
{
	return 0;
}

static void nbd_release(struct gw_blk_backend *be)
{
}

static void watch_now(void *arg)
{
	gw_nbd_watch(arg);
}

static int start(struct gw_nbd *nbd, struct gw_error *err)
{
	int r;

	nbd->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (nbd->timer < 0)
		return gw_error_errno(err, errno, "cannot make a timer");
	r = gw_nbd_connect_first(nbd, err);
	if (r < 0)
		return r;
	r = gw_io_add(nbd->io, nbd->timer, EPOLLIN, on_timer, nbd, &nbd->timer_source);
	if (r < 0)
		return gw_error_errno(err, r, "cannot watch a timer");
	/* A server that goes away is noticed from now on. */
	gw_iothread_call(nbd->io, watch_now, nbd);
	return 0;
}

static void close_now(void *arg)
{
	gw_nbd_link_close(arg);
}

static void nbd_close_backend(struct gw_blk_backend *be)
{
	struct gw_nbd *nbd = to_nbd(be);

	gw_io_remove(nbd->timer_source);
	/* On the thread that uses it: its handler may be at work. */
	gw_iothread_call(nbd->io, close_now, nbd);
	if (nbd->timer >= 0)
		close(nbd->timer);
	for (unsigned i = 0; i < GW_NBD_COMMANDS; i++)
		free(nbd->commands[i].bounce);
	free(nbd->name);
	free(nbd->uri);
	free(nbd);
}

static int nbd_open(const struct gw_blk_open *args, struct gw_blk_backend **ret, struct gw_error *err)
{
	struct gw_nbd *nbd;
	int r = gw_late_nbd(err);

	if (r < 0)
		return r;
	nbd = calloc(1, sizeof(*nbd));
	if (!nbd)
		return gw_error_set(err, ENOMEM, "out of memory");
	nbd->be.ops = &gw_blk_nbd_ops;
	nbd->name = strdup(args->name);
	nbd->uri = strdup(args->path);
	nbd->readonly = args->readonly;
	nbd->io = args->io;
	nbd->batch_done = args->batch_done;
	nbd->owner = args->owner;
	nbd->fd = nbd->watched = nbd->timer = -1;
	nbd->tail = &nbd->waiting;
	for (unsigned i = 0; i < GW_NBD_COMMANDS; i++)
		nbd->commands[i].nbd = nbd;
	r = nbd->name && nbd->uri ? start(nbd, err) : gw_error_set(err, ENOMEM, "out of memory");
	if (r < 0) {
		nbd_close_backend(&nbd->be);
		return r;
	}
	*ret = &nbd->be;
	return 0;
}

const struct gw_blk_backend_ops gw_blk_nbd_ops = {
	.kind = "nbd",
	.match = nbd_match,
	.open = nbd_open,
	.close = nbd_close_backend,
	.acquire = nbd_acquire,
	.release = nbd_release,
	.submit = nbd_submit,
	.commit = nbd_commit,
	.settle = nbd_settle,
	.cancel = nbd_cancel,
};
