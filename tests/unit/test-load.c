// SPDX-License-Identifier: Apache-2.0
/* A VM without KVM that comes from a snapshot while it runs already: every byte is right or is waited for. */
#include "cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "lib/clock.h"
#include "patience.h"
#include "lib/util.h"
#include "migrate/lazy-internal.h"
#include "migrate/repo/blob.h"
#include "migrate/repo/touch.h"
#include "suspend-help.h"

static void suspend(struct suspend_test *t, struct repo_test *repo, uint64_t size)
{
	suspend_init(t, repo, size, 5000);
	suspend_start(t);
	assert_int_equal(suspend_wait(t), GW_SAVE_DONE);
}

static void runs_while_its_memory_comes(void **state)
{
	struct suspend_test t;

	suspend(&t, *state, 64 * MIB);
	for (unsigned i = 0; i < 4; i++) {
		resume_start(&t, 200000);
		assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
		assert_int_equal(gw_journal_last(t.copy_journal)->state, GW_JOURNAL_OWNER);
		assert_int_equal(gw_journal_last(t.copy_journal)->epoch, 4);
		assert_true(t.copy.announced);
		assert_int_equal(t.copy.renewed, 1);
		assert_int_equal(t.loaded.bytes_here, t.loaded.bytes);
		/* Each further one compares what the original has done since as well. */
		resume_assert_equal(&t);
		resume_end(&t);
		if (i < 3) {
			move_vm_run(&t.vm);
			suspend_start(&t);
			assert_int_equal(suspend_wait(&t), GW_SAVE_DONE);
		}
	}
	suspend_release(&t);
}

static void who_goes_on_alone_is_not_told(void **state)
{
	struct suspend_test t;

	suspend(&t, *state, 16 * MIB);
	t.exclusive = true;
	resume_start(&t, 200000);
	assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
	assert_int_equal(t.copy.renewed, 0);
	resume_assert_equal(&t);
	resume_end(&t);
	suspend_release(&t);
}

static void a_paused_vm_comes_paused(void **state)
{
	struct suspend_test t;

	suspend(&t, *state, 16 * MIB);
	resume_start(&t, 0);
	assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
	assert_int_equal(t.copy.runs, 0);
	assert_false(t.copy.announced);
	assert_true(move_vm_equal(&t.vm, &t.copy));
	resume_end(&t);
	suspend_release(&t);
}

static void move_packs(struct repo_test *repo, const char *from, const char *to)
{
	char a[96], b[96];

	snprintf(a, sizeof(a), "%s/repo/%s", repo->dir, from);
	snprintf(b, sizeof(b), "%s/repo/%s", repo->dir, to);
	assert_int_equal(rename(a, b), 0);
}

/* Returns when the guest waits for a page, however late it got the processor: until then there is none to be had. */
static void resume_start_touching(struct suspend_test *t, uint64_t rate)
{
	move_packs(t->repo, "packs", "gone");
	resume_start(t, rate);
	resume_wait_phase(t, GW_LOAD_STALL);
	move_packs(t->repo, "gone", "packs");
}

/* What was waited for is remembered, goes with the next snapshot, and comes first the time after. */
static void the_order_of_touches_goes_along(void **state)
{
	struct suspend_test t;
	gw_autobuf touched = GW_BUF_INIT;
	struct gw_snap_range *order;
	struct gw_snap *snap;
	uint64_t len;
	size_t count;

	suspend(&t, *state, 32 * MIB);
	resume_start_touching(&t, 200000);
	assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
	assert_true(t.loaded.faults > 0);
	assert_int_equal(gw_load_touched(t.load, &touched), 0);
	resume_end(&t);
	t.params.touch = touched.data;
	t.params.touch_len = touched.len;
	suspend_start(&t);
	assert_int_equal(suspend_wait(&t), GW_SAVE_DONE);
	assert_int_equal(gw_snap_open(t.repo->repo, "web", 2, &snap, NULL), 0);
	assert_non_null(gw_snap_part(snap, GW_TOUCH_PART, &len));
	assert_int_equal(gw_touch_decode(gw_snap_part(snap, GW_TOUCH_PART, &len), len, 8192, &order, &count), 0);
	assert_true(count > 0);
	free(order);
	gw_snap_free(snap);
	resume_start(&t, 200000);
	assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
	resume_assert_equal(&t);
	resume_end(&t);
	suspend_release(&t);
}

