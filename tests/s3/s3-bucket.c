// SPDX-License-Identifier: Apache-2.0
/*
 * The S3 back end against a real server, which tests/s3/test-rgw.py starts: GODWIT_S3 and GODWIT_S3_TLS are its endpoints, GODWIT_S3_PID its
 * process, credentials come as for any program. Prints rates, which the driver shows.
 */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/parse.h"
#include "lib/util.h"
#include "migrate/repo/bucket.h"

#define MIB (1ull << 20)
#define MANY 1234 /* objects: more than a page of a listing */

static struct gw_bucket *bucket; /* "test", open during all tests */

static const char *need(const char *name)
{
	const char *v = getenv(name);

	if (!v) {
		fprintf(stderr, "%s is not set: run tests/s3/test-rgw.py\n", name);
		exit(1);
	}
	return v;
}

static int open_at(const char *endpoint, const char *path, const char *more, bool create, struct gw_bucket **ret, struct gw_error *err)
{
	char url[1024];

	snprintf(url, sizeof(url), "s3://%s?endpoint=%s%s", path, endpoint, more);
	return gw_bucket_open(url, create, ret, err);
}

static void fill(uint8_t *data, size_t len, unsigned seed)
{
	uint64_t x = 0x9e3779b97f4a7c15ull * (seed + 1);

	for (size_t i = 0; i < len; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		data[i] = (uint8_t)x;
	}
}

static uint8_t *make(size_t len, unsigned seed)
{
	uint8_t *data = malloc(len + 1);

	assert_non_null(data);
	fill(data, len, seed);
	return data;
}

static void ok(int ret, const struct gw_error *err)
{
	if (ret < 0)
		fail_msg("%d: %s", ret, err->msg);
}

static void put(const char *name, const void *data, size_t len, enum gw_bucket_put how)
{
	const struct gw_bucket_piece pieces[] = { { data, len / 2 }, { (const uint8_t *)data + len / 2, len - len / 2 } };
	struct gw_error err = GW_ERROR_INIT;

	ok(gw_bucket_put(bucket, name, pieces, ARRAY_SIZE(pieces), how, &err), &err);
}

static void expect(const char *name, const void *data, size_t len)
{
	struct gw_error err = GW_ERROR_INIT;
	gw_autobuf out = GW_BUF_INIT;

	ok(gw_bucket_read(bucket, name, len, &out, &err), &err);
	assert_int_equal(out.len, len);
	if (len)
		assert_memory_equal(out.data, data, len);
}

static int group_setup(void **state)
{
	struct gw_error err = GW_ERROR_INIT;

	if (open_at(need("GODWIT_S3"), "test/repo", "", true, &bucket, &err) < 0) {
		fprintf(stderr, "%s\n", err.msg);
		return -1;
	}
	return 0;
}

static int group_teardown(void **state)
{
	gw_bucket_free(bucket);
	return 0;
}

static void test_missing_bucket(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_bucket *b;

	assert_int_equal(open_at(need("GODWIT_S3"), "nothere/x", "", false, &b, &err), -ENOENT);
	print_message("%s\n", err.msg);
	ok(open_at(need("GODWIT_S3"), "fresh", "", true, &b, &err), &err);
	gw_bucket_free(b);
	ok(open_at(need("GODWIT_S3"), "fresh", "", true, &b, &err), &err);
	gw_bucket_free(b);
}

static void refused(const char *variable, const char *value)
{
	char *before = strdup(need(variable));
	struct gw_error err = GW_ERROR_INIT;
	struct gw_bucket *b;

	setenv(variable, value, 1);
	assert_int_equal(open_at(need("GODWIT_S3"), "test", "", false, &b, &err), -EACCES);
	print_message("%s\n", err.msg);
	setenv(variable, before, 1);
	free(before);
}

static void test_wrong_credentials(void **state)
{
	refused("AWS_ACCESS_KEY_ID", "NOBODY");
	refused("AWS_SECRET_ACCESS_KEY", "guessed");
}

