// SPDX-License-Identifier: Apache-2.0
/* godwit repo at a terminal: passphrases are typed, progress is drawn, Ctrl-C cancels. */
#include "cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "agent/cli-repo.h"
#include "cli-repo-bed.h"
#include "lib/clock.h"

/* Reads what appears there until it holds `words`, or all. */
static void read_until(int tty, const char *words, char *all, size_t size)
{
	size_t n = strlen(all);

	while (!words || !strstr(all, words)) {
		struct pollfd fd = { tty, POLLIN, 0 };
		ssize_t got = poll(&fd, 1, TEST_PATIENCE / GW_NS_PER_MS) > 0 ? read(tty, all + n, size - n - 1) : -1;

		if (got <= 0)
			break; /* EIO: it is gone */
		n += (size_t)got;
		all[n] = '\0';
	}
	if (words && !strstr(all, words))
		fail_msg("no '%s': %s", words, all);
}

static void type(int tty, const char *keys_typed)
{
	assert_int_equal(write(tty, keys_typed, strlen(keys_typed)), strlen(keys_typed));
}

static bool has_echo(int tty)
{
	struct termios t;

	assert_int_equal(tcgetattr(tty, &t), 0);
	return t.c_lflag & ECHO;
}

static int typed(const char *const *argv, const char *first, const char *second, char *all, size_t size)
{
	struct cli_process p = cli_start_on_tty(argv);
	struct cli_said s;

	all[0] = '\0';
	read_until(p.tty, "assphrase of", all, size);
	read_until(p.tty, ": ", all, size);
	assert_false(has_echo(p.tty));
	type(p.tty, first);
	if (second) {
		read_until(p.tty, "same again of", all, size);
		type(p.tty, second);
	}
	read_until(p.tty, NULL, all, size);
	s = cli_wait(&p);
	cli_said_release(&s);
	close(p.tty);
	return s.status;
}

static void typed_passphrases(void **state)
{
	struct cli_repo *f = *state;
	const char *const ls[] = { "repo", "ls", f->t->url, NULL }, *const init[] = { "repo", "init", f->other, NULL };
	const char *const check[] = { "repo", "check", "--read-data", f->t->url, NULL };
	char all[8192];

	cli_repo_save(f->t->repo, "web", 1, NULL);
	unsetenv("GODWIT_REPO_PASSPHRASE_FILE");
	assert_int_equal(typed(ls, REPO_PASS "\n", NULL, all, sizeof(all)), OK);
	assert_non_null(strstr(all, "web@1"));
	assert_null(strstr(all, REPO_PASS));
	assert_int_equal(typed(ls, "something else\n", NULL, all, sizeof(all)), LOCKED);
	assert_int_equal(typed(ls, "\n", NULL, all, sizeof(all)), USAGE);
	assert_int_equal(typed(ls, "\x03", NULL, all, sizeof(all)), CANCELLED);
	assert_int_equal(typed(init, "one of them\n", "the other\n", all, sizeof(all)), USAGE);
	assert_non_null(strstr(all, "differ"));
	assert_int_equal(typed(init, "both of them\n", "both of them\n", all, sizeof(all)), OK);
	assert_int_equal(typed(ls, REPO_PASS "\n", NULL, all, sizeof(all)), OK);
	/* A bar is drawn, and taken away. */
	assert_int_equal(typed(check, REPO_PASS "\n", NULL, all, sizeof(all)), OK);
	assert_non_null(strstr(all, "\r\x1b[K"));
	assert_non_null(strstr(all, "no problem found"));
}

/* The terminal is as it was, whatever ends it. */
static void echo_comes_back(void **state)
{
	struct cli_repo *f = *state;
	const char *const ls[] = { "repo", "ls", f->t->url, NULL };
	struct cli_process p;
	struct cli_said s;
	char all[4096] = "";
	int slave;

	unsetenv("GODWIT_REPO_PASSPHRASE_FILE");
	p = cli_start_on_tty(ls);
	slave = open(ptsname(p.tty), O_RDWR | O_NOCTTY | O_CLOEXEC); /* keeps it there */
	assert_true(slave >= 0);
	read_until(p.tty, ": ", all, sizeof(all));
	assert_false(has_echo(slave));
	assert_int_equal(kill(p.pid, SIGTERM), 0);
	s = cli_wait(&p);
	assert_int_equal(s.status, CANCELLED);
	assert_true(has_echo(slave));
	cli_said_release(&s);
	close(slave);
	close(p.tty);
}

/* Ctrl-C while something takes long. */
static void cancelling(void **state)
{
	struct cli_repo *f = *state;
	struct gw_cli_repo c = { .repo = f->t->repo, .json = true };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_repo_check_result result;
	const struct gw_repo_check_params params = { .read_data = true };
	struct gw_cli_work work;
	uint64_t until = gw_now_ns() + TEST_PATIENCE;

	assert_int_equal(gw_cli_work_begin(&work, &c, "test", NULL, &err), 0);
	assert_int_equal(kill(getpid(), SIGINT), 0);
	while (!atomic_load(&work.upkeep.stop) && gw_now_ns() < until)
		usleep(1000);
	assert_true(atomic_load(&work.upkeep.stop));
	gw_cli_work_end(&work);
	assert_int_equal(gw_repo_check(f->t->repo, &params, &result, &err), -ECANCELED);
	assert_int_equal(gw_cli_repo_failed(-ECANCELED, f->t->url, &err), -ECANCELED);
	assert_string_equal(err.msg, "cancelled");
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, cli_repo_setup, cli_repo_teardown)
int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(typed_passphrases),
		T(echo_comes_back),
		T(cancelling),
	};

	if (cli_is_child(argc, argv))
		return cli_child(argc, argv);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