/* The VM stands still while what it waits for is not there, and goes on. */
static void the_repository_goes_away_and_comes_back(void **state)
{
	struct suspend_test t;
	unsigned stops;

	suspend(&t, *state, 64 * MIB);
	move_packs(*state, "packs", "gone");
	resume_start(&t, 200000);
	resume_wait_phase(&t, GW_LOAD_STALL);
	assert_non_null(strstr(t.loaded.message, "packs/"));
	/* To stop it waits for the page that its guest waits for, too. */
	move_packs(*state, "gone", "packs");
	assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
	stops = t.copy.stops;
	assert_true(stops >= 1);
	assert_true(move_vm_running(&t.copy));
	resume_assert_equal(&t);
	resume_end(&t);
	suspend_release(&t);
}

/* It was seen to touch every 23rd page: each on its own among others. The bitmap lives as long as the VM. */
static void suspend_with_working_set(struct suspend_test *t, struct repo_test *repo, uint64_t size, uint64_t rate)
{
	static uint64_t bitmap[32 * MIB / GW_PAGE_SIZE / 64];

	suspend_init(t, repo, size, rate);
	memset(bitmap, 0, sizeof(bitmap));
	for (uint64_t page = 1; page < gw_ram_pages(t->vm.ram); page += 23)
		bitmap[page / 64] |= 1ull << (page % 64);
	t->vm.working_set = bitmap;
	suspend_start(t);
	assert_int_equal(suspend_wait(t), GW_SAVE_DONE);
}

/* Pages of the working set, those that have content, and in how many blobs they lie. */
static size_t count_working_set(struct suspend_test *t, const struct gw_snap *snap, unsigned *content, unsigned *blobs)
{
	uint64_t len, near = UINT64_MAX;
	struct gw_snap_range *ranges;
	size_t n;

	*content = *blobs = 0;
	assert_non_null(gw_snap_part(snap, GW_SAVE_WORKING_SET, &len));
	assert_int_equal(gw_touch_decode(gw_snap_part(snap, GW_SAVE_WORKING_SET, &len), len, gw_ram_pages(t->vm.ram), &ranges, &n), 0);
	for (size_t i = 0; i < n; i++) {
		const struct gw_snap_run *run = gw_snap_run_at(snap, ranges[i].page);

		assert_int_equal(ranges[i].page % 23, 1);
		assert_int_equal(ranges[i].count, 1);
		if (!run || run->page > ranges[i].page)
			continue;
		(*content)++;
		*blobs += (run->slot + ranges[i].page - run->page) / GW_BLOB_PAGES != near;
		near = (run->slot + ranges[i].page - run->page) / GW_BLOB_PAGES;
	}
	free(ranges);
	return n;
}

/* What the VM touched while it was saved lies together, and is here, and known to be, before it runs anew. */
static void the_working_set_comes_first(void **state)
{
	struct suspend_test t;
	struct gw_snap *snap;
	unsigned content, blobs;
	size_t pages;

	suspend_with_working_set(&t, *state, 32 * MIB, 50);
	assert_int_equal(t.vm.watched, 0);
	assert_int_equal(gw_snap_open(t.repo->repo, "web", 1, &snap, NULL), 0);
	pages = count_working_set(&t, snap, &content, &blobs);
	assert_true(pages > content && content > 100);
	/* But for those that were written once more while the rest was copied. */
	assert_in_range(blobs, content / GW_BLOB_PAGES, content / 4);
	gw_snap_free(snap);
	t.start_ns = TEST_PATIENCE;
	resume_start(&t, 200000);
	assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
	assert_int_equal(t.copy.mapped, pages);
	assert_true(t.copy.mapped_right);
	resume_assert_equal(&t);
	resume_end(&t);
	suspend_release(&t);
}

