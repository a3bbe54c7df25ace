// SPDX-License-Identifier: Apache-2.0
/* Memory that comes when it is touched, without a VM: who waits for what. */
#include "cmocka-all.h"

#include <pthread.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/ram/ram.h"
#include "lib/util.h"
#include "migrate/lazy-internal.h"
#include "migrate/repo/snap-internal.h"
#include "patience.h"
#include "repo-help.h"

#define PAGES 1024u
#define ZERO 700u /* the page that is zero */
#define TOUCHERS (2 * GW_LAZY_FAULTERS)

struct toucher {
	pthread_t thread;
	const uint8_t *page;
	uint8_t seen;
	bool done;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;

	t->seen = *(const volatile uint8_t *)t->page;
	__atomic_store_n(&t->done, true, __ATOMIC_RELEASE);
	return NULL;
}

static void start(struct toucher *t, const struct gw_ram *ram, uint64_t page)
{
	*t = (struct toucher){ .page = gw_ram_page(ram, page), .seen = 0xff };
	assert_int_equal(pthread_create(&t->thread, NULL, touch, t), 0);
}

static void await_waiting(struct gw_lazy *l, unsigned count)
{
	uint64_t deadline = gw_now_ns() + TEST_PATIENCE;
	struct gw_lazy_stats st;

	do {
		assert_true(gw_now_ns() < deadline);
		gw_lazy_stats(l, &st);
	} while (st.waiting < count);
}

/* Every thread that may read hangs in a read, and more wait: a page of zeros needs none, and comes. */
static void zeros_come_while_reads_hang(void **state)
{
	struct repo_test *repo = *state;
	uint8_t *memory = calloc(PAGES, GW_PAGE_SIZE);
	struct toucher touchers[TOUCHERS], zero;
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap *snap;
	struct gw_lazy *l;
	struct gw_ram *ram;
	uint64_t deadline;

	for (unsigned page = 0; page < PAGES; page++)
		if (page != ZERO)
			repo_fill_page(memory + page * GW_PAGE_SIZE, 8 * page + 3, 1); /* none of them is zero */
	repo_save(repo->repo, "web", memory, PAGES, NULL);
	assert_int_equal(gw_snap_open(repo->repo, "web", 0, &snap, &err), 0);
	assert_int_equal(gw_ram_new(PAGES * GW_PAGE_SIZE, PAGES * GW_PAGE_SIZE, UINT64_MAX & ~4095ull, &ram, &err), 0);
	assert_int_equal(gw_lazy_new(ram, snap, NULL, &l, &err), 0);
	pthread_mutex_lock(&snap->lock); /* which each read needs */
	for (unsigned i = 0; i < TOUCHERS; i++)
		start(&touchers[i], ram, i * (PAGES / TOUCHERS));
	await_waiting(l, TOUCHERS);
	start(&zero, ram, ZERO);
	deadline = gw_now_ns() + TEST_PATIENCE;
	while (!__atomic_load_n(&zero.done, __ATOMIC_ACQUIRE))
		assert_true(gw_now_ns() < deadline);
	assert_int_equal(zero.seen, 0);
	for (unsigned i = 0; i < TOUCHERS; i++)
		assert_false(__atomic_load_n(&touchers[i].done, __ATOMIC_ACQUIRE));
	pthread_mutex_unlock(&snap->lock);
	pthread_join(zero.thread, NULL);
	for (unsigned i = 0; i < TOUCHERS; i++) {
		pthread_join(touchers[i].thread, NULL);
		assert_int_equal(touchers[i].seen, memory[i * (PAGES / TOUCHERS) * GW_PAGE_SIZE]);
	}
	gw_lazy_free(l);
	gw_snap_free(snap);
	gw_ram_free(ram);
	free(memory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(zeros_come_while_reads_hang, repo_setup, repo_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
