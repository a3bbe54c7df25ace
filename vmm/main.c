// SPDX-License-Identifier: Apache-2.0
/*
 * godwit-vmm: one VM, in the foreground or under an agent. The main thread runs the event loop; threads of their own have the
 * vCPUs, the devices' work, the serial console, and a move while there is one.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/epoll.h>
#include <systemd/sd-event.h>

#include "lib/failpoint.h"
#include "lib/limits.h"
#include "lib/log.h"
#include "lib/util.h"
#include "vmm/control.h"
#include "vmm/machine.h"
#include "vmm/move.h"
#include "vmm/options.h"
#include "vmm/terminal.h"
#include "vmm/vm.h"

struct program {
	struct gw_options options;
	sd_event *loop;
	struct gw_control *control;
	struct gw_machine *machine;
	int quit_fd;       /* eventfd: Ctrl-A x was typed */
	unsigned asked;    /* SIGTERMs so far */
};

static int on_term(sd_event_source *s, const struct signalfd_siginfo *si, void *arg)
{
	struct program *p = arg;
	struct gw_error err = GW_ERROR_INIT;

	if (p->asked++ == 0) {
		if (gw_machine_power_button(p->machine, &err) == 0) {
			gw_info("terminated: the power button is pressed; once more ends the VM at once");
			return 0;
		}
		gw_warn("terminated: %s", gw_error_text(&err));
	}
	gw_machine_end(p->machine, GW_EXIT_ENDED, "terminated by a signal");
	return 0;
}

static int on_interrupt(sd_event_source *s, const struct signalfd_siginfo *si, void *arg)
{
	gw_machine_end(((struct program *)arg)->machine, GW_EXIT_ENDED, "interrupted by a signal");
	return 0;
}

static int on_quit(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	gw_machine_end(((struct program *)arg)->machine, GW_EXIT_ENDED, "ended at the console");
	return 0;
}

static int on_registers(sd_event_source *source, const struct signalfd_siginfo *info, void *arg)
{
	struct program *p = arg;

	if (p->machine && !gw_vm_move_busy(gw_machine_move(p->machine)))
		gw_vm_tell_registers(gw_machine_vm(p->machine));
	return 0;
}

/* On the console's thread. */
static void quit_typed(void *arg)
{
	const uint64_t one = 1;
	ssize_t n = write(((struct program *)arg)->quit_fd, &one, sizeof(one));

	(void)n;
}

static int block_signals(struct gw_error *err)
{
	sigset_t set;

	/* Taken by the loop; blocked before any thread exists, so that none of them gets one. */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGUSR1);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0 || signal(SIGPIPE, SIG_IGN) == SIG_ERR)
		return gw_error_errno(err, errno, "cannot set up signals");
	return 0;
}

static int watch(struct program *p, struct gw_error *err)
{
	int r = sd_event_add_signal(p->loop, NULL, SIGTERM, on_term, p);

	if (r >= 0)
		r = sd_event_add_signal(p->loop, NULL, SIGINT, on_interrupt, p);
	if (r >= 0)
		r = sd_event_add_signal(p->loop, NULL, SIGHUP, on_interrupt, p);
	if (r >= 0)
		r = sd_event_add_signal(p->loop, NULL, SIGUSR1, on_registers, p);
	p->quit_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r >= 0)
		r = p->quit_fd < 0 ? -errno : sd_event_add_io(p->loop, NULL, p->quit_fd, EPOLLIN, on_quit, p);
	return r < 0 ? gw_error_errno(err, r, "cannot set up the event loop") : 0;
}

static int attach_consoles(struct program *p, struct gw_error *err)
{
	struct gw_tty *tty = gw_vm_console(gw_machine_vm(p->machine));
	const char *path = p->options.console_log;
	int r = 0;

	if (path) {
		struct gw_tty_client log = { .in = -1, .owned = true, .replay = true };

		log.out = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600);
		if (log.out < 0)
			return gw_error_errno(err, errno, "cannot open %s", path);
		r = gw_tty_attach(tty, &log, err);
	}
	if (r == 0 && !p->options.no_tty)
		r = gw_terminal_attach(tty, quit_typed, p, err);
	return r;
}

static int start(struct program *p, struct gw_error *err)
{
	int r = gw_failpoint_init(err);

	if (r == 0)
		r = block_signals(err);
	if (r < 0)
		return r;
	r = sd_event_new(&p->loop);
	if (r < 0)
		return gw_error_errno(err, r, "cannot make an event loop");
	r = watch(p, err);
	/* First the socket: that its path is taken should be known before a disk or tap is touched. */
	if (r == 0 && p->options.control)
		r = gw_control_new(p->options.control, p->loop, &p->control, err);
	if (r == 0)
		r = gw_machine_new(&p->options, p->loop, &p->machine, err);
	if (r == 0 && p->control)
		r = gw_control_attach(p->control, p->machine, err);
	if (r == 0)
		r = attach_consoles(p, err);
	return r;
}

int main(int argc, char **argv)
{
	struct program p = { .quit_fd = -1 };
	struct gw_error err = GW_ERROR_INIT;
	int code;

	gw_options_parse(&p.options, argc, argv);
	gw_log_init("godwit-vmm", p.options.config.name, p.options.debug ? GW_LOG_DEBUG : GW_LOG_INFO);
	gw_raise_open_files();
	if (start(&p, &err) < 0) {
		gw_error_log("%s", gw_error_text(&err));
		code = GW_EXIT_START;
	} else {
		gw_machine_start(p.machine);
		code = sd_event_loop(p.loop);
		if (code < 0) {
			gw_error_log("the event loop failed: %s", strerror(-code));
			code = GW_EXIT_FAILED;
		}
	}
	gw_control_free(p.control);
	gw_terminal_restore();
	/* vCPUs and devices may wait for memory that does not come any more, and must not find anything else in its place. */
	if (p.machine && gw_vm_move_loading(gw_machine_move(p.machine)))
		_exit(code);
	gw_machine_free(p.machine);
	gw_terminal_restore();
	sd_event_unref(p.loop);
	gw_closep(&p.quit_fd);
	gw_options_release(&p.options);
	return code;
}
