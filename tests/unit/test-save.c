// SPDX-License-Identifier: Apache-2.0
/* A VM without KVM that is saved to a repository: what is stored, who has the VM afterwards, and every way in which it can fail. */
#include "cmocka-all.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "lib/failpoint.h"
#include "lib/util.h"
#include "migrate/failpoints.h"
#include "patience.h"
#include "suspend-help.h"

/* Loads what was last saved, paused, and compares it with the VM as it stands. */
static void assert_saved(struct suspend_test *t)
{
	resume_start(t, 0);
	assert_int_equal(resume_wait(t), GW_LOAD_DONE);
	assert_true(move_vm_equal(&t->vm, &t->copy));
	resume_end(t);
}

static void assert_stayed(struct suspend_test *t, enum gw_save_phase phase)
{
	char names[REPO_MAX_OBJECTS][96];

	assert_int_equal(suspend_wait(t), phase);
	assert_true(move_vm_running(&t->vm));
	assert_int_equal(suspend_journal(t), GW_JOURNAL_OWNER);
	assert_int_equal(gw_journal_last(t->journal)->epoch, 3);
	assert_int_equal(repo_objects(t->repo->repo, "snapshots/", names), 0);
}

/* And nothing stands in the way of the next attempt. */
static void assert_suspends(struct suspend_test *t)
{
	suspend_start(t);
	assert_int_equal(suspend_wait(t), GW_SAVE_DONE);
	assert_false(move_vm_running(&t->vm));
	assert_int_equal(suspend_journal(t), GW_JOURNAL_SUSPENDED);
	assert_int_equal(gw_journal_last(t->journal)->epoch, 3);
	assert_memory_equal(gw_journal_last(t->journal)->move_id, t->saved.snapshot, 16);
	repo_assert_clean(t->repo->repo);
	assert_saved(t);
}

static void suspends_a_vm_that_writes(void **state)
{
	for (int live = 0; live < 2; live++) {
		struct suspend_test t;

		suspend_init(&t, *state, 24 * MIB, 20000);
		t.params.live = live;
		assert_suspends(&t);
		assert_true(live ? t.saved.round >= 2 : t.saved.round == 1);
		assert_int_equal(t.vm.stops, 1);
		assert_int_equal(t.saved.bytes_left, 0);
		assert_true(t.saved.durable_bytes >= t.saved.stored_bytes); /* packs have headers */
		assert_true(t.saved.stopped_us > 0);
		suspend_release(&t);
	}
}

static void a_second_time_stores_what_changed(void **state)
{
	struct suspend_test t;
	uint64_t first;

	suspend_init(&t, *state, 24 * MIB, 0);
	t.params.keep = true;
	suspend_start(&t);
	assert_int_equal(suspend_wait(&t), GW_SAVE_DONE);
	first = t.saved.stored_pages;
	assert_true(first >= 4000);
	for (unsigned i = 0; i < 10; i++)
		memset(gw_ram_page(t.vm.ram, 1 + i * 3), 0x40 + (int)i, 64);
	suspend_start(&t);
	assert_int_equal(suspend_wait(&t), GW_SAVE_DONE);
	assert_int_equal(t.saved.stored_pages, 10);
	assert_int_equal(t.saved.generation, 2);
	assert_int_equal(suspend_journal(&t), GW_JOURNAL_OWNER);
	assert_saved(&t);
	suspend_release(&t);
}

/* Of the one at which device state was saved: the VM goes on at once, and what it then writes is not in it. */
static void a_snapshot_is_of_one_instant(void **state)
{
	struct suspend_test t;
	uint8_t *stood = malloc(16 * MIB);

	suspend_init(&t, *state, 16 * MIB, 50000);
	t.params.keep = true;
	t.vm.saved_ram = stood;
	for (unsigned i = 0; i < 4; i++) {
		unsigned count;
		const struct gw_ram_region *r;

		t.params.live = i != 0;
		suspend_start(&t);
		assert_int_equal(suspend_wait(&t), GW_SAVE_DONE);
		assert_true(move_vm_running(&t.vm));
		assert_int_equal(suspend_journal(&t), GW_JOURNAL_OWNER);
		resume_start(&t, 0);
		assert_int_equal(resume_wait(&t), GW_LOAD_DONE);
		r = gw_ram_regions(t.copy.ram, &count);
		assert_memory_equal(r[0].hva, stood, r[0].size);
		assert_memory_equal(r[1].hva, stood + r[0].size, r[1].size);
		resume_end(&t);
	}
	suspend_release(&t);
	free(stood);
}

static void a_paused_vm_stays_paused(void **state)
{
	struct suspend_test t;

	suspend_init(&t, *state, 8 * MIB, 0);
	assert_suspends(&t);
	assert_int_equal(t.vm.runs, 0);
	suspend_release(&t);
}

static void what_cannot_be_saved_leaves_it_running(void **state)
{
	struct suspend_test t;
	struct repo_test *repo = *state;
	char away[80];

	suspend_init(&t, repo, 8 * MIB, 10000);
	t.vm.fail_save = true;
	suspend_start(&t);
	assert_stayed(&t, GW_SAVE_FAILED);
	t.vm.fail_save = false;
	t.params.url = "file:///nowhere/at/all";
	suspend_start(&t);
	assert_stayed(&t, GW_SAVE_FAILED);
	t.params.url = repo->url;
	t.params.key[5] ^= 1;
	suspend_start(&t);
	assert_stayed(&t, GW_SAVE_FAILED);
	t.params.key[5] ^= 1;
	t.params.name = "no such/name";
	suspend_start(&t);
	assert_stayed(&t, GW_SAVE_FAILED);
	t.params.name = "web";
	/* The storage goes away in the middle. */
	snprintf(away, sizeof(away), "%s/repo", repo->dir);
	for (unsigned ms = 0; ms < 40; ms += 8) {
		char other[80];

		snprintf(other, sizeof(other), "%s/away", repo->dir);
		suspend_start(&t);
		usleep(ms * 1000);
		assert_int_equal(rename(away, other), 0);
		suspend_wait(&t);
		assert_int_equal(rename(other, away), 0);
		if (t.saved.phase == GW_SAVE_DONE)
			break; /* it was faster */
		assert_stayed(&t, GW_SAVE_FAILED);
	}
	if (t.saved.phase != GW_SAVE_DONE)
		assert_suspends(&t);
	suspend_release(&t);
}

