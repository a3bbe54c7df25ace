// SPDX-License-Identifier: Apache-2.0
/* The S3 back end against a server that answers well, badly, half, slowly, or not at all: opening, reading, listing. */
#include "cmocka-all.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "http-server.h"
#include "lib/clock.h"
#include "lib/util.h"
#include "migrate/repo/bucket.h"

#define LIST_HEAD "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">"
#define LIST_TAIL "</ListBucketResult>"
#define EMPTY_LIST LIST_HEAD "<IsTruncated>false</IsTruncated>" LIST_TAIL
#define ENTRY(key) "<Contents><Key>" key "</Key><LastModified>2024-01-02T03:04:05.000Z</LastModified><Size>7</Size></Contents>"

/* How the server answers what comes after the look that opening a bucket takes. */
struct fixture {
	struct http_server *server;
	struct gw_bucket *bucket;
	http_handler *then;
	unsigned opened; /* requests that opening took */
};

static bool answer_text(int fd, const char *status, const char *headers, const char *body)
{
	return http_answer(fd, status, headers, body, strlen(body));
}

static bool handler(void *self, const struct http_request *r, int fd)
{
	struct fixture *f = self;

	if (strstr(r->target, "max-keys=1&"))
		return answer_text(fd, "200 OK", "", EMPTY_LIST);
	return f->then(self, r, fd);
}

static int open_url(struct http_server *s, const char *more, bool create, struct gw_bucket **ret, struct gw_error *err)
{
	char url[512];

	snprintf(url, sizeof(url), "s3://bkt/pre?endpoint=http://127.0.0.1:%u&%s", http_server_port(s), more);
	return gw_bucket_open(url, create, ret, err);
}

static void begin(struct fixture *f, http_handler *then)
{
	struct gw_error err = GW_ERROR_INIT;

	f->then = then;
	f->server = http_server_new(handler, f);
	if (open_url(f->server, "stall=1&retry=3", false, &f->bucket, &err) < 0)
		fail_msg("%s", err.msg);
	f->opened = http_server_requests(f->server);
}

static void end(struct fixture *f)
{
	gw_bucket_free(f->bucket);
	http_server_free(f->server);
}

static unsigned requests(struct fixture *f)
{
	return http_server_requests(f->server) - f->opened;
}

static int setup(void **state)
{
	setenv("AWS_ACCESS_KEY_ID", "AK", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "very-secret", 1);
	unsetenv("AWS_REGION");
	unsetenv("http_proxy");
	return 0;
}

/* Opening. */

static bool wrong_key(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "403 Forbidden", "", "<Error><Code>InvalidAccessKeyId</Code><Message>\x1b[2J</Message></Error>");
}
static bool wrong_secret(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "403 Forbidden", "", "<Error><Code>SignatureDoesNotMatch</Code><Message>no &lt;b&gt;</Message></Error>");
}
static bool wrong_clock(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "403 Forbidden", "Date: Fri, 24 May 2013 00:00:00 GMT\r\n", "<Error><Code>RequestTimeTooSkewed</Code></Error>");
}
static bool wrong_region(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "400 Bad Request", "", "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>");
}
static bool elsewhere(void *self, const struct http_request *r, int fd)
{
	char location[128];

	/* To the same server: a request for it would be seen. */
	snprintf(location, sizeof(location), "Location: http://%s/elsewhere\r\nx-amz-bucket-region: eu-west-2\r\n", http_header(r, "host"));
	must(!strstr(r->target, "elsewhere"));
	return answer_text(fd, "301 Moved Permanently", location, "<Error><Code>PermanentRedirect</Code></Error>");
}
static bool no_bucket(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "404 Not Found", "", "<Error><Code>NoSuchBucket</Code></Error>");
}
static bool web_page(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "200 OK", "Content-Type: text/html\r\n", "<!DOCTYPE html><html><body>Welcome</body></html>");
}

