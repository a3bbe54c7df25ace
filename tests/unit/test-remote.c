// SPDX-License-Identifier: Apache-2.0
/*
 * Repositories that another host keeps: clients that misbehave against the real server, servers that misbehave against the real client, connections that are
 * lost and hosts that are restarted. What both do when all is well is in test-bucket.c.
 */
#include "cmocka-all.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/bytes.h"
#include "lib/clock.h"
#include "lib/util.h"
#include "migrate/repo/bucket-internal.h"
#include "migrate/repo/remote.h"
#include "repo-host.h"

static char dir[64];
static struct repo_host *host;
static struct gw_ticket ticket;

static uint64_t patience(void)
{
	return gw_now_ns() + TEST_PATIENCE;
}

static int setup_with(uint64_t keep_free, repo_host_fn *fn, void *self)
{
	snprintf(dir, sizeof(dir), "/tmp/gw-test-remote-XXXXXX");
	assert_non_null(mkdtemp(dir));
	host = repo_host_new(dir, keep_free, fn, self);
	ticket = repo_host_ticket(host, "kept");
	return 0;
}

static int setup(void **state)
{
	return setup_with(0, NULL, NULL);
}

static int setup_full(void **state)
{
	return setup_with(UINT64_MAX, NULL, NULL);
}

static int teardown(void **state)
{
	char cmd[80];

	repo_host_free(host);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

static struct gw_bucket *open_bucket(const char *url)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_bucket *b;

	if (gw_bucket_open_with(url, &ticket, false, &b, &err) < 0)
		fail_msg("%s", err.msg);
	return b;
}

/* Files below the repository's folder, all of them. */
static unsigned files(const char *below)
{
	char path[400];
	struct dirent *e;
	unsigned n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "%s/%s", dir, below);
	d = opendir(path);
	assert_non_null(d);
	while ((e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%.100s/%.250s", below, e->d_name);
		n += e->d_type == DT_DIR ? files(path) : 1;
	}
	closedir(d);
	return n;
}

/* ---- clients that misbehave ---- */

static void send_request(struct gw_channel *ch, const Godwit__RepositoryRequest *req)
{
	assert_int_equal(gw_remote_send(ch, GW_FRAME_REPO_REQUEST, &req->base), 0);
	assert_int_equal(gw_channel_flush(ch), 0);
}

/* The error of the reply; the end of the connection is -EPIPE. */
static int receive_reply(struct gw_channel *ch, Godwit__RepositoryReply **ret)
{
	struct gw_frame_header h;
	ProtobufCMessage *msg;
	int r = gw_remote_receive(ch, &h, patience());

	if (r < 0)
		return r == -ECONNRESET ? -EPIPE : r;
	assert_int_equal(h.type, GW_FRAME_REPO_REPLY);
	assert_int_equal(gw_remote_message(ch, &h, &godwit__repository_reply__descriptor, &msg, patience()), 0);
	r = -((Godwit__RepositoryReply *)msg)->error;
	if (ret)
		*ret = (Godwit__RepositoryReply *)msg;
	else
		protobuf_c_message_free_unpacked(msg, NULL);
	return r;
}

static int say_hello(struct gw_channel *ch, unsigned version, unsigned *spoken)
{
	Godwit__RepositoryHello hello = { PROTOBUF_C_MESSAGE_INIT(&godwit__repository_hello__descriptor), version };
	Godwit__RepositoryRequest req = GODWIT__REPOSITORY_REQUEST__INIT;
	Godwit__RepositoryReply *rep = NULL;
	int r;

	req.op_case = GODWIT__REPOSITORY_REQUEST__OP_HELLO;
	req.hello = &hello;
	send_request(ch, &req);
	r = receive_reply(ch, &rep);
	if (rep && spoken)
		*spoken = rep->hello ? rep->hello->version : 0;
	if (rep)
		godwit__repository_reply__free_unpacked(rep, NULL);
	return r;
}

