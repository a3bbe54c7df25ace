// SPDX-License-Identifier: Apache-2.0
/*
 * The device thread; see iothread.h.
 *
 * A source may be removed by any thread while the loop holds an event of it in its batch. So a removed source is only
 * marked and put aside; the loop itself frees it after the batch, when no event of it can be left.
 */
#include "vmm/iothread.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "lib/util.h"

#define BATCH 64

struct gw_io_source {
	struct gw_iothread *io;
	int fd;
	gw_io_handler handler;
	void *arg;
	bool dead;                 /* under io->lock */
	struct gw_io_source *next; /* among the dead */
};

struct call {
	void (*fn)(void *arg);
	void *arg;
	bool done; /* under io->lock */
	struct call *next;
};

struct gw_iothread {
	pthread_t thread;
	int epoll;
	int wake;
	pthread_mutex_t lock;
	pthread_cond_t changed;       /* `running` or a call's `done` changed */
	struct gw_io_source *running; /* whose handler runs; under lock */
	struct gw_io_source *dead;    /* under lock */
	struct call *calls, **tail;   /* under lock */
	bool stop;                    /* under lock */
};

/* The loop that the calling thread runs, if any. */
static _Thread_local struct gw_iothread *current_loop;

static void run_source(struct gw_iothread *io, struct gw_io_source *src, uint32_t events)
{
	pthread_mutex_lock(&io->lock);
	if (src->dead) {
		pthread_mutex_unlock(&io->lock);
		return;
	}
	io->running = src;
	pthread_mutex_unlock(&io->lock);

	src->handler(src->arg, events);

	pthread_mutex_lock(&io->lock);
	io->running = NULL;
	pthread_cond_broadcast(&io->changed);
	pthread_mutex_unlock(&io->lock);
}

static void run_calls(struct gw_iothread *io)
{
	pthread_mutex_lock(&io->lock);
	while (io->calls) {
		struct call *c = io->calls;

		io->calls = c->next;
		if (!io->calls)
			io->tail = &io->calls;
		pthread_mutex_unlock(&io->lock);
		c->fn(c->arg);
		pthread_mutex_lock(&io->lock);
		c->done = true; /* the caller's stack frame may go as soon as the lock is dropped */
		pthread_cond_broadcast(&io->changed);
	}
	pthread_mutex_unlock(&io->lock);
}

/* True when the loop shall end. */
static bool bury_dead(struct gw_iothread *io)
{
	struct gw_io_source *dead;
	bool stop;

	pthread_mutex_lock(&io->lock);
	dead = io->dead;
	io->dead = NULL;
	stop = io->stop;
	pthread_mutex_unlock(&io->lock);
	while (dead) {
		struct gw_io_source *next = dead->next;

		free(dead);
		dead = next;
	}
	return stop;
}

static void *loop(void *arg)
{
	struct gw_iothread *io = arg;
	struct epoll_event events[BATCH];

	current_loop = io;
	do {
		int n = epoll_wait(io->epoll, events, BATCH, -1);

		for (int i = 0; i < n; i++) {
			uint64_t count;

			if (events[i].data.ptr)
				run_source(io, events[i].data.ptr, events[i].events);
			else if (read(io->wake, &count, sizeof(count)) < 0)
				continue; /* somebody's wake-up was taken with an earlier one */
		}
		run_calls(io);
	} while (!bury_dead(io));
	return NULL;
}

static void wake(struct gw_iothread *io)
{
	uint64_t one = 1;

	/* Fails only when the counter is full, and then the loop wakes up anyway. */
	if (write(io->wake, &one, sizeof(one)) < 0)
		return;
}

