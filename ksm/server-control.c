// SPDX-License-Identifier: Apache-2.0
/* The agent's connections: frames of proto/share.proto, read and answered without blocking. See server.h. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "ksm/server-internal.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/util.h"
#include "proto/frame.h"

#define FRAME_REQUEST 32
#define FRAME_REPLY 33
#define MAX_REQUEST 4096u
#define MAX_REPLIES (64u << 20) /* bytes that wait for an agent that does not read */
#define MAX_CONTROLS 16u

struct gw_share_control {
	struct gw_share_control *next;
	struct gw_share_server *server;
	sd_event_source *io;
	int fd;
	bool last;     /* the daemon ends with it */
	uint8_t in[GW_FRAME_HEADER + MAX_REQUEST];
	size_t have;
	int passed;    /* descriptor of the frame that is being read */
	unsigned npassed;
	struct gw_buf out;
};

static void free_control(struct gw_share_control *c)
{
	struct gw_share_control **p = &c->server->controls;

	while (*p && *p != c)
		p = &(*p)->next;
	if (*p)
		*p = c->next;
	if (c->last)
		(void)sd_event_exit(c->server->loop, 0);
	sd_event_source_disable_unref(c->io);
	gw_closep(&c->passed);
	gw_buf_release(&c->out);
	close(c->fd);
	free(c);
}

/* ---- figures ---- */

static int fill_stats(struct gw_share_server *s, struct gw_buf *out)
{
	Godwit__ShareReply reply = GODWIT__SHARE_REPLY__INIT;
	gw_autofree Godwit__ShareDomainStats *domain = NULL;
	gw_autofree Godwit__ShareClientStats *client = NULL;
	gw_autofree Godwit__ShareDomainStats **domains = NULL;
	gw_autofree Godwit__ShareClientStats **clients = NULL;
	size_t nd = 0, nc = 0;

	for (struct gw_share_domain *d = s->domains; d; d = d->next)
		nd++;
	for (struct gw_share_session *x = s->sessions; x; x = x->next)
		nc++;
	domain = calloc(nd + 1, sizeof(*domain));
	domains = calloc(nd + 1, sizeof(*domains));
	client = calloc(nc + 1, sizeof(*client));
	clients = calloc(nc + 1, sizeof(*clients));
	if (!domain || !domains || !client || !clients)
		return -ENOMEM;
	for (struct gw_share_domain *d = s->domains; d; d = d->next) {
		Godwit__ShareDomainStats *m = domains[reply.n_domains] = &domain[reply.n_domains];
		struct gw_store_stats st;

		gw_store_stats(d->store, &st);
		godwit__share_domain_stats__init(m);
		m->domain = (char *)gw_store_domain(d->store);
		m->clients = st.clients;
		m->chunks = st.chunks;
		m->stored_pages = st.stored_pages;
		m->store_bytes = st.store_bytes;
		m->index_entries = st.index_entries;
		m->metadata_bytes = st.metadata_bytes;
		m->live_pages = st.live_pages;
		m->compacted_chunks = st.compacted_chunks;
		reply.n_domains++;
	}
	for (struct gw_share_session *x = s->sessions; x; x = x->next) {
		Godwit__ShareClientStats *m = clients[reply.n_clients] = &client[reply.n_clients];
		struct gw_store_client_stats st;

		gw_store_client_stats(x->client, &st);
		godwit__share_client_stats__init(m);
		m->vm = x->vm;
		m->domain = (char *)gw_store_domain(x->domain->store);
		m->pages = st.pages;
		m->reported = st.reported;
		m->chunks = st.chunks;
		m->live_pages = st.live_pages;
		m->stored_pages = st.stored_pages;
		m->lies = st.lies;
		m->metadata_bytes = st.metadata_bytes;
		reply.n_clients++;
	}
	reply.domains = domains;
	reply.clients = clients;
	reply.cpu_us = gw_clock_ns(CLOCK_PROCESS_CPUTIME_ID) / GW_NS_PER_US;
	return gw_frame_pack(out, FRAME_REPLY, &reply.base);
}

/* ---- requests ---- */

static int answer(struct gw_share_control *c, int r, const struct gw_error *err)
{
	Godwit__ShareReply reply = GODWIT__SHARE_REPLY__INIT;

	reply.error = -r;
	if (r < 0)
		reply.message = (char *)gw_error_text(err);
	return gw_frame_pack(&c->out, FRAME_REPLY, &reply.base);
}

/* One whole frame is in c->in. */
static int request(struct gw_share_control *c, size_t len)
{
	Godwit__ShareRequest *req = godwit__share_request__unpack(NULL, len, c->in + GW_FRAME_HEADER);
	struct gw_error err = GW_ERROR_INIT;
	gw_autofd fd = gw_steal_fd(&c->passed);
	unsigned nfds = c->npassed;
	int r;

	c->npassed = 0;
	c->have = 0;
	if (!req)
		return -EPROTO;
	switch (req->op_case) {
	case GODWIT__SHARE_REQUEST__OP_ATTACH:
		if (nfds != 1)
			r = gw_error_set(&err, EINVAL, "one descriptor must come with the request");
		else
			r = gw_share_server_attach(c->server, req->attach, fd, &err);
		if (r == 0)
			gw_steal_fd(&fd);
		r = answer(c, r, &err);
		break;
	case GODWIT__SHARE_REQUEST__OP_STATS:
		r = fill_stats(c->server, &c->out);
		break;
	default:
		r = answer(c, gw_error_set(&err, EOPNOTSUPP, "unknown request"), &err);
		break;
	}
	godwit__share_request__free_unpacked(req, NULL);
	return r < 0 ? r : c->out.len > MAX_REPLIES ? -ENOBUFS : 0;
}