static void test_open_refused(void **state)
{
	static const struct {
		http_handler *handler;
		int code;
		const char *says;
	} cases[] = {
		{ wrong_key, -EACCES, "AWS_ACCESS_KEY_ID" },   { wrong_secret, -EACCES, "AWS_SECRET_ACCESS_KEY" },
		{ wrong_clock, -EACCES, " s ahead of the server's" },    { wrong_region, -EACCES, "the region eu-west-1" },
		{ elsewhere, -EINVAL, "the region eu-west-2" }, { no_bucket, -ENOENT, "check the bucket's name" },
		{ web_page, -EPROTO, "not understood" },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		struct http_server *s = http_server_new(cases[i].handler, NULL);
		struct gw_error err = GW_ERROR_INIT;
		struct gw_bucket *b = NULL;

		assert_int_equal(open_url(s, "stall=1&retry=1", false, &b, &err), cases[i].code);
		assert_int_equal(err.code, -cases[i].code);
		if (!strstr(err.msg, cases[i].says))
			fail_msg("\"%s\" does not say \"%s\"", err.msg, cases[i].says);
		assert_null(strchr(err.msg, '\x1b'));
		assert_null(strstr(err.msg, "very-secret"));
		/* None of it may pass: asked once. */
		assert_int_equal(http_server_requests(s), 1);
		assert_null(b);
		http_server_free(s);
	}
}

static void test_open_unreachable(void **state)
{
	struct http_server *s = http_server_new(no_bucket, NULL);
	struct gw_error err = GW_ERROR_INIT;
	struct gw_bucket *b;
	char url[128];

	snprintf(url, sizeof(url), "s3://bkt?endpoint=http://127.0.0.1:%u&retry=1", http_server_port(s));
	http_server_free(s);
	assert_int_equal(gw_bucket_open(url, false, &b, &err), -EHOSTUNREACH);
	assert_int_equal(err.code, EHOSTUNREACH);
	assert_non_null(strstr(err.msg, "given up after"));
}

static bool makes_bucket(void *self, const struct http_request *r, int fd)
{
	bool *made = self;

	if (!strcmp(r->method, "PUT")) {
		must(!strcmp(r->target, "/bkt"));
		*made = true;
		return answer_text(fd, "200 OK", "", "");
	}
	return *made ? answer_text(fd, "200 OK", "", EMPTY_LIST) : no_bucket(self, r, fd);
}

static void test_open_creates(void **state)
{
	bool made = false;
	struct http_server *s = http_server_new(makes_bucket, &made);
	struct gw_error err = GW_ERROR_INIT;
	struct gw_bucket *b;

	assert_int_equal(open_url(s, "retry=1", true, &b, &err), 0);
	assert_true(made);
	assert_int_equal(strncmp(gw_bucket_url(b), "s3://bkt/pre?endpoint=", 22), 0);
	gw_bucket_free(b);
	http_server_free(s);
}

/* Reading: the object is the bytes 0, 1, 2, ... */

static uint8_t object[65536]; /* filled in by main() */

/* Of "bytes=5-9". */
static void asked_range(const struct http_request *r, unsigned *from, unsigned *to)
{
	must(sscanf(http_header(r, "range"), "bytes=%u-%u", from, to) == 2);
}

static bool send_range(const struct http_request *r, int fd, const char *headers, unsigned cut)
{
	char head[512];
	unsigned from, to;

	asked_range(r, &from, &to);
	snprintf(head, sizeof(head), "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %u-%u/65536\r\nContent-Length: %u\r\n%s\r\n", from, to,
		 to - from + 1, headers);
	http_raw(fd, head, strlen(head));
	http_raw(fd, object + from, to - from + 1 - cut);
	return !cut;
}

static bool well(void *self, const struct http_request *r, int fd)
{
	must(!strcmp(r->target, "/bkt/pre/packs/ab"));
	must(strncmp(http_header(r, "authorization"), "AWS4-HMAC-SHA256 Credential=AK/", 31) == 0);
	return send_range(r, fd, "ETag: \"e\"\r\n", 0);
}

static int get(struct fixture *f, unsigned from, unsigned len, struct gw_error *err)
{
	uint8_t got[65536] = { 0 };
	int ret = gw_bucket_get(f->bucket, "packs/ab", from, len, got, err);

	if (ret == 0)
		assert_memory_equal(got, object + from, len);
	else
		assert_true(err->msg[0]);
	return ret;
}

static void test_get(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct fixture f = { NULL };

	begin(&f, well);
	assert_int_equal(get(&f, 0, 65536, &err), 0);
	assert_int_equal(get(&f, 5, 1, &err), 0);
	assert_int_equal(get(&f, 65535, 1, &err), 0);
	assert_int_equal(get(&f, 7, 0, &err), 0);
	assert_int_equal(requests(&f), 3);
	end(&f);
}

