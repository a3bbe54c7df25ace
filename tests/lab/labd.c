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
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include "labd.h"

#define REQUEST_MAX (1024 * 1024)
#define LISTEN_PORT 7001

/* The namespace of the commands; labd itself moves out of it. */
static int command_netns = -1;

/* Reads the request frame; its body ends in a NUL of ours, so that strings in it always end. */
static char *read_request(int sock, char *ret_type, size_t *ret_len)
{
	char head[5], *body;
	uint32_t len;

	if (labd_read_all(sock, head, sizeof(head)) < 0)
		return NULL;
	memcpy(&len, head + 1, sizeof(len));
	len = le32toh(len);
	if (len > REQUEST_MAX)
		return NULL;
	body = malloc((size_t)len + 1);
	if (!body || labd_read_all(sock, body, len) < 0) {
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
		labd_serve_exec(sock, request, len, command_netns);
		break;
	case 'P':
		labd_serve_put(sock, request, len);
		break;
	case 'G':
		labd_serve_get(sock, request);
		break;
	default:
		labd_send_failure(sock, "request", EPROTO);
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