/* It cannot be read: the VM is here all the same, and has it when the repository is back. */
static void the_working_set_cannot_be_read(void **state)
{
	struct suspend_test t;

	suspend_with_working_set(&t, *state, 16 * MIB, 5000);
	move_packs(*state, "packs", "gone");
	resume_start(&t, 200000);
	resume_wait_phase(&t, GW_LOAD_STALL);
	move_packs(*state, "gone", "packs");
	assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
	resume_assert_equal(&t);
	resume_end(&t);
	suspend_release(&t);
}

/* The VM is here and is told of, though one of its devices waits for memory that cannot be read before it runs. */
static void a_device_waits_before_it_runs(void **state)
{
	struct suspend_test t;

	suspend(&t, *state, 16 * MIB);
	move_packs(*state, "packs", "gone");
	t.touches_to_run = true;
	resume_start(&t, 200000);
	resume_wait_phase(&t, GW_LOAD_STALL);
	assert_int_equal(gw_journal_last(t.copy_journal)->state, GW_JOURNAL_OWNER);
	assert_false(move_vm_running(&t.copy));
	move_packs(*state, "gone", "packs");
	assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
	assert_true(move_vm_running(&t.copy));
	resume_assert_equal(&t);
	resume_end(&t);
	suspend_release(&t);
}

static void pause_and_wait(struct suspend_test *t, bool pause)
{
	uint64_t deadline = gw_now_ns() + TEST_PATIENCE;

	assert_int_equal(gw_load_pause(t->load, pause), 0);
	while (gw_load_paused(t->load) != pause || (!pause && !move_vm_running(&t->copy))) {
		assert_true(gw_now_ns() < deadline);
		usleep(1000);
	}
}

static uint64_t writes_of(struct move_vm *vm)
{
	uint64_t n;

	pthread_mutex_lock(&vm->lock);
	n = vm->writes;
	pthread_mutex_unlock(&vm->lock);
	return n;
}

/* Its memory goes on to come while it stands still by request, and when all is here it still does. */
static void paused_while_its_memory_comes(void **state)
{
	struct suspend_test t;

	suspend(&t, *state, 32 * MIB);
	/* Touches nothing: so it can be stopped while nothing can be read. */
	move_packs(*state, "packs", "gone");
	resume_start(&t, 0);
	resume_wait_phase(&t, GW_LOAD_FETCH);
	assert_true(gw_load_paused(t.load));
	pause_and_wait(&t, false);
	pause_and_wait(&t, true);
	assert_false(move_vm_running(&t.copy));
	move_packs(*state, "gone", "packs");
	assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
	assert_false(move_vm_running(&t.copy));
	/* When it ran, which was once; told after that by the engine's thread, which has ended. */
	assert_true(t.copy.announced);
	/* Now it is its owner's. */
	assert_int_equal(gw_load_pause(t.load, false), -ESHUTDOWN);
	assert_true(gw_load_paused(t.load));
	assert_true(move_vm_equal(&t.vm, &t.copy));
	move_vm_run(&t.copy);
	assert_false(gw_load_paused(t.load));
	move_vm_stop(&t.copy);
	resume_end(&t);
	suspend_release(&t);
}

/* It stands still for two reasons, and runs when there is neither: each may end first. */
static void paused_while_it_waits_for_what_cannot_be_read(void **state)
{
	struct suspend_test t;
	uint64_t writes;

	suspend(&t, *state, 64 * MIB);
	for (unsigned unpaused_first = 0; unpaused_first < 2; unpaused_first++) {
		move_packs(*state, "packs", "gone");
		resume_start(&t, 200000);
		resume_wait_phase(&t, GW_LOAD_STALL);
		assert_false(gw_load_paused(t.load));
		/* Done at once, though the engine's thread waits for the page that the guest waits for. */
		pause_and_wait(&t, true);
		if (unpaused_first) {
			assert_int_equal(gw_load_pause(t.load, false), 0);
			assert_false(gw_load_paused(t.load));
		}
		move_packs(*state, "gone", "packs");
		if (!unpaused_first) {
			assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
			assert_false(move_vm_running(&t.copy));
			writes = writes_of(&t.copy);
			assert_int_equal(gw_load_pause(t.load, false), -ESHUTDOWN);
			assert_true(gw_load_paused(t.load));
			assert_int_equal(writes_of(&t.copy), writes);
			move_vm_run(&t.copy);
		} else {
			assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
		}
		assert_true(move_vm_running(&t.copy));
		if (unpaused_first)
			resume_assert_equal(&t);
		resume_end(&t);
	}
	suspend_release(&t);
}

