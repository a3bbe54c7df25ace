// SPDX-License-Identifier: Apache-2.0
/* Saving snapshots and reading them again: contents, sharing between them, threads, cancelling, a disk that is full. */
#include "cmocka-all.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "lib/util.h"
#include "migrate/repo/touch.h"
#include "repo-help.h"

#define PAGES 2000ull

static void a_snapshot_comes_back(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap_info info;
	struct gw_snap *s;
	uint64_t len;

	repo_save(t->repo, "web", memory, PAGES, &info);
	assert_int_equal(info.generation, 1);
	assert_int_equal(info.used, PAGES * 6 / 8);
	repo_reopen(t);
	repo_assert_holds(t->repo, "web", 0, memory, PAGES);
	repo_assert_holds(t->repo, "web", 1, memory, PAGES);
	assert_int_equal(gw_snap_open(t->repo, "web", 2, &s, &err), -ENOENT);
	assert_int_equal(gw_snap_open(t->repo, "other", 0, &s, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "other"));
	assert_int_equal(gw_snap_open(t->repo, "web", 0, &s, &err), 0);
	assert_string_equal(gw_snap_info(s)->name, "web");
	assert_string_equal(gw_snap_info(s)->vm, "web-1");
	assert_string_equal(gw_snap_info(s)->host, "host-a");
	assert_memory_equal(gw_snap_info(s)->vm_id, "0123456789abcdef", 16);
	assert_memory_equal(gw_snap_info(s)->id, info.id, 16);
	assert_int_equal(gw_snap_info(s)->ndisks, 2);
	assert_string_equal(gw_snap_info(s)->disks[1], "nbd://store/data");
	assert_int_equal(gw_snap_info(s)->nregions, 2);
	assert_int_equal(gw_snap_info(s)->regions[1].gpa, 1ull << 32);
	assert_memory_equal(gw_snap_part(s, "state", &len), "registers", 9);
	assert_int_equal(len, 9);
	assert_null(gw_snap_part(s, "none", &len));
	gw_snap_free(s);
	free(memory);
}

static int count_pages(void *self, uint64_t page, uint64_t count, const uint8_t *data)
{
	uint8_t expected[GW_PAGE_SIZE];

	for (uint64_t i = 0; i < count; i++) {
		repo_fill_page(expected, page + i, 1);
		assert_memory_equal(data + i * GW_PAGE_SIZE, expected, GW_PAGE_SIZE);
	}
	*(uint64_t *)self += count;
	return 0;
}

static int stop(void *self, uint64_t page, uint64_t count, const uint8_t *data)
{
	++*(uint64_t *)self;
	return -ENOENT;
}

static void ranges_and_neighbours(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);
	const struct gw_snap_range ranges[] = { { 1990, 10 }, { 3, 1 }, { 0, 2 }, { 500, 800 }, { 2000, 0 } };
	const struct gw_snap_range beyond = { 1999, 2 };
	struct gw_error err = GW_ERROR_INIT;
	uint64_t seen = 0, first, count;
	struct gw_snap *s;

	repo_save(t->repo, "web", memory, PAGES, NULL);
	assert_int_equal(gw_snap_open(t->repo, "web", 0, &s, &err), 0);
	assert_int_equal(gw_snap_fetch(s, ranges, ARRAY_SIZE(ranges), count_pages, &seen, &err), 0);
	/* 1990 to 1999 without 1992 and 1993; 3; none; three quarters of 500 to 1299 */
	assert_int_equal(seen, 8 + 1 + 600);
	assert_int_equal(gw_snap_fetch(s, &beyond, 1, count_pages, &seen, &err), -ERANGE);
	seen = 0;
	assert_int_equal(gw_snap_fetch(s, ranges, ARRAY_SIZE(ranges), stop, &seen, &err), -ENOENT);
	assert_int_equal(seen, 1);
	assert_false(gw_snap_neighbours(s, 8, &first, &count));
	for (uint64_t page = 0; page < PAGES; page++) {
		if (!gw_snap_neighbours(s, page, &first, &count)) {
			assert_true(page % 8 < 2);
			continue;
		}
		assert_true(first <= page && page < first + count && first / 8 == page / 8);
	}
	gw_snap_free(s);
	free(memory);
}

static int first_page(void *self, uint64_t page, uint64_t count, const uint8_t *data)
{
	uint64_t *first = self;

	*first = *first == PAGES ? page : *first;
	return 0;
}

/* Somebody waits for the first page of the first range: it does not wait for what lies before it. */
static void what_is_waited_for_comes_first(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);
	const struct gw_snap_range ranges[] = { { 508, 20 }, { 400, 108 } };
	uint64_t first = PAGES;
	struct gw_snap *s;

	repo_save(t->repo, "web", memory, PAGES, NULL);
	assert_int_equal(gw_snap_open(t->repo, "web", 0, &s, NULL), 0);
	assert_int_equal(gw_snap_fetch(s, ranges, ARRAY_SIZE(ranges), first_page, &first, NULL), 0);
	assert_int_equal(first, 508);
	gw_snap_free(s);
	free(memory);
}