static bool busy_twice(void *self, const struct http_request *r, int fd)
{
	struct fixture *f = self;

	switch (requests(f)) {
	case 1:
		return answer_text(fd, "500 Internal Server Error", "", "<Error><Code>InternalError</Code></Error>");
	case 2:
		return answer_text(fd, "503 Slow Down", "Retry-After: 1\r\n", "<Error><Code>SlowDown</Code></Error>");
	case 3:
		return answer_text(fd, "429 Too Many Requests", "", "go away");
	case 4:
		return answer_text(fd, "400 Bad Request", "", "<Error><Code>RequestTimeout</Code></Error>");
	}
	return well(self, r, fd);
}

static void test_get_after_trouble(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct fixture f = { NULL };
	uint64_t begun;

	begin(&f, busy_twice);
	begun = gw_now_ns();
	assert_int_equal(get(&f, 10, 100, &err), 0);
	assert_int_equal(requests(&f), 5);
	/* The server's wish was heard. */
	assert_true(gw_now_ns() - begun >= GW_NS_PER_SEC);
	end(&f);
}

/* Breaks off in the middle; what follows must ask for the rest, of the same object. */
static bool half(void *self, const struct http_request *r, int fd)
{
	unsigned from, to;

	if (requests(self) == 1)
		return send_range(r, fd, "ETag: \"e1\"\r\n", 30000);
	asked_range(r, &from, &to);
	must(from == 20000);
	must(to == 49999);
	must(!strcmp(http_header(r, "if-match"), "\"e1\""));
	return send_range(r, fd, "ETag: \"e1\"\r\n", 0);
}
static bool half_then_other(void *self, const struct http_request *r, int fd)
{
	switch (requests(self)) {
	case 1:
		return send_range(r, fd, "ETag: \"e1\"\r\n", 10000);
	case 2:
		must(!strcmp(http_header(r, "if-match"), "\"e1\""));
		return answer_text(fd, "412 Precondition Failed", "", "<Error><Code>PreconditionFailed</Code></Error>");
	}
	must(!strcmp(http_header(r, "if-match"), ""));
	must(!strcmp(http_header(r, "range"), "bytes=0-49999"));
	return send_range(r, fd, "ETag: \"e2\"\r\n", 0);
}
static bool silent(void *self, const struct http_request *r, int fd)
{
	struct fixture *f = self;

	if (requests(f) > 1)
		return send_range(r, fd, "", 0);
	while (!http_server_stopping(f->server) && poll(NULL, 0, 20) == 0 && requests(f) < 2)
		;
	return false;
}

static void test_get_half(void **state)
{
	http_handler *const handlers[] = { half, half_then_other, silent };

	for (unsigned i = 0; i < ARRAY_SIZE(handlers); i++) {
		struct gw_error err = GW_ERROR_INIT;
		struct fixture f = { NULL };

		begin(&f, handlers[i]);
		if (get(&f, 0, 50000, &err) < 0)
			fail_msg("%u: %s", i, err.msg);
		assert_int_equal(requests(&f), i == 1 ? 3 : 2);
		end(&f);
	}
}

static bool fails(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "500 Internal Server Error", "", "");
}
static bool drips(void *self, const struct http_request *r, int fd)
{
	struct fixture *f = self;

	http_raw(fd, "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9999/65536\r\nContent-Length: 10000\r\n\r\n", 90);
	for (unsigned i = 0; i < 200 && !http_server_stopping(f->server); i++) {
		http_raw(fd, object + i, 1);
		poll(NULL, 0, 50);
	}
	return false;
}
static bool drips_headers(void *self, const struct http_request *r, int fd)
{
	struct fixture *f = self;

	http_raw(fd, "HTTP/1.1 200 OK\r\n", 17);
	for (unsigned i = 0; i < 200 && !http_server_stopping(f->server); i++) {
		http_raw(fd, "X: y\r\n", 6);
		poll(NULL, 0, 50);
	}
	return false;
}
static bool closes(void *self, const struct http_request *r, int fd)
{
	return false;
}
static bool no_http(void *self, const struct http_request *r, int fd)
{
	http_raw(fd, "SSH-2.0-OpenSSH_9.2\r\n", 21);
	return false;
}

