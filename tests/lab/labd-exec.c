// SPDX-License-Identifier: Apache-2.0
/*
 * labd's commands: each runs as the leader of a session of its own, its three streams relayed over the connection. When the
 * client goes away first, all of that session is ended.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "labd.h"

#define ARGS_MAX 4096
#define PIPE_MAX (1024 * 1024)	/* /proc/sys/fs/pipe-max-size; 64 KiB unless the command raised it */

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* The session of a process, from the 6th field of its stat file, or -1 when it is gone or a zombie. */
static pid_t live_session_of(const char *pid)
{
	char path[64], text[512], state;
	int pgrp, session, ppid;
	const char *after_name;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%s/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return -1;
	text[n] = '\0';
	/* The name may hold anything, ')' too: the fields start after the last one. */
	after_name = strrchr(text, ')');
	if (!after_name || sscanf(after_name + 1, " %c %d %d %d", &state, &ppid, &pgrp, &session) != 4)
		return -1;
	return state == 'Z' ? -1 : session;
}

/* Sends a signal to every live process of the session; returns how many there are. */
static int signal_session(pid_t session, int sig)
{
	DIR *proc = opendir("/proc");
	struct dirent *e;
	int count = 0;

	if (!proc)
		return 0;
	while ((e = readdir(proc))) {
		if (e->d_name[0] < '1' || e->d_name[0] > '9')
			continue;
		if (live_session_of(e->d_name) != session)
			continue;
		if (sig)
			kill((pid_t)strtol(e->d_name, NULL, 10), sig);
		count++;
	}
	closedir(proc);
	return count;
}

static void end_session(pid_t session)
{
	int64_t deadline = now_ms() + 500;

	signal_session(session, SIGTERM);
	signal_session(session, SIGCONT);
	while (now_ms() < deadline) {
		waitpid(session, NULL, WNOHANG);
		if (!signal_session(session, 0))
			return;
		poll(NULL, 0, 20);
	}
	/* Twice: a process may have forked while the first pass went over the list. */
	signal_session(session, SIGKILL);
	signal_session(session, SIGKILL);
}

struct command {
	int sock;
	pid_t pid;
	int pidfd;
	int in, out, err;	/* our ends of the command's pipes, -1 when closed */
	char *pending;		/* one stdin frame, not yet taken by the command */
	size_t pending_len, pending_off;
};

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

