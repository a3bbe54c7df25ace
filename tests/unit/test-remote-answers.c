// SPDX-License-Identifier: Apache-2.0
/* Repositories that another host keeps: servers that misbehave against the real client. */
#include "cmocka-all.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/remote.h"
#include "remote-bed.h"

static struct remote_bed bed;

static Godwit__RepositoryRequest *receive_request(struct gw_channel *ch)
{
	struct gw_frame_header h;
	ProtobufCMessage *msg;

	if (gw_remote_receive(ch, &h, remote_patience()) < 0 ||
	    gw_remote_message(ch, &h, &godwit__repository_request__descriptor, &msg, remote_patience()) < 0)
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

	remote_bed_make(&bed, 0, serve_version, NULL);
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept", &bed.ticket, false, &b, &err), -EPROTONOSUPPORT);
	assert_int_equal(gw_bucket_open_with("godwit://h9/kept", &bed.ticket, false, &b, &err), -EPROTONOSUPPORT);
	assert_non_null(strstr(err.msg, "this client knows"));
	remote_bed_end(&bed);

	remote_bed_make(&bed, 0, serve_bad_answers, NULL);
	b = remote_bed_open(&bed, "godwit://h9/kept");
	for (unsigned i = 1; i <= BAD_ANSWERS; i++) {
		if (gw_bucket_get(b, "a", 0, 4, buf, &err) != -EPROTO)
			fail_msg("answer %u: %s", i, err.msg);
		/* Nothing of that connection is used on. */
		assert_int_equal(repo_host_connections(bed.host), i);
	}
	gw_bucket_free(b);
	remote_bed_end(&bed);

	remote_bed_make(&bed, 0, serve_errors, NULL);
	b = remote_bed_open(&bed, "godwit://h9/kept");
	assert_int_equal(gw_bucket_get(b, "a", 0, 4, buf, &err), -ENOSPC);
	assert_int_equal(gw_bucket_get(b, "a", 0, 4, buf, &err), -EIO);
	assert_int_equal(gw_bucket_get(b, "a", 0, 4, buf, &err), -EIO);
	assert_int_equal(gw_bucket_get(b, "a", 0, 4, buf, &err), -ENOENT);
	assert_int_equal(repo_host_connections(bed.host), 1);
	gw_bucket_free(b);
	remote_bed_end(&bed);
}

static void half_answers_are_asked_for_again(void **state)
{
	struct gw_bucket *b;
	char buf[5] = "";

	remote_bed_make(&bed, 0, serve_halves, NULL);
	b = remote_bed_open(&bed, "godwit://h9/kept");
	assert_int_equal(gw_bucket_get(b, "a", 0, 4, buf, NULL), 0);
	assert_string_equal(buf, "1234");
	assert_int_equal(repo_host_connections(bed.host), 4);
	gw_bucket_free(b);
	remote_bed_end(&bed);
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

	remote_bed_make(&bed, 0, serve_listings, NULL);
	b = remote_bed_open(&bed, "godwit://h9/kept");
	for (unsigned i = 0; i < 7; i++)
		assert_int_equal(gw_bucket_list(b, "p/", never, NULL, NULL), -EPROTO);
	gw_bucket_free(b);
	remote_bed_end(&bed);
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
		if (gw_remote_receive(ch, &h, remote_patience()) < 0 || h.len > sizeof(piece) || gw_channel_read(ch, piece, h.len, remote_patience()) < 0)
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

	remote_bed_make(&bed, 0, serve_lost_answer, (void *)holds);
	b = remote_bed_open(&bed, "godwit://h9/kept");
	r = gw_bucket_put(b, "a", &piece, 1, GW_BUCKET_IF_ABSENT, NULL);
	assert_int_equal(repo_host_connections(bed.host), 2);
	gw_bucket_free(b);
	remote_bed_end(&bed);
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

	remote_bed_make(&bed, 0, serve_silence, NULL);
	b = remote_bed_open(&bed, "godwit://h9/kept");
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
	assert_int_equal(repo_host_connections(bed.host), 8);
	gw_bucket_free(b);
	remote_bed_end(&bed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(wrong_answers),
		cmocka_unit_test(half_answers_are_asked_for_again),
		cmocka_unit_test(wrong_listings),
		cmocka_unit_test(lost_answers),
		cmocka_unit_test(silence_is_cancelled),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
