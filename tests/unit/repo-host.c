// SPDX-License-Identifier: Apache-2.0
/* A host that keeps repositories, for tests; see repo-host.h. A thread accepts, one more a connection serves. */
#include "cmocka-all.h"

#include "repo-host.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "lib/clock.h"
#include "lib/io.h"
#include "lib/tcp.h"
#include "lib/util.h"

#define MAX_CONNECTIONS 256

struct connection {
	struct repo_host *host;
	pthread_t thread;
	int fd;
};

struct repo_host {
	struct gw_serve_config serve;
	char directory[128];
	uint8_t key[GW_TICKET_KEY_LEN];
	repo_host_fn *fn;
	void *self;
	int listener;
	char port[6];
	pthread_t thread;
	atomic_uint connections;
	struct connection all[MAX_CONNECTIONS];
	unsigned count; /* the accepting thread's, until it has ended */
};

static void serve_by_hand(struct repo_host *h, int fd, struct gw_ticket *t, uint64_t deadline)
{
	struct gw_channel_config config = { .fd = fd, .wake_fd = h->serve.wake_fd, .what = "repository", .secret = t->secret, .move_id = t->id,
					    .deadline_ns = deadline };
	struct gw_channel *ch;

	if (gw_channel_new(&config, &ch, NULL) < 0)
		return;
	h->fn(h->self, ch, ++h->connections);
	gw_channel_free(ch);
}

static void *serve(void *arg)
{
	struct connection *c = arg;
	struct repo_host *h = c->host;
	uint64_t deadline = gw_now_ns() + TEST_PATIENCE;
	uint8_t preamble[GW_TICKET_PREAMBLE];
	struct gw_serving *s = NULL;
	struct gw_ticket t;

	if (gw_read_full(c->fd, preamble, sizeof(preamble), deadline) < 0) {
		close(c->fd);
	} else if (h->fn) {
		if (gw_ticket_decode(preamble, &t) < 0 || gw_ticket_secret(h->key, &t) < 0)
			close(c->fd);
		else
			serve_by_hand(h, c->fd, &t, deadline);
	} else if (gw_serve_accept(&h->serve, c->fd, preamble, deadline, &s, NULL) == 0) {
		h->connections++;
		gw_serving_run(s);
		gw_serving_free(s);
	}
	return NULL;
}

static void *accept_all(void *arg)
{
	struct repo_host *h = arg;

	for (;;) {
		struct connection *c = &h->all[h->count];
		int fd = accept4(h->listener, NULL, NULL, SOCK_CLOEXEC);

		if (fd < 0)
			return NULL;
		if (h->count == MAX_CONNECTIONS) {
			close(fd);
			continue;
		}
		*c = (struct connection){ .host = h, .fd = fd };
		if (pthread_create(&c->thread, NULL, serve, c) == 0)
			h->count++;
		else
			close(fd);
	}
}

void repo_host_start(struct repo_host *h)
{
	struct sockaddr_in a;
	socklen_t len = sizeof(a);

	assert_int_equal(gw_tcp_listen("127.0.0.1", h->port, &h->listener, NULL), 0);
	/* A listener that blocks: shutdown(2) ends its accept(2). */
	assert_int_equal(fcntl(h->listener, F_SETFL, 0), 0);
	assert_int_equal(getsockname(h->listener, (struct sockaddr *)&a, &len), 0);
	snprintf(h->port, sizeof(h->port), "%u", ntohs(a.sin_port));
	h->serve.wake_fd = eventfd(0, EFD_CLOEXEC);
	h->count = 0;
	assert_int_equal(pthread_create(&h->thread, NULL, accept_all, h), 0);
}

void repo_host_stop(struct repo_host *h)
{
	const uint64_t one = 1;

	assert_int_equal(write(h->serve.wake_fd, &one, sizeof(one)), sizeof(one));
	shutdown(h->listener, SHUT_RDWR);
	pthread_join(h->thread, NULL);
	close(h->listener);
	for (unsigned i = 0; i < h->count; i++)
		pthread_join(h->all[i].thread, NULL);
	gw_closep(&h->serve.wake_fd);
}

struct repo_host *repo_host_new(const char *directory, uint64_t keep_free, repo_host_fn *fn, void *self)
{
	struct repo_host *h = calloc(1, sizeof(*h));

	assert_non_null(h);
	snprintf(h->directory, sizeof(h->directory), "%s", directory ?: "");
	memset(h->key, 7, sizeof(h->key));
	h->serve = (struct gw_serve_config){ .host = "h9", .directory = h->directory, .key = h->key, .keep_free = keep_free };
	h->fn = fn;
	h->self = self;
	snprintf(h->port, sizeof(h->port), "0");
	repo_host_start(h);
	return h;
}

void repo_host_free(struct repo_host *h)
{
	if (h->serve.wake_fd >= 0)
		repo_host_stop(h);
	free(h);
}

struct gw_ticket repo_host_ticket(struct repo_host *h, const char *name)
{
	struct gw_ticket t;

	if (!h->fn)
		assert_int_equal(gw_serve_create(&h->serve, name, NULL), 0);
	assert_int_equal(gw_ticket_make(h->key, name, &t), 0);
	snprintf(t.host, sizeof(t.host), "h9");
	snprintf(t.address, sizeof(t.address), "127.0.0.1");
	t.port = (uint16_t)strtoul(h->port, NULL, 10);
	return t;
}

struct gw_channel *repo_host_connect(struct repo_host *h, const struct gw_ticket *t)
{
	uint64_t deadline = gw_now_ns() + TEST_PATIENCE;
	struct gw_channel_config config = { .wake_fd = -1, .client = true, .what = "repository", .secret = t->secret, .move_id = t->id,
					    .deadline_ns = deadline };
	uint8_t preamble[GW_TICKET_PREAMBLE];
	struct gw_channel *ch;

	gw_ticket_encode(t, preamble);
	assert_int_equal(gw_tcp_connect("127.0.0.1", h->port, deadline, &config.fd, NULL), 0);
	assert_int_equal(gw_write_full(config.fd, preamble, sizeof(preamble), deadline), 0);
	assert_int_equal(gw_channel_new(&config, &ch, NULL), 0);
	return ch;
}

unsigned repo_host_connections(const struct repo_host *h)
{
	return h->connections;
}
