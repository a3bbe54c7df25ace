// SPDX-License-Identifier: Apache-2.0
/*
 * Repositories that another host keeps, over real connections on loopback: any bytes after a hello, from a client to the real server (first byte even), or as
 * the answer of a server to the real client (odd: to a get, a read or a listing). Beside that what comes with agents' messages and before the handshake: a
 * ticket, a connection's beginning, and a URL.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/clock.h"
#include "lib/io.h"
#include "lib/tcp.h"
#include "lib/util.h"
#include "migrate/repo/bucket-internal.h"
#include "migrate/repo/remote.h"
#include "migrate/repo/serve.h"

#define KEPT 1000 /* runs until what was put is removed */

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[] = "/dev/shm/gw-fuzz-repository-XXXXXX";
static uint8_t key[GW_TICKET_KEY_LEN];
static struct gw_serve_config serve = { .host = "h", .directory = dir, .key = key };
static struct gw_ticket ticket;
static int listener;

static uint64_t soon(void)
{
	return gw_now_ns() + 10 * GW_NS_PER_SEC;
}

static void remove_all(void)
{
	char cmd[80];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	if (system(cmd))
		abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct sockaddr_in a;
	socklen_t len = sizeof(a);

	serve.wake_fd = eventfd(0, EFD_CLOEXEC);
	if (!mkdtemp(dir) || gw_serve_create(&serve, "kept", NULL) < 0 || gw_ticket_make(key, "kept", &ticket) < 0 ||
	    gw_tcp_listen("127.0.0.1", "0", &listener, NULL) < 0 || getsockname(listener, (struct sockaddr *)&a, &len) < 0)
		abort();
	fcntl(listener, F_SETFL, 0);
	snprintf(ticket.host, sizeof(ticket.host), "h");
	snprintf(ticket.address, sizeof(ticket.address), "127.0.0.1");
	ticket.port = ntohs(a.sin_port);
	atexit(remove_all);
	return 0;
}

static struct gw_channel *shake_hands(int fd, bool client)
{
	const struct gw_channel_config config = { .fd = fd, .wake_fd = -1, .client = client, .what = "repository", .secret = ticket.secret,
						  .move_id = ticket.id, .deadline_ns = soon() };
	struct gw_channel *ch;

	return gw_channel_new(&config, &ch, NULL) == 0 ? ch : NULL;
}

/* ---- the real server ---- */

static void *serve_one(void *arg)
{
	uint8_t preamble[GW_TICKET_PREAMBLE];
	struct gw_serving *s;

	gw_ticket_encode(&ticket, preamble);
	if (gw_serve_accept(&serve, (int)(long)arg, preamble, soon(), &s, NULL) == 0) {
		gw_serving_run(s);
		gw_serving_free(s);
	}
	return NULL;
}

static void as_client(const uint8_t *data, size_t size)
{
	Godwit__RepositoryHello hello = GODWIT__REPOSITORY_HELLO__INIT;
	Godwit__RepositoryRequest req = GODWIT__REPOSITORY_REQUEST__INIT;
	struct gw_channel *ch;
	pthread_t thread;
	int s[2];

	hello.version = GW_REMOTE_VERSION;
	req.op_case = GODWIT__REPOSITORY_REQUEST__OP_HELLO;
	req.hello = &hello;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, s) < 0 || pthread_create(&thread, NULL, serve_one, (void *)(long)s[1]))
		abort();
	ch = shake_hands(s[0], true);
	if (ch) {
		gw_remote_send(ch, GW_FRAME_REPO_REQUEST, &req.base);
		gw_channel_write(ch, data, size);
		gw_channel_flush(ch);
		shutdown(s[0], SHUT_WR);
		/* What it answers. */
		for (uint8_t byte; gw_channel_read(ch, &byte, 1, soon()) == 0;)
			;
	}
	gw_channel_free(ch);
	pthread_join(thread, NULL);
}

