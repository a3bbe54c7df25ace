// SPDX-License-Identifier: Apache-2.0
/* TCP connections with a deadline, and listeners; see tcp.h. */
#include "lib/tcp.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "lib/io.h"
#include "lib/util.h"

static void free_addrinfo(struct addrinfo **p)
{
	if (*p)
		freeaddrinfo(*p);
}

static int resolve(const char *host, const char *port, int flags, struct addrinfo **ret, struct gw_error *err)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = flags };
	int r = getaddrinfo(host, port, &hints, ret);

	return r ? gw_error_set(err, EHOSTUNREACH, "cannot find host %s: %s", host, gai_strerror(r)) : 0;
}

static int connect_one(const struct addrinfo *a, uint64_t deadline_ns, int *ret)
{
	gw_autofd fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
	socklen_t len = sizeof(int);
	int one = 1, e = 0, r;

	if (fd < 0)
		return -errno;
	if (connect(fd, a->ai_addr, a->ai_addrlen) < 0 && errno != EINPROGRESS)
		return -errno;
	r = gw_wait_fd(fd, POLLOUT, deadline_ns);
	if (r < 0)
		return r;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len) < 0)
		return -errno;
	if (e)
		return -e;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	*ret = gw_steal_fd(&fd);
	return 0;
}

int gw_tcp_connect(const char *host, const char *port, uint64_t deadline_ns, int *ret, struct gw_error *err)
{
	gw_cleanup(free_addrinfo) struct addrinfo *list = NULL;
	int r = resolve(host, port, 0, &list, err);

	if (r < 0)
		return r;
	r = -EHOSTUNREACH;
	for (const struct addrinfo *a = list; a; a = a->ai_next) {
		r = connect_one(a, deadline_ns, ret);
		if (r == 0)
			return 0;
	}
	return gw_error_errno(err, r, "cannot connect to %s port %s", host, port);
}

int gw_tcp_listen(const char *host, const char *port, int *ret, struct gw_error *err)
{
	gw_cleanup(free_addrinfo) struct addrinfo *list = NULL;
	gw_autofd fd = -1;
	int one = 1;
	int r = resolve(host, port, AI_PASSIVE | AI_NUMERICSERV, &list, err);

	if (r < 0)
		return r;
	fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, list->ai_protocol);
	if (fd < 0)
		return gw_error_errno(err, errno, "cannot make a socket for %s port %s", host, port);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, list->ai_addr, list->ai_addrlen) < 0 || listen(fd, 128) < 0)
		return gw_error_errno(err, errno, "cannot listen on %s port %s", host, port);
	*ret = gw_steal_fd(&fd);
	return 0;
}