static void test_put_and_get(void **state)
{
	static const size_t sizes[] = { 0, 1, 1000, 65536, 5 * MIB + 3 };
	struct gw_error err = GW_ERROR_INIT;
	uint8_t got[4096];

	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		gw_autofree uint8_t *data = make(sizes[i], i);

		put("packs/a.b-c", data, sizes[i], GW_BUCKET_REPLACE);
		expect("packs/a.b-c", data, sizes[i]);
	}
	/* The last one, by ranges. */
	for (unsigned i = 0; i < 8; i++) {
		gw_autofree uint8_t *data = make(5 * MIB + 3, ARRAY_SIZE(sizes) - 1);
		uint64_t from = i * 700001ull;

		ok(gw_bucket_get(bucket, "packs/a.b-c", from, sizeof(got), got, &err), &err);
		assert_memory_equal(got, data + from, sizeof(got));
	}
	ok(gw_bucket_get(bucket, "packs/a.b-c", 5 * MIB + 2, 1, got, &err), &err);
	assert_int_equal(gw_bucket_get(bucket, "packs/a.b-c", 5 * MIB + 2, 2, got, &err), -EPROTO);
	assert_int_equal(gw_bucket_get(bucket, "packs/a.b-c", 5 * MIB + 3, 2, got, &err), -EPROTO);
	assert_int_equal(gw_bucket_get(bucket, "packs/none", 0, 1, got, &err), -ENOENT);
}

static void test_remove(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	gw_autobuf out = GW_BUF_INIT;

	put("gone", "x", 1, GW_BUCKET_REPLACE);
	ok(gw_bucket_remove(bucket, "gone", &err), &err);
	ok(gw_bucket_remove(bucket, "gone", &err), &err);
	assert_int_equal(gw_bucket_read(bucket, "gone", 10, &out, &err), -ENOENT);
}

struct seen {
	unsigned count;
	char last[256];
};

static int see(void *self, const struct gw_bucket_entry *e)
{
	struct seen *s = self;

	assert_true(strcmp(e->name, s->last) > 0);
	snprintf(s->last, sizeof(s->last), "%s", e->name);
	assert_int_equal(e->size, strlen(e->name));
	/* Its clock is this machine's. */
	assert_true(e->modified_s > gw_realtime_ns() / GW_NS_PER_SEC - 600 && e->modified_s < gw_realtime_ns() / GW_NS_PER_SEC + 60);
	s->count++;
	return 0;
}

static atomic_uint next_object;

static void *put_objects(void *arg)
{
	unsigned i;

	while ((i = atomic_fetch_add(&next_object, 1)) < MANY) {
		char name[64];
		struct gw_bucket_piece piece = { name, 0 };

		snprintf(name, sizeof(name), "many/%02u/object-%u", i % 10, i);
		piece.len = strlen(name);
		if (gw_bucket_put(bucket, name, &piece, 1, GW_BUCKET_REPLACE, NULL) < 0)
			return bucket;
	}
	return NULL;
}

static void in_threads(unsigned count, void *(*fn)(void *arg), void *arg)
{
	pthread_t threads[32];
	void *bad;

	for (unsigned i = 0; i < count; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, fn, arg), 0);
	for (unsigned i = 0; i < count; i++) {
		pthread_join(threads[i], &bad);
		assert_null(bad);
	}
}

static void test_list(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct seen all = { 0 }, some = { 0 }, none = { 0 };
	uint64_t begun = gw_now_ns();

	in_threads(16, put_objects, NULL);
	print_message("%u small objects put in %.1f s by 16 threads\n", MANY, (double)(gw_now_ns() - begun) / 1e9);
	begun = gw_now_ns();
	ok(gw_bucket_list(bucket, "many/", see, &all, &err), &err);
	print_message("and listed in %.0f ms\n", (double)(gw_now_ns() - begun) / 1e6);
	assert_int_equal(all.count, MANY);
	ok(gw_bucket_list(bucket, "many/03/", see, &some, &err), &err);
	assert_int_equal(some.count, (MANY - 3 + 9) / 10);
	ok(gw_bucket_list(bucket, "many/11", see, &none, &err), &err);
	assert_int_equal(none.count, 0);
}

static void test_parts(void **state)
{
	const size_t len = 40 * MIB + 12345;
	gw_autofree uint8_t *data = make(len, 7), *got = malloc(20 * MIB);
	struct gw_error err = GW_ERROR_INIT;

	put("packs/large", data, len, GW_BUCKET_REPLACE);
	assert_non_null(got);
	/* Across parts. */
	ok(gw_bucket_get(bucket, "packs/large", 10 * MIB + 1, 20 * MIB, got, &err), &err);
	assert_memory_equal(got, data + 10 * MIB + 1, 20 * MIB);
	expect("packs/large", data, len);
}

