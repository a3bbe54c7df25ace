// SPDX-License-Identifier: Apache-2.0
/* The S3 back end writes, and is cancelled, against a server that keeps a few objects and fails when a test says so. */
#include "cmocka-all.h"

#include <errno.h>
#include <openssl/evp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "http-server.h"
#include "lib/clock.h"
#include "lib/parse.h"
#include "lib/util.h"
#include "migrate/repo/bucket.h"

#define EMPTY_LIST "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
#define MIB (1ull << 20)
#define MAX_OBJECTS 16
#define MAX_PARTS 8

struct object {
	char target[256];
	char mark[64];
	uint8_t *data;
	size_t len;
};

/* A server of one bucket. Faults are counted down by each request that they would hit. */
struct shop {
	struct http_server *server;
	struct gw_bucket *bucket;
	pthread_mutex_t lock; /* all below */
	struct object objects[MAX_OBJECTS];
	struct object parts[MAX_PARTS + 1]; /* by number */
	char upload_mark[64];
	bool uploading;
	unsigned aborted, completed, conflicts;
	bool ignores_conditions, refuses_conditions, conditions_need_rights;
	bool without_etags;
	int answers_lost;     /* puts that are carried out, but not answered */
	int parts_lost;       /* the same for parts */
	int parts_refused;
	int completions_lost, completions_failing; /* after 200 */
	int cut_off;          /* puts whose connection closes */
	unsigned careful;     /* that came with Expect */
	atomic_bool hang;     /* parts and reads are not answered while set */
	atomic_uint hanging;
};

static struct object *find(struct shop *s, const char *target)
{
	struct object *free_one = NULL;

	for (unsigned i = 0; i < MAX_OBJECTS; i++) {
		if (!strcmp(s->objects[i].target, target))
			return &s->objects[i];
		if (!s->objects[i].target[0] && !free_one)
			free_one = &s->objects[i];
	}
	return free_one;
}

static bool answer_text(int fd, const char *status, const char *headers, const char *body)
{
	return http_answer(fd, status, headers, body, strlen(body));
}

static void keep(struct object *o, const struct http_request *r)
{
	free(o->data);
	o->data = malloc(r->body_len + 1);
	must(o->data);
	if (r->body_len)
		memcpy(o->data, r->body, r->body_len);
	o->len = r->body_len;
}

/* What is signed as the body's hash must be it. */
static void check_hash(const struct http_request *r)
{
	uint8_t hash[32];
	char hex[65];

	must(EVP_Digest(r->body, r->body_len, hash, NULL, EVP_sha256(), NULL) == 1);
	gw_format_hex(hash, sizeof(hash), hex);
	must(!strcmp(http_header(r, "x-amz-content-sha256"), hex));
}

static bool take_part(struct shop *s, const struct http_request *r, int fd)
{
	const char *number = strstr(r->target, "partNumber=");
	unsigned n = (unsigned)strtoul(number + 11, NULL, 10);
	char etag[64];

	must(s->uploading && n >= 1 && n <= MAX_PARTS);
	if (s->parts_refused > 0) {
		s->parts_refused--;
		return answer_text(fd, "403 Forbidden", "", "<Error><Code>QuotaExceeded</Code></Error>");
	}
	keep(&s->parts[n], r);
	if (s->parts_lost > 0) {
		s->parts_lost--;
		return false;
	}
	snprintf(etag, sizeof(etag), s->without_etags ? "X: y\r\n" : "ETag: \"part-%u\"\r\n", n);
	return answer_text(fd, "200 OK", etag, "");
}

