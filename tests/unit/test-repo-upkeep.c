// SPDX-License-Identifier: Apache-2.0
/* Figures, checks, pruning beside writers and readers, and copies between repositories. */
#include "cmocka-all.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "repo-help.h"

#define PAGES 2000ull
#define GRACE 600u

static struct gw_repo_stats stats(struct gw_repo *repo)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_repo_stats st;

	if (gw_repo_stats(repo, &st, &err) < 0)
		fail_msg("%s", err.msg);
	return st;
}

static void figures(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);
	struct gw_repo_stats st = stats(t->repo);

	assert_int_equal(st.packs + st.snapshots + st.pages + st.garbage_bytes, 0);
	repo_save(t->repo, "web", memory, PAGES, NULL);
	repo_save(t->repo, "db", memory, PAGES, NULL);
	st = stats(t->repo);
	assert_int_equal(st.snapshots, 2);
	assert_int_equal(st.snapshot_bytes, 2 * PAGES * 6 / 8 * GW_PAGE_SIZE);
	assert_int_equal(st.pages, PAGES * 5 / 8 + 1);
	assert_int_equal(st.used_pages, st.pages);
	assert_int_equal(st.indexes, 1);
	assert_int_equal(st.garbage_bytes, 0);
	assert_true(st.pack_bytes > PAGES * 3 / 8 * GW_PAGE_SIZE && st.pack_bytes < PAGES * 5 / 8 * GW_PAGE_SIZE);
	/* A page map costs little: this is for 2000 pages of which a quarter is zero and an eighth the same. */
	assert_true(st.manifest_bytes < 2 * 4096);
	repo_assert_clean(t->repo);
	repo_remove(t->repo, "web", 1);
	repo_remove(t->repo, "db", 1);
	st = stats(t->repo);
	assert_int_equal(st.used_pages, 0);
	assert_int_equal(st.garbage_bytes + st.packs * 32, st.pack_bytes);
	free(memory);
}

static void two_steps_of_pruning(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1), *other = repo_memory(PAGES, 2);
	struct gw_prune_result r;
	struct gw_snap_info info;
	char names[REPO_MAX_OBJECTS][96];

	repo_save(t->repo, "web", memory, PAGES, NULL);
	repo_save(t->repo, "db", other, PAGES, NULL);
	r = repo_prune(t->repo, false);
	assert_int_equal(r.removed_packs + r.marked_packs + r.repacked_packs + r.recent_packs, 0);
	repo_remove(t->repo, "db", 1);
	/* Too young: a writer may be about to refer to them. */
	r = repo_prune(t->repo, false);
	assert_true(r.recent_packs > 0);
	assert_int_equal(r.marked_packs, 0);
	repo_age(t, "packs/", GRACE + 5);
	r = repo_prune(t->repo, false);
	assert_true(r.marked_packs > 0);
	assert_int_equal(r.removed_packs, 0);
	/* Nothing changes before the mark is old enough. */
	assert_int_equal(repo_prune(t->repo, false).removed_packs, 0);
	assert_int_equal(repo_prune(t->repo, false).marked_packs, r.marked_packs);
	/* Who begins now does not refer to marked packs. */
	repo_save(t->repo, "db", other, PAGES, &info);
	assert_true(info.new_pages >= PAGES * 5 / 8 - 10);
	repo_age(t, "marks/", GRACE + 5);
	r = repo_prune(t->repo, false);
	assert_true(r.removed_packs > 0);
	repo_reopen(t);
	repo_assert_clean(t->repo);
	repo_assert_holds(t->repo, "web", 0, memory, PAGES);
	repo_assert_holds(t->repo, "db", 0, other, PAGES);
	assert_int_equal(repo_objects(t->repo, "marks/", names), 0);
	free(memory);
	free(other);
}

/* A writer that had begun before the mark, and has found its pages in what is marked. */
static void a_writer_wins_over_a_mark(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap_writer *w;
	struct gw_snap_info info;

	repo_save(t->repo, "web", memory, PAGES, NULL);
	repo_remove(t->repo, "web", 1);
	repo_age(t, "packs/", GRACE + 5);
	w = repo_begin(t->repo, "web", PAGES, NULL);
	assert_true(repo_prune(t->repo, false).marked_packs > 0);
	assert_int_equal(gw_snap_writer_pages(w, 0, PAGES, memory), 0);
	assert_int_equal(gw_snap_writer_commit(w, &info, &err), 0);
	gw_snap_writer_free(w);
	assert_int_equal(info.new_pages, 0);
	repo_age(t, "marks/", GRACE + 5);
	assert_int_equal(repo_prune(t->repo, false).removed_packs, 0);
	repo_assert_clean(t->repo);
	repo_assert_holds(t->repo, "web", 0, memory, PAGES);
	/* The mark is gone: it can be referred to again. */
	repo_save(t->repo, "web", memory, PAGES, &info);
	assert_int_equal(info.new_pages, 0);
	free(memory);
}