static struct gw_channel *client(void)
{
	struct gw_channel *ch = repo_host_connect(host, &ticket);

	assert_int_equal(say_hello(ch, GW_REMOTE_VERSION, NULL), 0);
	return ch;
}

static void begin_put(struct gw_channel *ch, const char *name, uint64_t length)
{
	Godwit__RepositoryRequest req = GODWIT__REPOSITORY_REQUEST__INIT;
	Godwit__RepositoryPut put = GODWIT__REPOSITORY_PUT__INIT;

	put.name = (char *)name;
	put.length = length;
	req.op_case = GODWIT__REPOSITORY_REQUEST__OP_PUT;
	req.put = &put;
	send_request(ch, &req);
}

static int get(struct gw_channel *ch, const char *name, uint64_t offset, uint64_t length)
{
	Godwit__RepositoryRequest req = GODWIT__REPOSITORY_REQUEST__INIT;
	Godwit__RepositoryGet g = GODWIT__REPOSITORY_GET__INIT;

	g.name = (char *)name;
	g.offset = offset;
	g.length = length;
	req.op_case = GODWIT__REPOSITORY_REQUEST__OP_GET;
	req.get = &g;
	send_request(ch, &req);
	return receive_reply(ch, NULL);
}

static int remove_object(struct gw_channel *ch, const char *name)
{
	Godwit__RepositoryRequest req = GODWIT__REPOSITORY_REQUEST__INIT;
	Godwit__RepositoryName n = GODWIT__REPOSITORY_NAME__INIT;

	n.name = (char *)name;
	req.op_case = GODWIT__REPOSITORY_REQUEST__OP_REMOVE;
	req.remove = &n;
	send_request(ch, &req);
	return receive_reply(ch, NULL);
}

static void names_stay_in_the_folder(void **state)
{
	static const char *const bad[] = { "", ".", "..", "../outside", "a/../../outside", "/etc/passwd", "a//b", "_new-1", "A", "a\n" };
	struct gw_channel *ch = client();
	char path[100];
	FILE *f;

	snprintf(path, sizeof(path), "%s/outside", dir);
	f = fopen(path, "we");
	assert_non_null(f);
	fclose(f);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		begin_put(ch, bad[i], 3);
		/* It is told after the bytes, and the connection goes on. */
		assert_int_equal(gw_remote_send_data(ch, "abc", 3), 0);
		assert_int_equal(gw_channel_flush(ch), 0);
		assert_int_equal(receive_reply(ch, NULL), -EINVAL);
		assert_int_equal(get(ch, bad[i], 0, 0), -EINVAL);
		assert_int_equal(remove_object(ch, bad[i]), -EINVAL);
	}
	assert_int_equal(access(path, F_OK), 0);
	assert_int_equal(files("."), 1);
	gw_channel_free(ch);
}

