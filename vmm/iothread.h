// SPDX-License-Identifier: Apache-2.0
/*
 * The device thread: an epoll loop that runs handlers of queue kicks, back-end readiness and completions. All handlers of one loop
 * run on its one thread, one at a time.
 */
#ifndef GW_VMM_IOTHREAD_H
#define GW_VMM_IOTHREAD_H

#include <stdint.h>

#include "lib/error.h"

struct gw_iothread;
struct gw_io_source;

typedef void (*gw_io_handler)(void *arg, uint32_t events);

int gw_iothread_new(const char *name, struct gw_iothread **ret, struct gw_error *err);
/* Stops and joins; all sources must have been removed. */
void gw_iothread_free(struct gw_iothread *io);

/* Calls `handler` when fd has `events` (EPOLLIN, EPOLLOUT, level-triggered; more with EPOLLET). Borrows fd. Any thread. */
int gw_io_add(struct gw_iothread *io, int fd, uint32_t events, gw_io_handler handler, void *arg, struct gw_io_source **ret);
int gw_io_modify(struct gw_io_source *src, uint32_t events);
/* After it returns the handler does not run and will not run again. Any thread, the handler itself too. */
void gw_io_remove(struct gw_io_source *src);

/* Runs `fn(arg)` once on the thread and waits for it (direct call when already on it). */
void gw_iothread_call(struct gw_iothread *io, void (*fn)(void *arg), void *arg);

#endif
