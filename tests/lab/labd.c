// SPDX-License-Identifier: Apache-2.0
/*
 * labd: the command server inside an emulated lab host.
 *
 * It listens on the management network, which lives in a network namespace of its own: what is tested in a host never sees
 * that path, and cutting the data network does not cut it. One connection carries one request, served by one forked child:
 *
 *   E argv      run a command; stdin frames come in, stdout and stderr frames and one exit frame go out
 *   P mode path write a file: raw bytes follow, an exit frame answers
 *   G path      read a file: a size frame answers, raw bytes follow
 *
 * A frame is one type byte, a 32-bit little-endian length and that many bytes. The peer is the lab's own driver, so that the
 * protocol needs no authentication: nobody else can reach the namespace it listens in.
 *
 * A command is the leader of a session of its own. When the client goes away before the command ends, every process of that
 * session is ended; a process that called setsid() has left it and lives on. Background jobs of a command that ended by
 * itself are left alone.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FRAME_MAX (256 * 1024)
#define REQUEST_MAX (1024 * 1024)
#define ARGS_MAX 4096
#define LISTEN_PORT 7001

/* The namespace of the commands; labd itself moves out of it. */
static int command_netns = -1;

static int write_all(int fd, const void *data, size_t len)
{
	const char *p = data;

	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

static int read_all(int fd, void *data, size_t len)
{
	char *p = data;

	while (len) {
		ssize_t n = read(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ECONNRESET;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

static int send_frame(int sock, char type, const void *data, uint32_t len)
{
	char head[5] = { type };
	uint32_t le = htole32(len);
	int r;

	memcpy(head + 1, &le, sizeof(le));
	/* Header and body leave as one segment where they fit: MSG_MORE holds the header back. */
	if (len) {
		if (send(sock, head, sizeof(head), MSG_MORE | MSG_NOSIGNAL) != sizeof(head))
			return -EPIPE;
	} else {
		r = write_all(sock, head, sizeof(head));
		return r;
	}
	return write_all(sock, data, len);
}

static int send_exit(int sock, uint32_t status)
{
	uint32_t le = htole32(status);

	return send_frame(sock, 'x', &le, sizeof(le));
}

/* Tells the client why its request failed; the connection ends with it. */
static void send_failure(int sock, const char *what, int error)
{
	char text[1024];
	int n = snprintf(text, sizeof(text), "%s: %s", what, strerror(error));

	if (n > 0)
		send_frame(sock, 'f', text, (uint32_t)((size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1));
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- sessions ---- */

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

/* ---- commands ---- */

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
static void run_child(char **argv, int in, int out, int err)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	if (setns(command_netns, CLONE_NEWNET) < 0)
		_exit(126);
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
		_exit(126);
	if (chdir("/root") < 0)
		_exit(126);
	execvp(argv[0], argv);
	dprintf(2, "%s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

static int start_command(struct command *c, char **argv)
{
	int in[2], out[2], err[2];

	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
		return -errno;
	c->pid = fork();
	if (c->pid < 0)
		return -errno;
	if (c->pid == 0)
		run_child(argv, in[0], out[1], err[1]);
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
	static char buf[FRAME_MAX];
	ssize_t n = read(*fd, buf, sizeof(buf));

	if (n < 0)
		return errno == EINTR ? 1 : 0;
	if (n == 0) {
		close_fd(fd);
		return 0;
	}
	return send_frame(c->sock, type, buf, (uint32_t)n) < 0 ? -EPIPE : 1;
}

/* Reads one frame of the client: stdin bytes or the end of stdin. */
static int take_input(struct command *c)
{
	char head[5];
	uint32_t len;
	int r;

	r = read_all(c->sock, head, sizeof(head));
	if (r < 0)
		return r;
	memcpy(&len, head + 1, sizeof(len));
	len = le32toh(len);
	if (head[0] == 'c') {
		close_fd(&c->in);
		return 0;
	}
	if (head[0] != 'i' || len > FRAME_MAX)
		return -EPROTO;
	r = read_all(c->sock, c->pending, len);
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
	/* What the command wrote before it ended is in the pipes; a job it left behind may hold them open for ever. */
	while (c->out >= 0 && relay_output(c, &c->out, 'o') > 0)
		;
	while (c->err >= 0 && relay_output(c, &c->err, 'e') > 0)
		;
	return 0;
}

static void serve_exec(int sock, char *args, size_t len)
{
	struct command c = { .sock = sock, .in = -1, .out = -1, .err = -1, .pidfd = -1 };
	static char *argv[ARGS_MAX + 1];
	int argc = 0, status, r;

	/* read_request() put a NUL behind the last argument. */
	for (size_t at = 0; at < len && argc < ARGS_MAX; at += strlen(args + at) + 1)
		argv[argc++] = args + at;
	c.pending = malloc(FRAME_MAX);
	if (!argc || !c.pending) {
		send_failure(sock, "command", EINVAL);
		return;
	}
	r = start_command(&c, argv);
	if (r < 0) {
		send_failure(sock, argv[0], -r);
		return;
	}
	if (relay(&c, &status) < 0) {
		end_session(c.pid);
		return;
	}
	send_exit(sock, WIFEXITED(status) ? (uint32_t)WEXITSTATUS(status) : 128u + (uint32_t)WTERMSIG(status));
}

/* ---- files ---- */

/* After a failed write (no space) the rest is read and dropped, so that the answer finds a client that listens. */
static int receive_file(int sock, int fd, uint64_t size)
{
	static char buf[1024 * 1024];
	int result = 0;

	while (size) {
		ssize_t n = read(sock, buf, size < sizeof(buf) ? (size_t)size : sizeof(buf));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -ECONNRESET;
		if (!result)
			result = write_all(fd, buf, (size_t)n);
		size -= (uint64_t)n;
	}
	return result;
}

/* The file appears whole or not at all, and one that is being executed can be replaced: write beside it, then rename. */
static void serve_put(int sock, const char *request, size_t len)
{
	char temporary[4200];
	const char *path = request + 12;
	uint32_t mode;
	uint64_t size;
	int fd, r;

	if (len < 13 || strlen(path) > 4096) {
		send_failure(sock, "put", EINVAL);
		return;
	}
	memcpy(&mode, request, sizeof(mode));
	memcpy(&size, request + 4, sizeof(size));
	snprintf(temporary, sizeof(temporary), "%s.put-%d", path, (int)getpid());
	fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0) {
		send_failure(sock, path, errno);
		return;
	}
	r = receive_file(sock, fd, le64toh(size));
	if (!r && fchmod(fd, le32toh(mode) & 07777) < 0)
		r = -errno;
	close(fd);
	if (!r && rename(temporary, path) < 0)
		r = -errno;
	if (r < 0) {
		unlink(temporary);
		send_failure(sock, path, -r);
		return;
	}
	send_exit(sock, 0);
}

static int send_file(int sock, int fd, uint64_t size)
{
	while (size) {
		ssize_t n = sendfile(sock, fd, NULL, size < (1 << 30) ? (size_t)size : (1 << 30));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -EIO;
		size -= (uint64_t)n;
	}
	return 0;
}

/* Files of /proc and /sys say size 0 and still hold bytes, so that such a file is read into memory first. */
static int slurp_special(int fd, char **ret_data, size_t *ret_len)
{
	size_t room = 4 * 1024 * 1024, len = 0;
	char *data = malloc(room);
	ssize_t n;

	if (!data)
		return -ENOMEM;
	while (len < room && (n = read(fd, data + len, room - len)) > 0)
		len += (size_t)n;
	*ret_data = data;
	*ret_len = len;
	return 0;
}

static void serve_get(int sock, const char *path)
{
	struct { uint32_t mode; uint64_t size; } __attribute__((packed)) reply;
	char *special = NULL;
	size_t special_len = 0;
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st) < 0) {
		send_failure(sock, path, errno);
		return;
	}
	if (!S_ISREG(st.st_mode)) {
		send_failure(sock, path, S_ISDIR(st.st_mode) ? EISDIR : EINVAL);
		return;
	}
	if (st.st_size == 0 && slurp_special(fd, &special, &special_len) < 0) {
		send_failure(sock, path, ENOMEM);
		return;
	}
	reply.mode = htole32(st.st_mode & 07777);
	reply.size = htole64(special ? special_len : (uint64_t)st.st_size);
	if (send_frame(sock, 's', &reply, sizeof(reply)) < 0)
		return;
	if (special)
		write_all(sock, special, special_len);
	else
		send_file(sock, fd, (uint64_t)st.st_size);
}

/* ---- connections ---- */

/* Reads the request frame; its body ends in a NUL of ours, so that strings in it always end. */
static char *read_request(int sock, char *ret_type, size_t *ret_len)
{
	char head[5], *body;
	uint32_t len;

	if (read_all(sock, head, sizeof(head)) < 0)
		return NULL;
	memcpy(&len, head + 1, sizeof(len));
	len = le32toh(len);
	if (len > REQUEST_MAX)
		return NULL;
	body = malloc((size_t)len + 1);
	if (!body || read_all(sock, body, len) < 0) {
		free(body);
		return NULL;
	}
	body[len] = '\0';
	*ret_type = head[0];
	*ret_len = len;
	return body;
}

/*
 * Waits until the client has closed too. A close with unread input would reset the connection, and the client could lose
 * the last frames: its end-of-stdin often crosses our exit frame.
 */
static void finish(int sock)
{
	struct timeval patience = { .tv_sec = 10 };
	char rest[4096];

	shutdown(sock, SHUT_WR);
	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	while (read(sock, rest, sizeof(rest)) > 0)
		;
}

static void serve(int sock)
{
	char *request, type;
	size_t len;
	int one = 1;

	setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	request = read_request(sock, &type, &len);
	if (!request)
		return;
	switch (type) {
	case 'E':
		serve_exec(sock, request, len);
		break;
	case 'P':
		serve_put(sock, request, len);
		break;
	case 'G':
		serve_get(sock, request);
		break;
	default:
		send_failure(sock, "request", EPROTO);
	}
	free(request);
	finish(sock);
}

/* Runs a shell line in the commands' namespace or in ours; used for the few set-up steps below. */
static int shell(const char *line, bool in_command_netns)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		if (in_command_netns && setns(command_netns, CLONE_NEWNET) < 0)
			_exit(1);
		execl("/bin/sh", "sh", "-c", line, (char *)NULL);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return -errno;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EIO;
}

/* Moves labd and the management interface out of the commands' sight. */
static int hide_management(const char *device, const char *address)
{
	char line[256];

	command_netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (command_netns < 0 || unshare(CLONE_NEWNET) < 0)
		return -errno;
	snprintf(line, sizeof(line), "ip link set %s netns %d", device, (int)getpid());
	if (shell(line, true) < 0)
		return -ENODEV;
	snprintf(line, sizeof(line), "ip addr add %s/24 dev %s && ip link set %s up && ip link set lo up", address, device, device);
	return shell(line, false);
}

static int listen_on(const char *address)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(LISTEN_PORT) };
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || inet_pton(AF_INET, address, &a.sin_addr) != 1)
		return -EINVAL;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 128) < 0)
		return -errno;
	return fd;
}

int main(int argc, char **argv)
{
	int listener, r;

	if (argc != 3) {
		fprintf(stderr, "usage: labd DEVICE ADDRESS\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	r = hide_management(argv[1], argv[2]);
	if (r < 0) {
		fprintf(stderr, "labd: management network: %s\n", strerror(-r));
		return 1;
	}
	listener = listen_on(argv[2]);
	if (listener < 0) {
		fprintf(stderr, "labd: listen: %s\n", strerror(-listener));
		return 1;
	}
	for (;;) {
		int sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (sock < 0)
			continue;
		if (fork() == 0) {
			close(listener);
			serve(sock);
			_exit(0);
		}
		close(sock);
	}
}
