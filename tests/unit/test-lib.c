// SPDX-License-Identifier: Apache-2.0
/* lib/: errors, parsing, buffers, descriptor passing, atomic files, failpoints. */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <signal.h>
#include <sys/wait.h>

#include "lib/buf.h"
#include "lib/bytes.h"
#include "lib/clock.h"
#include "lib/error.h"
#include "lib/failpoint.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"

static void error_is_wrapped_and_keeps_its_code(void **state)
{
	struct gw_error err = GW_ERROR_INIT;

	assert_int_equal(gw_error_set(&err, ENOENT, "no %s", "disk"), -ENOENT);
	assert_int_equal(gw_error_wrap(&err, "vm %d", 7), -ENOENT);
	assert_string_equal(err.msg, "vm 7: no disk");
	assert_int_equal(gw_error_errno(&err, -EACCES, "open"), -EACCES);
	assert_string_equal(err.msg, "open: Permission denied");
	assert_int_equal(gw_error_set(NULL, EINVAL, "nobody listens"), -EINVAL);
}

static void long_error_is_cut_not_overrun(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	char big[2 * GW_ERROR_MAX];

	memset(big, 'x', sizeof(big));
	big[sizeof(big) - 1] = '\0';
	gw_error_errno(&err, EIO, "%s", big);
	gw_error_wrap(&err, "%s", big);
	assert_int_equal(strlen(err.msg), GW_ERROR_MAX - 1);
}

static void sizes(void **state)
{
	static const struct {
		const char *text;
		uint64_t value;
	} good[] = { { "0", 0 }, { "4096", 4096 }, { "1K", 1024 }, { "512M", 512ull << 20 }, { "2g", 2ull << 30 },
		     { "3GiB", 3ull << 30 }, { "7B", 7 }, { "1T", 1ull << 40 } };
	static const char *const bad[] = { "", "M", "-1", "+1", " 1", "1 ", "1X", "1MM", "0x10", "1.5G", "99999999999999999999", "18446744073709551615K" };
	uint64_t v;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		assert_int_equal(gw_parse_size(good[i].text, &v, NULL), 0);
		assert_int_equal(v, good[i].value);
	}
	v = 42;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_true(gw_parse_size(bad[i], &v, NULL) < 0);
	assert_int_equal(v, 42);
}

static void macs_and_names(void **state)
{
	static const char *const bad_mac[] = { "", "52:54:00:12:34", "52:54:00:12:34:5", "52:54:00:12:34:567", "52-54-00-12-34-56",
					       "01:00:5e:00:00:01", "zz:54:00:12:34:56" };
	static const char *const bad_name[] = { "", ".", "-a", "a/b", "a b", "a\n", "\xc3\xa4" };
	static const char *const bad_if[] = { "", ".", "..", "a/b", "a:b", "a b", "sixteen-chars-xx", "tap%d" };
	uint8_t mac[6];

	assert_int_equal(gw_parse_mac("52:54:00:Ab:cd:ef", mac, NULL), 0);
	assert_memory_equal(mac, "\x52\x54\x00\xab\xcd\xef", 6);
	for (size_t i = 0; i < ARRAY_SIZE(bad_mac); i++)
		assert_true(gw_parse_mac(bad_mac[i], mac, NULL) < 0);
	assert_int_equal(gw_parse_name("web-1.prod_x", "VM", NULL), 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad_name); i++)
		assert_true(gw_parse_name(bad_name[i], "VM", NULL) < 0);
	assert_int_equal(gw_parse_ifname("tap0", NULL), 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad_if); i++)
		assert_true(gw_parse_ifname(bad_if[i], NULL) < 0);
}

static void hex_both_ways(void **state)
{
	uint8_t raw[4] = { 0 };
	char text[9];

	assert_int_equal(gw_parse_hex("00fF10a5", raw, 4, NULL), 0);
	gw_format_hex(raw, 4, text);
	assert_string_equal(text, "00ff10a5");
	assert_true(gw_parse_hex("00ff10a", raw, 4, NULL) < 0);
	assert_true(gw_parse_hex("00ff10a50", raw, 4, NULL) < 0);
	assert_true(gw_parse_hex("00ff10ag", raw, 4, NULL) < 0);
}

static void buffer_grows_and_consumes(void **state)
{
	gw_autobuf b = GW_BUF_INIT;

	for (int i = 0; i < 1000; i++)
		assert_int_equal(gw_buf_append(&b, "abcdefg", 7), 0);
	gw_buf_consume(&b, 7 * 999 + 3);
	assert_int_equal(b.len, 4);
	assert_memory_equal(b.data, "defg", 4);
	assert_null(gw_buf_reserve(&b, SIZE_MAX));
}