static void what_is_no_protocol_ends_the_connection(void **state)
{
	static const uint8_t huge[GW_FRAME_HEADER] = { 0xff, 0xff, 0xff, 0, GW_FRAME_REPO_REQUEST, 0, GW_FRAME_VERSION, 0 };
	static const uint8_t long_request[GW_FRAME_HEADER] = { 1, 0x10, 0, 0, GW_FRAME_REPO_REQUEST, 0, GW_FRAME_VERSION, 0 };
	static const uint8_t no_request[GW_FRAME_HEADER] = { 0, 0, 0, 0, GW_FRAME_REPO_REPLY, 0, GW_FRAME_VERSION, 0 };
	static const uint8_t no_message[GW_FRAME_HEADER + 1] = { 1, 0, 0, 0, GW_FRAME_REPO_REQUEST, 0, GW_FRAME_VERSION, 0, 0xff };
	static const uint8_t nothing[GW_FRAME_HEADER] = { 0, 0, 0, 0, GW_FRAME_REPO_REQUEST, 0, GW_FRAME_VERSION, 0 };
	static const struct {
		const void *data;
		size_t len;
	} wrong[] = { { huge, sizeof(huge) }, { long_request, sizeof(long_request) }, { no_request, sizeof(no_request) },
		      { no_message, sizeof(no_message) }, { nothing, sizeof(nothing) } };

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		struct gw_channel *ch = client();

		assert_int_equal(gw_channel_write(ch, wrong[i].data, wrong[i].len), 0);
		assert_int_equal(gw_channel_flush(ch), 0);
		assert_int_equal(receive_reply(ch, NULL), -EPIPE);
		gw_channel_free(ch);
	}
	/* Not before a hello, and one only. */
	struct gw_channel *ch = repo_host_connect(host, &ticket);

	assert_int_equal(get(ch, "a", 0, 1), -EPIPE);
	gw_channel_free(ch);
	ch = client();
	assert_int_equal(say_hello(ch, GW_REMOTE_VERSION, NULL), -EPIPE);
	gw_channel_free(ch);
	/* A range whose end cannot be told. */
	ch = client();
	assert_int_equal(get(ch, "a", UINT64_MAX, 2), -EPIPE);
	gw_channel_free(ch);
}

static void puts_that_go_wrong_leave_nothing(void **state)
{
	static uint8_t big[GW_REMOTE_PIECE];
	struct gw_channel *ch = client();

	/* Longer than any object. */
	begin_put(ch, "d/a", GW_BUCKET_MAX_OBJECT + 1);
	assert_int_equal(receive_reply(ch, NULL), -EPIPE);
	gw_channel_free(ch);
	/* More bytes than were announced. */
	ch = client();
	begin_put(ch, "d/a", 10);
	assert_int_equal(gw_remote_send_data(ch, big, 11), 0);
	assert_int_equal(gw_channel_flush(ch), 0);
	assert_int_equal(receive_reply(ch, NULL), -EPIPE);
	gw_channel_free(ch);
	/* A request in their place. */
	ch = client();
	begin_put(ch, "d/a", 10);
	assert_int_equal(get(ch, "d/a", 0, 1), -EPIPE);
	gw_channel_free(ch);
	/* Half of it, and gone. */
	ch = client();
	begin_put(ch, "d/a", 2 * GW_REMOTE_PIECE);
	assert_int_equal(gw_remote_send_data(ch, big, sizeof(big)), 0);
	assert_int_equal(gw_channel_flush(ch), 0);
	gw_channel_free(ch);
	/* The server has let go of all of them. */
	repo_host_stop(host);
	assert_int_equal(files("."), 0);
	repo_host_start(host);
}

static void versions(void **state)
{
	struct gw_channel *ch = repo_host_connect(host, &ticket);
	unsigned spoken = 0;

	assert_int_equal(say_hello(ch, 0, NULL), -EPROTONOSUPPORT);
	assert_int_equal(receive_reply(ch, NULL), -EPIPE);
	gw_channel_free(ch);
	/* A newer client speaks as this server does. */
	ch = repo_host_connect(host, &ticket);
	assert_int_equal(say_hello(ch, GW_REMOTE_VERSION + 5, &spoken), 0);
	assert_int_equal(spoken, GW_REMOTE_VERSION);
	gw_channel_free(ch);
}

