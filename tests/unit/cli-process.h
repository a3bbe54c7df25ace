// SPDX-License-Identifier: Apache-2.0
/*
 * godwit(1) as a process: the test's own program, started again. A test that uses it begins its main with
 *     if (cli_is_child(argc, argv))
 *             return cli_child(argc, argv);
 */
#ifndef GW_TESTS_UNIT_CLI_PROCESS_H
#define GW_TESTS_UNIT_CLI_PROCESS_H

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

bool cli_is_child(int argc, char **argv);
int cli_child(int argc, char **argv);

/* How it ends: godwit(1), EXIT STATUS. */
enum { OK, FAILED, USAGE, NOT_FOUND, CONFLICT, UNREACHABLE, DOUBT, CANCELLED, DAMAGED, LOCKED };

#define CLI_MAX_ARGS 24
struct cli_process {
	pid_t pid;
	int out, err; /* files */
	int tty;      /* its terminal's other end; -1: it has no terminal */
};
/* argv ends with NULL and begins with the first word after "godwit". `input` (may be NULL) is what it reads. */
struct cli_process cli_start(const char *input, const char *const *argv);
/* On a terminal, which is also what it reads and prints to. */
struct cli_process cli_start_on_tty(const char *const *argv);

/* What it said, and how it ended. */
struct cli_said {
	int status; /* exit status */
	char *out, *err;
};
struct cli_said cli_wait(struct cli_process *p);
void cli_said_release(struct cli_said *s);

/* Both at once. */
struct cli_said cli_run(const char *input, const char *const *argv);
#define CLI(...) cli_run(NULL, (const char *const[]){ __VA_ARGS__, NULL })
/* Runs it and compares the exit status; what it printed is told when it differs. */
struct cli_said cli_expect(int status, const char *const *argv);
#define CLI_EXPECT(status, ...) cli_expect(status, (const char *const[]){ __VA_ARGS__, NULL })
/* Both were said: the exit status, and some words of standard error. */
void cli_assert_fails(int status, const char *words, const char *const *argv);
#define CLI_FAILS(status, words, ...) cli_assert_fails(status, words, (const char *const[]){ __VA_ARGS__, NULL })
/* It ended well, and printed these words. */
void cli_assert_says(const char *words, const char *const *argv);
#define CLI_SAYS(words, ...) cli_assert_says(words, (const char *const[]){ __VA_ARGS__, NULL })
/* With --json: the value, owned. */
json_t *cli_json(int status, const char *const *argv);
#define CLI_JSON(status, ...) cli_json(status, (const char *const[]){ __VA_ARGS__, "--json", NULL })
/* What an object holds; the test fails when it does not. */
const char *cli_text_of(const json_t *o, const char *key);
int64_t cli_int_of(const json_t *o, const char *key);

#endif
