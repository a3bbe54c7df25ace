// SPDX-License-Identifier: Apache-2.0
/* The device thread: handlers, removal while events are under way, calls. */
#include "tests/unit/cmocka-all.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tests/unit/fake-host.h"
#include "vmm/iothread.h"

struct source {
	struct gw_iothread *io;
	int fd;
	struct gw_io_source *src;
	unsigned runs; /* atomic */
	bool remove_itself;
};

static void handler(void *arg, uint32_t events)
{
	struct source *s = arg;
	uint64_t count;

	assert_int_equal(read(s->fd, &count, sizeof(count)), sizeof(count));
	__atomic_fetch_add(&s->runs, 1, __ATOMIC_RELEASE);
	if (s->remove_itself)
		gw_io_remove(s->src);
}

static void signal_source(struct source *s)
{
	uint64_t one = 1;

	assert_int_equal(write(s->fd, &one, sizeof(one)), sizeof(one));
}

static bool has_run(void *arg)
{
	return __atomic_load_n(&((struct source *)arg)->runs, __ATOMIC_ACQUIRE) > 0;
}

static struct gw_iothread *new_loop(void)
{
	struct gw_iothread *io = NULL;

	assert_int_equal(gw_iothread_new("test", &io, NULL), 0);
	return io;
}

static void handlers_run_and_may_remove_themselves(void **state)
{
	struct source s = { .io = new_loop(), .fd = eventfd(0, EFD_NONBLOCK), .remove_itself = true };

	assert_int_equal(gw_io_add(s.io, s.fd, EPOLLIN, handler, &s, &s.src), 0);
	signal_source(&s);
	assert_true(fake_wait(has_run, &s));
	signal_source(&s);
	gw_iothread_free(s.io);
	assert_int_equal(s.runs, 1);
	close(s.fd);
}

static void *hammer(void *arg)
{
	for (int i = 0; i < 20000; i++)
		signal_source(arg);
	return NULL;
}

/* After gw_io_remove() the handler must not run, or this would read freed memory (address, thread variants). */
static void removal_waits_for_the_handler(void **state)
{
	struct gw_iothread *io = new_loop();

	for (int round = 0; round < 50; round++) {
		struct source *s = calloc(1, sizeof(*s));
		pthread_t t;

		assert_non_null(s);
		s->io = io;
		s->fd = eventfd(0, 0);
		assert_int_equal(gw_io_add(io, s->fd, EPOLLIN, handler, s, &s->src), 0);
		if (round == 0)
			assert_int_equal(pthread_create(&t, NULL, hammer, s), 0);
		signal_source(s);
		assert_true(fake_wait(has_run, s));
		gw_io_remove(s->src);
		if (round == 0)
			pthread_join(t, NULL);
		close(s->fd);
		free(s);
	}
	gw_iothread_free(io);
}

struct nested {
	struct gw_iothread *io;
	int order;
};

static void inner(void *arg)
{
	struct nested *n = arg;

	n->order = n->order * 10 + 2;
}

static void outer(void *arg)
{
	struct nested *n = arg;

	n->order = n->order * 10 + 1;
	gw_iothread_call(n->io, inner, n);
	n->order = n->order * 10 + 3;
}

static void calls_run_once_and_nest(void **state)
{
	struct nested n = { .io = new_loop() };

	gw_iothread_call(n.io, outer, &n);
	assert_int_equal(n.order, 123);
	gw_iothread_free(n.io);
}

static void count_up(void *arg)
{
	++*(unsigned *)arg; /* one thread: no atomics needed, as the thread variant proves */
}

struct caller {
	struct gw_iothread *io;
	unsigned *count;
};

static void *many_calls(void *arg)
{
	const struct caller *c = arg;

	for (int i = 0; i < 2000; i++)
		gw_iothread_call(c->io, count_up, c->count);
	return NULL;
}

static void calls_of_many_threads_are_one_at_a_time(void **state)
{
	unsigned count = 0;
	struct caller c = { new_loop(), &count };
	pthread_t t[4];

	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&t[i], NULL, many_calls, &c), 0);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	assert_int_equal(count, 8000);
	gw_iothread_free(c.io);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(handlers_run_and_may_remove_themselves),
		cmocka_unit_test(removal_waits_for_the_handler),
		cmocka_unit_test(calls_run_once_and_nest),
		cmocka_unit_test(calls_of_many_threads_are_one_at_a_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