static void a_removed_parent_is_refused(void **state)
{
	struct repo_test *t = *state;
	const struct gw_snap_region region = { 0, PAGES / 2 * GW_PAGE_SIZE }, second = { 1ull << 32, PAGES / 2 * GW_PAGE_SIZE };
	const struct gw_snap_region regions[] = { region, second };
	uint8_t *memory = repo_memory(PAGES, 1);
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap_writer_params p = { .name = "web", .regions = regions, .nregions = 2 };
	struct gw_snap_writer *w;

	repo_save(t->repo, "web", memory, PAGES, NULL);
	assert_int_equal(gw_snap_open(t->repo, "web", 0, &p.parent, &err), 0);
	repo_remove(t->repo, "web", 1);
	repo_age(t, "packs/", GRACE + 5);
	assert_true(repo_prune(t->repo, false).marked_packs > 0);
	assert_int_equal(gw_snap_writer_new(t->repo, &p, &w, &err), -ESTALE);
	gw_snap_free(p.parent);
	free(memory);
}

/* A snapshot that uses little of many packs: they are rewritten, and who has it open finds its pages. */
static void rewriting_packs(void **state, bool exclusive)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1), *some = calloc(PAGES, GW_PAGE_SIZE), *found = malloc(PAGES * GW_PAGE_SIZE);
	struct gw_error err = GW_ERROR_INIT;
	struct gw_prune_result r;
	struct gw_repo_stats before, after;
	struct gw_snap *s, *next;
	struct gw_snap_writer *w;
	struct gw_snap_info info;

	repo_save(t->repo, "web", memory, PAGES, NULL);
	for (uint64_t i = 0; i < PAGES; i += 100)
		memcpy(some + i * GW_PAGE_SIZE, memory + (i + 5) * GW_PAGE_SIZE, GW_PAGE_SIZE);
	repo_save(t->repo, "some", some, PAGES, &info);
	assert_int_equal(info.new_pages, 0);
	assert_int_equal(gw_snap_open(t->repo, "some", 0, &s, &err), 0);
	repo_remove(t->repo, "web", 1);
	before = stats(t->repo);
	if (exclusive) {
		r = repo_prune(t->repo, true);
		assert_true(r.repacked_packs > 0 && r.removed_packs >= r.repacked_packs);
	} else {
		repo_age(t, "packs/", GRACE + 5);
		r = repo_prune(t->repo, false);
		assert_true(r.repacked_packs > 0);
		/* Found in the new packs, while the old are there. */
		repo_save(t->repo, "some", some, PAGES, &info);
		assert_int_equal(info.new_pages, 0);
		repo_assert_clean(t->repo);
		repo_age(t, "marks/", GRACE + 5);
		r = repo_prune(t->repo, false);
		assert_true(r.removed_packs > 0);
		assert_int_equal(r.repacked_packs, 0);
	}
	after = stats(t->repo);
	assert_true(after.pack_bytes < before.pack_bytes / 2);
	repo_assert_clean(t->repo);
	assert_int_equal(gw_snap_read(s, 0, PAGES, found, &err), 0);
	assert_memory_equal(found, some, PAGES * GW_PAGE_SIZE);
	/* Built upon, by a manifest that names packs which are gone. */
	assert_int_equal(gw_snap_open(t->repo, "some", 1, &next, &err), 0);
	w = repo_begin(t->repo, "next", PAGES, next);
	assert_int_equal(gw_snap_writer_keep(w, 0, PAGES), 0);
	assert_int_equal(gw_snap_writer_commit(w, &info, &err), 0);
	gw_snap_writer_free(w);
	gw_snap_free(next);
	gw_snap_free(s);
	repo_reopen(t);
	repo_assert_holds(t->repo, "some", 1, some, PAGES);
	repo_assert_holds(t->repo, "next", 1, some, PAGES);
	repo_assert_clean(t->repo);
	free(memory);
	free(some);
	free(found);
}