static bool complete(struct shop *s, const struct http_request *r, int fd)
{
	char target[256], tags[MAX_PARTS * 80 + 64] = "<CompleteMultipartUpload>";
	struct object *o;
	unsigned n;

	if (!s->uploading)
		return answer_text(fd, "404 Not Found", "", "<Error><Code>NoSuchUpload</Code></Error>");
	if (s->completions_failing > 0) {
		s->completions_failing--;
		return answer_text(fd, "200 OK", "", "  <Error><Code>InternalError</Code></Error>");
	}
	snprintf(target, sizeof(target), "%.*s", (int)strcspn(r->target, "?"), r->target);
	o = find(s, target);
	must(o);
	snprintf(o->target, sizeof(o->target), "%s", target);
	snprintf(o->mark, sizeof(o->mark), "%s", s->upload_mark);
	free(o->data);
	o->data = NULL;
	o->len = 0;
	for (n = 1; n <= MAX_PARTS && s->parts[n].data; n++) {
		size_t used = strlen(tags);

		snprintf(tags + used, sizeof(tags) - used, "<Part><PartNumber>%u</PartNumber><ETag>\"part-%u\"</ETag></Part>", n, n);
		o->data = realloc(o->data, o->len + s->parts[n].len);
		must(o->data);
		memcpy(o->data + o->len, s->parts[n].data, s->parts[n].len);
		o->len += s->parts[n].len;
	}
	must(r->body_len == strlen(tags) + strlen("</CompleteMultipartUpload>") && !memcmp(r->body, tags, strlen(tags)));
	s->uploading = false;
	s->completed++;
	if (s->completions_lost > 0) {
		s->completions_lost--;
		return false;
	}
	return answer_text(fd, "200 OK", "", "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>");
}

static bool put_object(struct shop *s, const struct http_request *r, int fd)
{
	struct object *o = find(s, r->target);
	bool conditional = http_header(r, "if-none-match")[0];

	must(o);
	if (s->cut_off > 0) {
		s->cut_off--;
		return false;
	}
	if (conditional && s->refuses_conditions)
		return answer_text(fd, "501 Not Implemented", "", "<Error><Code>NotImplemented</Code></Error>");
	if (conditional && s->conflicts && !strstr(r->target, "_conditional")) {
		s->conflicts--;
		return answer_text(fd, "409 Conflict", "", "<Error><Code>ConditionalRequestConflict</Code></Error>");
	}
	if (conditional && !s->ignores_conditions && o->target[0])
		return answer_text(fd, "412 Precondition Failed", "", "<Error><Code>PreconditionFailed</Code></Error>");
	snprintf(o->target, sizeof(o->target), "%.255s", r->target);
	snprintf(o->mark, sizeof(o->mark), "%.63s", http_header(r, "x-amz-meta-godwit-put"));
	keep(o, r);
	if (s->answers_lost > 0 && !strstr(r->target, "_conditional")) {
		s->answers_lost--;
		return false;
	}
	return answer_text(fd, "200 OK", "ETag: \"e\"\r\n", "");
}

static bool head_object(struct shop *s, const struct http_request *r, int fd)
{
	struct object *o = find(s, r->target);
	char head[256];

	if (!o || !o->target[0]) {
		http_raw(fd, "HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\n", 45);
		return true;
	}
	snprintf(head, sizeof(head), "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nx-amz-meta-godwit-put: %s\r\n\r\n", o->len, o->mark);
	http_raw(fd, head, strlen(head));
	return true;
}

static bool serve(struct shop *s, const struct http_request *r, int fd)
{
	check_hash(r);
	if (http_header(r, "expect")[0])
		s->careful++;
	if (!strcmp(r->method, "GET"))
		return answer_text(fd, "200 OK", "", EMPTY_LIST);
	if (!strcmp(r->method, "HEAD"))
		return head_object(s, r, fd);
	if (!strcmp(r->method, "DELETE")) {
		must(strstr(r->target, "uploadId=the%2Fid"));
		s->aborted++;
		s->uploading = false;
		return answer_text(fd, "204 No Content", "", "");
	}
	if (strstr(r->target, "?uploads=")) {
		must(!strcmp(r->method, "POST"));
		s->uploading = true;
		snprintf(s->upload_mark, sizeof(s->upload_mark), "%.63s", http_header(r, "x-amz-meta-godwit-put"));
		return answer_text(fd, "200 OK", "", "<InitiateMultipartUploadResult><UploadId>the/id</UploadId></InitiateMultipartUploadResult>");
	}
	if (strstr(r->target, "partNumber="))
		return take_part(s, r, fd);
	if (strstr(r->target, "uploadId="))
		return complete(s, r, fd);
	return put_object(s, r, fd);
}