static void tickets(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_ticket good = ticket;
	struct gw_ticket_url u;
	struct gw_bucket *b;

	assert_int_equal(gw_bucket_open("godwit://h9/kept", false, &b, &err), -EACCES);
	/* Another name, time, id or secret is another ticket. */
	ticket.expires_s++;
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept", &ticket, false, &b, &err), -EACCES);
	ticket = good;
	ticket.id[3] ^= 1;
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept", &ticket, false, &b, &err), -EACCES);
	ticket = good;
	ticket.secret[31] ^= 1;
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept", &ticket, false, &b, &err), -EACCES);
	ticket = good;
	snprintf(ticket.name, sizeof(ticket.name), "kept2");
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept2", &ticket, false, &b, &err), -EACCES);
	/* One that was good. */
	memset(good.id, 1, sizeof(good.id));
	good.expires_s = 1000000000;
	memset(ticket.secret, 7, sizeof(ticket.secret)); /* the host's key */
	assert_int_equal(gw_ticket_secret(ticket.secret, &good), 0);
	ticket = good;
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept", &ticket, false, &b, &err), -EACCES);
	assert_non_null(strstr(err.msg, "has expired"));

	static const char *const bad[] = { "godwit://", "godwit:///x", "godwit://h", "godwit://h/", "godwit://h/a/b", "godwit://h/.", "godwit://h/..", "godwit://h/-a",
					   "godwit://h/a?", "godwit://h/a?retry=0", "godwit://h/a?retry=x", "godwit://h/a?stall=5",
					   "godwit://h/0123456789012345678901234567890123456789012345678901234567890123" };
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(gw_ticket_parse_url(bad[i], &u, &err), -EINVAL);
	assert_int_equal(gw_ticket_parse_url("godwit://n@[::1]:7/a.b?retry=9", &u, &err), 0);
	assert_string_equal(u.host, "n@[::1]:7");
	assert_string_equal(u.name, "a.b");
	assert_int_equal(u.retry_s, 9);
}

static void a_repository_that_is_not_there(void **state)
{
	struct gw_bucket *b = open_bucket("godwit://h9/kept");
	struct gw_error err = GW_ERROR_INIT;
	char byte, path[80];

	assert_int_equal(gw_bucket_get(b, "a", 0, 1, &byte, &err), -ENOENT);
	repo_host_stop(host);
	snprintf(path, sizeof(path), "%s/kept", dir);
	assert_int_equal(rmdir(path), 0);
	repo_host_start(host);
	/* No object is missing: all of it is. */
	assert_int_equal(gw_bucket_get(b, "a", 0, 1, &byte, &err), -EIO);
	assert_non_null(strstr(err.msg, "'godwit repo init godwit://h9/kept' makes it"));
	gw_bucket_free(b);
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept", &ticket, false, &b, &err), -ENOENT);
}

static void a_full_host_refuses(void **state)
{
	struct gw_bucket *b = open_bucket("godwit://h9/kept");
	const struct gw_bucket_piece piece = { "abc", 3 };
	struct gw_error err = GW_ERROR_INIT;

	assert_int_equal(gw_bucket_put(b, "a", &piece, 1, GW_BUCKET_REPLACE, &err), -ENOSPC);
	assert_non_null(strstr(err.msg, "host h9 has no room"));
	assert_int_equal(gw_bucket_remove(b, "a", &err), 0);
	assert_int_equal(repo_host_connections(host), 1);
	gw_bucket_free(b);
}

/* ---- much of it ---- */

static int count_one(void *self, const struct gw_bucket_entry *e)
{
	unsigned *n = self;
	char want[40];

	snprintf(want, sizeof(want), "p/%05u", (*n)++);
	assert_string_equal(e->name, want);
	return 0;
}

static void long_listings_come_in_pages(void **state)
{
	struct gw_bucket *b = open_bucket("godwit://h9/kept");
	unsigned n = 2 * GW_REMOTE_PAGE + 3, seen = 0;
	char path[100];

	snprintf(path, sizeof(path), "%s/kept/p", dir);
	assert_int_equal(mkdir(path, 0700), 0);
	for (unsigned i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/kept/p/%05u", dir, i);
		close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	}
	assert_int_equal(gw_bucket_list(b, "p/", count_one, &seen, NULL), 0);
	assert_int_equal(seen, n);
	gw_bucket_free(b);
}