static void pages_are_stored_once(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1), *other = repo_memory(PAGES, 1);
	struct gw_snap_info first, second, third;

	repo_save(t->repo, "web", memory, PAGES, &first);
	/* The pages of 'x' are one. */
	assert_int_equal(first.new_pages, PAGES * 5 / 8 + 1);
	repo_reopen(t);
	repo_save(t->repo, "db", memory, PAGES, &second);
	assert_int_equal(second.new_pages, 0);
	assert_int_equal(second.new_bytes, 0);
	for (uint64_t i = 100; i < 140; i++)
		repo_fill_page(other + i * GW_PAGE_SIZE, 8 * i + 5, 77);
	repo_save(t->repo, "web", other, PAGES, &third);
	assert_int_equal(third.generation, 2);
	assert_int_equal(third.new_pages, 40);
	repo_assert_holds(t->repo, "web", 1, memory, PAGES);
	repo_assert_holds(t->repo, "web", 2, other, PAGES);
	repo_assert_holds(t->repo, "db", 0, memory, PAGES);
	free(memory);
	free(other);
}

static void unchanged_pages_are_kept_by_reference(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap_progress progress;
	struct gw_snap_info info, parent;
	struct gw_snap_writer *w;
	struct gw_snap *s;

	repo_save(t->repo, "web", memory, PAGES, &parent);
	repo_reopen(t);
	assert_int_equal(gw_snap_open(t->repo, "web", 0, &s, &err), 0);
	w = repo_begin(t->repo, "web", PAGES, s);
	assert_int_equal(gw_snap_writer_keep(w, 0, PAGES), 0);
	assert_int_equal(gw_snap_writer_keep(w, 1, PAGES), -ERANGE);
	assert_int_equal(gw_snap_writer_flush(w, &err), 0);
	for (uint64_t i = 300; i < 310; i++) {
		repo_fill_page(memory + i * GW_PAGE_SIZE, i, 5);
		assert_int_equal(gw_snap_writer_pages(w, i, 1, memory + i * GW_PAGE_SIZE), 0);
	}
	gw_snap_writer_progress(w, &progress);
	assert_int_equal(progress.kept, PAGES);
	assert_int_equal(progress.pages, 10);
	assert_int_equal(gw_snap_writer_commit(w, &info, &err), 0);
	gw_snap_writer_free(w);
	gw_snap_free(s);
	assert_memory_equal(info.parent, parent.id, 16);
	repo_assert_holds(t->repo, "web", 2, memory, PAGES);
	free(memory);
}

/* What is given again after a flush counts, zero pages too. */
static void later_pages_count(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1), *later = repo_memory(PAGES, 2);
	struct gw_snap_writer *w = repo_begin(t->repo, "web", PAGES, NULL);
	struct gw_error err = GW_ERROR_INIT;

	memset(later, 0, 100 * GW_PAGE_SIZE);
	assert_int_equal(gw_snap_writer_pages(w, 0, PAGES, memory), 0);
	assert_int_equal(gw_snap_writer_flush(w, &err), 0);
	assert_int_equal(gw_snap_writer_pages(w, 0, PAGES, later), 0);
	assert_int_equal(gw_snap_writer_pages(w, PAGES, 1, later), -ERANGE);
	assert_int_equal(gw_snap_writer_keep(w, 0, 1), -EINVAL);
	assert_int_equal(gw_snap_writer_commit(w, NULL, &err), 0);
	gw_snap_writer_free(w);
	repo_assert_holds(t->repo, "web", 0, later, PAGES);
	free(memory);
	free(later);
}

struct giver {
	struct gw_snap_writer *w;
	const uint8_t *memory;
	uint64_t first;
};

static void *give_pages(void *arg)
{
	struct giver *g = arg;

	for (uint64_t i = g->first; i < PAGES; i += 4)
		assert_int_equal(gw_snap_writer_pages(g->w, i, 1, g->memory + i * GW_PAGE_SIZE), 0);
	return NULL;
}

static void *read_pages(void *arg)
{
	struct giver *g = arg;
	uint64_t seen = 0;

	for (uint64_t i = g->first; i < PAGES; i += 32) {
		const struct gw_snap_range range = { i, GW_MIN(PAGES - i, 8ull) };

		assert_int_equal(gw_snap_fetch((struct gw_snap *)g->w, &range, 1, count_pages, &seen, NULL), 0);
	}
	return NULL;
}