static void test_if_absent(void **state)
{
	const struct gw_bucket_piece other = { "other", 5 };
	struct gw_error err = GW_ERROR_INIT;

	print_message("If-None-Match is %s here\n", gw_bucket_exclusive(bucket) ? "honoured" : "not honoured");
	put("once", "first", 5, GW_BUCKET_IF_ABSENT);
	assert_int_equal(gw_bucket_put(bucket, "once", &other, 1, GW_BUCKET_IF_ABSENT, &err), -EEXIST);
	expect("once", "first", 5);
	put("once", "second", 6, GW_BUCKET_REPLACE);
	expect("once", "second", 6);
}

struct race {
	char name[32];
	atomic_uint won, lost, bad;
};

static void *race(void *arg)
{
	struct race *r = arg;
	const struct gw_bucket_piece piece = { "mine", 4 };
	int ret = gw_bucket_put(bucket, r->name, &piece, 1, GW_BUCKET_IF_ABSENT, NULL);

	atomic_fetch_add(ret == 0 ? &r->won : ret == -EEXIST ? &r->lost : &r->bad, 1);
	return NULL;
}

/* Where the server says that it holds, of eight who put the same name one wins. */
static void test_if_absent_race(void **state)
{
	for (unsigned i = 0; i < 10; i++) {
		struct race r = { .won = 0 };

		snprintf(r.name, sizeof(r.name), "race/%u", i);
		in_threads(8, race, &r);
		assert_int_equal(r.bad, 0);
		assert_int_equal(r.won + r.lost, 8);
		assert_true(r.won >= 1);
		if (gw_bucket_exclusive(bucket))
			assert_int_equal(r.won, 1);
	}
}

static void *cancel_soon(void *arg)
{
	poll(NULL, 0, 100);
	gw_bucket_cancel(arg);
	return NULL;
}

/* A large object that is cancelled on its way never shows; test-rgw.py looks whether parts are left. */
static void test_cancel(void **state)
{
	const size_t len = 512 * MIB;
	gw_autofree uint8_t *data = calloc(1, len);
	const struct gw_bucket_piece piece = { data, len };
	struct gw_error err = GW_ERROR_INIT;
	gw_autobuf out = GW_BUF_INIT;
	struct gw_bucket *b;
	pthread_t thread;
	uint64_t begun;

	assert_non_null(data);
	ok(open_at(need("GODWIT_S3"), "test/repo", "", false, &b, &err), &err);
	begun = gw_now_ns();
	assert_int_equal(pthread_create(&thread, NULL, cancel_soon, b), 0);
	assert_int_equal(gw_bucket_put(b, "cancelled", &piece, 1, GW_BUCKET_REPLACE, &err), -ECANCELED);
	pthread_join(thread, NULL);
	print_message("ended %.0f ms after it began\n", (double)(gw_now_ns() - begun) / 1e6);
	gw_bucket_free(b);
	assert_int_equal(gw_bucket_read(bucket, "cancelled", 10, &out, &err), -ENOENT);
}

static void test_tls(void **state)
{
	const struct gw_bucket_piece piece = { "over TLS", 8 };
	char *ca = strdup(need("AWS_CA_BUNDLE"));
	struct gw_error err = GW_ERROR_INIT;
	gw_autobuf out = GW_BUF_INIT;
	struct gw_bucket *b;

	ok(open_at(need("GODWIT_S3_TLS"), "test/tls", "", false, &b, &err), &err);
	ok(gw_bucket_put(b, "a", &piece, 1, GW_BUCKET_REPLACE, &err), &err);
	ok(gw_bucket_read(b, "a", 100, &out, &err), &err);
	assert_int_equal(out.len, 8);
	gw_bucket_free(b);
	/* Nobody vouches for the certificate. */
	unsetenv("AWS_CA_BUNDLE");
	assert_int_equal(open_at(need("GODWIT_S3_TLS"), "test/tls", "", false, &b, &err), -EACCES);
	print_message("%s\n", err.msg);
	/* And a file that is not there is no way around it. */
	assert_int_equal(open_at(need("GODWIT_S3_TLS"), "test/tls", "&ca=/nonexistent", false, &b, &err), -ENOENT);
	setenv("AWS_CA_BUNDLE", ca, 1);
	free(ca);
}

