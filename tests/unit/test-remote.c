// SPDX-License-Identifier: Apache-2.0
/*
 * Repositories that another host keeps: clients that misbehave against the real server, connections that are lost and hosts that are restarted. Servers that
 * misbehave are in test-remote-answers.c, what both do when all is well in test-bucket.c.
 */
#include "cmocka-all.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/bytes.h"
#include "lib/util.h"
#include "migrate/repo/remote.h"
#include "remote-bed.h"

static struct remote_bed bed;

static int setup(void **state)
{
	remote_bed_make(&bed, 0, NULL, NULL);
	return 0;
}

static int setup_full(void **state)
{
	remote_bed_make(&bed, UINT64_MAX, NULL, NULL);
	return 0;
}

static int teardown(void **state)
{
	return remote_bed_end(&bed);
}

/* Files below the repository's folder, all of them. */
static unsigned files(const char *below)
{
	char path[400];
	struct dirent *e;
	unsigned n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "%s/%s", bed.dir, below);
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
	int r = gw_remote_receive(ch, &h, remote_patience());

	if (r < 0)
		return r == -ECONNRESET ? -EPIPE : r;
	assert_int_equal(h.type, GW_FRAME_REPO_REPLY);
	assert_int_equal(gw_remote_message(ch, &h, &godwit__repository_reply__descriptor, &msg, remote_patience()), 0);
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
	struct gw_channel *ch = repo_host_connect(bed.host, &bed.ticket);

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

	snprintf(path, sizeof(path), "%s/outside", bed.dir);
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
	struct gw_channel *ch = repo_host_connect(bed.host, &bed.ticket);

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
	repo_host_stop(bed.host);
	assert_int_equal(files("."), 0);
	repo_host_start(bed.host);
}

static void versions(void **state)
{
	struct gw_channel *ch = repo_host_connect(bed.host, &bed.ticket);
	unsigned spoken = 0;

	assert_int_equal(say_hello(ch, 0, NULL), -EPROTONOSUPPORT);
	assert_int_equal(receive_reply(ch, NULL), -EPIPE);
	gw_channel_free(ch);
	/* A newer client speaks as this server does. */
	ch = repo_host_connect(bed.host, &bed.ticket);
	assert_int_equal(say_hello(ch, GW_REMOTE_VERSION + 5, &spoken), 0);
	assert_int_equal(spoken, GW_REMOTE_VERSION);
	gw_channel_free(ch);
}

static void tickets(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_ticket good = bed.ticket;
	struct gw_ticket_url u;
	struct gw_bucket *b;

	assert_int_equal(gw_bucket_open("godwit://h9/kept", false, &b, &err), -EACCES);
	/* Another name, time, id or secret is another ticket. */
	bed.ticket.expires_s++;
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept", &bed.ticket, false, &b, &err), -EACCES);
	bed.ticket = good;
	bed.ticket.id[3] ^= 1;
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept", &bed.ticket, false, &b, &err), -EACCES);
	bed.ticket = good;
	bed.ticket.secret[31] ^= 1;
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept", &bed.ticket, false, &b, &err), -EACCES);
	bed.ticket = good;
	snprintf(bed.ticket.name, sizeof(bed.ticket.name), "kept2");
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept2", &bed.ticket, false, &b, &err), -EACCES);
	/* One that was good. */
	memset(good.id, 1, sizeof(good.id));
	good.expires_s = 1000000000;
	memset(bed.ticket.secret, 7, sizeof(bed.ticket.secret)); /* the host's key */
	assert_int_equal(gw_ticket_secret(bed.ticket.secret, &good), 0);
	bed.ticket = good;
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept", &bed.ticket, false, &b, &err), -EACCES);
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
	struct gw_bucket *b = remote_bed_open(&bed, "godwit://h9/kept");
	struct gw_error err = GW_ERROR_INIT;
	char byte, path[80];

	assert_int_equal(gw_bucket_get(b, "a", 0, 1, &byte, &err), -ENOENT);
	repo_host_stop(bed.host);
	snprintf(path, sizeof(path), "%s/kept", bed.dir);
	assert_int_equal(rmdir(path), 0);
	repo_host_start(bed.host);
	/* No object is missing: all of it is. */
	assert_int_equal(gw_bucket_get(b, "a", 0, 1, &byte, &err), -EIO);
	assert_non_null(strstr(err.msg, "'godwit repo init godwit://h9/kept' makes it"));
	gw_bucket_free(b);
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept", &bed.ticket, false, &b, &err), -ENOENT);
}

static void a_full_host_refuses(void **state)
{
	struct gw_bucket *b = remote_bed_open(&bed, "godwit://h9/kept");
	const struct gw_bucket_piece piece = { "abc", 3 };
	struct gw_error err = GW_ERROR_INIT;

	assert_int_equal(gw_bucket_put(b, "a", &piece, 1, GW_BUCKET_REPLACE, &err), -ENOSPC);
	assert_non_null(strstr(err.msg, "host h9 has no room"));
	assert_int_equal(gw_bucket_remove(b, "a", &err), 0);
	assert_int_equal(repo_host_connections(bed.host), 1);
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
	struct gw_bucket *b = remote_bed_open(&bed, "godwit://h9/kept");
	unsigned n = 2 * GW_REMOTE_PAGE + 3, seen = 0;
	char path[100];

	snprintf(path, sizeof(path), "%s/kept/p", bed.dir);
	assert_int_equal(mkdir(path, 0700), 0);
	for (unsigned i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/kept/p/%05u", bed.dir, i);
		close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	}
	assert_int_equal(gw_bucket_list(b, "p/", count_one, &seen, NULL), 0);
	assert_int_equal(seen, n);
	gw_bucket_free(b);
}

static void large_objects(void **state)
{
	struct gw_bucket *b = remote_bed_open(&bed, "godwit://h9/kept");
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
	assert_int_equal(repo_host_connections(bed.host), 1);
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
	struct gw_bucket *b = remote_bed_open(&bed, "godwit://h9/kept"), *hasty = remote_bed_open(&bed, "godwit://h9/kept?retry=1");
	const struct gw_bucket_piece piece = { "x", 1 };
	struct gw_error err = GW_ERROR_INIT;
	pthread_t threads[12];
	void *ret;
	char byte;

	assert_int_equal(gw_bucket_put(b, "a", &piece, 1, GW_BUCKET_REPLACE, NULL), 0);
	repo_host_stop(bed.host);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, get_one, b), 0);
	/* Meanwhile the patience of others is over. */
	assert_int_equal(gw_bucket_get(hasty, "a", 0, 1, &byte, &err), -EHOSTUNREACH);
	assert_non_null(strstr(err.msg, "repository kept of host h9: given up after"));
	repo_host_start(bed.host);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
		pthread_join(threads[i], &ret);
		assert_ptr_equal(ret, b);
	}
	assert_int_equal(gw_bucket_get(hasty, "a", 0, 1, &byte, &err), 0);
	gw_bucket_free(hasty);
	gw_bucket_free(b);
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
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