/* What does not pass ends in an error within the time for it. */
static void test_get_never(void **state)
{
	static const struct {
		http_handler *handler;
		int code;
	} cases[] = {
		{ fails, -EIO }, { drips, -EHOSTUNREACH }, { drips_headers, -EHOSTUNREACH }, { closes, -EIO },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		struct gw_error err = GW_ERROR_INIT;
		struct fixture f = { NULL };
		uint64_t begun = gw_now_ns();
		int ret;

		begin(&f, cases[i].handler);
		ret = get(&f, 0, 10000, &err);
		if (ret != cases[i].code)
			fail_msg("%u: %d, %s", i, ret, err.msg);
		assert_int_equal(err.code, -ret);
		assert_true(requests(&f) > 1);
		assert_true(gw_now_ns() - begun < 10 * GW_NS_PER_SEC);
		end(&f);
	}
}

static bool other_range(void *self, const struct http_request *r, int fd)
{
	return http_answer(fd, "206 Partial Content", "Content-Range: bytes 1-10000/65536\r\n", object, 10000);
}
static bool no_range(void *self, const struct http_request *r, int fd)
{
	return http_answer(fd, "200 OK", "", object, 65536);
}
static bool range_unsaid(void *self, const struct http_request *r, int fd)
{
	return http_answer(fd, "206 Partial Content", "", object, 10000);
}
static bool backward_range(void *self, const struct http_request *r, int fd)
{
	return http_answer(fd, "206 Partial Content", "Content-Range: bytes 0-18446744073709551615/5\r\n", object, 10000);
}
static bool longer(void *self, const struct http_request *r, int fd)
{
	return http_answer(fd, "206 Partial Content", "Content-Range: bytes 0-9999/65536\r\n", object, 20000);
}
static bool shorter(void *self, const struct http_request *r, int fd)
{
	return http_answer(fd, "206 Partial Content", "Content-Range: bytes 0-99/100\r\n", object, 100);
}
static bool nothing(void *self, const struct http_request *r, int fd)
{
	return http_answer(fd, "206 Partial Content", "Content-Range: bytes 0-9999/65536\r\n", "", 0);
}
static bool beyond(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "416 Range Not Satisfiable", "", "<Error><Code>InvalidRange</Code></Error>");
}
static bool missing(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "404 Not Found", "", "<Error><Code>NoSuchKey</Code></Error>");
}
/* All would be well but for their length. */
static bool huge_headers(void *self, const struct http_request *r, int fd)
{
	static char line[20000];

	memset(line, 'x', sizeof(line));
	line[1] = ':';
	line[sizeof(line) - 1] = '\n';
	http_raw(fd, "HTTP/1.1 206 Partial Content\r\n", 30);
	for (unsigned i = 0; i < 4; i++)
		http_raw(fd, line, sizeof(line));
	http_raw(fd, "Content-Range: bytes 0-9999/65536\r\nContent-Length: 10000\r\n\r\n", 60);
	http_raw(fd, object, 10000);
	return false;
}
static bool endless_line(void *self, const struct http_request *r, int fd)
{
	static char line[300000];

	memset(line, 'x', sizeof(line));
	http_raw(fd, "HTTP/1.1 200 OK\r\n", 17);
	http_raw(fd, line, sizeof(line));
	return false;
}
static bool no_content(void *self, const struct http_request *r, int fd)
{
	http_raw(fd, "HTTP/1.1 204 No Content\r\n\r\n", 27);
	return true;
}
static bool full(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "507 Insufficient Storage", "", "");
}
static bool forbidden(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "403 Forbidden", "", "<Error><Code>AccessDenied</Code></Error>");
}
static bool endless_complaint(void *self, const struct http_request *r, int fd)
{
	static const char much[65536];

	http_raw(fd, "HTTP/1.1 403 Forbidden\r\nContent-Length: 9000000000\r\n\r\n", 54);
	for (unsigned i = 0; i < 16; i++)
		http_raw(fd, much, sizeof(much));
	return false;
}

