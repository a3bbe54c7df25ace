// SPDX-License-Identifier: Apache-2.0
/* virtio-console; see console.h. */
#include "vmm/console.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_ids.h>
#include <string.h>
#include <sys/epoll.h>

#include "lib/util.h"
#include "vmm/iothread.h"
#include "vmm/virtio.h"

enum { RX, TX, QUEUES };

#define QUEUE_SIZE 64
#define SCROLLBACK (64u << 10)
/* Bytes that one run writes at most; more is a matter of the next. */
#define BUDGET (256u << 10)

/* Device thread only. */
struct console {
	struct gw_virtio vd;
	int fd; /* attached stream, or -1 */
	struct gw_io_source *source;
	bool watched;
	uint8_t *back;   /* SCROLLBACK bytes, allocated with the first output */
	uint64_t written; /* bytes ever; the last SCROLLBACK of them are in `back` */
	struct gw_vq_chain chain;
};

static struct console *to_console(struct gw_virtio *vd)
{
	return gw_container_of(vd, struct console, vd);
}

static void detach(struct console *con)
{
	gw_io_remove(gw_steal_ptr(&con->source));
	if (con->fd >= 0)
		close(con->fd);
	con->fd = -1;
	con->watched = false;
}

static void to_stream(struct console *con, const void *data, size_t len)
{
	ssize_t n;

	if (con->fd < 0)
		return;
	n = write(con->fd, data, len);
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		detach(con);
}

static void output(struct console *con, const uint8_t *data, size_t len)
{
	to_stream(con, data, len);
	if (!con->back && !(con->back = malloc(SCROLLBACK)))
		return;
	if (len > SCROLLBACK) {
		data += len - SCROLLBACK;
		len = SCROLLBACK;
	}
	while (len > 0) {
		size_t at = con->written % SCROLLBACK, part = GW_MIN(len, SCROLLBACK - at);

		memcpy(con->back + at, data, part);
		con->written += part;
		data += part;
		len -= part;
	}
}

static void transmit(struct console *con)
{
	struct gw_vq *vq = &con->vd.queues[TX].vq;
	const struct gw_vq_chain *c = &con->chain;
	uint64_t budget = BUDGET;

	do {
		while (budget > 0 && gw_virtio_pop(&con->vd, TX, &con->chain)) {
			for (unsigned i = 0; i < c->nout; i++)
				output(con, c->iov[i].iov_base, c->iov[i].iov_len);
			gw_vq_push(vq, c->head, 0);
			budget -= GW_MIN(budget, c->out_len + 1);
		}
	} while (budget > 0 && gw_virtio_wait_for_kick(&con->vd, TX));
	if (budget == 0)
		gw_virtio_kick_again(&con->vd, TX);
	gw_virtio_notify(&con->vd, TX);
}

static void watch(struct console *con, bool on)
{
	if (con->source && con->watched != on)
		gw_io_modify(con->source, on ? EPOLLIN : 0);
	con->watched = on;
}

/* Reads the stream into the guest's buffers, as far as there are any. */
static void receive(struct console *con)
{
	struct gw_vq *vq = &con->vd.queues[RX].vq;
	const struct gw_vq_chain *c = &con->chain;

	while (con->fd >= 0 && con->vd.active && vq->enabled) {
		ssize_t n;

		if (!gw_virtio_pop(&con->vd, RX, &con->chain)) {
			watch(con, false);
			if (gw_virtio_wait_for_kick(&con->vd, RX))
				gw_virtio_kick_again(&con->vd, RX);
			break;
		}
		if (c->nin == 0) {
			gw_virtio_refuse(&con->vd, RX, "console buffer that cannot be written");
			break;
		}
		n = readv(con->fd, c->iov + c->nout, (int)c->nin);
		if (n <= 0) {
			gw_vq_unpop(vq, 1);
			if (n == 0 || (errno != EAGAIN && errno != EINTR))
				detach(con);
			else
				watch(con, true);
			break;
		}
		gw_vq_mark_dirty(vq, c, (uint64_t)n);
		gw_vq_push(vq, c->head, (uint32_t)n);
	}
	if (vq->enabled)
		gw_virtio_notify(&con->vd, RX);
}

static void on_stream(void *arg, uint32_t events)
{
	struct console *con = arg;

	if (con->vd.active && con->vd.queues[RX].vq.enabled)
		receive(con);
	/* The peer left while the guest does not read: without this the loop would be told forever. */
	if (con->fd >= 0 && (events & (EPOLLHUP | EPOLLERR)) && !con->watched)
		detach(con);
}

static void console_kick(struct gw_virtio *vd, unsigned index)
{
	if (index == TX)
		transmit(to_console(vd));
	else
		receive(to_console(vd));
}

static void console_stop(struct gw_virtio *vd)
{
	watch(to_console(vd), false);
}

static int console_load(struct gw_virtio *vd, struct gw_state_reader *r, struct gw_error *err)
{
	int ret = gw_virtio_check_in_flight(vd, RX, 0, err);

	return ret < 0 ? ret : gw_virtio_check_in_flight(vd, TX, 0, err);
}

struct attach_call {
	struct console *con;
	int fd;
};

static void attach_now(void *arg)
{
	struct attach_call *call = arg;
	struct console *con = call->con;
	size_t at = con->written % SCROLLBACK;

	detach(con);
	if (call->fd < 0)
		return;
	con->fd = call->fd;
	(void)fcntl(con->fd, F_SETFL, fcntl(con->fd, F_GETFL) | O_NONBLOCK);
	if (con->written > SCROLLBACK)
		to_stream(con, con->back + at, SCROLLBACK - at);
	if (con->written > 0)
		to_stream(con, con->back, at);
	if (con->fd >= 0 && gw_io_add(con->vd.host.io, con->fd, 0, on_stream, con, &con->source) < 0)
		detach(con);
	if (con->vd.active)
		receive(con);
}

void gw_console_attach(struct gw_virtio *vd, int fd)
{
	struct attach_call call = { to_console(vd), fd };

	gw_iothread_call(vd->host.io, attach_now, &call);
}

static void console_free(struct gw_virtio *vd)
{
	struct console *con = to_console(vd);

	gw_console_attach(vd, -1);
	gw_virtio_release(vd);
	free(con->back);
	free(con);
}

static const struct gw_virtio_ops console_ops = {
	.kind = "virtio-console",
	.id = VIRTIO_ID_CONSOLE,
	.pci_class = 0x078000, /* communication controller */
	.kick = console_kick,
	.stop = console_stop,
	.load = console_load,
	.free = console_free,
};

int gw_console_new(const struct gw_devhost *host, struct gw_virtio **ret, struct gw_error *err)
{
	struct console *con = calloc(1, sizeof(*con));
	int r;

	if (!con)
		return gw_error_set(err, ENOMEM, "out of memory");
	con->fd = -1;
	r = gw_virtio_init(&con->vd, &console_ops, "console0", host, QUEUES, QUEUE_SIZE, 0, err);
	if (r < 0) {
		console_free(&con->vd);
		return r;
	}
	*ret = &con->vd;
	return 0;
}
