// SPDX-License-Identifier: Apache-2.0
/* The control socket's clients; see control.h. */
#include "vmm/control.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/util.h"
#include "proto/frame.h"
#include "vmm/control-internal.h"

#define MAX_CLIENTS 32
#define REQUEST_MAX (1u << 20)
#define QUEUE_MAX (1u << 20)
#define LINGER_MS 500

/* One frame on its way out, with at most one descriptor. */
struct packet {
	struct packet *next;
	struct gw_buf data;
	size_t sent;
	int fd;
};

struct client {
	struct gw_control *control;
	int fd;
	sd_event_source *source;
	bool subscribed;
	struct gw_buf in;
	int fds[GW_MAX_FDS]; /* received with the frame that is being read */
	unsigned nfds;
	struct packet *first, **last;
	size_t queued;
	bool broken; /* to be dropped when its turn in the loop ends */
};

struct gw_control {
	char *path;
	int fd;
	sd_event *loop;
	sd_event_source *source;
	sd_event_source *reaper; /* deferred: drops broken clients */
	struct gw_machine *machine;
	struct client *clients[MAX_CLIENTS];
	unsigned count;
};

static void free_packet(struct packet *p)
{
	gw_buf_release(&p->data);
	gw_closep(&p->fd);
	free(p);
}

static void free_client(struct client *cl)
{
	sd_event_source_disable_unref(cl->source);
	while (cl->first) {
		struct packet *p = cl->first;

		cl->first = p->next;
		free_packet(p);
	}
	for (unsigned i = 0; i < cl->nfds; i++)
		close(cl->fds[i]);
	gw_buf_release(&cl->in);
	gw_closep(&cl->fd);
	free(cl);
}

/* Events can break a client while another one is being served: it is only marked, and freed from the loop. */
static void break_client(struct client *cl)
{
	cl->broken = true;
	(void)sd_event_source_set_enabled(cl->source, SD_EVENT_OFF);
	(void)sd_event_source_set_enabled(cl->control->reaper, SD_EVENT_ONESHOT);
}

static int on_reap(sd_event_source *s, void *arg)
{
	struct gw_control *c = arg;

	for (unsigned i = 0; i < c->count;) {
		if (!c->clients[i]->broken) {
			i++;
			continue;
		}
		free_client(c->clients[i]);
		c->clients[i] = c->clients[--c->count];
	}
	return 0;
}

/* Sends one packet's next part: bytes sent, or negative errno. Its descriptor goes with the first. */
static ssize_t send_some(int sock, struct packet *p)
{
	char control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { p->data.data + p->sent, p->data.len - p->sent };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (p->fd >= 0) {
		struct cmsghdr *c;

		memset(control, 0, sizeof(control));
		msg.msg_control = control;
		msg.msg_controllen = sizeof(control);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &p->fd, sizeof(int));
	}
	n = sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0)
		return -errno;
	gw_closep(&p->fd);
	return n;
}

static void flush_client(struct client *cl)
{
	while (cl->first && !cl->broken) {
		struct packet *p = cl->first;
		ssize_t n = send_some(cl->fd, p);

		if (n == -EAGAIN || n == -EINTR)
			break;
		if (n < 0) {
			break_client(cl);
			return;
		}
		p->sent += (size_t)n;
		cl->queued -= (size_t)n;
		if (p->sent < p->data.len)
			continue;
		cl->first = p->next;
		if (!cl->first)
			cl->last = &cl->first;
		free_packet(p);
	}
	(void)sd_event_source_set_io_events(cl->source, EPOLLIN | (cl->first ? EPOLLOUT : 0));
}

/* Takes `fd`. */
static void queue_frame(struct client *cl, uint16_t type, const ProtobufCMessage *msg, int fd)
{
	struct packet *p = calloc(1, sizeof(*p));

	if (p)
		p->fd = fd;
	else if (fd >= 0)
		close(fd);
	if (!p || gw_frame_pack(&p->data, type, msg) < 0 || cl->queued + p->data.len > QUEUE_MAX) {
		gw_warn("a client of the control socket does not read what it asked for: dropped");
		if (p)
			free_packet(p);
		break_client(cl);
		return;
	}
	cl->queued += p->data.len;
	*cl->last = p;
	cl->last = &p->next;
	flush_client(cl);
}

static void serve_request(struct client *cl, const uint8_t *body, size_t len)
{
	struct gw_machine *m = cl->control->machine;
	Godwit__VmmRequest *req = godwit__vmm_request__unpack(NULL, len, body);
	struct gw_control_call *call = calloc(1, sizeof(*call));

	if (!req || !call) {
		free(call);
		if (req)
			godwit__vmm_request__free_unpacked(req, NULL);
		break_client(cl);
		return;
	}
	call->req = req;
	call->fds = cl->fds;
	call->nfds = cl->nfds;
	call->reply_fd = -1;
	gw_control_handle(m, call);
	queue_frame(cl, GW_CONTROL_REPLY, &call->reply.base, gw_steal_fd(&call->reply_fd));
	cl->subscribed |= call->subscribe;
	if (call->quit)
		gw_machine_end(m, GW_EXIT_ENDED, "ended by request");
	gw_control_call_release(call);
	cl->nfds = 0;
	free(call);
	godwit__vmm_request__free_unpacked(req, NULL);
}

