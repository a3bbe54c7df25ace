// SPDX-License-Identifier: Apache-2.0
/* Consoles: replay, several at once, slow and vanished ones, input with limits. */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"
#include "vmm/tty.h"

struct line {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	char got[256];
	size_t len;
	size_t room;
};

static size_t room(void *arg)
{
	struct line *l = arg;
	size_t n;

	pthread_mutex_lock(&l->lock);
	n = l->room;
	pthread_mutex_unlock(&l->lock);
	return n;
}

static void input(void *arg, const uint8_t *data, size_t len)
{
	struct line *l = arg;

	pthread_mutex_lock(&l->lock);
	assert_true(len <= l->room && l->len + len < sizeof(l->got));
	memcpy(l->got + l->len, data, len);
	l->len += len;
	l->room -= len;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
}

static const struct gw_tty_ops ops = { .room = room, .input = input };

static uint64_t soon(void)
{
	return gw_now_ns() + TEST_PATIENCE;
}

static struct gw_tty *make(struct line *l, size_t space)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_tty *tty;

	memset(l, 0, sizeof(*l));
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->changed, NULL);
	l->room = space;
	assert_int_equal(gw_tty_new(&ops, l, &tty, &err), 0);
	return tty;
}

/* One end for the test. */
static int attach(struct gw_tty *tty, bool replay)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_tty_client c = { .owned = true, .socket = true, .replay = replay };
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	c.in = c.out = pair[0];
	assert_int_equal(gw_tty_attach(tty, &c, &err), 0);
	return pair[1];
}

static void put(struct gw_tty *tty, const char *text)
{
	while (*text)
		gw_tty_put(tty, (uint8_t)*text++);
}

static void expect(int fd, const char *text)
{
	char buf[256];
	size_t len = strlen(text);

	assert_true(len < sizeof(buf));
	assert_int_equal(gw_read_full(fd, buf, len, soon()), 0);
	assert_memory_equal(buf, text, len);
}

static void wait_input(struct line *l, size_t len)
{
	pthread_mutex_lock(&l->lock);
	while (l->len < len)
		pthread_cond_wait(&l->changed, &l->lock);
	pthread_mutex_unlock(&l->lock);
}

static void test_output(void **arg)
{
	struct line l;
	struct gw_tty *tty = make(&l, 100);
	int a = attach(tty, false), b, c;

	put(tty, "hello ");
	expect(a, "hello ");
	b = attach(tty, true);
	c = attach(tty, false);
	put(tty, "world");
	expect(a, "world");
	expect(b, "hello world");
	expect(c, "world");
	/* One that goes disturbs nobody. */
	close(b);
	put(tty, "!");
	expect(a, "!");
	expect(c, "!");
	close(a);
	gw_tty_free(tty);
	close(c);
}

static void test_slow_reader(void **arg)
{
	struct line l;
	struct gw_tty *tty = make(&l, 100);
	int slow = attach(tty, true), quick = attach(tty, true);
	static char all[1 << 20];
	size_t len = 0, total = 800000;

	/* Nobody reads `slow`: the vCPU must not notice, else this never ends. */
	for (size_t i = 0; i < total; i++)
		gw_tty_put(tty, (uint8_t)('a' + i % 26));
	put(tty, "THE END");
	/* Both see the end; what was missed in between is missing, not garbled at the end. */
	for (int k = 0; k < 2; k++) {
		for (len = 0; len < 7 || memcmp(all + len - 7, "THE END", 7);) {
			ssize_t n;

			assert_int_equal(gw_wait_fd(k ? slow : quick, POLLIN, soon()), 0);
			n = read(k ? slow : quick, all + len, sizeof(all) - len);
			assert_true(n > 0);
			len += (size_t)n;
		}
		assert_true(len >= GW_TTY_RING);
		assert_int_equal(all[len - 8], 'a' + (total - 1) % 26);
	}
	close(slow);
	close(quick);
	gw_tty_free(tty);
}

static void test_input(void **arg)
{
	struct line l;
	struct gw_tty *tty = make(&l, 4);
	int a = attach(tty, false);

	assert_int_equal(gw_write_full(a, "abcdefgh", 8, soon()), 0);
	wait_input(&l, 4);
	assert_memory_equal(l.got, "abcd", 4);
	pthread_mutex_lock(&l.lock);
	l.room = 100;
	pthread_mutex_unlock(&l.lock);
	gw_tty_kick(tty);
	wait_input(&l, 8);
	assert_memory_equal(l.got, "abcdefgh", 8);
	close(a);
	gw_tty_free(tty);
}

static size_t drop_x(void *arg, uint8_t *data, size_t len)
{
	size_t out = 0;

	for (size_t i = 0; i < len; i++) {
		if (data[i] != 'x')
			data[out++] = data[i];
	}
	return out;
}

/* As standard input and output: separate, borrowed, the end of input ends only that. */
static void test_files(void **arg)
{
	struct gw_error err = GW_ERROR_INIT;
	struct line l;
	struct gw_tty *tty = make(&l, 100);
	int in[2], out[2], none;
	struct gw_tty_client c = { .filter = drop_x };

	assert_int_equal(pipe(in), 0);
	assert_int_equal(pipe(out), 0);
	c.in = in[0];
	c.out = out[1];
	assert_int_equal(gw_tty_attach(tty, &c, &err), 0);
	assert_int_equal(gw_write_full(in[1], "axbx", 4, soon()), 0);
	wait_input(&l, 2);
	assert_memory_equal(l.got, "ab", 2);
	close(in[1]);
	put(tty, "still here");
	expect(out[0], "still here");
	/* Descriptors that are not open must not make the thread spin or fail. */
	none = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_true(none >= 0);
	close(none);
	c = (struct gw_tty_client){ .in = none, .out = none };
	assert_int_equal(gw_tty_attach(tty, &c, &err), 0);
	put(tty, " and here");
	expect(out[0], " and here");
	/* A reader of standard output that went away. */
	close(out[0]);
	put(tty, "nobody");
	gw_tty_free(tty);
	close(out[1]);
	close(in[0]);
}

static void test_last_words(void **arg)
{
	struct line l;
	struct gw_tty *tty = make(&l, 100);
	int a = attach(tty, false);
	char rest[64] = "";

	put(tty, "Power down");
	gw_tty_free(tty);
	assert_int_equal(read(a, rest, sizeof(rest) - 1), 10);
	assert_string_equal(rest, "Power down");
	close(a);
}

static void test_too_many(void **arg)
{
	struct gw_error err = GW_ERROR_INIT;
	struct line l;
	struct gw_tty *tty = make(&l, 100);
	int fds[16], pair[2];
	char byte;
	struct gw_tty_client c = { .owned = true, .socket = true };

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = attach(tty, false);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	c.in = c.out = pair[0];
	assert_int_equal(gw_tty_attach(tty, &c, &err), -ENOSPC);
	assert_int_equal(read(pair[1], &byte, 1), 0);
	close(pair[1]);
	gw_tty_free(tty);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_output),
		cmocka_unit_test(test_slow_reader),
		cmocka_unit_test(test_input),
		cmocka_unit_test(test_files),
		cmocka_unit_test(test_last_words),
		cmocka_unit_test(test_too_many),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