static void large_objects(void **state)
{
	struct gw_bucket *b = open_bucket("godwit://h9/kept");
	size_t len = 5 * GW_REMOTE_PIECE + 777;
	uint8_t *data = malloc(len), *back = malloc(len);
	const struct gw_bucket_piece pieces[] = { { data, 1 }, { NULL, 0 }, { data + 1, len - 1 } };
	gw_autobuf all = GW_BUF_INIT;

	for (size_t i = 0; i < len; i++)
		data[i] = (uint8_t)(i * 7 + i / 1000);
	assert_int_equal(gw_bucket_put(b, "d/big", pieces, 3, GW_BUCKET_IF_ABSENT, NULL), 0);
	assert_int_equal(gw_bucket_get(b, "d/big", 0, len, back, NULL), 0);
	assert_memory_equal(back, data, len);
	assert_int_equal(gw_bucket_get(b, "d/big", GW_REMOTE_PIECE - 1, GW_REMOTE_PIECE + 2, back, NULL), 0);
	assert_memory_equal(back, data + GW_REMOTE_PIECE - 1, GW_REMOTE_PIECE + 2);
	assert_int_equal(gw_buf_append(&all, "x", 1), 0);
	assert_int_equal(gw_bucket_read(b, "d/big", len, &all, NULL), 0);
	assert_int_equal(all.len, len + 1);
	assert_memory_equal(all.data + 1, data, len);
	assert_int_equal(gw_bucket_get(b, "d/big", 0, 0, back, NULL), 0);
	/* All of it on one connection. */
	assert_int_equal(repo_host_connections(host), 1);
	gw_bucket_free(b);
	free(data);
	free(back);
}

/* ---- a host that goes and comes back ---- */

static void *get_one(void *arg)
{
	char byte = 0;

	return gw_bucket_get(arg, "a", 0, 1, &byte, NULL) == 0 && byte == 'x' ? arg : NULL;
}

static void it_is_connected_to_again(void **state)
{
	struct gw_bucket *b = open_bucket("godwit://h9/kept"), *hasty = open_bucket("godwit://h9/kept?retry=1");
	const struct gw_bucket_piece piece = { "x", 1 };
	struct gw_error err = GW_ERROR_INIT;
	pthread_t threads[12];
	void *ret;
	char byte;

	assert_int_equal(gw_bucket_put(b, "a", &piece, 1, GW_BUCKET_REPLACE, NULL), 0);
	repo_host_stop(host);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, get_one, b), 0);
	/* Meanwhile the patience of others is over. */
	assert_int_equal(gw_bucket_get(hasty, "a", 0, 1, &byte, &err), -EHOSTUNREACH);
	assert_non_null(strstr(err.msg, "repository kept of host h9: given up after"));
	repo_host_start(host);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
		pthread_join(threads[i], &ret);
		assert_ptr_equal(ret, b);
	}
	assert_int_equal(gw_bucket_get(hasty, "a", 0, 1, &byte, &err), 0);
	gw_bucket_free(hasty);
	gw_bucket_free(b);
}

/* ---- servers that misbehave ---- */

static Godwit__RepositoryRequest *receive_request(struct gw_channel *ch)
{
	struct gw_frame_header h;
	ProtobufCMessage *msg;

	if (gw_remote_receive(ch, &h, patience()) < 0 ||
	    gw_remote_message(ch, &h, &godwit__repository_request__descriptor, &msg, patience()) < 0)
		return NULL;
	return (Godwit__RepositoryRequest *)msg;
}

/* False when the client has gone. */
static bool skip_request(struct gw_channel *ch)
{
	Godwit__RepositoryRequest *req = receive_request(ch);

	if (!req)
		return false;
	godwit__repository_request__free_unpacked(req, NULL);
	return true;
}

static void reply(struct gw_channel *ch, int error, uint64_t length)
{
	Godwit__RepositoryReply rep = GODWIT__REPOSITORY_REPLY__INIT;

	rep.error = error;
	rep.length = length;
	gw_remote_send(ch, GW_FRAME_REPO_REPLY, &rep.base);
	gw_channel_flush(ch);
}