/* Descriptors that came with some bytes: they belong to the frame that these are of. */
static int keep_fds(struct gw_share_control *c, struct msghdr *msg)
{
	for (struct cmsghdr *m = CMSG_FIRSTHDR(msg); m; m = CMSG_NXTHDR(msg, m)) {
		size_t n = (m->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(m) + i * sizeof(int), sizeof(fd));
			if (c->passed < 0)
				c->passed = fd;
			else
				close(fd);
			c->npassed++;
		}
	}
	return msg->msg_flags & MSG_CTRUNC ? -EPROTO : 0;
}

/* The header's length until that is there, then the whole frame's. */
static int frame_len(const struct gw_share_control *c, size_t *ret)
{
	struct gw_frame_header h;

	*ret = GW_FRAME_HEADER;
	if (c->have < GW_FRAME_HEADER)
		return 0;
	if (gw_frame_parse_header(c->in, &h) < 0 || h.type != FRAME_REQUEST || h.len > MAX_REQUEST)
		return -EPROTO;
	*ret += h.len;
	return 0;
}

/* Reads towards the end of one frame, never beyond it. 1: a frame was handled; 0: read more; -EAGAIN; -errno: it is over. */
static int read_some(struct gw_share_control *c)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(4 * sizeof(int))];
	} control;
	struct iovec iov;
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	size_t want;
	ssize_t n;
	int r = frame_len(c, &want);

	if (r < 0)
		return r;
	iov = (struct iovec){ c->in + c->have, want - c->have };
	n = recvmsg(c->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	r = keep_fds(c, &msg);
	if (r < 0 || n == 0)
		return r < 0 ? r : -EPIPE;
	c->have += (size_t)n;
	r = frame_len(c, &want);
	if (r < 0 || c->have < want)
		return r;
	r = request(c, want - GW_FRAME_HEADER);
	return r < 0 ? r : 1;
}

static int flush(struct gw_share_control *c)
{
	while (c->out.len > 0) {
		ssize_t n = send(c->fd, c->out.data, c->out.len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0)
			return -errno;
		gw_buf_consume(&c->out, (size_t)n);
	}
	return sd_event_source_set_io_events(c->io, EPOLLIN | (c->out.len > 0 ? EPOLLOUT : 0));
}

static int on_control(sd_event_source *source, int fd, uint32_t events, void *arg)
{
	struct gw_share_control *c = arg;
	int r = 0;

	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		do {
			r = read_some(c);
		} while (r == 0);
	}
	if (r >= 0 || r == -EAGAIN)
		r = flush(c);
	if (r >= 0)
		return 0;
	if (r != -EPIPE && r != -ECONNRESET)
		gw_warn("a control connection ends: %s", strerrordesc_np(-r));
	free_control(c);
	return 0;
}

int gw_share_server_control(struct gw_share_server *s, int fd, bool last, struct gw_error *err)
{
	struct gw_share_control *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return gw_error_set(err, ENOMEM, "out of memory");
	c->server = s;
	c->fd = fd;
	c->passed = -1;
	r = sd_event_add_io(s->loop, &c->io, fd, EPOLLIN, on_control, c);
	if (r < 0) {
		free(c);
		return gw_error_errno(err, r, "cannot take the control socket");
	}
	c->last = last;
	c->next = s->controls;
	s->controls = c;
	return 0;
}

static int on_accept(sd_event_source *source, int fd, uint32_t events, void *arg)
{
	struct gw_share_server *s = arg;
	struct gw_error err = GW_ERROR_INIT;
	unsigned n = 0;
	int got = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	for (const struct gw_share_control *c = s->controls; c; c = c->next)
		n++;
	if (got < 0)
		return 0;
	if (n >= MAX_CONTROLS || gw_share_server_control(s, got, false, &err) < 0) {
		gw_warn("a control connection is refused");
		close(got);
	}
	return 0;
}

int gw_share_server_listen(struct gw_share_server *s, const char *path, struct gw_error *err)
{
	gw_autofd fd = -1;
	int r;

	s->path = strdup(path);
	if (!s->path)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_unix_listen(path, 0600, &fd, err);
	if (r < 0)
		return r;
	if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		return gw_error_errno(err, errno, "cannot listen on %s", path);
	r = sd_event_add_io(s->loop, &s->listener, fd, EPOLLIN, on_accept, s);
	if (r < 0)
		return gw_error_errno(err, r, "cannot listen on %s", path);
	(void)sd_event_source_set_io_fd_own(s->listener, true);
	gw_steal_fd(&fd);
	return 0;
}

void gw_share_controls_free(struct gw_share_server *s)
{
	if (s->listener)
		unlink(s->path);
	sd_event_source_disable_unref(s->listener);
	s->listener = NULL;
	free(s->path);
	s->path = NULL;
	while (s->controls)
		free_control(s->controls);
}