/* Serves the whole frames that have arrived. */
static void serve_input(struct client *cl)
{
	while (!cl->broken && cl->in.len >= GW_FRAME_HEADER) {
		struct gw_frame_header h;

		if (gw_frame_parse_header(cl->in.data, &h) < 0 || h.type != GW_CONTROL_REQUEST || h.len > REQUEST_MAX) {
			gw_warn("a client of the control socket sends no request: dropped");
			break_client(cl);
			return;
		}
		if (cl->in.len < GW_FRAME_HEADER + h.len)
			return;
		serve_request(cl, cl->in.data + GW_FRAME_HEADER, h.len);
		gw_buf_consume(&cl->in, GW_FRAME_HEADER + h.len);
	}
}

/* Keeps what came along; more than a request can have breaks the client. */
static void take_fds(struct client *cl, struct msghdr *msg)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (cl->nfds < GW_MAX_FDS) {
				cl->fds[cl->nfds++] = fd;
			} else {
				close(fd);
				break_client(cl);
			}
		}
	}
	if (msg->msg_flags & MSG_CTRUNC)
		break_client(cl);
}

static void read_client(struct client *cl)
{
	union {
		char raw[CMSG_SPACE(GW_MAX_FDS * sizeof(int))];
		struct cmsghdr align;
	} control;
	uint8_t *room = gw_buf_reserve(&cl->in, 16384);
	struct iovec iov = { room, 16384 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.raw,
		.msg_controllen = sizeof(control.raw),
	};
	ssize_t n;

	if (!room) {
		break_client(cl);
		return;
	}
	n = recvmsg(cl->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		break_client(cl);
		return;
	}
	take_fds(cl, &msg);
	cl->in.len += (size_t)n;
	serve_input(cl);
}

static int on_client(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct client *cl = arg;

	if (revents & EPOLLOUT)
		flush_client(cl);
	if (!cl->broken && (revents & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		read_client(cl);
	return 0;
}

static int on_accept(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct gw_control *c = arg;
	gw_autofd sock = accept4(c->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct client *cl;

	if (sock < 0)
		return 0;
	if (c->count == MAX_CLIENTS) {
		gw_warn("more than %d clients at the control socket: one is turned away", MAX_CLIENTS);
		return 0;
	}
	cl = calloc(1, sizeof(*cl));
	if (!cl)
		return 0;
	cl->control = c;
	cl->last = &cl->first;
	cl->fd = gw_steal_fd(&sock);
	if (sd_event_add_io(c->loop, &cl->source, cl->fd, EPOLLIN, on_client, cl) < 0) {
		free_client(cl);
		return 0;
	}
	c->clients[c->count++] = cl;
	return 0;
}

static void on_machine_event(void *arg, const Godwit__VmmEvent *event)
{
	struct gw_control *c = arg;

	for (unsigned i = 0; i < c->count; i++) {
		if (c->clients[i]->subscribed && !c->clients[i]->broken)
			queue_frame(c->clients[i], GW_CONTROL_EVENT, &event->base, -1);
	}
}

int gw_control_new(const char *path, sd_event *loop, struct gw_control **ret, struct gw_error *err)
{
	struct gw_control *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return gw_error_set(err, ENOMEM, "out of memory");
	c->fd = -1;
	c->loop = loop;
	r = gw_unix_listen(path, 0600, &c->fd, err);
	if (r == 0) {
		/* Only now is the file at that path ours to remove. */
		c->path = strdup(path);
		if (!c->path)
			r = gw_error_set(err, ENOMEM, "out of memory");
	}
	if (r < 0) {
		gw_control_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

int gw_control_attach(struct gw_control *c, struct gw_machine *m, struct gw_error *err)
{
	int r;

	c->machine = m;
	r = sd_event_add_io(c->loop, &c->source, c->fd, EPOLLIN, on_accept, c);
	if (r >= 0)
		r = sd_event_add_defer(c->loop, &c->reaper, on_reap, c);
	if (r >= 0)
		r = sd_event_source_set_enabled(c->reaper, SD_EVENT_OFF);
	if (r < 0)
		return gw_error_errno(err, r, "cannot watch the control socket");
	gw_machine_listen(m, on_machine_event, c);
	return 0;
}

/* What is queued when the VM ends: the reply to "quit", the event that tells it. */
static void linger(struct gw_control *c)
{
	uint64_t deadline = gw_now_ns() + LINGER_MS * GW_NS_PER_MS;

	for (unsigned i = 0; i < c->count; i++) {
		struct client *cl = c->clients[i];

		while (cl->first && !cl->broken && gw_wait_fd(cl->fd, EPOLLOUT, deadline) == 0)
			flush_client(cl);
	}
}

void gw_control_free(struct gw_control *c)
{
	if (!c)
		return;
	linger(c);
	while (c->count > 0)
		free_client(c->clients[--c->count]);
	sd_event_source_disable_unref(c->reaper);
	sd_event_source_disable_unref(c->source);
	gw_closep(&c->fd);
	if (c->path)
		(void)unlink(c->path);
	free(c->path);
	free(c);
}