static int start_thread(struct gw_iothread *io, const char *name, struct gw_error *err)
{
	sigset_t all, old;
	char short_name[16];
	int r;

	/* Signals belong to the main thread and the vCPU threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&io->thread, NULL, loop, io);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		return gw_error_errno(err, r, "cannot start the device thread");
	snprintf(short_name, sizeof(short_name), "%s", name);
	pthread_setname_np(io->thread, short_name);
	return 0;
}

static void release(struct gw_iothread *io)
{
	if (io->epoll >= 0)
		close(io->epoll);
	if (io->wake >= 0)
		close(io->wake);
	pthread_cond_destroy(&io->changed);
	pthread_mutex_destroy(&io->lock);
	free(io);
}

int gw_iothread_new(const char *name, struct gw_iothread **ret, struct gw_error *err)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = NULL };
	struct gw_iothread *io = calloc(1, sizeof(*io));
	int r = 0;

	if (!io)
		return gw_error_set(err, ENOMEM, "out of memory");
	io->tail = &io->calls;
	pthread_mutex_init(&io->lock, NULL);
	pthread_cond_init(&io->changed, NULL);
	io->epoll = epoll_create1(EPOLL_CLOEXEC);
	io->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (io->epoll < 0 || io->wake < 0 || epoll_ctl(io->epoll, EPOLL_CTL_ADD, io->wake, &ev) < 0)
		r = gw_error_errno(err, errno, "cannot make the device loop");
	if (r == 0)
		r = start_thread(io, name, err);
	if (r < 0) {
		release(io);
		return r;
	}
	*ret = io;
	return 0;
}

void gw_iothread_free(struct gw_iothread *io)
{
	if (!io)
		return;
	pthread_mutex_lock(&io->lock);
	io->stop = true;
	pthread_mutex_unlock(&io->lock);
	wake(io);
	pthread_join(io->thread, NULL);
	bury_dead(io);
	release(io);
}

int gw_io_add(struct gw_iothread *io, int fd, uint32_t events, gw_io_handler handler, void *arg, struct gw_io_source **ret)
{
	struct gw_io_source *src = calloc(1, sizeof(*src));
	struct epoll_event ev = { .events = events, .data.ptr = src };

	if (!src)
		return -ENOMEM;
	src->io = io;
	src->fd = fd;
	src->handler = handler;
	src->arg = arg;
	/* Before the kernel knows of it: the handler may run at once and look for its source. */
	*ret = src;
	if (epoll_ctl(io->epoll, EPOLL_CTL_ADD, fd, &ev) < 0) {
		int r = -errno;

		*ret = NULL;
		free(src);
		return r;
	}
	return 0;
}

int gw_io_modify(struct gw_io_source *src, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = src };

	return epoll_ctl(src->io->epoll, EPOLL_CTL_MOD, src->fd, &ev) < 0 ? -errno : 0;
}

void gw_io_remove(struct gw_io_source *src)
{
	struct gw_iothread *io;

	if (!src)
		return;
	io = src->io;
	/* Fails when the descriptor was closed first; the kernel has forgotten it then. */
	(void)epoll_ctl(io->epoll, EPOLL_CTL_DEL, src->fd, NULL);
	pthread_mutex_lock(&io->lock);
	src->dead = true;
	while (io->running == src && current_loop != io)
		pthread_cond_wait(&io->changed, &io->lock);
	src->next = io->dead;
	io->dead = src;
	pthread_mutex_unlock(&io->lock);
}

void gw_iothread_call(struct gw_iothread *io, void (*fn)(void *arg), void *arg)
{
	struct call c = { .fn = fn, .arg = arg };

	if (current_loop == io) {
		fn(arg);
		return;
	}
	pthread_mutex_lock(&io->lock);
	/* The call leaves the list before this function returns. */
	// cppcheck-suppress autoVariables
	*io->tail = &c;
	// cppcheck-suppress autoVariables
	io->tail = &c.next;
	pthread_mutex_unlock(&io->lock);
	wake(io);
	pthread_mutex_lock(&io->lock);
	while (!c.done)
		pthread_cond_wait(&io->changed, &io->lock);
	pthread_mutex_unlock(&io->lock);
}