/* ---- the real client ---- */

struct answer {
	const uint8_t *data;
	size_t size;
	struct gw_bucket *bucket; /* set before it asks */
};

static bool skip_request(struct gw_channel *ch)
{
	struct gw_frame_header h;
	ProtobufCMessage *msg;

	if (gw_remote_receive(ch, &h, soon()) < 0 || gw_remote_message(ch, &h, &godwit__repository_request__descriptor, &msg, soon()) < 0)
		return false;
	protobuf_c_message_free_unpacked(msg, NULL);
	return true;
}

static void *answer(void *arg)
{
	struct answer *a = arg;
	Godwit__RepositoryHello hello = GODWIT__REPOSITORY_HELLO__INIT;
	Godwit__RepositoryReply rep = GODWIT__REPOSITORY_REPLY__INIT;
	uint8_t preamble[GW_TICKET_PREAMBLE];
	int fd = accept(listener, NULL, NULL);
	struct gw_channel *ch;

	if (fd < 0 || gw_read_full(fd, preamble, sizeof(preamble), soon()) < 0 || !(ch = shake_hands(fd, false)))
		abort();
	hello.version = GW_REMOTE_VERSION;
	rep.hello = &hello;
	if (skip_request(ch) && gw_remote_send(ch, GW_FRAME_REPO_REPLY, &rep.base) == 0 && gw_channel_flush(ch) == 0 && skip_request(ch)) {
		gw_channel_write(ch, a->data, a->size);
		gw_channel_flush(ch);
		/* It reads what is there before it sees that it is cancelled, and does not ask again. */
		gw_bucket_cancel(a->bucket);
	}
	gw_channel_free(ch);
	return NULL;
}

static int look(void *self, const struct gw_bucket_entry *e)
{
	if (!gw_bucket_name_ok(e->name))
		abort();
	return 0;
}

static void as_server(unsigned op, const uint8_t *data, size_t size)
{
	struct answer a = { data, size, NULL };
	gw_autobuf all = GW_BUF_INIT;
	uint8_t some[700];
	pthread_t thread;

	if (pthread_create(&thread, NULL, answer, &a) || gw_bucket_open_with("godwit://h/kept", &ticket, false, &a.bucket, NULL) < 0)
		abort();
	if (op == 0)
		gw_bucket_get(a.bucket, "a", 0, sizeof(some), some, NULL);
	else if (op == 1)
		gw_bucket_read(a.bucket, "a", 5000, &all, NULL);
	else
		gw_bucket_list(a.bucket, "", look, NULL, NULL);
	pthread_join(thread, NULL);
	gw_bucket_free(a.bucket);
}

static void alone(const uint8_t *data, size_t size)
{
	Godwit__RepositoryTicket *m = godwit__repository_ticket__unpack(NULL, size, data);
	char *url = strndup((const char *)data, size);
	struct gw_ticket_url u;
	struct gw_ticket t;

	if (size >= GW_TICKET_PREAMBLE && gw_ticket_decode(data, &t) == 0 && gw_ticket_secret(key, &t) < 0)
		abort();
	if (m && gw_ticket_read(m, &t, NULL) == 0 && !t.host[0])
		abort();
	if (m)
		godwit__repository_ticket__free_unpacked(m, NULL);
	if (url && gw_ticket_is_url(url) && gw_ticket_parse_url(url, &u, NULL) == 0 && strpbrk(u.name, "/\n"))
		abort();
	free(url);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static unsigned runs;

	if (size < 1)
		return 0;
	alone(data + 1, size - 1);
	if (data[0] % 2)
		as_server(data[0] / 2 % 3, data + 1, size - 1);
	else
		as_client(data + 1, size - 1);
	if (++runs % KEPT == 0) {
		remove_all();
		if (gw_serve_create(&serve, "kept", NULL) < 0)
			abort();
	}
	return 0;
}
