// SPDX-License-Identifier: Apache-2.0
/* Listeners and connections; see server.h. What the requests mean is in requests.c. */
#include "agent/server.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "agent/chan.h"
#include "agent/dataport.h"
#include "agent/repositories.h"
#include "agent/requests.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/tcp.h"
#include "lib/util.h"

#define MAX_LOCAL 64
#define MAX_REMOTE 192
#define MAX_DATA 128
#define HANDSHAKE_TIMEOUT (10 * GW_NS_PER_SEC)
/* A request that has begun must be there whole by then. */
#define FRAME_TIMEOUT (30 * GW_NS_PER_SEC)
/* Between requests. A source keeps its connection while a move lasts, and connects again when it was dropped. */
#define IDLE_TIMEOUT (3600 * GW_NS_PER_SEC)

enum kind { KIND_LOCAL, KIND_TLS, KIND_DATA };

struct connection {
	struct gw_server *server;
	enum kind kind;
	int fd;
	int place; /* in the gate; local ones have none */
};

static uint16_t port_of(int fd)
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof(ss);

	if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
		return 0;
	return ntohs(ss.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&ss)->sin6_port : ((struct sockaddr_in *)&ss)->sin_port);
}

static int listen_on(const char *address, int *ret, struct gw_error *err)
{
	char host[256], port[6];

	return gw_parse_address(address, "0", host, port, err) ?: gw_tcp_listen(host, port, ret, err);
}

int gw_server_open(struct gw_agent *a, struct gw_server *s, struct gw_error *err)
{
	int r;

	memset(s, 0, sizeof(*s));
	s->agent = a;
	s->local_fd = s->tls_fd = s->data_fd = -1;
	gw_gate_init(&s->gate);
	r = gw_unix_listen(a->conf->socket, 0660, &s->local_fd, err);
	if (r == 0 && a->tls_server) {
		r = listen_on(a->conf->listen, &s->tls_fd, err);
		r = r ?: listen_on(a->conf->data_listen, &s->data_fd, err);
		if (r == 0)
			a->data_port = port_of(s->data_fd);
	}
	return r;
}

void gw_server_close(struct gw_server *s)
{
	if (s->local_fd >= 0)
		unlink(s->agent->conf->socket);
	gw_closep(&s->local_fd);
	gw_closep(&s->tls_fd);
	gw_closep(&s->data_fd);
	gw_gate_release(&s->gate);
}

/* Until bytes of the next request are there: 0, or -ETIMEDOUT, -ESHUTDOWN. */
static int wait_request(struct gw_agent *a, struct gw_chan *c)
{
	uint64_t deadline = gw_now_ns() + IDLE_TIMEOUT;

	while (!gw_chan_pending(c)) {
		struct pollfd p[2] = { { .fd = gw_chan_fd(c), .events = POLLIN }, { .fd = a->stop_fd, .events = POLLIN } };
		int n = poll(p, 2, gw_ms_until(deadline));

		if (a->stopping || p[1].revents)
			return -ESHUTDOWN;
		if (n == 0)
			return -ETIMEDOUT;
		if (n > 0 && p[0].revents)
			return 0;
	}
	return 0;
}

static void serve(struct gw_agent *a, struct gw_chan *c)
{
	static struct gw_ratelimit limit;
	gw_autobuf body = GW_BUF_INIT;
	struct gw_client client = { .agent = a, .chan = c };
	int r = 0;

	while (r == 0) {
		uint16_t type;

		r = wait_request(a, c);
		if (r < 0)
			break;
		r = gw_chan_recv(c, &type, &body, GW_AGENT_FRAME_MAX, gw_now_ns() + FRAME_TIMEOUT);
		if (r == 0 && type != GW_FRAME_AGENT_REQUEST)
			r = -EPROTO;
		if (r == 0)
			r = gw_client_request(&client, body.data, body.len);
	}
	if (r == -EPROTO)
		gw_warn_limited(&limit, "%s '%s' sends what is not Godwit's protocol", gw_role_name(gw_chan_role(c)), gw_chan_peer(c));
	gw_client_end(&client);
}

static void connection(void *arg)
{
	static struct gw_ratelimit limit;
	struct connection *conn = arg;
	struct gw_server *s = conn->server;
	uint64_t deadline = gw_now_ns() + HANDSHAKE_TIMEOUT;
	struct gw_error err = GW_ERROR_INIT;
	struct gw_chan *c = NULL;

	if (conn->kind == KIND_DATA) {
		struct gw_serving *serving = gw_dataport_serve(s->agent, conn->fd, deadline);

		gw_gate_leave(&s->gate, conn->place);
		s->data--;
		if (serving)
			gw_repositories_run(s->agent->repositories, serving);
	} else if (conn->kind == KIND_LOCAL) {
		if (gw_chan_from_unix(conn->fd, &c, &err) == 0)
			serve(s->agent, c);
		gw_chan_free(c);
		s->local--;
	} else {
		int r = gw_chan_accept_tls(s->agent->tls_server, conn->fd, deadline, &c, &err);

		gw_gate_leave(&s->gate, conn->place);
		if (r == 0)
			serve(s->agent, c);
		else
			gw_warn_limited(&limit, "a connection is refused: %s", gw_error_text(&err));
		gw_chan_free(c);
		s->remote--;
	}
	free(conn);
}

static void accept_one(struct gw_server *s, int listener, enum kind kind, _Atomic unsigned *count, unsigned max)
{
	static struct gw_ratelimit limit;
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | (kind == KIND_LOCAL ? 0 : SOCK_NONBLOCK));
	struct connection *conn;
	int place;

	if (fd < 0) {
		/* Out of descriptors: the connection stays in the queue, and we must not spin on it. */
		if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
			gw_warn_limited(&limit, "cannot accept a connection: %s", strerrordesc_np(errno));
			usleep(10000);
		}
		return;
	}
	place = *count >= max ? -EBUSY : kind == KIND_LOCAL ? 0 : gw_gate_enter(&s->gate, fd);
	conn = place >= 0 ? malloc(sizeof(*conn)) : NULL;
	if (conn) {
		*conn = (struct connection){ s, kind, fd, place };
		(*count)++;
		if (gw_agent_thread(s->agent, connection, conn, NULL) == 0)
			return;
		(*count)--;
		free(conn);
	}
	if (place >= 0 && kind != KIND_LOCAL)
		gw_gate_leave(&s->gate, place);
	gw_warn_limited(&limit, "too many connections: one is dropped");
	close(fd);
}

void gw_server_run(struct gw_server *s, int signal_fd)
{
	struct pollfd p[] = {
		{ .fd = s->agent->stop_fd, .events = POLLIN },
		{ .fd = signal_fd, .events = POLLIN },
		{ .fd = s->local_fd, .events = POLLIN },
		{ .fd = s->tls_fd, .events = POLLIN },
		{ .fd = s->data_fd, .events = POLLIN },
	};

	for (;;) {
		if (poll(p, ARRAY_SIZE(p), -1) < 0 && errno != EINTR)
			return;
		if (p[0].revents || p[1].revents)
			return;
		if (p[2].revents)
			accept_one(s, s->local_fd, KIND_LOCAL, &s->local, MAX_LOCAL);
		if (p[3].revents)
			accept_one(s, s->tls_fd, KIND_TLS, &s->remote, MAX_REMOTE);
		if (p[4].revents)
			accept_one(s, s->data_fd, KIND_DATA, &s->data, MAX_DATA);
	}
}