/* Again and again, while its guest writes: what was wished last is what is at the end. */
static void paused_and_unpaused_all_the_time(void **state)
{
	struct suspend_test t;

	suspend(&t, *state, 64 * MIB);
	for (unsigned last = 0; last < 2; last++) {
		int r = 0;

		resume_start(&t, 200000);
		resume_wait_phase(&t, GW_LOAD_FETCH);
		for (unsigned i = 0; r == 0 && i < 2000; i++) {
			r = gw_load_pause(t.load, i % 2 == 0);
			usleep(i % 7 * 50);
		}
		if (r == 0)
			r = gw_load_pause(t.load, last);
		assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
		if (r == 0)
			assert_int_equal(move_vm_running(&t.copy), !last);
		if (!last)
			resume_assert_equal(&t);
		resume_end(&t);
	}
	suspend_release(&t);
}

/* Flips a bit in the middle of each pack. */
static void damage(struct repo_test *repo)
{
	char names[REPO_MAX_OBJECTS][96];
	size_t n = repo_objects(repo->repo, "packs/", names);

	for (size_t i = 0; i < n; i++) {
		gw_autofree char *path = NULL;
		gw_autofd fd = asprintf(&path, "%s/repo/%s", repo->dir, names[i]) > 0 ? open(path, O_RDWR) : -1;
		uint8_t byte;

		assert_true(fd >= 0 && pread(fd, &byte, 1, 5000) == 1);
		byte ^= 4;
		assert_int_equal(pwrite(fd, &byte, 1, 5000), 1);
	}
}

/* No wrong byte gets into a page: who touches it waits, until somebody brings the right pack back. */
static void damaged_pages_are_waited_for(void **state)
{
	struct suspend_test t;

	suspend(&t, *state, 16 * MIB);
	damage(*state);
	resume_start(&t, 200000);
	resume_wait_phase(&t, GW_LOAD_STALL);
	assert_non_null(strstr(t.loaded.message, "damaged"));
	damage(*state);
	assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
	resume_assert_equal(&t);
	resume_end(&t);
	suspend_release(&t);
}

static void what_does_not_fit_is_refused(void **state)
{
	struct suspend_test t;

	suspend(&t, *state, 8 * MIB);
	t.saved.snapshot[3] ^= 1;
	resume_start(&t, 1000);
	assert_int_equal(resume_wait(&t), GW_LOAD_FAILED);
	assert_non_null(strstr(t.loaded.message, "another one"));
	t.saved.snapshot[3] ^= 1;
	assert_int_equal(t.copy.runs, 0);
	assert_int_equal(gw_journal_last(t.copy_journal)->state, GW_JOURNAL_NONE);
	resume_end(&t);
	/* The VM that is prepared for it has other RAM. */
	move_vm_release(&t.vm);
	move_vm_init(&t.vm, 6 * MIB, 3 * MIB);
	resume_start(&t, 1000);
	assert_int_equal(resume_wait(&t), GW_LOAD_FAILED);
	assert_non_null(strstr(t.loaded.message, "8 MiB"));
	resume_end(&t);
	suspend_release(&t);
}

static void cancel_before_it_is_here(void **state)
{
	struct suspend_test t;
	unsigned cancelled = 0;

	suspend_with_working_set(&t, *state, 16 * MIB, 5000);
	for (unsigned i = 0; i < 30; i++) {
		enum gw_load_phase phase;
		int r;

		resume_start(&t, 1000);
		usleep(i * 100);
		r = gw_load_cancel(t.load);
		phase = resume_wait(&t);
		assert_int_equal(phase, r == 0 ? GW_LOAD_CANCELLED : GW_LOAD_DONE);
		assert_int_equal(t.copy.runs, r == 0 ? 0 : 1);
		cancelled += r == 0;
		resume_end(&t);
	}
	assert_true(cancelled > 0);
	suspend_release(&t);
}

