// SPDX-License-Identifier: Apache-2.0
/* Clients' sessions; see server.h. */
#include "ksm/server.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "ksm/server-internal.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "lib/util.h"

#define TICK_US 1000000ull
#define TICK_ACCURACY_US 100000ull
/* Upkeep is done when there is nothing else to do, and once after so many packets when there always is. */
#define IDLE_EVERY 64u
#define MAX_SESSIONS 4096u

struct gw_share_packet {
	uint8_t data[GW_SHARE_MAX_PACKET];
};

/* ---- the end of a session, and what follows from each step ---- */

static void end_session(struct gw_share_session *x)
{
	sd_event_source_disable_unref(x->io);
	gw_store_leave(x->client);
	close(x->fd);
	*x->link = x->next;
	if (x->next)
		x->next->link = x->link;
	x->domain->sessions--;
	free(x);
}

static void free_domain(struct gw_share_server *s, struct gw_share_domain *d)
{
	struct gw_share_domain **p = &s->domains;

	while (*p != d)
		p = &(*p)->next;
	*p = d->next;
	gw_store_free(d->store);
	free(d);
}

static void fail_session(struct gw_share_session *x, int r, const char *at)
{
	static struct gw_ratelimit limit;

	gw_warn_limited(&limit, "the session of VM '%s' ends: %s: %s", x->vm, at, strerrordesc_np(-r));
	end_session(x);
}

/* False: the session is over. */
static bool flush(struct gw_share_session *x)
{
	struct gw_outbox *o = gw_store_outbox(x->client);
	int r = o->overflow ? -ENOBUFS : gw_outbox_flush(o, x->fd);
	bool waits = r == -EAGAIN;

	if (r < 0 && r != -EAGAIN && r != -EBUSY) {
		if (r == -EPIPE || r == -ECONNRESET)
			end_session(x);
		else
			fail_session(x, r, o->overflow ? "it does not read or does not answer" : "cannot send");
		return false;
	}
	x->retry = r == -EBUSY;
	if (waits != x->waits)
		(void)sd_event_source_set_io_events(x->io, EPOLLIN | (waits ? EPOLLOUT : 0));
	x->waits = waits;
	return true;
}

static void arm_tick(struct gw_share_server *s)
{
	if (s->ticking)
		return;
	s->ticking = sd_event_source_set_time_relative(s->tick, TICK_US) >= 0 && sd_event_source_set_enabled(s->tick, SD_EVENT_ONESHOT) >= 0;
}

/* Sends what a step has brought about. A domain without sessions goes when idle. */
static void after_step(struct gw_share_server *s, struct gw_share_domain *d)
{
	struct gw_share_session *x;
	bool retry = false;

	while ((x = gw_store_next_ready(d->store)))
		retry = (flush(x) && x->retry) || retry;
	if (!s->ticking && (retry || gw_store_needs_tick(d->store)))
		arm_tick(s);
	(void)sd_event_source_set_enabled(s->idle, SD_EVENT_ONESHOT);
}

static int on_idle(sd_event_source *source, void *arg)
{
	struct gw_share_server *s = arg;
	struct gw_share_domain *next;
	bool more = false;

	s->since_idle = 0;
	for (struct gw_share_domain *d = s->domains; d; d = next) {
		struct gw_share_session *x;
		bool busy;

		next = d->next;
		busy = gw_store_idle(d->store);
		while ((x = gw_store_next_ready(d->store)))
			(void)flush(x);
		/* Its chunks go a few at a time: other domains are served meanwhile. */
		if (d->sessions == 0 && !busy)
			free_domain(s, d);
		else
			more = more || busy || d->sessions == 0;
	}
	if (more)
		(void)sd_event_source_set_enabled(s->idle, SD_EVENT_ONESHOT);
	return 0;
}

static int on_tick(sd_event_source *source, uint64_t usec, void *arg)
{
	struct gw_share_server *s = arg;
	struct gw_share_domain *d, *next;
	struct gw_share_session *x, *next_x;

	s->ticking = false;
	for (x = s->sessions; x; x = next_x) {
		next_x = x->next;
		d = x->domain;
		if (x->retry && flush(x) && x->retry)
			arm_tick(s);
	}
	for (d = s->domains; d; d = next) {
		next = d->next;
		if (gw_store_tick(d->store, gw_now_ns()))
			arm_tick(s);
		after_step(s, d);
	}
	return 0;
}

/* ---- packets ---- */

/* Descriptors of a message: the one that may come, or -EPROTO with all of them closed. */
static int take_fd(struct msghdr *msg, int *fd)
{
	int r = msg->msg_flags & (MSG_CTRUNC | MSG_TRUNC) ? -EPROTO : 0;

	*fd = -1;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < n; i++) {
			int got;

			memcpy(&got, CMSG_DATA(c) + i * sizeof(int), sizeof(got));
			if (*fd < 0) {
				*fd = got;
			} else {
				close(got);
				r = -EPROTO;
			}
		}
	}
	if (r < 0)
		gw_closep(fd);
	return r;
}

