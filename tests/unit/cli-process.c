// SPDX-License-Identifier: Apache-2.0
/* godwit(1) as a process; see cli-process.h. */
#include "cmocka-all.h"

#include "cli-process.h"

#include <fcntl.h>
#include <pty.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "agent/cli.h"
#include "lib/util.h"

#define MARK "--as-godwit"

bool cli_is_child(int argc, char **argv)
{
	return argc > 1 && !strcmp(argv[1], MARK);
}

int cli_child(int argc, char **argv)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	argv[1] = (char *)"godwit";
	return gw_cli_main(argc - 1, argv + 1);
}

static int file(const char *content)
{
	int fd = memfd_create("cli", MFD_CLOEXEC);

	assert_true(fd >= 0);
	if (content) {
		assert_int_equal(write(fd, content, strlen(content)), strlen(content));
		assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	}
	return fd;
}

static void become(const char *const *argv)
{
	const char *all[CLI_MAX_ARGS + 3] = { "test", MARK };
	size_t n = 0;

	for (; argv[n] && n < CLI_MAX_ARGS; n++)
		all[n + 2] = argv[n];
	execv("/proc/self/exe", (char *const *)all);
	_exit(127);
}

struct cli_process cli_start(const char *input, const char *const *argv)
{
	struct cli_process p = { .out = file(NULL), .err = file(NULL), .tty = -1 };
	int in = file(input);

	p.pid = fork();
	assert_true(p.pid >= 0);
	if (p.pid == 0) {
		setsid(); /* no terminal */
		dup2(in, STDIN_FILENO);
		dup2(p.out, STDOUT_FILENO);
		dup2(p.err, STDERR_FILENO);
		become(argv);
	}
	close(in);
	return p;
}

struct cli_process cli_start_on_tty(const char *const *argv)
{
	struct cli_process p = { .out = -1, .err = -1 };

	p.pid = forkpty(&p.tty, NULL, NULL, NULL);
	assert_true(p.pid >= 0);
	if (p.pid == 0)
		become(argv);
	return p;
}

static char *content(int fd)
{
	struct stat st;
	char *text;

	if (fd < 0)
		return strdup("");
	assert_int_equal(fstat(fd, &st), 0);
	text = calloc(1, (size_t)st.st_size + 1);
	assert_non_null(text);
	assert_int_equal(pread(fd, text, (size_t)st.st_size, 0), st.st_size);
	close(fd);
	return text;
}

struct cli_said cli_wait(struct cli_process *p)
{
	struct cli_said s;
	int status;

	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	s.out = content(p->out);
	s.err = content(p->err);
	if (!WIFEXITED(status))
		fail_msg("ended by signal %d: %s", WTERMSIG(status), s.err);
	s.status = WEXITSTATUS(status);
	return s;
}

void cli_said_release(struct cli_said *s)
{
	free(s->out);
	free(s->err);
}

struct cli_said cli_run(const char *input, const char *const *argv)
{
	struct cli_process p = cli_start(input, argv);

	return cli_wait(&p);
}

struct cli_said cli_expect(int status, const char *const *argv)
{
	struct cli_said s = cli_run(NULL, argv);

	if (s.status != status)
		fail_msg("exit status %d instead of %d: %s%s", s.status, status, s.out, s.err);
	return s;
}

json_t *cli_json(int status, const char *const *argv)
{
	struct cli_said s = cli_expect(status, argv);
	json_error_t error;
	json_t *value = json_loads(s.out, 0, &error);

	if (!value)
		fail_msg("%s: %s", error.text, s.out);
	cli_said_release(&s);
	return value;
}

void cli_assert_fails(int status, const char *words, const char *const *argv)
{
	struct cli_said s = cli_expect(status, argv);

	if (!strstr(s.err, words))
		fail_msg("not told '%s': %s", words, s.err);
	cli_said_release(&s);
}

void cli_assert_says(const char *words, const char *const *argv)
{
	struct cli_said s = cli_expect(OK, argv);

	if (!strstr(s.out, words))
		fail_msg("not told '%s': %s", words, s.out);
	cli_said_release(&s);
}

const char *cli_text_of(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	if (!s)
		fail_msg("no text '%s'", key);
	return s;
}

int64_t cli_int_of(const json_t *o, const char *key)
{
	assert_true(json_is_integer(json_object_get(o, key)));
	return json_integer_value(json_object_get(o, key));
}
