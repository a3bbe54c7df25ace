// SPDX-License-Identifier: Apache-2.0
/* The VMM's terminal; see terminal.h. */
#include "vmm/terminal.h"

#include <errno.h>
#include <signal.h>
#include <termios.h>

#include "lib/util.h"

#define ESCAPE 1 /* Ctrl-A */

/*
 * File-scope, for signal handlers and atexit() reach nothing else: the settings to go back to, and whether to. Written before the
 * handlers are in place.
 */
static struct termios saved;
static volatile sig_atomic_t is_raw;

struct escape {
	void (*quit)(void *arg);
	void *arg;
	bool seen; /* Ctrl-A came; console thread alone */
};

void gw_terminal_restore(void)
{
	if (!is_raw)
		return;
	is_raw = 0;
	(void)tcsetattr(STDIN_FILENO, TCSANOW, &saved);
}

static void on_fatal(int sig)
{
	gw_terminal_restore();
	/* The disposition is the default again: it kills us as if we had not been here. */
	raise(sig);
}

static void catch_fatal(void)
{
	static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT };
	struct sigaction sa = { .sa_handler = on_fatal, .sa_flags = SA_RESETHAND | SA_NODEFER };

	sigemptyset(&sa.sa_mask);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		sigaction(signals[i], &sa, NULL);
}

/* Takes Ctrl-A sequences out of what was typed. */
static size_t filter(void *arg, uint8_t *data, size_t len)
{
	struct escape *e = arg;
	size_t out = 0;

	for (size_t i = 0; i < len; i++) {
		uint8_t c = data[i];

		if (!e->seen && c == ESCAPE) {
			e->seen = true;
			continue;
		}
		if (e->seen && (c == 'x' || c == 'X'))
			e->quit(e->arg);
		else if (!e->seen || c == ESCAPE)
			data[out++] = c;
		e->seen = false;
	}
	return out;
}

/* False when it is no terminal of ours: a background job would be stopped for touching it. */
static bool make_raw(void)
{
	struct termios raw;

	if (!isatty(STDIN_FILENO) || tcgetpgrp(STDIN_FILENO) != getpgrp() || tcgetattr(STDIN_FILENO, &saved) < 0)
		return false;
	raw = saved;
	cfmakeraw(&raw);
	/* What the VMM itself logs keeps its line ends. */
	raw.c_oflag |= OPOST | ONLCR;
	if (tcsetattr(STDIN_FILENO, TCSANOW, &raw) < 0)
		return false;
	is_raw = 1;
	(void)atexit(gw_terminal_restore);
	catch_fatal();
	return true;
}

int gw_terminal_attach(struct gw_tty *tty, void (*quit)(void *arg), void *arg, struct gw_error *err)
{
	static struct escape escape;
	struct gw_tty_client client = { .in = STDIN_FILENO, .out = STDOUT_FILENO, .replay = true };

	if (make_raw()) {
		escape = (struct escape){ .quit = quit, .arg = arg };
		client.filter = filter;
		client.arg = &escape;
		fprintf(stderr, "Ctrl-A x ends the VM\n");
	}
	return gw_tty_attach(tty, &client, err);
}