/* The bucket in the host's name: libcurl takes all names below localhost for loopback. */
static void test_virtual_host(void **state)
{
	const char *port = strrchr(need("GODWIT_S3"), ':');
	struct gw_error err = GW_ERROR_INIT;
	gw_autobuf out = GW_BUF_INIT;
	struct gw_bucket *b;
	char endpoint[64];

	put("host", "x", 1, GW_BUCKET_REPLACE);
	snprintf(endpoint, sizeof(endpoint), "http://localhost%s", port);
	ok(open_at(endpoint, "test/repo", "&style=virtual", false, &b, &err), &err);
	ok(gw_bucket_read(b, "host", 10, &out, &err), &err);
	assert_int_equal(out.len, 1);
	gw_bucket_free(b);
}

static pid_t server_pid(void)
{
	uint64_t pid;

	assert_int_equal(gw_parse_uint(need("GODWIT_S3_PID"), "pid", 2, INT32_MAX, &pid, NULL), 0);
	return (pid_t)pid;
}

static void *wake_server(void *arg)
{
	poll(NULL, 0, 3500);
	kill((pid_t)(intptr_t)arg, SIGCONT);
	return NULL;
}

/* A server that stands still for a while is waited for. */
static void test_frozen_server(void **state)
{
	const struct gw_bucket_piece piece = { "late", 4 };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_bucket *b;
	pthread_t thread;

	ok(open_at(need("GODWIT_S3"), "test/repo", "&stall=1&retry=30", false, &b, &err), &err);
	assert_int_equal(kill(server_pid(), SIGSTOP), 0);
	assert_int_equal(pthread_create(&thread, NULL, wake_server, (void *)(intptr_t)server_pid()), 0);
	ok(gw_bucket_put(b, "frozen", &piece, 1, GW_BUCKET_IF_ABSENT, &err), &err);
	pthread_join(thread, NULL);
	gw_bucket_free(b);
	expect("frozen", "late", 4);
}

/* How fast it is. */

#define PACK (16 * MIB)
#define PACKS 24

struct rate {
	struct gw_bucket *b;
	uint8_t *data;
	atomic_uint next;
	bool read;
};

static void *transfer(void *arg)
{
	struct rate *r = arg;
	gw_autofree uint8_t *got = malloc(PACK);
	unsigned i;

	while (got && (i = atomic_fetch_add(&r->next, 1)) < PACKS) {
		const struct gw_bucket_piece piece = { r->data, PACK };
		char name[32];
		int ret;

		snprintf(name, sizeof(name), "rate/%u", i);
		ret = r->read ? gw_bucket_get(r->b, name, 0, PACK, got, NULL) : gw_bucket_put(r->b, name, &piece, 1, GW_BUCKET_REPLACE, NULL);
		if (ret < 0 || (r->read && memcmp(got, r->data, PACK)))
			return r;
	}
	return got ? NULL : r;
}

/* Processor time of this process alone. */
static double cpu_s(void)
{
	return (double)gw_clock_ns(CLOCK_PROCESS_CPUTIME_ID) / 1e9;
}

static void measure(struct gw_bucket *b, uint8_t *data, bool read, unsigned threads, const char *over)
{
	struct rate r = { b, data, 0, read };
	double begun = (double)gw_now_ns() / 1e9, cpu = cpu_s();

	in_threads(threads, transfer, &r);
	print_message("%s objects of 16 MiB over %s by %u thread%s: %.0f MB/s, for which we need %.2f s of processor time a GB\n",
		      read ? "get" : "put", over, threads, threads > 1 ? "s" : "", PACKS * (double)PACK / ((double)gw_now_ns() / 1e9 - begun) / 1e6,
		      (cpu_s() - cpu) / (PACKS * (double)PACK) * 1e9);
}

static void test_rate(void **state)
{
	gw_autofree uint8_t *data = make(PACK, 99);
	struct gw_error err = GW_ERROR_INIT;
	struct gw_bucket *tls;

	ok(open_at(need("GODWIT_S3_TLS"), "test/tls", "", false, &tls, &err), &err);
	for (unsigned threads = 1; threads <= 8; threads *= 8) {
		for (unsigned read = 0; read < 2; read++) {
			measure(bucket, data, read, threads, "TCP");
			measure(tls, data, read, threads, "TLS");
		}
	}
	gw_bucket_free(tls);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_missing_bucket), cmocka_unit_test(test_wrong_credentials), cmocka_unit_test(test_put_and_get),
		cmocka_unit_test(test_remove),         cmocka_unit_test(test_list),              cmocka_unit_test(test_parts),
		cmocka_unit_test(test_if_absent),      cmocka_unit_test(test_if_absent_race),    cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_tls),            cmocka_unit_test(test_virtual_host),      cmocka_unit_test(test_frozen_server),
		cmocka_unit_test(test_rate),
	};

	return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