static bool handler(void *self, const struct http_request *r, int fd)
{
	struct shop *s = self;
	bool more, hangs = strstr(r->target, "partNumber=2") || (!strcmp(r->method, "GET") && !strchr(r->target, '?'));

	if (hangs && atomic_load(&s->hang)) {
		atomic_fetch_add(&s->hanging, 1);
		while (atomic_load(&s->hang) && !http_server_stopping(s->server))
			poll(NULL, 0, 5);
		return false;
	}
	pthread_mutex_lock(&s->lock);
	more = serve(s, r, fd);
	pthread_mutex_unlock(&s->lock);
	return more;
}

static void begin(struct shop *s)
{
	struct gw_error err = GW_ERROR_INIT;
	char url[256];

	setenv("AWS_ACCESS_KEY_ID", "AK", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "very-secret", 1);
	setenv("AWS_SESSION_TOKEN", "a-token", 1);
	pthread_mutex_init(&s->lock, NULL);
	s->server = http_server_new(handler, s);
	snprintf(url, sizeof(url), "s3://bkt/pre?endpoint=http://127.0.0.1:%u&stall=20&retry=5", http_server_port(s->server));
	if (gw_bucket_open(url, false, &s->bucket, &err) < 0)
		fail_msg("%s", err.msg);
}

static void end(struct shop *s)
{
	gw_bucket_free(s->bucket);
	http_server_free(s->server);
	for (unsigned i = 0; i < MAX_OBJECTS; i++)
		free(s->objects[i].data);
	for (unsigned i = 0; i <= MAX_PARTS; i++)
		free(s->parts[i].data);
	pthread_mutex_destroy(&s->lock);
}

/* `len` bytes in three pieces, of which one is empty. */
static int put(struct shop *s, const char *name, size_t len, enum gw_bucket_put how, struct gw_error *err)
{
	gw_autofree uint8_t *data = malloc(len + 1);
	struct gw_bucket_piece pieces[] = { { data, len / 3 }, { NULL, 0 }, { data + len / 3, len - len / 3 } };
	char target[128];
	struct object *o;
	int ret;

	assert_non_null(data);
	for (size_t i = 0; i < len; i++)
		data[i] = (uint8_t)(i * 7 + (i >> 12));
	ret = gw_bucket_put(s->bucket, name, pieces, ARRAY_SIZE(pieces), how, err);
	if (ret == 0) {
		snprintf(target, sizeof(target), "/bkt/pre/%s", name);
		pthread_mutex_lock(&s->lock);
		o = find(s, target);
		assert_true(o && o->target[0] && o->len == len && !memcmp(o->data, data, len));
		pthread_mutex_unlock(&s->lock);
	} else {
		assert_int_equal(err->code, -ret);
		assert_true(err->msg[0]);
	}
	return ret;
}

static void test_put(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct shop s = { NULL };

	begin(&s);
	assert_int_equal(put(&s, "a", 0, GW_BUCKET_REPLACE, &err), 0);
	assert_int_equal(put(&s, "a", 100, GW_BUCKET_REPLACE, &err), 0);
	assert_int_equal(put(&s, "a", 3 * MIB + 1, GW_BUCKET_REPLACE, &err), 0);
	assert_int_equal(s.careful, 0);
	/* After a connection that broke the server is asked whether it wants the body; what it says then is read. */
	s.cut_off = 2; /* libcurl tries once more by itself on a kept connection */
	assert_int_equal(put(&s, "b/c.d-e", 3 * MIB, GW_BUCKET_REPLACE, &err), 0);
	assert_int_equal(s.careful, 1);
	s.answers_lost = 3;
	assert_int_equal(put(&s, "a", 10, GW_BUCKET_REPLACE, &err), 0);
	end(&s);
}

static void test_put_if_absent(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct shop s = { NULL };

	begin(&s);
	assert_int_equal(put(&s, "a", 100, GW_BUCKET_IF_ABSENT, &err), 0);
	assert_int_equal(put(&s, "a", 50, GW_BUCKET_IF_ABSENT, &err), -EEXIST);
	assert_true(gw_bucket_exclusive(s.bucket));
	/* Two who try at once: S3 asks to try again. */
	s.conflicts = 1;
	assert_int_equal(put(&s, "b", 100, GW_BUCKET_IF_ABSENT, &err), 0);
	/* Carried out, though the answer was lost: ours. */
	for (int lost = 1; lost <= 3; lost++) {
		char name[16];

		snprintf(name, sizeof(name), "c%d", lost);
		s.answers_lost = 1;
		s.cut_off = lost - 1;
		assert_int_equal(put(&s, name, 100, GW_BUCKET_IF_ABSENT, &err), 0);
		assert_int_equal(s.answers_lost, 0);
	}
	/* Somebody else's is there, and the first answer is lost on top. */
	s.cut_off = 1;
	assert_int_equal(put(&s, "a", 100, GW_BUCKET_IF_ABSENT, &err), -EEXIST);
	/* Large ones are not sent in parts: the condition holds for one request. */
	assert_int_equal(put(&s, "d", 40 * MIB, GW_BUCKET_IF_ABSENT, &err), 0);
	assert_int_equal(s.completed, 0);
	end(&s);
}

