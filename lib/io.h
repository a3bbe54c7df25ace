// SPDX-License-Identifier: Apache-2.0
/* Whole reads and writes with a deadline, UNIX sockets, descriptor passing, and files that appear whole or not at all. */
#ifndef GW_LIB_IO_H
#define GW_LIB_IO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "lib/error.h"

/* No deadline. */
#define GW_NO_DEADLINE UINT64_MAX
/* The most descriptors that go with one message. */
#define GW_MAX_FDS 20

/*
 * Read or write exactly `len` bytes of a socket or pipe, blocking or not, until monotonic `deadline_ns`.
 * Return 0, -ETIMEDOUT, -EPIPE (the other side closed before `len` bytes), or another negative errno.
 */
int gw_read_full(int fd, void *data, size_t len, uint64_t deadline_ns);
int gw_write_full(int fd, const void *data, size_t len, uint64_t deadline_ns);

/* Waits for `events` (poll) on fd: 0 when there, -ETIMEDOUT, negative errno. */
int gw_wait_fd(int fd, short events, uint64_t deadline_ns);

/* Sends `len` > 0 bytes with `nfds` <= GW_MAX_FDS descriptors on a UNIX stream socket. 0 or negative errno. */
int gw_send_fds(int sock, const void *data, size_t len, const int *fds, unsigned nfds, uint64_t deadline_ns);
/*
 * Receives exactly `len` bytes and up to GW_MAX_FDS descriptors that came with them (close-on-exec, owned by the
 * caller). 0 or negative errno; on failure no descriptor is left open.
 */
int gw_recv_fds(int sock, void *data, size_t len, int fds[GW_MAX_FDS], unsigned *nfds, uint64_t deadline_ns);

/* UNIX stream sockets, close-on-exec. An old socket file at `path` is replaced when nobody listens on it. */
int gw_unix_listen(const char *path, unsigned mode, int *ret, struct gw_error *err);
int gw_unix_connect(const char *path, int *ret, struct gw_error *err);

/* Reads a regular file of at most `max` bytes; *ret is owned, NUL-terminated beyond *len. */
int gw_read_file(const char *path, size_t max, char **ret, size_t *len, struct gw_error *err);
/*
 * Replaces `path` by a file with this content, durably: written beside it, fsynced, renamed, folder fsynced. A crash at
 * any point leaves the old file or the new one.
 */
int gw_write_file_atomic(const char *path, const void *data, size_t len, unsigned mode, struct gw_error *err);
/* mkdir -p. 0 or negative errno. */
int gw_mkdir_p(const char *path, unsigned mode);

#endif
