// SPDX-License-Identifier: Apache-2.0
/* A small HTTP server for tests; see http-server.h. A thread accepts, one more a connection serves. */
#include "http-server.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "lib/util.h"

#define MAX_CONNECTIONS 256

struct connection {
	struct http_server *server;
	pthread_t thread;
	int fd;
};

struct http_server {
	http_handler *handler;
	void *self;
	int listener;
	unsigned port;
	pthread_t thread;
	atomic_uint requests;
	atomic_bool stopping;
	struct connection connections[MAX_CONNECTIONS];
	unsigned count; /* the accepting thread's, until it has ended */
};

void http_must_failed(const char *file, int line, const char *condition)
{
	fprintf(stderr, "%s:%d: not so: %s\n", file, line, condition);
	abort();
}

void http_raw(int fd, const void *data, size_t len)
{
	const char *p = data;

	while (len) {
		ssize_t n = send(fd, p, len, MSG_NOSIGNAL);

		if (n <= 0)
			return;
		p += n;
		len -= (size_t)n;
	}
}

bool http_answer(int fd, const char *status, const char *headers, const void *body, size_t len)
{
	char head[4096];
	int n = snprintf(head, sizeof(head), "HTTP/1.1 %s\r\n%sContent-Length: %zu\r\n\r\n", status, headers, len);

	http_raw(fd, head, (size_t)n);
	http_raw(fd, body, len);
	return true;
}

const char *http_header(const struct http_request *r, const char *name)
{
	static __thread char value[4096];
	size_t len = strlen(name);

	for (const char *line = r->head; (line = strchr(line, '\n'));) {
		line++;
		if (strncasecmp(line, name, len) || line[len] != ':')
			continue;
		line += len + 1 + strspn(line + len + 1, " ");
		snprintf(value, sizeof(value), "%.*s", (int)strcspn(line, "\r\n"), line);
		return value;
	}
	return "";
}

/* Until the empty line. */
static bool read_head(int fd, struct http_request *r)
{
	size_t len = 0;

	while (len + 1 < sizeof(r->head)) {
		if (recv(fd, r->head + len, 1, 0) != 1)
			return false;
		len++;
		r->head[len] = '\0';
		if (len >= 4 && !memcmp(r->head + len - 4, "\r\n\r\n", 4))
			return sscanf(r->head, "%15s %4095s", r->method, r->target) == 2;
	}
	return false;
}

static bool read_body(int fd, struct http_request *r)
{
	r->body_len = strtoul(http_header(r, "content-length"), NULL, 10);
	if (!r->body_len)
		return true;
	if (!strcasecmp(http_header(r, "expect"), "100-continue"))
		http_raw(fd, "HTTP/1.1 100 Continue\r\nETag: not-this\r\n\r\n", 41);
	r->body = malloc(r->body_len);
	return r->body && recv(fd, r->body, r->body_len, MSG_WAITALL) == (ssize_t)r->body_len;
}

static void *serve(void *arg)
{
	struct connection *c = arg;
	struct http_request *r = malloc(sizeof(*r));
	bool more = r;

	while (more) {
		memset(r, 0, sizeof(*r));
		more = read_head(c->fd, r) && read_body(c->fd, r);
		if (more) {
			r->number = atomic_fetch_add(&c->server->requests, 1) + 1;
			more = c->server->handler(c->server->self, r, c->fd);
		}
		free(r->body);
	}
	free(r);
	/* The descriptor is closed with the server, so that its number is not another's meanwhile. */
	shutdown(c->fd, SHUT_RDWR);
	return NULL;
}

static void *accept_all(void *arg)
{
	struct http_server *s = arg;

	while (s->count < MAX_CONNECTIONS) {
		struct connection *c = &s->connections[s->count];
		int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC);

		if (fd < 0)
			break;
		*c = (struct connection){ .server = s, .fd = fd };
		if (pthread_create(&c->thread, NULL, serve, c)) {
			close(fd);
			break;
		}
		s->count++;
	}
	return NULL;
}

struct http_server *http_server_new(http_handler *handler, void *self)
{
	struct http_server *s = calloc(1, sizeof(*s));
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(at);
	int ok;

	assert(s);
	s->handler = handler;
	s->self = self;
	s->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ok = bind(s->listener, (struct sockaddr *)&at, sizeof(at)) == 0 && listen(s->listener, 64) == 0 &&
	     getsockname(s->listener, (struct sockaddr *)&at, &len) == 0;
	assert(ok);
	s->port = ntohs(at.sin_port);
	ok = pthread_create(&s->thread, NULL, accept_all, s) == 0;
	assert(ok);
	return s;
}

unsigned http_server_port(const struct http_server *s)
{
	return s->port;
}

unsigned http_server_requests(const struct http_server *s)
{
	return atomic_load(&s->requests);
}

bool http_server_stopping(const struct http_server *s)
{
	return atomic_load(&s->stopping);
}

void http_server_free(struct http_server *s)
{
	if (!s)
		return;
	atomic_store(&s->stopping, true);
	shutdown(s->listener, SHUT_RDWR);
	pthread_join(s->thread, NULL);
	close(s->listener);
	for (unsigned i = 0; i < s->count; i++)
		shutdown(s->connections[i].fd, SHUT_RDWR);
	for (unsigned i = 0; i < s->count; i++) {
		pthread_join(s->connections[i].thread, NULL);
		close(s->connections[i].fd);
	}
	free(s);
}