/* Slow decryption: little beside what is waited for. A long way: much. */
static void what_comes_beside_follows_the_pace(void **state)
{
	struct gw_lazy l = { .window = GW_LAZY_MAX_WINDOW, .patience = 1 };

	gw_lazy_adapt(&l, 5, 20);
	assert_int_equal(l.window, 32);
	gw_lazy_adapt(&l, 6, 9);
	assert_int_equal(l.window, 32);
	gw_lazy_adapt(&l, 6, 10);
	assert_int_equal(l.window, GW_BLOB_PAGES);
	for (unsigned i = 0; i < 5; i++)
		gw_lazy_adapt(&l, 5, 20);
	assert_int_equal(l.window, GW_BLOB_PAGES);
	gw_lazy_adapt(&l, 20, 26);
	assert_int_equal(l.calm, 0);
	/* It was often too much: more is tried late. */
	for (unsigned i = 0; i < 63; i++)
		gw_lazy_adapt(&l, 20, 21);
	assert_int_equal(l.window, GW_BLOB_PAGES);
	for (unsigned i = 0; i < 65; i++)
		gw_lazy_adapt(&l, 20, 21);
	assert_int_equal(l.window, GW_LAZY_MAX_WINDOW);
}

/* Who faults may wait for what is read for nobody: that is little after a fault elsewhere, and more and more while there is none or it follows close behind. */
static void what_nobody_waits_for_gives_way(void **state)
{
	struct gw_lazy l = { .background = true, .patience = 1, .window = GW_BLOB_PAGES, .stride = GW_LAZY_MIN_PAGES };
	gw_autofree uint64_t *here = NULL, *claimed = NULL, *wanted = NULL;
	struct suspend_test t;
	struct gw_lazy_work w;
	struct gw_snap *snap;
	uint64_t waited;
	size_t words;

	suspend(&t, *state, 64 * MIB);
	assert_int_equal(gw_snap_open(t.repo->repo, "web", 1, &snap, NULL), 0);
	l.snap = snap;
	l.ram = t.vm.ram;
	words = gw_ram_bitmap_words(l.ram);
	l.here = here = calloc(words, sizeof(uint64_t));
	l.claimed = claimed = calloc(words, sizeof(uint64_t));
	l.wanted = wanted = calloc(words, sizeof(uint64_t));
	for (uint64_t pages = GW_LAZY_MIN_PAGES; pages <= 4 * GW_LAZY_MIN_PAGES; pages *= 2) {
		assert_true(gw_lazy_next(&l, GW_LAZY_FOR_NOBODY, &w));
		assert_in_range(w.pages, 1, pages);
	}
	assert_int_equal(gw_lazy_want(&l, w.ranges[0].page), 0);
	assert_int_equal(l.stride, 8 * GW_LAZY_MIN_PAGES);
	assert_false(gw_lazy_next(&l, GW_LAZY_FOR_FAULTS, &w));
	waited = gw_snap_run_at(snap, gw_ram_pages(l.ram) / 2)->page;
	assert_int_equal(gw_lazy_want(&l, waited), 0);
	assert_true(gw_lazy_next(&l, GW_LAZY_FOR_NOBODY, &w));
	assert_in_range(w.pages, 1, GW_LAZY_MIN_PAGES);
	assert_false(w.fault);
	assert_true(gw_lazy_next(&l, GW_LAZY_FOR_FAULTS, &w));
	assert_true(w.fault && w.ranges[0].page == waited);
	free(l.faults.pages);
	free(l.touched);
	gw_snap_free(snap);
	suspend_release(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(runs_while_its_memory_comes, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(who_goes_on_alone_is_not_told, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(a_paused_vm_comes_paused, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(the_order_of_touches_goes_along, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(the_repository_goes_away_and_comes_back, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(the_working_set_comes_first, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(the_working_set_cannot_be_read, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(a_device_waits_before_it_runs, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(paused_while_its_memory_comes, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(paused_while_it_waits_for_what_cannot_be_read, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(paused_and_unpaused_all_the_time, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(damaged_pages_are_waited_for, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(what_does_not_fit_is_refused, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(cancel_before_it_is_here, repo_setup, repo_teardown),
		cmocka_unit_test(what_comes_beside_follows_the_pace),
		cmocka_unit_test_setup_teardown(what_nobody_waits_for_gives_way, repo_setup, repo_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