static void in_threads(struct giver *g, void *(*fn)(void *), void *what, const uint8_t *memory)
{
	pthread_t threads[4];

	for (unsigned i = 0; i < 4; i++) {
		g[i] = (struct giver){ what, memory, fn == give_pages ? i : i * 8 };
		assert_int_equal(pthread_create(&threads[i], NULL, fn, &g[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
}

static void several_threads_give_and_take(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);
	struct gw_snap_writer *w = repo_begin(t->repo, "web", PAGES, NULL);
	struct gw_error err = GW_ERROR_INIT;
	struct giver g[4];
	struct gw_snap *s;

	in_threads(g, give_pages, w, memory);
	assert_int_equal(gw_snap_writer_commit(w, NULL, &err), 0);
	gw_snap_writer_free(w);
	repo_assert_holds(t->repo, "web", 0, memory, PAGES);
	assert_int_equal(gw_snap_open(t->repo, "web", 0, &s, &err), 0);
	in_threads(g, read_pages, s, memory);
	gw_snap_free(s);
	free(memory);
}

static void two_writers_at_once(void **state)
{
	struct repo_test *t = *state;
	struct gw_repo *second = repo_open_url(t->url);
	uint8_t *a = repo_memory(PAGES, 1), *b = repo_memory(PAGES, 2);
	struct gw_snap_writer *wa = repo_begin(t->repo, "web", PAGES, NULL), *wb = repo_begin(second, "web", PAGES, NULL);
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap_info ia, ib;

	for (uint64_t i = 0; i < PAGES; i += 100) {
		assert_int_equal(gw_snap_writer_pages(wa, i, 100, a + i * GW_PAGE_SIZE), 0);
		assert_int_equal(gw_snap_writer_pages(wb, i, 100, b + i * GW_PAGE_SIZE), 0);
	}
	assert_int_equal(gw_snap_writer_commit(wb, &ib, &err), 0);
	assert_int_equal(gw_snap_writer_commit(wa, &ia, &err), 0);
	gw_snap_writer_free(wa);
	gw_snap_writer_free(wb);
	gw_repo_free(second);
	assert_int_equal(ib.generation, 1);
	assert_int_equal(ia.generation, 2);
	repo_assert_holds(t->repo, "web", 2, a, PAGES);
	repo_assert_holds(t->repo, "web", 1, b, PAGES);
	free(a);
	free(b);
}

static int refuse(void *self, const char *object, uint64_t size, const struct gw_snap_info *info, const struct gw_error *error)
{
	fail_msg("%s is listed", object);
	return 0;
}

static void nothing_is_seen_without_a_commit(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);
	struct gw_snap_writer *w = repo_begin(t->repo, "web", PAGES, NULL);
	struct gw_error err = GW_ERROR_INIT;

	assert_int_equal(gw_snap_writer_pages(w, 0, PAGES, memory), 0);
	assert_int_equal(gw_snap_list(t->repo, NULL, refuse, NULL, &err), 0);
	gw_snap_writer_cancel(w);
	assert_int_equal(gw_snap_writer_pages(w, 0, PAGES, memory), -ECANCELED);
	assert_int_equal(gw_snap_writer_flush(w, &err), -ECANCELED);
	assert_int_equal(gw_snap_writer_commit(w, NULL, &err), -ECANCELED);
	gw_snap_writer_free(w);
	w = repo_begin(t->repo, "web", PAGES, NULL);
	assert_int_equal(gw_snap_writer_pages(w, 0, PAGES, memory), 0);
	gw_snap_writer_free(w);
	assert_int_equal(gw_snap_list(t->repo, NULL, refuse, NULL, &err), 0);
	free(memory);
}

static int list_one(void *self, const char *object, uint64_t size, const struct gw_snap_info *info, const struct gw_error *error)
{
	char *out = self;

	assert_non_null(info);
	snprintf(out + strlen(out), 100, "%s@%llu ", info->name, (unsigned long long)info->generation);
	return 0;
}

static void listings(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(100, 1);
	struct gw_error err = GW_ERROR_INIT;
	char all[500] = "", web[500] = "";

	repo_save(t->repo, "web", memory, 100, NULL);
	repo_save(t->repo, "db", memory, 100, NULL);
	repo_save(t->repo, "web", memory, 100, NULL);
	assert_int_equal(gw_snap_list(t->repo, "web", list_one, web, &err), 0);
	assert_string_equal(web, "web@1 web@2 ");
	assert_int_equal(gw_snap_list(t->repo, NULL, list_one, all, &err), 0);
	assert_int_equal(strlen(all), strlen("web@1 web@2 db@1 "));
	assert_non_null(strstr(all, "db@1 "));
	assert_int_equal(gw_snap_list(t->repo, "no/name", list_one, all, &err), -EINVAL);
	free(memory);
}

/* A snapshot without a page, and one whose pages all differ from their neighbours. */
static void extremes(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = calloc(PAGES, GW_PAGE_SIZE);
	struct gw_snap_info info;

	repo_save(t->repo, "empty", memory, PAGES, &info);
	assert_int_equal(info.used, 0);
	assert_int_equal(info.new_bytes, 0);
	repo_assert_holds(t->repo, "empty", 0, memory, PAGES);
	repo_save(t->repo, "one", memory, 2, NULL);
	memset(memory, 1, PAGES * GW_PAGE_SIZE);
	repo_save(t->repo, "same", memory, PAGES, &info);
	assert_int_equal(info.new_pages, 1);
	repo_assert_holds(t->repo, "same", 0, memory, PAGES);
	free(memory);
}

/* In a child, since the limit cannot be taken back. What was there before stays whole. */
static void a_full_disk(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1), *more = repo_memory(PAGES, 2);
	int status;
	pid_t pid;

	repo_save(t->repo, "web", memory, PAGES, NULL);
	pid = fork();
	if (pid == 0) {
		struct rlimit limit = { 200000, 200000 };
		struct gw_error err = GW_ERROR_INIT;
		struct gw_snap_writer *w;
		int r;

		signal(SIGXFSZ, SIG_IGN);
		setrlimit(RLIMIT_FSIZE, &limit);
		w = repo_begin(t->repo, "web", PAGES, NULL);
		r = gw_snap_writer_pages(w, 0, PAGES, more);
		if (r == 0)
			r = gw_snap_writer_commit(w, NULL, &err);
		gw_snap_writer_free(w);
		_exit(r == -ENOSPC ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	repo_assert_holds(t->repo, "web", 0, memory, PAGES);
	free(memory);
	free(more);
}

static void bad_parameters(void **state)
{
	struct repo_test *t = *state;
	const struct gw_snap_region odd = { 0, 4097 }, good = { 0, 8192 };
	struct gw_snap_writer_params p = { .name = "web", .regions = &odd, .nregions = 1 };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap_writer *w;

	assert_int_equal(gw_snap_writer_new(t->repo, &p, &w, &err), -EINVAL);
	p.regions = &good;
	p.name = "../web";
	assert_int_equal(gw_snap_writer_new(t->repo, &p, &w, &err), -EINVAL);
	p.name = NULL;
	assert_int_equal(gw_snap_writer_new(t->repo, &p, &w, &err), -EINVAL);
	p.name = "web";
	p.pack_bytes = 1u << 30;
	assert_int_equal(gw_snap_writer_new(t->repo, &p, &w, &err), -EINVAL);
	p.pack_bytes = 0;
	p.nregions = 5;
	assert_int_equal(gw_snap_writer_new(t->repo, &p, &w, &err), -EINVAL);
}

/* A writer must be through before prune may remove what it refers to: half of the four seconds of this repository. */
static void a_late_commit_fails(void **state)
{
	struct repo_test *t = *state;
	struct gw_snap_writer *w = repo_begin(t->repo, "web", PAGES, NULL);
	struct gw_error err = GW_ERROR_INIT;

	usleep(2200000);
	assert_int_equal(gw_snap_writer_commit(w, NULL, &err), -ETIMEDOUT);
	gw_snap_writer_free(w);
	assert_int_equal(gw_snap_list(t->repo, NULL, refuse, NULL, &err), 0);
}

static void the_order_of_touches(void **state)
{
	const struct gw_snap_range ranges[] = { { 5, 3 }, { 1990, 10 }, { 0, 1 }, { 8, 0 } };
	gw_autobuf buf = GW_BUF_INIT;
	struct gw_snap_range *found;
	size_t n;

	assert_int_equal(gw_touch_encode(ranges, ARRAY_SIZE(ranges), &buf), 0);
	assert_int_equal(gw_touch_decode(buf.data, buf.len, 2000, &found, &n), 0);
	assert_int_equal(n, ARRAY_SIZE(ranges));
	assert_memory_equal(found, ranges, sizeof(ranges));
	free(found);
	assert_int_equal(gw_touch_decode(buf.data, buf.len, 1999, &found, &n), -EBADMSG);
	for (size_t len = 0; len < buf.len; len++)
		assert_int_equal(gw_touch_decode(buf.data, len, 2000, &found, &n), -EBADMSG);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, repo_setup, repo_teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(a_snapshot_comes_back),
		T(ranges_and_neighbours),
		T(what_is_waited_for_comes_first),
		T(pages_are_stored_once),
		T(unchanged_pages_are_kept_by_reference),
		T(later_pages_count),
		T(several_threads_give_and_take),
		T(two_writers_at_once),
		T(nothing_is_seen_without_a_commit),
		T(listings),
		T(extremes),
		T(a_full_disk),
		T(bad_parameters),
		cmocka_unit_test(the_order_of_touches),
		cmocka_unit_test_setup_teardown(a_late_commit_fails, repo_setup_hasty, repo_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