static bool greet(struct gw_channel *ch, unsigned version)
{
	Godwit__RepositoryHello hello = { PROTOBUF_C_MESSAGE_INIT(&godwit__repository_hello__descriptor), version };
	Godwit__RepositoryReply rep = GODWIT__REPOSITORY_REPLY__INIT;

	if (!skip_request(ch))
		return false;
	rep.hello = &hello;
	gw_remote_send(ch, GW_FRAME_REPO_REPLY, &rep.base);
	return gw_channel_flush(ch) == 0;
}

static void data(struct gw_channel *ch, const char *text)
{
	gw_remote_send_data(ch, text, strlen(text));
	gw_channel_flush(ch);
}

static void serve_version(void *self, struct gw_channel *ch, unsigned nth)
{
	greet(ch, nth == 1 ? 0 : GW_REMOTE_VERSION + 1);
}

/* One bad answer a connection. */
static void serve_bad_answers(void *self, struct gw_channel *ch, unsigned nth)
{
	Godwit__RepositoryReply rep = GODWIT__REPOSITORY_REPLY__INIT;
	static const uint8_t huge[GW_FRAME_HEADER] = { 1, 0, 0x20, 0, GW_FRAME_REPO_REPLY, 0, GW_FRAME_VERSION, 0 };

	if (!greet(ch, GW_REMOTE_VERSION) || !skip_request(ch))
		return;
	switch (nth) {
	case 1: /* more than was asked for */
		reply(ch, 0, 5);
		data(ch, "12345");
		break;
	case 2: /* less */
		reply(ch, 0, 3);
		data(ch, "123");
		break;
	case 3: /* more than was said */
		reply(ch, 0, 4);
		data(ch, "12345");
		break;
	case 4: /* bytes without an answer */
		data(ch, "1234");
		break;
	case 5: /* an answer that is too long */
		gw_channel_write(ch, huge, sizeof(huge));
		gw_channel_flush(ch);
		break;
	case 6: /* two, of which the second says nothing */
		reply(ch, 0, 4);
		reply(ch, 0, 4);
		break;
	case 7: /* the wrong kind */
		gw_remote_send(ch, GW_FRAME_REPO_REQUEST, &rep.base);
		gw_channel_flush(ch);
		break;
	}
	/* Until the client has seen it. */
	skip_request(ch);
}
#define BAD_ANSWERS 7

static void serve_halves(void *self, struct gw_channel *ch, unsigned nth)
{
	static const uint8_t half[4] = { 4, 0, 0, 0 };

	if (!greet(ch, GW_REMOTE_VERSION) || !skip_request(ch))
		return;
	if (nth == 1) { /* not even a header */
		gw_channel_write(ch, half, sizeof(half));
		gw_channel_flush(ch);
	} else if (nth == 2) { /* no bytes */
		reply(ch, 0, 4);
	} else if (nth == 3) { /* some of them */
		reply(ch, 0, 4);
		data(ch, "12");
	} else if (nth == 4) {
		reply(ch, 0, 4);
		data(ch, "12");
		data(ch, "34");
		skip_request(ch);
	}
}

/* An error in the middle of an object, and others that the client does not know. */
static void serve_errors(void *self, struct gw_channel *ch, unsigned nth)
{
	if (!greet(ch, GW_REMOTE_VERSION) || !skip_request(ch))
		return;
	reply(ch, 0, 4);
	data(ch, "12");
	reply(ch, ENOSPC, 0);
	if (skip_request(ch))
		reply(ch, -5, 0);
	if (skip_request(ch))
		reply(ch, EHOSTUNREACH, 0);
	if (skip_request(ch))
		reply(ch, ENOENT, 0);
	skip_request(ch);
}