/* Cancelled while it is found out what the VM touches: that ends, and the VM runs on. */
static void cancel_while_it_is_watched(void **state)
{
	uint64_t bitmap[8 * MIB / GW_PAGE_SIZE / 64] = { 0 };
	struct suspend_test t;

	suspend_init(&t, *state, 8 * MIB, 2000);
	t.vm.working_set = bitmap;
	t.params.watch_ns = TEST_PATIENCE;
	suspend_start(&t);
	suspend_wait_phase(&t, GW_SAVE_COPY);
	assert_int_equal(gw_save_cancel(t.save), 0);
	assert_int_equal(suspend_wait(&t), GW_SAVE_CANCELLED);
	assert_int_equal(t.vm.watched, 0);
	assert_true(move_vm_running(&t.vm));
	assert_int_equal(t.vm.stops, 0);
	suspend_release(&t);
}

/* Whenever it is cancelled, it ends as one or the other, and the VM and the journal say the same. */
static void cancel_at_any_moment(void **state)
{
	struct suspend_test t;
	unsigned cancelled = 0;

	suspend_init(&t, *state, 24 * MIB, 20000);
	for (unsigned i = 0; i < 40; i++) {
		suspend_start(&t);
		usleep(i * i * 150);
		gw_save_cancel(t.save);
		if (suspend_wait(&t) == GW_SAVE_DONE)
			break;
		cancelled++;
		assert_stayed(&t, GW_SAVE_CANCELLED);
		assert_int_equal(gw_save_cancel(t.save), -EBUSY);
		t.params.live = !t.params.live;
	}
	assert_true(cancelled >= 3);
	if (t.saved.phase == GW_SAVE_DONE) {
		assert_int_equal(suspend_journal(&t), GW_JOURNAL_SUSPENDED);
		assert_saved(&t);
	} else {
		assert_suspends(&t);
	}
	repo_assert_clean(t.repo->repo);
	suspend_release(&t);
}

/* ---- at each step, in a process of its own ---- */

static const char *const steps[] = { GW_FP_SAVE_OPENED, GW_FP_SAVE_ROUND, GW_FP_SAVE_STOPPED, GW_FP_SAVE_STATE, GW_FP_SAVE_COMMITTED, GW_FP_SAVE_SUSPENDED };

/* 0: it failed and the VM runs on; 1: it was suspended; 2: something else. */
static int save_in_child(struct repo_test *repo, const char *step, const char *action)
{
	struct suspend_test t;
	char points[80];
	bool done, right;

	snprintf(points, sizeof(points), "%s=%s", step, action);
	setenv("GODWIT_FAILPOINTS", points, 1);
	if (gw_failpoint_init(NULL) < 0)
		return 2;
	repo_reopen(repo);
	suspend_init(&t, repo, 8 * MIB, 10000);
	suspend_start(&t);
	done = suspend_wait(&t) == GW_SAVE_DONE;
	right = move_vm_running(&t.vm) == !done && suspend_journal(&t) == (done ? GW_JOURNAL_SUSPENDED : GW_JOURNAL_OWNER);
	suspend_release(&t);
	return right ? done : 2;
}

static int run_child(struct repo_test *repo, const char *step, const char *action)
{
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (pid == 0)
		_exit(save_in_child(repo, step, action));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static void an_error_at_any_step(void **state)
{
	char names[REPO_MAX_OBJECTS][96];

	for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
		bool last = !strcmp(steps[i], GW_FP_SAVE_SUSPENDED);
		int status = run_child(*state, steps[i], "error");

		assert_true(WIFEXITED(status));
		assert_int_equal(WEXITSTATUS(status), last ? 1 : 0);
		assert_int_equal(repo_objects(((struct repo_test *)*state)->repo, "snapshots/", names), last ? 1 : 0);
	}
	repo_assert_clean(((struct repo_test *)*state)->repo);
}

/* A VMM that is killed leaves a repository in which a snapshot is whole or not at all, and a journal that says whose the VM is. */
static void killed_at_any_step(void **state)
{
	struct repo_test *repo = *state;
	char names[REPO_MAX_OBJECTS][96], path[128];

	snprintf(path, sizeof(path), "%s/journal", repo->dir);
	for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
		bool committed = i >= 4, last = i == 5;
		struct gw_journal_entry e;
		int status = run_child(repo, steps[i], "kill");

		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		assert_int_equal(gw_journal_read(path, &e, NULL), 0);
		assert_int_equal(e.state, last ? GW_JOURNAL_SUSPENDED : GW_JOURNAL_OWNER);
		repo_reopen(repo);
		assert_int_equal(repo_objects(repo->repo, "snapshots/", names), committed ? i - 3 : 0);
		repo_assert_clean(repo->repo);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(suspends_a_vm_that_writes, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(a_second_time_stores_what_changed, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(a_snapshot_is_of_one_instant, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(a_paused_vm_stays_paused, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(what_cannot_be_saved_leaves_it_running, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(cancel_while_it_is_watched, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(cancel_at_any_moment, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(an_error_at_any_step, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(killed_at_any_step, repo_setup, repo_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