/* A server that does not know conditions: found out once, and done as well as can be. */
static void test_put_without_conditions(void **state)
{
	for (unsigned i = 0; i < 2; i++) {
		struct gw_error err = GW_ERROR_INIT;
		struct shop s = { NULL };
		unsigned asked;

		begin(&s);
		s.ignores_conditions = i == 0;
		s.refuses_conditions = i == 1;
		assert_false(gw_bucket_exclusive(s.bucket));
		asked = http_server_requests(s.server);
		assert_false(gw_bucket_exclusive(s.bucket));
		assert_int_equal(http_server_requests(s.server), asked);
		assert_int_equal(put(&s, "a", 100, GW_BUCKET_IF_ABSENT, &err), 0);
		assert_int_equal(put(&s, "a", 50, GW_BUCKET_IF_ABSENT, &err), -EEXIST);
		end(&s);
	}
}

static void test_parts(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct shop s = { NULL };

	begin(&s);
	assert_int_equal(put(&s, "a", 32 * MIB, GW_BUCKET_REPLACE, &err), 0);
	assert_int_equal(s.completed, 0);
	assert_int_equal(put(&s, "a", 32 * MIB + 5, GW_BUCKET_REPLACE, &err), 0);
	assert_int_equal(s.completed, 1);
	s.parts_lost = 2;
	assert_int_equal(put(&s, "a", 40 * MIB, GW_BUCKET_REPLACE, &err), 0);
	s.completions_failing = 2;
	assert_int_equal(put(&s, "a", 40 * MIB, GW_BUCKET_REPLACE, &err), 0);
	s.completions_lost = 1;
	assert_int_equal(put(&s, "a", 40 * MIB, GW_BUCKET_REPLACE, &err), 0);
	assert_int_equal(s.completed, 4);
	assert_int_equal(s.aborted, 0);
	end(&s);
}

static void test_parts_fail(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct shop s = { NULL };

	begin(&s);
	s.parts_refused = 1;
	assert_int_equal(put(&s, "a", 40 * MIB, GW_BUCKET_REPLACE, &err), -ENOSPC);
	assert_int_equal(s.aborted, 1);
	s.completions_failing = 3;
	assert_int_equal(put(&s, "a", 40 * MIB, GW_BUCKET_REPLACE, &err), -EIO);
	assert_int_equal(s.aborted, 2);
	s.without_etags = true;
	assert_int_equal(put(&s, "a", 40 * MIB, GW_BUCKET_REPLACE, &err), -EPROTO);
	assert_int_equal(s.aborted, 3);
	assert_int_equal(s.completed, 0);
	assert_false(s.uploading);
	end(&s);
}

/* Cancelling. */

/* Less than the second after which curl looks around by itself. */
#define SOON (600 * GW_NS_PER_MS)

struct canceller {
	struct shop *s;
	uint64_t cancelled_at; /* when: read after joining */
	unsigned waits_for;    /* so many requests hang */
};

static void *cancel_soon(void *arg)
{
	struct canceller *c = arg;

	while (atomic_load(&c->s->hanging) < c->waits_for)
		poll(NULL, 0, 1);
	poll(NULL, 0, 30);
	c->cancelled_at = gw_now_ns();
	gw_bucket_cancel(c->s->bucket);
	return NULL;
}