static void wrong_answers(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_bucket *b;
	char buf[4];

	setup_with(0, serve_version, NULL);
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept", &ticket, false, &b, &err), -EPROTONOSUPPORT);
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept", &ticket, false, &b, &err), -EPROTONOSUPPORT);
	assert_non_null(strstr(err.msg, "this client knows"));
	teardown(NULL);

	setup_with(0, serve_bad_answers, NULL);
	b = open_bucket("godwit://h9/kept");
	for (unsigned i = 1; i <= BAD_ANSWERS; i++) {
		if (gw_bucket_get(b, "a", 0, 4, buf, &err) != -EPROTO)
			fail_msg("answer %u: %s", i, err.msg);
		/* Nothing of that connection is used on. */
		assert_int_equal(repo_host_connections(host), i);
	}
	gw_bucket_free(b);
	teardown(NULL);

	setup_with(0, serve_errors, NULL);
	b = open_bucket("godwit://h9/kept");
	assert_int_equal(gw_bucket_get(b, "a", 0, 4, buf, &err), -ENOSPC);
	assert_int_equal(gw_bucket_get(b, "a", 0, 4, buf, &err), -EIO);
	assert_int_equal(gw_bucket_get(b, "a", 0, 4, buf, &err), -EIO);
	assert_int_equal(gw_bucket_get(b, "a", 0, 4, buf, &err), -ENOENT);
	assert_int_equal(repo_host_connections(host), 1);
	gw_bucket_free(b);
	teardown(NULL);
}

static void half_answers_are_asked_for_again(void **state)
{
	struct gw_bucket *b;
	char buf[5] = "";

	setup_with(0, serve_halves, NULL);
	b = open_bucket("godwit://h9/kept");
	assert_int_equal(gw_bucket_get(b, "a", 0, 4, buf, NULL), 0);
	assert_string_equal(buf, "1234");
	assert_int_equal(repo_host_connections(host), 4);
	gw_bucket_free(b);
	teardown(NULL);
}

static void serve_listings(void *self, struct gw_channel *ch, unsigned nth)
{
	static const char *const bad[][2] = { { "p/b", "p/a" }, { "p/a", "p/a" }, { "p/a", "q/a" }, { "p/../a", NULL }, { "p/A", NULL }, { "", NULL } };
	unsigned list = 0;

	if (!greet(ch, GW_REMOTE_VERSION))
		return;
	for (; skip_request(ch); list++) {
		Godwit__RepositoryReply rep = GODWIT__REPOSITORY_REPLY__INIT;
		Godwit__RepositoryEntry e[2], *entries[2] = { &e[0], &e[1] };

		rep.entries = entries;
		for (unsigned i = 0; list < ARRAY_SIZE(bad) && i < 2 && bad[list][i]; i++) {
			godwit__repository_entry__init(&e[i]);
			e[i].name = (char *)bad[list][i];
			rep.n_entries++;
		}
		rep.more = list >= ARRAY_SIZE(bad); /* nothing, for ever */
		gw_remote_send(ch, GW_FRAME_REPO_REPLY, &rep.base);
		gw_channel_flush(ch);
	}
}

static int never(void *self, const struct gw_bucket_entry *e)
{
	fail_msg("%s is told", e->name);
	return 0;
}

static void wrong_listings(void **state)
{
	struct gw_bucket *b;

	setup_with(0, serve_listings, NULL);
	b = open_bucket("godwit://h9/kept");
	for (unsigned i = 0; i < 7; i++)
		assert_int_equal(gw_bucket_list(b, "p/", never, NULL, NULL), -EPROTO);
	gw_bucket_free(b);
	teardown(NULL);
}

