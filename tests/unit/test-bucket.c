// SPDX-License-Identifier: Apache-2.0
/* Buckets in a directory, here and kept by another host: names, exactness of "if absent", order of listings, and what a full disk or a hostile directory does. */
#include "cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "lib/io.h"
#include "lib/util.h"
#include "migrate/repo/bucket-internal.h"
#include "repo-host.h"

static char dir[64], url[96];
static struct gw_bucket *bucket;
static struct repo_host *host; /* NULL: the bucket is here */

static char kept[] = "by another host";

static int setup(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_ticket ticket;
	char path[80];

	snprintf(dir, sizeof(dir), "/tmp/gw-test-bucket-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(url, sizeof(url), "file://%s/deep/er", dir);
	host = NULL;
	if (*state == kept) {
		snprintf(path, sizeof(path), "%s/deep", dir);
		host = repo_host_new(path, 0, NULL, NULL);
		ticket = repo_host_ticket(host, "er");
		snprintf(url, sizeof(url), "godwit://h9/er");
	}
	if (gw_bucket_open_with(url, host ? &ticket : NULL, true, &bucket, &err) < 0)
		fail_msg("%s", err.msg);
	return 0;
}

static int teardown(void **state)
{
	char cmd[128];

	gw_bucket_free(bucket);
	if (host)
		repo_host_free(host);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

static int put(const char *name, const char *text, enum gw_bucket_put how)
{
	const struct gw_bucket_piece pieces[] = { { text, strlen(text) }, { "!", 1 } };

	return gw_bucket_put(bucket, name, pieces, 2, how, NULL);
}

static void assert_holds(const char *name, const char *text)
{
	gw_autobuf buf = GW_BUF_INIT;

	assert_int_equal(gw_bucket_read(bucket, name, 100, &buf, NULL), 0);
	assert_int_equal(buf.len, strlen(text));
	assert_memory_equal(buf.data, text, buf.len);
}

static void names(void **state)
{
	char longest[GW_BUCKET_MAX_NAME + 2];

	assert_true(gw_bucket_name_ok("a/b-c.d/0"));
	assert_true(gw_bucket_name_ok("..."));
	static const char *const bad[] = { "", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "A", "a_b", "a b", "a\n" };
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_false(gw_bucket_name_ok(bad[i]));
		assert_int_equal(put(bad[i], "x", GW_BUCKET_REPLACE), -EINVAL);
	}
	memset(longest, 'a', sizeof(longest));
	longest[GW_BUCKET_MAX_NAME + 1] = '\0';
	assert_false(gw_bucket_name_ok(longest));
	longest[GW_BUCKET_MAX_NAME] = '\0';
	assert_true(gw_bucket_name_ok(longest));
}

static void urls(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_bucket *b;
	char missing[128];

	assert_int_equal(gw_bucket_open("ftp://x", false, &b, &err), -EINVAL);
	assert_int_equal(gw_bucket_open("file://relative", true, &b, &err), -EINVAL);
	snprintf(missing, sizeof(missing), "file://%s/missing", dir);
	assert_int_equal(gw_bucket_open(missing, false, &b, &err), -ENOENT);
	assert_string_equal(gw_bucket_url(bucket), url);
}

static void objects(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	gw_autobuf buf = GW_BUF_INIT;
	char part[4] = { 0 };

	assert_int_equal(put("d/one", "first", GW_BUCKET_IF_ABSENT), 0);
	assert_int_equal(put("d/one", "second", GW_BUCKET_IF_ABSENT), -EEXIST);
	assert_holds("d/one", "first!");
	assert_int_equal(put("d/one", "second", GW_BUCKET_REPLACE), 0);
	assert_holds("d/one", "second!");
	assert_int_equal(gw_bucket_get(bucket, "d/one", 2, 3, part, &err), 0);
	assert_string_equal(part, "con");
	assert_int_equal(gw_bucket_get(bucket, "d/one", 5, 3, part, &err), -EPROTO);
	assert_non_null(strstr(err.msg, "d/one"));
	assert_int_equal(gw_bucket_get(bucket, "d/two", 0, 1, part, &err), -ENOENT);
	assert_int_equal(gw_bucket_read(bucket, "d/one", 6, &buf, &err), -EFBIG);
	assert_int_equal(gw_bucket_read(bucket, "e/one", 6, &buf, &err), -ENOENT);
	assert_int_equal(gw_bucket_remove(bucket, "d/one", &err), 0);
	assert_int_equal(gw_bucket_remove(bucket, "d/one", &err), 0);
	assert_int_equal(gw_bucket_remove(bucket, "e/one", &err), 0);
	assert_int_equal(gw_bucket_get(bucket, "d/one", 0, 1, part, &err), -ENOENT);
}

static int collect(void *self, const struct gw_bucket_entry *e)
{
	struct gw_buf *out = self;

	assert_int_equal(e->size, 2);
	assert_true(e->modified_s > 1000000000);
	return gw_buf_append(out, e->name, strlen(e->name)) ?: gw_buf_append(out, " ", 1);
}

static int stop_at_once(void *self, const struct gw_bucket_entry *e)
{
	return 42;
}

static void assert_listed(const char *prefix, const char *want)
{
	gw_autobuf buf = GW_BUF_INIT;

	assert_int_equal(gw_bucket_list(bucket, prefix, collect, &buf, NULL), 0);
	assert_int_equal(buf.len, strlen(want));
	assert_memory_equal(buf.data, want, buf.len);
}

static void listing_is_in_the_order_of_names(void **state)
{
	static const char *const all[] = { "a/x", "a-b", "a.c", "a0", "b", "a/y/z" };
	char path[128];
	int fd;

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		assert_int_equal(put(all[i], "1", GW_BUCKET_IF_ABSENT), 0);
	/* Not ours: left out. */
	snprintf(path, sizeof(path), "%s/deep/er/README", dir);
	fd = open(path, O_CREAT | O_WRONLY, 0600);
	assert_true(fd >= 0);
	close(fd);
	assert_listed("", "a-b a.c a/x a/y/z a0 b ");
	assert_listed("a/", "a/x a/y/z ");
	assert_listed("a/y", "a/y/z ");
	assert_listed("a", "a-b a.c a/x a/y/z a0 ");
	assert_listed("c", "");
	assert_int_equal(gw_bucket_list(bucket, "", stop_at_once, NULL, NULL), 42);
}

/* What a writer that died left goes once it is old, and not before. */
static void stale_files_go(void **state)
{
	struct timespec old[2] = { { .tv_sec = 1000000000 }, { .tv_sec = 1000000000 } };
	char path[2][128];

	for (int i = 0; i < 2; i++) {
		int fd;

		snprintf(path[i], sizeof(path[i]), "%s/deep/er/_new-%d", dir, i);
		fd = open(path[i], O_CREAT | O_WRONLY, 0600);
		assert_true(fd >= 0);
		if (i == 0)
			assert_int_equal(futimens(fd, old), 0);
		close(fd);
	}
	assert_listed("", "");
	assert_int_equal(access(path[0], F_OK), -1);
	assert_int_equal(access(path[1], F_OK), 0);
}

static void symbolic_links_are_not_followed(void **state)
{
	char path[128], target[128], byte;

	snprintf(target, sizeof(target), "%s/target", dir);
	assert_int_equal(mkdir(target, 0700), 0);
	snprintf(path, sizeof(path), "%s/deep/er/link", dir);
	assert_int_equal(symlink(target, path), 0);
	assert_true(put("link/x", "1", GW_BUCKET_REPLACE) < 0);
	snprintf(target, sizeof(target), "%s/target/x", dir);
	assert_int_equal(access(target, F_OK), -1);
	assert_int_equal(gw_write_file_atomic(target, "ab", 2, 0600, NULL), 0);
	snprintf(path, sizeof(path), "%s/deep/er/file", dir);
	assert_int_equal(symlink(target, path), 0);
	assert_int_equal(gw_bucket_get(bucket, "file", 0, 1, &byte, NULL), -EIO);
	assert_int_equal(put("file", "1", GW_BUCKET_IF_ABSENT), -EEXIST);
	assert_listed("", "");
}

static void *race_put(void *arg)
{
	char text[16];

	snprintf(text, sizeof(text), "%ld", (long)arg);
	return put("race", text, GW_BUCKET_IF_ABSENT) == 0 ? (void *)1 : NULL;
}

static void one_of_many_wins(void **state)
{
	for (int round = 0; round < 20; round++) {
		pthread_t threads[8];
		long won = 0;

		for (long i = 0; i < 8; i++)
			assert_int_equal(pthread_create(&threads[i], NULL, race_put, (void *)i), 0);
		for (int i = 0; i < 8; i++) {
			void *ret;

			pthread_join(threads[i], &ret);
			won += (long)ret;
		}
		assert_int_equal(won, 1);
		assert_int_equal(gw_bucket_remove(bucket, "race", NULL), 0);
	}
	assert_listed("", "");
}

/* In a child, since the limit cannot be taken back. */
static void a_full_disk_leaves_nothing(void **state)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		struct rlimit limit = { 100000, 100000 };
		static uint8_t big[1 << 20];
		const struct gw_bucket_piece piece = { big, sizeof(big) };

		signal(SIGXFSZ, SIG_IGN);
		setrlimit(RLIMIT_FSIZE, &limit);
		_exit(gw_bucket_put(bucket, "d/big", &piece, 1, GW_BUCKET_REPLACE, NULL) == -ENOSPC ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	char path[128];
	snprintf(path, sizeof(path), "%s/deep/er/d", dir);
	assert_int_equal(rmdir(path), 0);
}

static void cancelled(void **state)
{
	uint8_t byte;

	assert_int_equal(put("a", "1", GW_BUCKET_REPLACE), 0);
	gw_bucket_cancel(bucket);
	assert_int_equal(put("a", "2", GW_BUCKET_REPLACE), -ECANCELED);
	assert_int_equal(gw_bucket_get(bucket, "a", 0, 1, &byte, NULL), -ECANCELED);
	assert_int_equal(gw_bucket_list(bucket, "", stop_at_once, NULL, NULL), -ECANCELED);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
#define KEPT(fn) { "kept_" #fn, fn, setup, teardown, kept }
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(names),
		T(urls),
		T(objects),
		T(listing_is_in_the_order_of_names),
		T(stale_files_go),
		T(symbolic_links_are_not_followed),
		T(one_of_many_wins),
		T(a_full_disk_leaves_nothing),
		T(cancelled),
		KEPT(names),
		KEPT(urls),
		KEPT(objects),
		KEPT(listing_is_in_the_order_of_names),
		KEPT(stale_files_go),
		KEPT(symbolic_links_are_not_followed),
		KEPT(one_of_many_wins),
		KEPT(cancelled),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