static void expect_all_cancelled(struct shop *s)
{
	struct gw_error err = GW_ERROR_INIT;
	unsigned asked = http_server_requests(s->server);
	gw_autobuf out = GW_BUF_INIT;
	char byte;

	assert_int_equal(put(s, "b", 10, GW_BUCKET_REPLACE, &err), -ECANCELED);
	assert_int_equal(gw_bucket_get(s->bucket, "a", 0, 1, &byte, &err), -ECANCELED);
	assert_int_equal(gw_bucket_read(s->bucket, "a", 1, &out, &err), -ECANCELED);
	assert_int_equal(gw_bucket_remove(s->bucket, "a", &err), -ECANCELED);
	assert_int_equal(gw_bucket_list(s->bucket, "", NULL, NULL, &err), -ECANCELED);
	assert_int_equal(http_server_requests(s->server), asked);
}

/* In the middle of an upload, which is then removed. */
static void test_cancel_upload(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct shop s = { NULL };
	struct canceller c = { &s, 0, 1 };
	pthread_t thread;

	begin(&s);
	s.hang = true;
	assert_int_equal(pthread_create(&thread, NULL, cancel_soon, &c), 0);
	assert_int_equal(put(&s, "a", 40 * MIB, GW_BUCKET_REPLACE, &err), -ECANCELED);
	pthread_join(thread, NULL);
	assert_true(gw_now_ns() - c.cancelled_at < SOON);
	assert_int_equal(s.aborted, 1);
	s.hang = false;
	expect_all_cancelled(&s);
	end(&s);
}

static void *get_one(void *arg)
{
	struct shop *s = arg;
	char byte;

	return (void *)(intptr_t)gw_bucket_get(s->bucket, "a", 0, 1, &byte, NULL);
}

/* Many that wait for an answer. */
static void test_cancel_reads(void **state)
{
	struct shop s = { NULL };
	struct canceller c = { &s, 0, 16 };
	pthread_t thread, readers[16];
	void *ret;

	begin(&s);
	s.hang = true;
	for (unsigned i = 0; i < ARRAY_SIZE(readers); i++)
		assert_int_equal(pthread_create(&readers[i], NULL, get_one, &s), 0);
	assert_int_equal(pthread_create(&thread, NULL, cancel_soon, &c), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(readers); i++) {
		pthread_join(readers[i], &ret);
		assert_int_equal((intptr_t)ret, -ECANCELED);
	}
	pthread_join(thread, NULL);
	assert_true(gw_now_ns() - c.cancelled_at < SOON);
	expect_all_cancelled(&s);
	end(&s);
}

/* Between two tries: the server is gone. */
static void test_cancel_pause(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct shop s = { NULL };
	struct canceller c = { &s, 0, 0 };
	pthread_t thread;

	begin(&s);
	s.cut_off = 1000;
	assert_int_equal(pthread_create(&thread, NULL, cancel_soon, &c), 0);
	assert_int_equal(put(&s, "a", 10, GW_BUCKET_REPLACE, &err), -ECANCELED);
	pthread_join(thread, NULL);
	assert_true(gw_now_ns() - c.cancelled_at < GW_NS_PER_SEC / 2);
	expect_all_cancelled(&s);
	end(&s);
}

/* Many threads at once, each with its connection; then few again. */
static void *put_many(void *arg)
{
	struct shop *s = arg;
	struct gw_error err = GW_ERROR_INIT;
	uint8_t data[1000] = { 5 };
	const struct gw_bucket_piece piece = { data, sizeof(data) };

	for (unsigned i = 0; i < 20; i++) {
		if (gw_bucket_put(s->bucket, "many", &piece, 1, GW_BUCKET_REPLACE, &err) < 0)
			return s;
	}
	return NULL;
}

static void test_parallel(void **state)
{
	struct shop s = { NULL };
	pthread_t threads[40];
	void *bad;

	begin(&s);
	for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, put_many, &s), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(threads); i++) {
		pthread_join(threads[i], &bad);
		assert_null(bad);
	}
	assert_null(put_many(&s));
	end(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_put),           cmocka_unit_test(test_put_if_absent), cmocka_unit_test(test_put_without_conditions),
		cmocka_unit_test(test_parts),         cmocka_unit_test(test_parts_fail),    cmocka_unit_test(test_cancel_upload),
		cmocka_unit_test(test_cancel_reads),  cmocka_unit_test(test_cancel_pause),  cmocka_unit_test(test_parallel),
	};

	unsetenv("http_proxy");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