/* Takes a put and dies; then says that the object is there, and what it holds. */
static void serve_lost_answer(void *self, struct gw_channel *ch, unsigned nth)
{
	const char *holds = self;
	Godwit__RepositoryRequest *req;

	if (!greet(ch, GW_REMOTE_VERSION) || !(req = receive_request(ch)))
		return;
	for (struct gw_frame_header h; req && req->op_case == GODWIT__REPOSITORY_REQUEST__OP_PUT;) {
		char piece[8];

		assert_true(req->put->if_absent);
		if (gw_remote_receive(ch, &h, patience()) < 0 || h.len > sizeof(piece) || gw_channel_read(ch, piece, h.len, patience()) < 0)
			break;
		if (nth == 1)
			break;
		reply(ch, EEXIST, 0);
		godwit__repository_request__free_unpacked(req, NULL);
		while ((req = receive_request(ch)) && req->op_case == GODWIT__REPOSITORY_REQUEST__OP_GET) {
			if (req->get->offset + req->get->length > strlen(holds)) {
				reply(ch, EPROTO, 0);
			} else {
				reply(ch, 0, req->get->length);
				gw_remote_send_data(ch, holds + req->get->offset, req->get->length);
				gw_channel_flush(ch);
			}
			godwit__repository_request__free_unpacked(req, NULL);
		}
	}
	if (req)
		godwit__repository_request__free_unpacked(req, NULL);
}

static int put_whose_answer_is_lost(const char *holds)
{
	const struct gw_bucket_piece piece = { "ours", 4 };
	struct gw_bucket *b;
	int r;

	setup_with(0, serve_lost_answer, (void *)holds);
	b = open_bucket("godwit://h9/kept");
	r = gw_bucket_put(b, "a", &piece, 1, GW_BUCKET_IF_ABSENT, NULL);
	assert_int_equal(repo_host_connections(host), 2);
	gw_bucket_free(b);
	teardown(NULL);
	return r;
}

static void lost_answers(void **state)
{
	assert_int_equal(put_whose_answer_is_lost("ours"), 0);
	assert_int_equal(put_whose_answer_is_lost("theirs"), -EEXIST);
	assert_int_equal(put_whose_answer_is_lost("ours and more"), -EEXIST);
	assert_int_equal(put_whose_answer_is_lost("our"), -EEXIST);
}

/* Says nothing more; the client tells when it has been asked. */
static pthread_mutex_t asked_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t asked_changed = PTHREAD_COND_INITIALIZER;
static unsigned asked;

static void serve_silence(void *self, struct gw_channel *ch, unsigned nth)
{
	if (!greet(ch, GW_REMOTE_VERSION) || !skip_request(ch))
		return;
	pthread_mutex_lock(&asked_lock);
	asked++;
	pthread_cond_signal(&asked_changed);
	pthread_mutex_unlock(&asked_lock);
	skip_request(ch);
}

static void *get_cancelled(void *arg)
{
	char byte;

	return gw_bucket_get(arg, "a", 0, 1, &byte, NULL) == -ECANCELED ? arg : NULL;
}

static void silence_is_cancelled(void **state)
{
	struct gw_bucket *b;
	pthread_t threads[12]; /* more than connections: some wait for one */
	void *ret;

	setup_with(0, serve_silence, NULL);
	b = open_bucket("godwit://h9/kept");
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, get_cancelled, b), 0);
	pthread_mutex_lock(&asked_lock);
	while (asked < 8)
		pthread_cond_wait(&asked_changed, &asked_lock);
	pthread_mutex_unlock(&asked_lock);
	gw_bucket_cancel(b);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
		pthread_join(threads[i], &ret);
		assert_ptr_equal(ret, b);
	}
	assert_int_equal(repo_host_connections(host), 8);
	gw_bucket_free(b);
	teardown(NULL);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(names_stay_in_the_folder),
		T(what_is_no_protocol_ends_the_connection),
		T(puts_that_go_wrong_leave_nothing),
		T(versions),
		T(tickets),
		T(a_repository_that_is_not_there),
		cmocka_unit_test_setup_teardown(a_full_host_refuses, setup_full, teardown),
		T(long_listings_come_in_pages),
		T(large_objects),
		T(it_is_connected_to_again),
		cmocka_unit_test(wrong_answers),
		cmocka_unit_test(half_answers_are_asked_for_again),
		cmocka_unit_test(wrong_listings),
		cmocka_unit_test(lost_answers),
		cmocka_unit_test(silence_is_cancelled),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