/* What can only be wrong is not asked again. */
static void test_get_wrong(void **state)
{
	static const struct {
		http_handler *handler;
		int code;
	} cases[] = {
		{ other_range, -EPROTO }, { no_range, -EPROTO }, { range_unsaid, -EPROTO },  { backward_range, -EPROTO },
		{ longer, -EPROTO },      { shorter, -EPROTO },  { nothing, -EPROTO },       { beyond, -EPROTO },
		{ missing, -ENOENT },     { no_bucket, -EIO },   { huge_headers, -EPROTO },  { full, -ENOSPC },
		{ forbidden, -EACCES },   { elsewhere, -EINVAL }, { endless_complaint, -EACCES },
		{ endless_line, -EPROTO }, { no_http, -EPROTO },       { no_content, -EIO },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		struct gw_error err = GW_ERROR_INIT;
		struct fixture f = { NULL };
		int ret;

		begin(&f, cases[i].handler);
		ret = get(&f, 0, 10000, &err);
		if (ret != cases[i].code)
			fail_msg("%u: %d, %s", i, ret, err.msg);
		assert_int_equal(err.code, -ret);
		assert_int_equal(requests(&f), 1);
		end(&f);
	}
}

static bool chunks_for_ever(void *self, const struct http_request *r, int fd)
{
	struct fixture *f = self;
	char chunk[4096 + 8] = "1000\r\n";

	memcpy(chunk + sizeof(chunk) - 2, "\r\n", 2);
	http_raw(fd, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 47);
	for (unsigned i = 0; i < 100 && !http_server_stopping(f->server); i++)
		http_raw(fd, chunk, sizeof(chunk));
	return false;
}
static bool whole(void *self, const struct http_request *r, int fd)
{
	must(!strcmp(http_header(r, "range"), ""));
	return http_answer(fd, "200 OK", "", object, 65536);
}
static bool whole_at_last(void *self, const struct http_request *r, int fd)
{
	if (requests(self) > 1)
		return whole(self, r, fd);
	http_raw(fd, "HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n", 42);
	http_raw(fd, object, 1000);
	return false;
}

static void test_read(void **state)
{
	static const struct {
		http_handler *handler;
		uint64_t limit;
		int code;
	} cases[] = {
		{ whole, 65536, 0 },       { whole_at_last, 1 << 20, 0 },     { whole, 65535, -EFBIG }, { whole, 0, -EFBIG },
		{ missing, 100, -ENOENT }, { chunks_for_ever, 10000, -EFBIG }, { other_range, 1 << 20, -EPROTO },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		struct gw_error err = GW_ERROR_INIT;
		gw_autobuf out = GW_BUF_INIT;
		struct fixture f = { NULL };
		int ret;

		/* What was there stays before what comes. */
		assert_int_equal(gw_buf_append(&out, "abc", i % 2 ? 3 : 0), 0);
		begin(&f, cases[i].handler);
		ret = gw_bucket_read(f.bucket, "index/1", cases[i].limit, &out, &err);
		if (ret != cases[i].code)
			fail_msg("%u: %d, %s", i, ret, err.msg);
		assert_int_equal(out.len, (i % 2 ? 3 : 0) + (ret == 0 ? 65536 : 0));
		if (ret == 0)
			assert_memory_equal(out.data + out.len - 65536, object, 65536);
		end(&f);
	}
}

static bool unremovable(void *self, const struct http_request *r, int fd)
{
	must(!strcmp(r->method, "DELETE"));
	switch (requests(self)) {
	case 1:
		http_raw(fd, "HTTP/1.1 204 No Content\r\n\r\n", 27);
		return true;
	case 2:
		return missing(self, r, fd);
	}
	return forbidden(self, r, fd);
}

static void test_remove(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct fixture f = { NULL };

	begin(&f, unremovable);
	assert_int_equal(gw_bucket_remove(f.bucket, "a", &err), 0);
	assert_int_equal(gw_bucket_remove(f.bucket, "a", &err), 0);
	assert_int_equal(gw_bucket_remove(f.bucket, "a", &err), -EACCES);
	end(&f);
}

/* Listing. */

static int count_entry(void *self, const struct gw_bucket_entry *e)
{
	char *names = self;
	size_t len = strlen(names);

	assert_int_equal(e->size, 7);
	assert_int_equal(e->modified_s, 1704164645);
	snprintf(names + len, 200 - len, "%s ", e->name);
	return !strcmp(e->name, "stop") ? 42 : 0;
}

