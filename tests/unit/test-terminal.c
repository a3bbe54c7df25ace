// SPDX-License-Identifier: Apache-2.0
/* The VMM's terminal: raw while the guest has it, Ctrl-A sequences, and given back at every kind of end. */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>

#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"
#include "vmm/terminal.h"

#define QUIT_CODE 7

static struct gw_tty *tty; /* of the child */

static size_t room(void *arg)
{
	return 100;
}

/* The guest: answers what it gets in brackets; 'E' ends the program, 'A' breaks it. */
static void input(void *arg, const uint8_t *data, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (data[i] == 'E')
			exit(0);
		if (data[i] == 'A')
			abort();
		gw_tty_put(tty, '[');
		gw_tty_put(tty, data[i] == 1 ? '1' : data[i]);
		gw_tty_put(tty, ']');
	}
}

static const struct gw_tty_ops ops = { .room = room, .input = input };

static void quit(void *arg)
{
	exit(QUIT_CODE);
}

static void child(const char *path)
{
	struct gw_error err = GW_ERROR_INIT;
	int fd;

	setsid();
	fd = open(path, O_RDWR);
	if (fd < 0 || ioctl(fd, TIOCSCTTY, 0) < 0)
		_exit(99);
	dup2(fd, 0);
	dup2(fd, 1);
	dup2(fd, 2);
	if (gw_tty_new(&ops, NULL, &tty, &err) < 0 || gw_terminal_attach(tty, quit, NULL, &err) < 0)
		_exit(98);
	gw_tty_put(tty, '>');
	for (;;)
		pause();
}

struct session {
	int master;
	int slave; /* kept open, so that the terminal's settings outlive the child */
	pid_t pid;
};

static void wait_text(struct session *s, const char *text)
{
	char buf[512];
	size_t len = 0;
	uint64_t deadline = gw_now_ns() + TEST_PATIENCE;

	while (len < sizeof(buf) - 1) {
		ssize_t n;

		buf[len] = '\0';
		if (strstr(buf, text))
			return;
		if (gw_wait_fd(s->master, POLLIN, deadline) < 0)
			fail_msg("no \"%s\" but: %s", text, buf);
		n = read(s->master, buf + len, sizeof(buf) - 1 - len);
		assert_true(n > 0);
		len += (size_t)n;
	}
	fail_msg("no \"%s\"", text);
}

static bool is_raw(const struct session *s)
{
	struct termios t;

	assert_int_equal(tcgetattr(s->slave, &t), 0);
	return !(t.c_lflag & (ICANON | ECHO | ISIG));
}

static void begin(struct session *s)
{
	char path[64];

	s->master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	assert_true(s->master >= 0);
	assert_int_equal(grantpt(s->master), 0);
	assert_int_equal(unlockpt(s->master), 0);
	assert_int_equal(ptsname_r(s->master, path, sizeof(path)), 0);
	s->slave = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	assert_true(s->slave >= 0);
	assert_false(is_raw(s));
	s->pid = fork();
	assert_true(s->pid >= 0);
	if (s->pid == 0)
		child(path);
	wait_text(s, ">");
	assert_true(is_raw(s));
}

static int end(struct session *s)
{
	int status;

	assert_int_equal(waitpid(s->pid, &status, 0), s->pid);
	assert_false(is_raw(s));
	close(s->master);
	close(s->slave);
	return status;
}

static void type(struct session *s, const char *keys, size_t len)
{
	assert_int_equal(gw_write_full(s->master, keys, len, gw_now_ns() + TEST_PATIENCE), 0);
}

static void test_keys(void **arg)
{
	struct session s;
	int status;

	begin(&s);
	type(&s, "a\003", 2); /* Ctrl-C is the guest's */
	wait_text(&s, "[a][\003]");
	type(&s, "\001\001", 2);
	wait_text(&s, "[1]");
	/* An unknown sequence is swallowed; what follows is plain again. */
	type(&s, "\001zx", 3);
	wait_text(&s, "[x]");
	type(&s, "\001", 1);
	type(&s, "x", 1);
	status = end(&s);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), QUIT_CODE);
}

static void test_exit(void **arg)
{
	struct session s;

	begin(&s);
	type(&s, "E", 1);
	assert_int_equal(end(&s), 0);
}

static void test_abort(void **arg)
{
	struct session s;
	int status;

	begin(&s);
	type(&s, "A", 1);
	status = end(&s);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGABRT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_keys),
		cmocka_unit_test(test_exit),
		cmocka_unit_test(test_abort),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
