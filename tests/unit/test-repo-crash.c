// SPDX-License-Identifier: Apache-2.0
/* Writers, prunes and copies that are killed at any point: the repository is clean, what was committed is there, and the next attempt succeeds. */
#include "cmocka-all.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "migrate/repo/upkeep.h"
#include "repo-help.h"

#define PAGES 1500ull
#define TRIALS 25

static unsigned seed_now;

/* What the child does until it is killed, over and over. */
static void write_for_ever(const char *url)
{
	struct gw_repo *repo = repo_open_url(url);

	for (unsigned i = 0;; i++) {
		uint8_t *memory = repo_memory(PAGES, 1 + i % 3);

		repo_save(repo, "web", memory, PAGES, NULL);
		free(memory);
	}
}

static void remove_latest(struct gw_repo *repo, const char *name)
{
	struct gw_snap *s;

	if (gw_snap_open(repo, name, 0, &s, NULL) < 0)
		return;
	gw_snap_remove(repo, gw_snap_object(s), NULL);
	gw_snap_free(s);
}

static void prune_for_ever(const char *url)
{
	const struct gw_prune_params params = { .exclusive = true, .waste_percent = 5 };
	struct gw_repo *repo = repo_open_url(url);

	for (unsigned i = 0;; i++) {
		uint8_t *memory = repo_memory(PAGES, 10 + seed_now * 1000 + i);
		struct gw_prune_result result;
		uint8_t *some = calloc(PAGES, GW_PAGE_SIZE);

		for (uint64_t p = i % 40; p < PAGES; p += 40)
			memcpy(some + p * GW_PAGE_SIZE, memory + p * GW_PAGE_SIZE, GW_PAGE_SIZE);
		repo_save(repo, "tmp", memory, PAGES, NULL);
		repo_save(repo, "some", some, PAGES, NULL);
		remove_latest(repo, "tmp");
		gw_repo_prune(repo, &params, &result, NULL);
		free(memory);
		free(some);
	}
}

static void copy_for_ever(const char *url)
{
	struct gw_repo *from = repo_open_url(url), *to;
	struct gw_snap *s;
	char other[128];

	snprintf(other, sizeof(other), "%s-copy", url);
	to = repo_open_url(other);
	if (gw_snap_open(from, "base", 0, &s, NULL) < 0)
		_exit(1);
	for (;;) {
		if (gw_repo_copy(s, to, NULL, NULL, NULL) < 0)
			_exit(1);
		remove_latest(to, "base");
	}
}

/* A delay between nothing and `most` microseconds, early ones more often. */
static void kill_at_random(void (*work)(const char *), const char *url, unsigned trial, unsigned most)
{
	uint64_t x = (trial + 1) * 0x9e3779b97f4a7c15ull ^ gw_now_ns();
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		seed_now = trial;
		work(url);
		_exit(1);
	}
	usleep((unsigned)((x >> 20) % most));
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
}

static int assert_readable(void *self, const char *object, uint64_t size, const struct gw_snap_info *info, const struct gw_error *error)
{
	struct gw_repo *repo = self;
	struct gw_error err = GW_ERROR_INIT;
	uint8_t *found = malloc(PAGES * GW_PAGE_SIZE);
	struct gw_snap *s;

	assert_non_null(info);
	assert_int_equal(gw_snap_open_object(repo, object, &s, &err), 0);
	if (gw_snap_read(s, 0, PAGES, found, &err) < 0)
		fail_msg("%s", err.msg);
	gw_snap_free(s);
	free(found);
	return 0;
}

static void trials(struct repo_test *t, void (*work)(const char *), const char *checked, unsigned most)
{
	uint8_t *memory = repo_memory(PAGES, 7), *fresh = repo_memory(PAGES, 8);

	repo_save(t->repo, "base", memory, PAGES, NULL);
	for (unsigned i = 0; i < TRIALS; i++) {
		struct gw_repo *repo;

		kill_at_random(work, t->url, i, most);
		repo = repo_open_url(checked);
		repo_assert_clean(repo);
		assert_int_equal(gw_snap_list(repo, NULL, assert_readable, repo, NULL), 0);
		gw_repo_free(repo);
		repo_assert_holds(t->repo, "base", 1, memory, PAGES);
	}
	/* Nothing of it is in the way. */
	repo_reopen(t);
	repo_save(t->repo, "fresh", fresh, PAGES, NULL);
	repo_assert_holds(t->repo, "fresh", 0, fresh, PAGES);
	free(memory);
	free(fresh);
}

static void killed_writers(void **state)
{
	struct repo_test *t = *state;

	trials(t, write_for_ever, t->url, 150000);
}

static void killed_prunes(void **state)
{
	struct repo_test *t = *state;

	trials(t, prune_for_ever, t->url, 300000);
}

static void killed_copies(void **state)
{
	struct repo_test *t = *state;
	char other[128];

	snprintf(other, sizeof(other), "%s-copy", t->url);
	repo_init_url(other, 600);
	trials(t, copy_for_ever, other, 150000);
}

/* Some of what it saves it removes again, and saves later once more: pages that prune has marked, has removed, or is about to. */
static void save_and_remove(const char *url)
{
	const uint64_t few = 300, end = gw_now_ns() + 14 * GW_NS_PER_SEC;
	struct gw_repo *repo = repo_open_url(url);

	for (unsigned i = 0; gw_now_ns() < end; i++) {
		uint8_t *memory = repo_memory(few, 1 + i / 10);

		repo_save(repo, "web", memory, few, NULL);
		if (i % 4)
			remove_latest(repo, "web");
		if (i % 30 == 29)
			usleep(1000000);
		free(memory);
	}
	_exit(0);
}

/* Writers and prunes at the same time, through some grace periods: every snapshot that was committed stays whole. */
static void writers_beside_prune(void **state)
{
	struct repo_test *t = *state;
	const struct gw_prune_params params = { .waste_percent = 5 };
	uint64_t removed = 0;
	int status;
	pid_t pid = fork();

	if (pid == 0)
		save_and_remove(t->url);
	while (waitpid(pid, &status, WNOHANG) == 0) {
		struct gw_error err = GW_ERROR_INIT;
		struct gw_prune_result result;

		if (gw_repo_prune(t->repo, &params, &result, &err) < 0)
			fail_msg("%s", err.msg);
		removed += result.removed_packs;
		remove_latest(t->repo, "web");
		usleep(100000);
	}
	assert_int_equal(status, 0);
	assert_true(removed > 0);
	repo_assert_clean(t->repo);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, repo_setup, repo_teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(killed_writers),
		T(killed_prunes),
		T(killed_copies),
		cmocka_unit_test_setup_teardown(writers_beside_prune, repo_setup_hasty, repo_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