/* Reads and handles one packet. -EAGAIN: there is none; -EPIPE: the client is gone. */
static int one_packet(struct gw_share_session *x)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(2 * sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = x->server->packet->data, .iov_len = sizeof(x->server->packet->data) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(x->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int fd, r;

	if (n < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	r = take_fd(&msg, &fd);
	if (r == 0 && n == 0) {
		gw_closep(&fd);
		return -EPIPE;
	}
	return r ?: gw_store_packet(x->client, x->server->packet->data, (size_t)n, fd);
}

static int on_session(sd_event_source *source, int fd, uint32_t events, void *arg)
{
	struct gw_share_session *x = arg;
	struct gw_share_server *s = x->server;
	struct gw_share_domain *d = x->domain;
	int r = 0;

	if (events & EPOLLIN)
		r = one_packet(x);
	else if (events & (EPOLLHUP | EPOLLERR))
		r = -EPIPE;
	if (r == -EPIPE || r == -ECONNRESET)
		end_session(x);
	else if (r < 0 && r != -EAGAIN)
		fail_session(x, r, "a packet is refused");
	else if (events & EPOLLOUT)
		(void)flush(x); /* whatever came: a client that sends all the time gets its own as well */
	after_step(s, d);
	if (++s->since_idle >= IDLE_EVERY)
		return on_idle(NULL, s);
	return 0;
}

/* ---- attaching ---- */

static int check_socket(int fd)
{
	int domain = 0, type = 0;
	socklen_t len = sizeof(int);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
		return -errno;
	return domain == AF_UNIX && type == SOCK_SEQPACKET ? 0 : -EINVAL;
}

static int find_domain(struct gw_share_server *s, const Godwit__ShareAttach *a, struct gw_share_domain **ret, struct gw_error *err)
{
	struct gw_share_domain *d = s->domains;
	int r;

	/* One that is on its way out, and its key, do not count. */
	while (d && (d->sessions == 0 || strcmp(gw_store_domain(d->store), a->domain) != 0))
		d = d->next;
	if (d && !gw_store_has_key(d->store, a->key.data))
		return gw_error_set(err, EACCES, "domain %s has another key", a->domain);
	if (!d) {
		d = calloc(1, sizeof(*d));
		if (!d)
			return gw_error_set(err, ENOMEM, "out of memory");
		r = gw_store_new(a->domain, a->key.data, &d->store, err);
		if (r < 0) {
			free(d);
			return r;
		}
		d->next = s->domains;
		s->domains = d;
	}
	*ret = d;
	return 0;
}

int gw_share_server_attach(struct gw_share_server *s, const Godwit__ShareAttach *a, int fd, struct gw_error *err)
{
	struct gw_share_session *old = s->sessions, *x;
	struct gw_share_domain *d = NULL;
	unsigned n = 0;
	int r;

	r = gw_parse_name(a->vm, "VM", err);
	r = r ?: gw_parse_name(a->domain, "domain", err);
	if (r == 0 && a->key.len != GW_STORE_KEY_LEN)
		r = gw_error_set(err, EINVAL, "a domain's key has %u bytes", GW_STORE_KEY_LEN);
	if (r == 0 && check_socket(fd) < 0)
		r = gw_error_set(err, EINVAL, "a SOCK_SEQPACKET socket must come with the request");
	for (x = s->sessions; x; x = x->next)
		n++;
	if (r == 0 && n >= MAX_SESSIONS)
		r = gw_error_set(err, EBUSY, "%u clients are attached", n);
	r = r ?: find_domain(s, a, &d, err);
	if (r < 0)
		return r;
	while (old && strcmp(old->vm, a->vm) != 0)
		old = old->next;
	x = calloc(1, sizeof(*x));
	if (!x) {
		r = gw_error_set(err, ENOMEM, "out of memory");
		goto fail;
	}
	x->server = s;
	x->domain = d;
	x->fd = fd;
	snprintf(x->vm, sizeof(x->vm), "%s", a->vm);
	r = gw_store_join(d->store, a->pages, x, &x->client);
	r = r ?: sd_event_add_io(s->loop, &x->io, fd, EPOLLIN, on_session, x);
	if (r < 0) {
		gw_error_errno(err, r, "cannot attach VM %s", a->vm);
		goto fail;
	}
	x->link = &s->sessions;
	x->next = s->sessions;
	if (x->next)
		x->next->link = &x->next;
	s->sessions = x;
	d->sessions++;
	if (old) {
		struct gw_share_domain *of = old->domain;

		end_session(old);
		after_step(s, of);
	}
	return 0;
fail:
	if (x)
		gw_store_leave(x->client);
	free(x);
	if (d->sessions == 0)
		free_domain(s, d);
	return r;
}

/* ---- life ---- */

int gw_share_server_new(sd_event *loop, struct gw_share_server **ret, struct gw_error *err)
{
	struct gw_share_server *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return gw_error_set(err, ENOMEM, "out of memory");
	s->loop = sd_event_ref(loop);
	s->packet = aligned_alloc(64, sizeof(*s->packet));
	r = s->packet ? 0 : -ENOMEM;
	r = r ?: sd_event_add_time_relative(loop, &s->tick, CLOCK_MONOTONIC, TICK_US, TICK_ACCURACY_US, on_tick, s);
	r = r < 0 ? r : sd_event_source_set_enabled(s->tick, SD_EVENT_OFF);
	r = r < 0 ? r : sd_event_add_defer(loop, &s->idle, on_idle, s);
	r = r < 0 ? r : sd_event_source_set_enabled(s->idle, SD_EVENT_OFF);
	r = r < 0 ? r : sd_event_source_set_priority(s->idle, SD_EVENT_PRIORITY_IDLE);
	if (r < 0) {
		gw_share_server_free(s);
		return gw_error_errno(err, r, "cannot set up the loop");
	}
	*ret = s;
	return 0;
}

void gw_share_server_free(struct gw_share_server *s)
{
	if (!s)
		return;
	gw_share_controls_free(s);
	while (s->sessions)
		end_session(s->sessions);
	while (s->domains)
		free_domain(s, s->domains);
	sd_event_source_disable_unref(s->tick);
	sd_event_source_disable_unref(s->idle);
	sd_event_unref(s->loop);
	free(s->packet);
	free(s);
}
