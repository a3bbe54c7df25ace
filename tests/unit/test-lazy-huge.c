// SPDX-License-Identifier: Apache-2.0
/* Memory that comes in huge pages: it is right, whatever is there already, and nobody waits long for it. */
#include "cmocka-all.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/clock.h"
#include "lib/ram/ram.h"
#include "lib/ram/uffd.h"
#include "lib/util.h"
#include "migrate/lazy-internal.h"
#include "patience.h"
#include "repo-help.h"

#define BLOCK ((uint64_t)GW_LAZY_BLOCK_PAGES)
#define PAGES (8 * BLOCK + 3)
#define BYTES(pages) ((pages) * GW_PAGE_SIZE)
#define CAN_MOVE (1ull << 16) /* UFFD_FEATURE_MOVE */

struct lazy_test {
	struct repo_test *repo;
	uint8_t *memory;
	struct gw_snap *snap;
	struct gw_ram *ram;
	struct gw_lazy *l;
	struct gw_lazy_huge *h;
	struct gw_lazy_work work; /* blocks 2 and 3, and a page at either side */
};

static void begin(struct lazy_test *t, void *repo)
{
	struct gw_error err = GW_ERROR_INIT;

	*t = (struct lazy_test){ .repo = repo, .memory = malloc(BYTES(PAGES)) };
	for (uint64_t page = 0; page < PAGES; page++)
		repo_fill_page(t->memory + BYTES(page), 8 * page + 3, 1); /* none is zero */
	repo_save(t->repo->repo, "web", t->memory, PAGES, NULL);
	assert_int_equal(gw_snap_open(t->repo->repo, "web", 0, &t->snap, &err), 0);
	assert_int_equal(gw_ram_new(BYTES(PAGES), BYTES(PAGES), UINT64_MAX & ~4095ull, &t->ram, &err), 0);
	assert_int_equal(gw_lazy_new(t->ram, t->snap, NULL, &t->l, &err), 0);
	assert_int_equal(gw_lazy_huge_new(t->l, &t->h), 0);
	t->work = (struct gw_lazy_work){ .ranges = { { 2 * BLOCK - 1, 2 * BLOCK + 2 } }, .count = 1, .pages = 2 * BLOCK + 2 };
	pthread_mutex_lock(&t->l->lock);
	for (uint64_t page = 2 * BLOCK - 1; page < 4 * BLOCK + 1; page++)
		t->l->claimed[page / 64] |= 1ull << (page % 64);
	pthread_mutex_unlock(&t->l->lock);
	gw_lazy_huge_begin(t->h, &t->work);
}

/* All of it comes and is right: what the test had claimed is given back. */
static void end(struct lazy_test *t)
{
	pthread_mutex_lock(&t->l->lock);
	gw_lazy_unclaim(t->l, &t->work);
	pthread_mutex_unlock(&t->l->lock);
	assert_int_equal(gw_lazy_background(t->l, NULL, 0), 0);
	while (!gw_lazy_wait(t->l, false, gw_now_ns() + TEST_PATIENCE))
		;
	assert_memory_equal(gw_ram_page(t->ram, 0), t->memory, BYTES(PAGES));
	gw_lazy_huge_free(t->h);
	gw_lazy_free(t->l);
	gw_snap_free(t->snap);
	gw_ram_free(t->ram);
	free(t->memory);
}

static int take(struct lazy_test *t, uint64_t page, uint64_t count)
{
	return gw_lazy_huge_take(t->h, page, count, t->memory + BYTES(page));
}

static uint64_t here(struct lazy_test *t)
{
	struct gw_lazy_stats st;

	gw_lazy_stats(t->l, &st);
	return st.here;
}

/* KiB of this memory that are in huge pages, by the kernel (proc_pid_smaps(5)). */
static unsigned long huge_kib(const void *p)
{
	unsigned long start, stop, kib = 0, sum = 0;
	FILE *f = fopen("/proc/self/smaps", "re");
	bool in = false;
	char line[512];

	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &stop) == 2)
			in = (uintptr_t)p < stop && (uintptr_t)p + BYTES(PAGES) > start;
		else if (in && sscanf(line, "AnonHugePages: %lu", &kib) == 1)
			sum += kib;
	}
	fclose(f);
	return sum;
}