static bool two_pages(void *self, const struct http_request *r, int fd)
{
	must(strstr(r->target, "prefix=pre%2F"));
	if (!strstr(r->target, "continuation-token="))
		return answer_text(fd, "200 OK", "", LIST_HEAD "<IsTruncated>true</IsTruncated><NextContinuationToken>t/&amp; 1</NextContinuationToken>"
				   ENTRY("pre/%01") ENTRY("pre/Upper") ENTRY("pre/_conditional") ENTRY("pre/a") ENTRY("pre/a%2Fb") LIST_TAIL);
	must(strstr(r->target, "continuation-token=t%2F%26%201&"));
	return answer_text(fd, "200 OK", "", LIST_HEAD ENTRY("pre/a/c") ENTRY("pre/b") ENTRY("pre/c/../d") ENTRY("pre/c//d")
			   "<IsTruncated>false</IsTruncated>" LIST_TAIL);
}

static void test_list(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct fixture f = { NULL };
	char names[200] = "";

	begin(&f, two_pages);
	assert_int_equal(gw_bucket_list(f.bucket, "", count_entry, names, &err), 0);
	assert_string_equal(names, "a a/b a/c b ");
	assert_int_equal(requests(&f), 2);
	end(&f);
}

static bool stops(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "200 OK", "", LIST_HEAD "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
			   ENTRY("pre/a") ENTRY("pre/stop") ENTRY("pre/z") LIST_TAIL);
}

static void test_list_stopped(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct fixture f = { NULL };
	char names[200] = "";

	begin(&f, stops);
	assert_int_equal(gw_bucket_list(f.bucket, "", count_entry, names, &err), 42);
	assert_string_equal(names, "a stop ");
	assert_int_equal(requests(&f), 1);
	end(&f);
}

static bool same_page(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "200 OK", "", LIST_HEAD "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
			   ENTRY("pre/a") LIST_TAIL);
}
static bool empty_pages(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "200 OK", "", LIST_HEAD "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>" LIST_TAIL);
}
static bool unordered(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "200 OK", "", LIST_HEAD "<IsTruncated>false</IsTruncated>" ENTRY("pre/b") ENTRY("pre/a") LIST_TAIL);
}
static bool others(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "200 OK", "", LIST_HEAD "<IsTruncated>false</IsTruncated>" ENTRY("pr") LIST_TAIL);
}
static bool cut_list(void *self, const struct http_request *r, int fd)
{
	return answer_text(fd, "200 OK", "", LIST_HEAD "<IsTruncated>false</IsTruncated>" ENTRY("pre/a"));
}

static void test_list_wrong(void **state)
{
	http_handler *const handlers[] = { same_page, empty_pages, unordered, others, cut_list, web_page };

	for (unsigned i = 0; i < ARRAY_SIZE(handlers); i++) {
		struct gw_error err = GW_ERROR_INIT;
		struct fixture f = { NULL };
		char names[200] = "";
		int ret;

		begin(&f, handlers[i]);
		ret = gw_bucket_list(f.bucket, "", count_entry, names, &err);
		if (ret != -EPROTO)
			fail_msg("%u: %d, %s", i, ret, err.msg);
		/* Of a page that is not understood nothing is told. */
		if (handlers[i] == cut_list)
			assert_string_equal(names, "");
		assert_true(requests(&f) <= 200);
		end(&f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_open_refused, setup),      cmocka_unit_test_setup(test_open_unreachable, setup),
		cmocka_unit_test_setup(test_open_creates, setup),      cmocka_unit_test_setup(test_get, setup),
		cmocka_unit_test_setup(test_get_after_trouble, setup), cmocka_unit_test_setup(test_get_half, setup),
		cmocka_unit_test_setup(test_get_never, setup),         cmocka_unit_test_setup(test_get_wrong, setup),
		cmocka_unit_test_setup(test_read, setup),              cmocka_unit_test_setup(test_remove, setup),
		cmocka_unit_test_setup(test_list, setup),              cmocka_unit_test_setup(test_list_stopped, setup),
		cmocka_unit_test_setup(test_list_wrong, setup),
	};

	for (unsigned i = 0; i < sizeof(object); i++)
		object[i] = (uint8_t)i;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