static void packs_are_rewritten(void **state)
{
	rewriting_packs(state, false);
}

static void packs_are_rewritten_at_once(void **state)
{
	rewriting_packs(state, true);
}

static void a_writer_that_died(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);
	struct gw_snap_writer *w = repo_begin(t->repo, "web", PAGES, NULL);
	struct gw_prune_result r;

	assert_int_equal(gw_snap_writer_pages(w, 0, PAGES, memory), 0);
	assert_int_equal(gw_snap_writer_flush(w, NULL), 0);
	usleep(300000); /* some packs get there */
	gw_snap_writer_free(w);
	assert_true(stats(t->repo).packs > 0);
	assert_int_equal(stats(t->repo).indexes, 0);
	repo_assert_clean(t->repo);
	r = repo_prune(t->repo, true);
	assert_true(r.removed_packs > 0);
	assert_int_equal(stats(t->repo).packs, 0);
	free(memory);
}

static void many_indexes_are_joined(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(200, 1);
	struct gw_snap_info info;

	for (unsigned i = 0; i < 20; i++) {
		repo_fill_page(memory + 5 * GW_PAGE_SIZE, 5, 1000 + i);
		repo_save(t->repo, "web", memory, 200, NULL);
	}
	assert_int_equal(stats(t->repo).indexes, 20);
	repo_prune(t->repo, false);
	assert_int_equal(stats(t->repo).indexes, 1);
	repo_assert_clean(t->repo);
	repo_save(t->repo, "web", memory, 200, &info);
	assert_int_equal(info.new_pages, 0);
	free(memory);
}

static void copies(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1), *later = repo_memory(PAGES, 1);
	struct gw_upkeep upkeep = { 0 }, stopped = { .stop = true };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap_info info;
	struct gw_repo *to;
	struct gw_snap *s;
	char url[128];
	uint64_t len;

	snprintf(url, sizeof(url), "file://%s/other", t->dir);
	repo_init_url(url, GRACE);
	to = repo_open_url(url);
	repo_save(t->repo, "web", memory, PAGES, NULL);
	repo_fill_page(later + 5 * GW_PAGE_SIZE, 5, 99);
	repo_save(t->repo, "web", later, PAGES, NULL);
	assert_int_equal(gw_snap_open(t->repo, "web", 2, &s, &err), 0);
	assert_int_equal(gw_repo_copy(s, to, &stopped, NULL, &err), -ECANCELED);
	assert_int_equal(gw_repo_copy(s, to, &upkeep, &info, &err), 0);
	assert_int_equal(upkeep.done, upkeep.total);
	assert_int_equal(info.generation, 2);
	assert_memory_equal(info.origin, gw_snap_info(s)->id, 16);
	assert_int_equal(gw_repo_copy(s, to, NULL, &info, &err), 1);
	assert_int_equal(info.generation, 2);
	gw_snap_free(s);
	repo_assert_holds(to, "web", 2, later, PAGES);
	/* An older one comes after it: generations are those of the repository. */
	assert_int_equal(gw_snap_open(t->repo, "web", 1, &s, &err), 0);
	assert_int_equal(gw_repo_copy(s, to, NULL, &info, &err), 0);
	assert_int_equal(info.generation, 3);
	assert_int_equal(info.new_pages, 1);
	gw_snap_free(s);
	repo_assert_holds(to, "web", 3, memory, PAGES);
	/* Back again: known there as what it came from. */
	assert_int_equal(gw_snap_open(to, "web", 3, &s, &err), 0);
	assert_string_equal(gw_snap_info(s)->vm, "web-1");
	assert_string_equal(gw_snap_info(s)->disks[0], "root.qcow2");
	assert_memory_equal(gw_snap_part(s, "state", &len), "registers", 9);
	assert_int_equal(gw_repo_copy(s, t->repo, NULL, &info, &err), 1);
	assert_int_equal(info.generation, 1);
	gw_snap_free(s);
	repo_assert_clean(to);
	gw_repo_free(to);
	free(memory);
	free(later);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, repo_setup, repo_teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(figures),
		T(two_steps_of_pruning),
		T(a_writer_wins_over_a_mark),
		T(a_removed_parent_is_refused),
		T(packs_are_rewritten),
		T(packs_are_rewritten_at_once),
		T(a_writer_that_died),
		T(many_indexes_are_joined),
		T(copies),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