static bool kernel_moves(void)
{
	gw_autofd fd = gw_uffd_open(CAN_MOVE);

	return fd >= 0;
}

/* Huge pages for those that ask: what the kernel gives ordinary memory, it gives what is loaded. */
static bool kernel_has_huge_pages(void)
{
	uint8_t *p = mmap(NULL, BYTES(PAGES), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool has;

	assert_true(p != MAP_FAILED);
	gw_ram_advise(p, BYTES(PAGES));
	memset(p, 1, BYTES(PAGES));
	has = huge_kib(p) > 0;
	munmap(p, BYTES(PAGES));
	return has;
}

static void whole_blocks_are_huge(void **state)
{
	struct lazy_test t;

	if (!kernel_moves() || !kernel_has_huge_pages())
		skip();
	begin(&t, *state);
	assert_int_equal(take(&t, 2 * BLOCK - 1, 1), 0);
	assert_int_equal(take(&t, 4 * BLOCK, 1), 0);
	/* In any order, and some twice. */
	assert_int_equal(take(&t, 2 * BLOCK + 16, BLOCK - 16), 1);
	assert_int_equal(take(&t, 3 * BLOCK, BLOCK - 1), 1);
	assert_int_equal(take(&t, 2 * BLOCK + 16, 16), 1);
	assert_int_equal(here(&t), 0);
	assert_int_equal(take(&t, 2 * BLOCK, 16), 1);
	assert_int_equal(here(&t), BLOCK);
	assert_true(huge_kib(gw_ram_page(t.ram, 0)) == 2048);
	assert_memory_equal(gw_ram_page(t.ram, 2 * BLOCK), t.memory + BYTES(2 * BLOCK), BYTES(BLOCK));
	assert_int_equal(take(&t, 4 * BLOCK - 1, 1), 1);
	assert_true(huge_kib(gw_ram_page(t.ram, 0)) == 4096);
	/* They are there, and no block any more. */
	assert_int_equal(take(&t, 2 * BLOCK, 1), 0);
	end(&t);
}

/* Without anybody who waits the background brings them so. */
static void the_background_brings_blocks(void **state)
{
	struct lazy_test t;

	if (!kernel_moves() || !kernel_has_huge_pages())
		skip();
	begin(&t, *state);
	pthread_mutex_lock(&t.l->lock);
	gw_lazy_unclaim(t.l, &t.work);
	t.l->stride = GW_LAZY_PAGES; /* as after a while */
	pthread_mutex_unlock(&t.l->lock);
	assert_int_equal(gw_lazy_background(t.l, NULL, 0), 0);
	while (!gw_lazy_wait(t.l, false, gw_now_ns() + TEST_PATIENCE))
		;
	assert_true(huge_kib(gw_ram_page(t.ram, 0)) >= 2048);
	end(&t);
}

/* What the background takes ends with a block, when it has whole ones: the next begins with one. */
static void what_is_fetched_ends_with_a_block(void **state)
{
	struct lazy_test t;
	struct gw_lazy l;
	struct gw_lazy_work w;

	begin(&t, *state);
	l = (struct gw_lazy){ .background = true, .ram = t.ram, .snap = t.snap, .stride = GW_LAZY_PAGES, .cursor = 70 };
	l.claimed = calloc(gw_ram_bitmap_words(t.ram), sizeof(uint64_t));
	assert_true(gw_lazy_next(&l, GW_LAZY_FOR_NOBODY, &w));
	assert_true(w.count == 1 && w.ranges[0].page == 70 && w.ranges[0].count == 2 * BLOCK - 70 && w.pages == w.ranges[0].count);
	assert_true(gw_lazy_next(&l, GW_LAZY_FOR_NOBODY, &w));
	assert_true(w.count == 1 && w.ranges[0].page == 2 * BLOCK && w.ranges[0].count == 2 * BLOCK);
	/* None whole: as much as was asked for. */
	l.stride = BLOCK / 2;
	l.cursor += 100;
	assert_true(gw_lazy_next(&l, GW_LAZY_FOR_NOBODY, &w));
	assert_true(w.count == 1 && w.ranges[0].page == 4 * BLOCK + 100 && w.ranges[0].count == BLOCK / 2);
	free(l.claimed);
	end(&t);
}

/* A page of it is there already, which the guest has written to: it stays, and the rest comes. */
static void what_is_there_stays(void **state)
{
	uint8_t *touched;
	struct lazy_test t;

	begin(&t, *state);
	assert_int_equal(gw_lazy_place(t.l, 2 * BLOCK + 100, 1, t.memory + BYTES(2 * BLOCK + 100)), 0);
	touched = gw_ram_page(t.ram, 2 * BLOCK + 100);
	touched[0] ^= 1;
	assert_int_equal(take(&t, 2 * BLOCK, BLOCK), 1);
	assert_int_equal(here(&t), BLOCK);
	touched[0] ^= 1;
	assert_memory_equal(gw_ram_page(t.ram, 2 * BLOCK), t.memory + BYTES(2 * BLOCK), BYTES(BLOCK));
	end(&t);
}

/* Memory of another kind, as on a kernel that cannot move: it is copied. */
static void what_cannot_be_moved_is_copied(void **state)
{
	struct lazy_test t;

	begin(&t, *state);
	if (mlock2(gw_ram_page(t.ram, 2 * BLOCK), BYTES(BLOCK), MLOCK_ONFAULT) < 0)
		skip();
	assert_int_equal(take(&t, 2 * BLOCK, BLOCK), 1);
	assert_int_equal(here(&t), BLOCK);
	assert_memory_equal(gw_ram_page(t.ram, 2 * BLOCK), t.memory + BYTES(2 * BLOCK), BYTES(BLOCK));
	/* Nor is it tried again, from the next fetch on. */
	gw_lazy_huge_begin(t.h, &t.work);
	assert_int_equal(take(&t, 3 * BLOCK, 1), 0);
	munlock(gw_ram_page(t.ram, 2 * BLOCK), BYTES(BLOCK));
	end(&t);
}

/* The rest of a block is damaged, or the repository is gone: what had come is there. */
static void what_came_is_placed(void **state)
{
	struct lazy_test t;

	begin(&t, *state);
	assert_int_equal(take(&t, 2 * BLOCK, 100), 1);
	assert_int_equal(take(&t, 2 * BLOCK + 200, 16), 1);
	assert_int_equal(take(&t, 3 * BLOCK, 1), 1);
	assert_int_equal(here(&t), 0);
	assert_int_equal(gw_lazy_huge_end(t.h), 0);
	assert_int_equal(here(&t), 117);
	assert_memory_equal(gw_ram_page(t.ram, 2 * BLOCK), t.memory + BYTES(2 * BLOCK), BYTES(100));
	end(&t);
}

struct waiter {
	const volatile uint8_t *p;
	_Atomic bool through;
};

static void *touch(void *arg)
{
	struct waiter *w = arg;

	(void)*w->p;
	w->through = true;
	return NULL;
}

/* The rest of the block is long in coming: who waits for a page that has come goes on. */
static void nobody_waits_for_the_rest(void **state)
{
	struct lazy_test t;
	struct waiter w = { .through = false };
	uint64_t deadline = gw_now_ns() + TEST_PATIENCE;
	pthread_t thread;
	int r = 1;

	begin(&t, *state);
	w.p = gw_ram_page(t.ram, 2 * BLOCK + 7);
	assert_int_equal(pthread_create(&thread, NULL, touch, &w), 0);
	while (!w.through && gw_now_ns() < deadline) {
		r = take(&t, 2 * BLOCK, 16);
		assert_in_range(r, 0, 1);
	}
	assert_true(w.through);
	pthread_join(thread, NULL);
	/* Given up: what comes is placed as it comes, and what had come is there. */
	assert_int_equal(take(&t, 2 * BLOCK + 16, 16), 0);
	assert_int_equal(here(&t), 16);
	end(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(whole_blocks_are_huge, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(the_background_brings_blocks, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(what_is_fetched_ends_with_a_block, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(what_is_there_stays, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(what_cannot_be_moved_is_copied, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(what_came_is_placed, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(nobody_waits_for_the_rest, repo_setup, repo_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