static void descriptors_travel_with_long_messages(void **state)
{
	enum { LEN = 1 << 20 };
	gw_autofree uint8_t *out = malloc(LEN), *in = malloc(LEN);
	int s[2], fds[GW_MAX_FDS], p[2];
	unsigned n = 0;
	pid_t child;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
	assert_int_equal(pipe(p), 0);
	memset(out, 0x5a, LEN);
	child = fork();
	if (child == 0)
		_exit(gw_send_fds(s[0], out, LEN, p, 2, gw_now_ns() + TEST_PATIENCE) == 0 ? 0 : 1);
	assert_int_equal(gw_recv_fds(s[1], in, LEN, fds, &n, gw_now_ns() + TEST_PATIENCE), 0);
	waitpid(child, NULL, 0);
	assert_int_equal(n, 2);
	assert_memory_equal(in, out, LEN);
	assert_int_equal(write(fds[1], "x", 1), 1);
	assert_int_equal(read(p[0], in, 1), 1);
	assert_int_equal(in[0], 'x');
	for (int i = 0; i < 2; i++) {
		close(fds[i]);
		close(p[i]);
		close(s[i]);
	}
}

static void reads_end_at_deadline_and_at_close(void **state)
{
	int s[2];
	char c[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
	assert_int_equal(gw_read_full(s[0], c, 1, gw_now_ns() + 5 * GW_NS_PER_MS), -ETIMEDOUT);
	assert_int_equal(write(s[1], "x", 1), 1);
	close(s[1]);
	assert_int_equal(gw_read_full(s[0], c, 2, gw_now_ns() + TEST_PATIENCE), -EPIPE);
	assert_int_equal(gw_write_full(s[0], c, 1, GW_NO_DEADLINE), -EPIPE);
	close(s[0]);
}

static void atomic_file_replaces_whole(void **state)
{
	char dir[] = "/tmp/gw-test-XXXXXX", path[64];
	gw_autofree char *data = NULL;
	struct gw_error err = GW_ERROR_INIT;
	struct stat st;
	size_t len;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/file", dir);
	assert_int_equal(gw_write_file_atomic(path, "old content", 11, 0600, &err), 0);
	assert_int_equal(gw_write_file_atomic(path, "new", 3, 0640, &err), 0);
	assert_int_equal(gw_read_file(path, 100, &data, &len, &err), 0);
	assert_int_equal(len, 3);
	assert_string_equal(data, "new");
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0640);
	free(gw_steal_ptr(&data));
	assert_int_equal(gw_read_file(path, 2, &data, &len, &err), -EFBIG);
	assert_int_equal(gw_read_file(dir, 100, &data, &len, &err), -EINVAL);
	unlink(path);
	assert_int_equal(rmdir(dir), 0); /* nothing else was left behind */
}

static void unix_listen_refuses_a_second_listener(void **state)
{
	char dir[] = "/tmp/gw-test-XXXXXX", path[64];
	struct gw_error err = GW_ERROR_INIT;
	int a = -1, b = -1;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/sock", dir);
	assert_int_equal(gw_unix_listen(path, 0600, &a, &err), 0);
	assert_int_equal(gw_unix_listen(path, 0600, &b, &err), -EADDRINUSE);
	close(a);
	/* The file of a dead listener is replaced. */
	assert_int_equal(gw_unix_listen(path, 0600, &b, &err), 0);
	close(b);
	unlink(path);
	rmdir(dir);
}

static void failpoints_act_by_name(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	int status;
	pid_t child;

	child = fork();
	if (child == 0) {
		setenv("GODWIT_FAILPOINTS", "one=error,two=kill,three=delay:1", 1);
		if (gw_failpoint_init(&err) < 0 || gw_failpoint("none") != 0 || gw_failpoint("one") != -EIO ||
		    gw_failpoint("three") != 0)
			_exit(1);
		gw_failpoint("two");
		_exit(2);
	}
	waitpid(child, &status, 0);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
	setenv("GODWIT_FAILPOINTS", "nonsense", 1);
	assert_int_equal(gw_failpoint_init(&err), -EINVAL);
	unsetenv("GODWIT_FAILPOINTS");
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(error_is_wrapped_and_keeps_its_code),
		cmocka_unit_test(long_error_is_cut_not_overrun),
		cmocka_unit_test(sizes),
		cmocka_unit_test(macs_and_names),
		cmocka_unit_test(hex_both_ways),
		cmocka_unit_test(buffer_grows_and_consumes),
		cmocka_unit_test(descriptors_travel_with_long_messages),
		cmocka_unit_test(reads_end_at_deadline_and_at_close),
		cmocka_unit_test(atomic_file_replaces_whole),
		cmocka_unit_test(unix_listen_refuses_a_second_listener),
		cmocka_unit_test(failpoints_act_by_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