__attribute__((noreturn))
static void run_child(char **argv, int netns, int in, int out, int err)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	if (setns(netns, CLONE_NEWNET) < 0)
		_exit(126);
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
		_exit(126);
	if (chdir("/root") < 0)
		_exit(126);
	execvp(argv[0], argv);
	dprintf(2, "%s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

static int start_command(struct command *c, char **argv, int netns)
{
	int in[2], out[2], err[2];

	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
		return -errno;
	c->pid = fork();
	if (c->pid < 0)
		return -errno;
	if (c->pid == 0)
		run_child(argv, netns, in[0], out[1], err[1]);
	close(in[0]);
	close(out[1]);
	close(err[1]);
	c->in = in[1];
	c->out = out[0];
	c->err = err[0];
	c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	if (c->pidfd < 0)
		return -errno;
	fcntl(c->in, F_SETFL, O_NONBLOCK);
	fcntl(c->out, F_SETFL, O_NONBLOCK);
	fcntl(c->err, F_SETFL, O_NONBLOCK);
	return 0;
}

/* Passes on one buffer of output. 1: there may be more, 0: nothing now, negative: the client is gone. */
static int relay_output(struct command *c, int *fd, char type)
{
	static char buf[LABD_FRAME_MAX];
	ssize_t n = read(*fd, buf, sizeof(buf));

	if (n < 0)
		return errno == EINTR ? 1 : 0;
	if (n == 0) {
		close_fd(fd);
		return 0;
	}
	return labd_send_frame(c->sock, type, buf, (uint32_t)n) < 0 ? -EPIPE : 1;
}

/*
 * What a command wrote before it ended is in its pipe. A job it left behind may hold the pipe open and go on writing for ever,
 * so that no more is taken than a pipe holds.
 */
static void drain(struct command *c, int *fd, char type)
{
	for (size_t taken = 0; *fd >= 0 && taken < PIPE_MAX; taken += LABD_FRAME_MAX)
		if (relay_output(c, fd, type) <= 0)
			return;
}

/* Reads one frame of the client: stdin bytes or the end of stdin. */
static int take_input(struct command *c)
{
	char head[5];
	uint32_t len;
	int r;

	r = labd_read_all(c->sock, head, sizeof(head));
	if (r < 0)
		return r;
	memcpy(&len, head + 1, sizeof(len));
	len = le32toh(len);
	if (head[0] == 'c') {
		close_fd(&c->in);
		return 0;
	}
	if (head[0] != 'i' || len > LABD_FRAME_MAX)
		return -EPROTO;
	r = labd_read_all(c->sock, c->pending, len);
	if (r < 0)
		return r;
	c->pending_off = 0;
	/* A command that closed its stdin does not care: the bytes are dropped, as a shell's pipe would. */
	c->pending_len = c->in >= 0 ? len : 0;
	return 0;
}

static void push_input(struct command *c)
{
	ssize_t n = write(c->in, c->pending + c->pending_off, c->pending_len - c->pending_off);

	if (n < 0) {
		if (errno == EAGAIN || errno == EINTR)
			return;
		close_fd(&c->in);
		c->pending_len = c->pending_off = 0;
		return;
	}
	c->pending_off += (size_t)n;
	if (c->pending_off == c->pending_len)
		c->pending_len = c->pending_off = 0;
}

/*
 * Relays until the command has ended (0, its wait status in *status) or the client has gone (negative).
 * The next stdin frame is read only when the last one was taken, so that a command that does not read holds its client back;
 * POLLRDHUP shows a client that left even then.
 */
static int relay(struct command *c, int *status)
{
	for (;;) {
		bool waiting = c->pending_len > 0;
		struct pollfd p[5] = {
			{ .fd = c->pidfd, .events = POLLIN },
			{ .fd = c->sock, .events = (short)(POLLRDHUP | (waiting ? 0 : POLLIN)) },
			{ .fd = c->out, .events = POLLIN },
			{ .fd = c->err, .events = POLLIN },
			{ .fd = waiting ? c->in : -1, .events = POLLOUT },
		};

		if (poll(p, 5, -1) < 0 && errno != EINTR)
			return -errno;
		if (p[2].revents && relay_output(c, &c->out, 'o') < 0)
			return -EPIPE;
		if (p[3].revents && relay_output(c, &c->err, 'e') < 0)
			return -EPIPE;
		if (p[4].revents)
			push_input(c);
		if (p[0].revents)
			break;
		if ((p[1].revents & POLLIN) && take_input(c) < 0)
			return -ECONNRESET;
		if (p[1].revents & (POLLRDHUP | POLLHUP | POLLERR))
			return -ECONNRESET;
	}
	if (waitpid(c->pid, status, 0) < 0)
		return -errno;
	drain(c, &c->out, 'o');
	drain(c, &c->err, 'e');
	return 0;
}

void labd_serve_exec(int sock, char *args, size_t len, int netns)
{
	struct command c = { .sock = sock, .in = -1, .out = -1, .err = -1, .pidfd = -1 };
	static char *argv[ARGS_MAX + 1];
	int argc = 0, status, r;

	/* read_request() put a NUL behind the last argument. */
	for (size_t at = 0; at < len && argc < ARGS_MAX; at += strlen(args + at) + 1)
		argv[argc++] = args + at;
	c.pending = malloc(LABD_FRAME_MAX);
	if (!argc || !c.pending) {
		labd_send_failure(sock, "command", EINVAL);
		return;
	}
	r = start_command(&c, argv, netns);
	if (r < 0) {
		labd_send_failure(sock, argv[0], -r);
		return;
	}
	if (relay(&c, &status) < 0) {
		end_session(c.pid);
		return;
	}
	labd_send_exit(sock, WIFEXITED(status) ? (uint32_t)WEXITSTATUS(status) : 128u + (uint32_t)WTERMSIG(status));
}
