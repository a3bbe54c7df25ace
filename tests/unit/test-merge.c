// SPDX-License-Identifier: Apache-2.0
/* The merger on real memory: what it exchanges, what it leaves alone, and that no write is ever lost. */
#include "cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "ksm/merge.h"
#include "lib/util.h"
#include "merge-race.h"

#define PAGES 1024u

struct bed {
	struct gw_ram *ram;
	struct gw_pagemap *map;
	struct gw_written *written;
	struct gw_overlays *overlays;
	struct gw_merger *merger;
	uint32_t chunk; /* 64 pages: page i is filled with i + 1 */
};

static int make_chunk(unsigned seals)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint8_t page[GW_PAGE_SIZE];

	for (unsigned i = 0; i < 64; i++) {
		memset(page, (int)i + 1, sizeof(page));
		assert_int_equal(pwrite(fd, page, sizeof(page), (off_t)i << GW_PAGE_SHIFT), sizeof(page));
	}
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static int set_up(void **state)
{
	struct gw_merger_limits limits = { .mappings = 100 };
	struct gw_error err = GW_ERROR_INIT;
	struct bed *b = calloc(1, sizeof(*b));
	int r;

	assert_int_equal(gw_ram_new(PAGES << GW_PAGE_SHIFT, 512 << GW_PAGE_SHIFT, 1ull << 32, &b->ram, &err), 0);
	/* A huge page would be touched whole. */
	for (uint64_t i = 0; i < PAGES; i += 512)
		madvise(gw_ram_page(b->ram, i), 512 << GW_PAGE_SHIFT, MADV_NOHUGEPAGE);
	assert_int_equal(gw_pagemap_new(&b->map), 0);
	assert_int_equal(gw_written_new(b->ram, b->map, false, &b->written), 0);
	assert_int_equal(gw_overlays_new(PAGES, &b->overlays), 0);
	r = gw_overlays_add(b->overlays, 7, make_chunk(F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK), 64);
	assert_true(r >= 0);
	b->chunk = (uint32_t)r;
	*state = b;
	r = gw_merger_new(b->ram, b->map, b->written, b->overlays, &limits, &b->merger, &err);
	if (r == -EPERM || r == -ENOSYS)
		print_message("no userfaultfd here: %s\n", gw_error_text(&err));
	return 0;
}

static int tear_down(void **state)
{
	struct bed *b = *state;

	gw_merger_free(b->merger);
	gw_overlays_free(b->overlays);
	gw_written_free(b->written);
	gw_pagemap_free(b->map);
	gw_ram_free(b->ram);
	free(b);
	return 0;
}

static struct bed *bed(void **state)
{
	struct bed *b = *state;

	if (!b->merger)
		skip();
	return b;
}

static void fill(struct bed *b, uint64_t page, int byte)
{
	memset(gw_ram_page(b->ram, page), byte, GW_PAGE_SIZE);
}

static bool holds(struct bed *b, uint64_t page, int byte)
{
	const uint8_t *p = gw_ram_page(b->ram, page);

	for (unsigned i = 0; i < GW_PAGE_SIZE; i++) {
		if (p[i] != byte)
			return false;
	}
	return true;
}

/* Whether the page has memory of its own. */
static bool own(struct bed *b, uint64_t page)
{
	uintptr_t at = (uintptr_t)gw_ram_page(b->ram, page);
	uint64_t bit = 0;

	assert_int_equal(gw_pagemap_private(b->map, at, at + GW_PAGE_SIZE, &bit, 0), 0);
	return bit;
}

static bool backed(struct bed *b, uint64_t page)
{
	return gw_ram_backed(b->ram)[page / 64] >> (page % 64) & 1;
}

static void test_equal_pages_are_exchanged(void **state)
{
	struct bed *b = bed(state);

	/* A run across the border of the two regions is cut there; page 505 differs. */
	for (uint64_t i = 0; i < 30; i++)
		fill(b, 500 + i, (int)i + 11);
	((uint8_t *)gw_ram_page(b->ram, 505))[4095] = 0;
	gw_merger_store(b->merger, 500, 30, b->chunk, 10);
	gw_merger_run(b->merger);
	for (uint64_t i = 0; i < 30; i++) {
		assert_int_equal(own(b, 500 + i), i == 5);
		assert_int_equal(backed(b, 500 + i), i != 5);
		assert_true(i == 5 || holds(b, 500 + i, (int)i + 11));
	}
	assert_int_equal(gw_merger_stats(b->merger)->store_pages, 29);
	assert_int_equal(gw_merger_stats(b->merger)->differing, 1);
	assert_int_equal(gw_overlays_pages(b->overlays, b->chunk), 29);
}

/* Zeros, the store's and one that differs, six runs side by side: windows of four at most; across a gap, and the border of two regions, another. */
static void test_runs_side_by_side_share_a_window(void **state)
{
	struct bed *b = bed(state);

	for (uint64_t i = 500; i < 520; i++)
		fill(b, i, i % 2 ? (int)(i - 500) + 1 : 0);
	fill(b, 502, 99);
	for (uint64_t i = 500; i < 506; i++) {
		if (i % 2)
			gw_merger_store(b->merger, i, 1, b->chunk, (uint32_t)(i - 500));
		else
			gw_merger_zero(b->merger, i, 1);
	}
	gw_merger_zero(b->merger, 508, 1);
	gw_merger_store(b->merger, 511, 1, b->chunk, 11);
	gw_merger_zero(b->merger, 512, 1);
	gw_merger_run(b->merger);
	assert_int_equal(gw_merger_stats(b->merger)->windows, 5);
	assert_int_equal(gw_merger_stats(b->merger)->store_pages, 4);
	assert_int_equal(gw_merger_stats(b->merger)->zero_pages, 4);
	assert_int_equal(gw_merger_stats(b->merger)->differing, 1);
	for (uint64_t i = 500; i < 520; i++) {
		assert_true(holds(b, i, i == 502 ? 99 : i % 2 ? (int)(i - 500) + 1 : 0));
		fill(b, i, 7);
		assert_true(holds(b, i, 7));
	}
}

static void test_broken_page_becomes_equal_again(void **state)
{
	struct bed *b = bed(state);
	uint32_t mappings;

	fill(b, 20, 3);
	fill(b, 21, 4);
	gw_merger_store(b->merger, 20, 2, b->chunk, 2);
	gw_merger_run(b->merger);
	mappings = gw_merger_stats(b->merger)->mappings;
	fill(b, 21, 99);
	assert_true(own(b, 21) && holds(b, 21, 99) && holds(b, 20, 3) && !own(b, 20));
	gw_merger_store(b->merger, 20, 2, b->chunk, 2);
	gw_merger_run(b->merger);
	assert_true(own(b, 21) && holds(b, 21, 99));
	fill(b, 21, 4);
	gw_merger_store(b->merger, 20, 2, b->chunk, 2);
	gw_merger_run(b->merger);
	assert_true(!own(b, 21) && holds(b, 21, 4));
	assert_int_equal(gw_merger_stats(b->merger)->again_pages, 1);
	assert_int_equal(gw_merger_stats(b->merger)->mappings, mappings);
}

static void test_broken_page_leaves_its_overlay(void **state)
{
	struct bed *b = bed(state);

	for (uint64_t i = 0; i < 4; i++)
		fill(b, 120 + i, 10 + (int)i);
	gw_merger_store(b->merger, 120, 4, b->chunk, 9);
	gw_merger_run(b->merger);
	fill(b, 121, 77);
	fill(b, 122, 78);
	gw_merger_leave(b->merger, 119, 6);
	gw_merger_run(b->merger);
	assert_true(holds(b, 120, 10) && holds(b, 121, 77) && holds(b, 122, 78) && holds(b, 123, 13));
	assert_true(backed(b, 120) && !backed(b, 121) && !backed(b, 122) && backed(b, 123));
	assert_int_equal(gw_overlays_pages(b->overlays, b->chunk), 2);
	/* It is ordinary memory now. */
	assert_int_equal(gw_ram_discard(b->ram, 121 << GW_PAGE_SHIFT, GW_PAGE_SIZE), 0);
	assert_true(holds(b, 121, 0) && holds(b, 122, 78));
}

static void test_zero_pages_are_given_back(void **state)
{
	struct bed *b = bed(state);

	fill(b, 40, 0);
	fill(b, 41, 1);
	fill(b, 42, 5);
	gw_merger_store(b->merger, 42, 1, b->chunk, 4);
	gw_merger_run(b->merger);
	assert_true(backed(b, 42) && !own(b, 42));
	fill(b, 42, 0); /* breaks the sharing; what lies below is not zeros */
	gw_merger_zero(b->merger, 40, 3);
	gw_merger_run(b->merger);
	assert_true(!own(b, 40) && own(b, 41) && !own(b, 42) && !backed(b, 42));
	assert_true(holds(b, 40, 0) && holds(b, 41, 1) && holds(b, 42, 0));
	assert_int_equal(gw_merger_stats(b->merger)->zero_pages, 2);
	assert_int_equal(gw_overlays_pages(b->overlays, b->chunk), 0);
}

static void test_discarded_pages_are_zero(void **state)
{
	struct bed *b = bed(state);
	uint64_t told[PAGES / 64] = { 0 };

	for (uint64_t i = 0; i < 4; i++)
		fill(b, 80 + i, 2 + (int)i);
	gw_merger_store(b->merger, 80, 2, b->chunk, 1);
	gw_merger_run(b->merger);
	assert_true(backed(b, 81) && !backed(b, 82));
	assert_int_equal(gw_ram_discard(b->ram, 81 << GW_PAGE_SHIFT, 2 << GW_PAGE_SHIFT), 0);
	assert_true(holds(b, 80, 2) && holds(b, 81, 0) && holds(b, 82, 0) && holds(b, 83, 5));
	assert_true(!backed(b, 81) && backed(b, 80));
	/* What was its overlay is none any more: equal or not, it is mapped anew and not "given back". */
	fill(b, 81, 3);
	gw_merger_store(b->merger, 81, 1, b->chunk, 2);
	gw_merger_run(b->merger);
	assert_true(holds(b, 81, 3) && backed(b, 81) && !own(b, 81));
	/* Writes to memory that was discarded are told. */
	if (gw_written_tracks(b->written)) {
		fill(b, 82, 7);
		assert_int_equal(gw_written_take(b->written, 0, 512, false, told), 0);
		assert_true(told[1] >> (82 - 64) & 1);
	}
}

static void test_busy_page_is_left(void **state)
{
	struct bed *b = bed(state);
	uint64_t told = 0;

	fill(b, 60, 1);
	fill(b, 61, 2);
	gw_ram_io_begin(b->ram, (61 << GW_PAGE_SHIFT) + 512, 512);
	gw_merger_store(b->merger, 60, 2, b->chunk, 0);
	gw_merger_run(b->merger);
	assert_true(!own(b, 60) && own(b, 61));
	assert_int_equal(gw_merger_stats(b->merger)->busy, 1);
	gw_ram_io_end(b->ram, (61 << GW_PAGE_SHIFT) + 512, 512);
	gw_ram_io_take(b->ram, 60, 2, &told);
	assert_int_equal(told, 2);
	told = 0;
	gw_ram_io_take(b->ram, 60, 2, &told);
	assert_int_equal(told, 0);
	gw_merger_store(b->merger, 60, 2, b->chunk, 0);
	gw_merger_run(b->merger);
	assert_true(!own(b, 61));
}

static void test_mappings_stay_in_budget(void **state)
{
	struct bed *b = bed(state);

	for (uint64_t i = 0; i < 400; i++)
		fill(b, i, 1 + (int)(i % 2) * 7);
	/* Every second page alone: two mappings each, of 100. */
	for (uint64_t i = 0; i < 400; i += 2)
		gw_merger_store(b->merger, i, 1, b->chunk, 0);
	gw_merger_run(b->merger);
	gw_merger_count_mappings(b->merger);
	assert_in_range(gw_merger_stats(b->merger)->mappings, 60, 104);
	assert_true(gw_merger_stats(b->merger)->over_budget > 100);
}

static void test_unsealed_chunk_is_refused(void **state)
{
	struct bed *b = *state;

	assert_int_equal(gw_overlays_add(b->overlays, 9, make_chunk(F_SEAL_GROW | F_SEAL_SHRINK), 64), -EPROTO);
	assert_int_equal(gw_overlays_add(b->overlays, 9, make_chunk(F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK), 65), -EPROTO);
	assert_int_equal(gw_overlays_add(b->overlays, 7, make_chunk(F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK), 64), -EPROTO);
	assert_int_equal(gw_overlays_find(b->overlays, 9), GW_OVERLAYS_NONE);
}

static void test_written_pages_are_told_once(void **state)
{
	struct bed *b = bed(state);
	uint64_t told[PAGES / 64] = { 0 };

	if (!gw_written_tracks(b->written))
		skip();
	fill(b, 3, 1);
	fill(b, 100, 1);
	assert_int_equal(gw_written_take(b->written, 0, 512, false, told), 0);
	assert_true(told[0] == 1 << 3 && told[1] == 1ull << 36);
	memset(told, 0, sizeof(told));
	fill(b, 100, 1);
	assert_int_equal(gw_written_take(b->written, 0, 512, false, told), 0);
	assert_true(told[0] == 0 && told[1] == 1ull << 36);
	/* A page that is exchanged is not told; one that breaks the sharing is. */
	gw_merger_store(b->merger, 100, 1, b->chunk, 0);
	gw_merger_run(b->merger);
	memset(told, 0, sizeof(told));
	assert_int_equal(gw_written_take(b->written, 0, 512, false, told), 0);
	assert_int_equal(told[1], 0);
	fill(b, 100, 9);
	assert_int_equal(gw_written_take(b->written, 0, 512, false, told), 0);
	assert_int_equal(told[1], 1ull << 36);
	memset(told, 0, sizeof(told));
	assert_int_equal(gw_written_take(b->written, 0, 512, false, told), 0);
	assert_int_equal(told[1], 0);
	fill(b, 100, 8);
	assert_int_equal(gw_written_take(b->written, 0, 512, false, told), 0);
	assert_int_equal(told[1], 1ull << 36);
}

/* Pages between those that are exchanged were not touched: they are not told. */
static void test_neighbours_stay_tracked(void **state)
{
	struct bed *b = bed(state);
	uint64_t told[PAGES / 64] = { 0 };

	if (!gw_written_tracks(b->written))
		skip();
	for (uint64_t i = 0; i < 40; i++)
		fill(b, 200 + i, i % 2 ? 200 : (int)i + 1);
	assert_int_equal(gw_written_take(b->written, 0, 512, false, told), 0);
	for (uint32_t i = 0; i < 40; i += 2)
		gw_merger_store(b->merger, 200 + i, 1, b->chunk, i);
	gw_merger_run(b->merger);
	assert_int_equal(gw_merger_stats(b->merger)->store_pages, 20);
	memset(told, 0, sizeof(told));
	assert_int_equal(gw_written_take(b->written, 0, 512, false, told), 0);
	assert_int_equal(told[3] | told[4], 0);
	fill(b, 201, 7);
	fill(b, 202, 8);
	assert_int_equal(gw_written_take(b->written, 0, 512, false, told), 0);
	assert_int_equal(told[3], 3ull << (201 - 192));
}

static unsigned real_mappings(void)
{
	gw_autofile *f = fopen("/proc/self/maps", "re");
	unsigned n = 0;

	for (int c; f && (c = fgetc(f)) != EOF;)
		n += c == '\n';
	return n;
}

static void test_mappings_are_counted(void **state)
{
	struct bed *b = bed(state);
	unsigned before = real_mappings();

	for (uint64_t i = 0; i < 60; i++)
		fill(b, 300 + i, (int)i + 1);
	/* Three runs that follow one another, of which two join; a neighbour that does not; one alone. */
	gw_merger_store(b->merger, 300, 10, b->chunk, 0);
	gw_merger_store(b->merger, 310, 10, b->chunk, 10);
	gw_merger_run(b->merger);
	fill(b, 320, 2);
	gw_merger_store(b->merger, 320, 1, b->chunk, 1);
	gw_merger_store(b->merger, 340, 5, b->chunk, 40);
	gw_merger_run(b->merger);
	gw_merger_settle(b->merger);
	gw_merger_count_mappings(b->merger);
	assert_int_equal(gw_merger_stats(b->merger)->store_pages, 26);
	assert_int_equal(gw_merger_stats(b->merger)->mappings, 5);
	assert_int_equal(real_mappings() - before, 5);
}

static void test_broken_pages_are_counted(void **state)
{
	struct bed *b = bed(state);

	for (uint64_t i = 0; i < 4; i++)
		fill(b, 400 + i, (int)i + 1);
	gw_merger_store(b->merger, 400, 4, b->chunk, 0);
	gw_merger_run(b->merger);
	fill(b, 401, 99);
	for (uint64_t p = 399; p < 403; p++)
		gw_overlays_break(b->overlays, p);
	assert_int_equal(gw_overlays_broken(b->overlays, b->chunk), 3);
	/* 400 and 402 never had a copy of their own; 401 has again what lies below. */
	fill(b, 401, 2);
	gw_merger_store(b->merger, 400, 4, b->chunk, 0);
	gw_merger_run(b->merger);
	assert_int_equal(gw_overlays_broken(b->overlays, b->chunk), 0);
	gw_overlays_break(b->overlays, 403);
	gw_overlays_clear(b->overlays, 400, 4);
	assert_int_equal(gw_overlays_broken(b->overlays, GW_OVERLAYS_NONE), 0);
	assert_int_equal(gw_overlays_pages(b->overlays, GW_OVERLAYS_NONE), 0);
}

static void race(struct race *r, struct race_result *result)
{
	char why[256] = "";

	if (race_run(r, result, why) < 0) {
		print_message("skipped: %s\n", why);
		skip();
	}
}

static uint64_t sum(const uint64_t v[RACE_KINDS])
{
	return v[RACE_USER] + v[RACE_READ] + v[RACE_DIRECT] + v[RACE_URING];
}

static void test_no_write_is_lost(void **state)
{
	struct race r = { .writers = { 2, 1, 1, 1 }, .writes = 200000, .merges = 100000, .seconds = 20 };
	struct race_result result;

	if (getenv("GODWIT_RACE_LONG")) /* make race */
		r = (struct race){ .writers = { 2, 1, 1, 1 }, .writes = 10000000, .merges = 1000000 };
	race(&r, &result);
	print_message("%llu writes, %llu mapped, %llu zeros, %llu given back; stall p50 %llu us, p99 %llu us, max %llu us\n",
		      (unsigned long long)sum(result.writes), (unsigned long long)result.merges, (unsigned long long)result.zeros,
		      (unsigned long long)result.again, (unsigned long long)result.stall_p50_ns / 1000,
		      (unsigned long long)result.stall_p99_ns / 1000, (unsigned long long)result.stall_max_ns / 1000);
	for (enum race_kind k = 0; k < RACE_KINDS; k++) {
		assert_true(result.writes[k] > 0);
	}
	if (result.first_loss[0])
		print_message("lost: %s\n", result.first_loss);
	assert_int_equal(sum(result.lost), 0);
	assert_true(result.merges > 0 && result.zeros > 0 && result.again > 0);
}

/* That the test can see a lost write: without the protection there are some. */
static void test_without_protection_writes_are_lost(void **state)
{
	struct race r = { .writers = { 2, 1, 0, 0 }, .writes = UINT64_MAX, .seconds = 60, .until_lost = true, .broken = 1 };
	struct race_result result;

	race(&r, &result);
	print_message("lost without protection: %llu\n", (unsigned long long)sum(result.lost));
	assert_true(sum(result.lost) > 0);
}

static void test_without_counters_direct_io_is_lost(void **state)
{
	struct race r = { .writers = { 0, 0, 2, 2 }, .writes = UINT64_MAX, .seconds = 60, .until_lost = true, .broken = 2 };
	struct race_result result;

	race(&r, &result);
	print_message("lost without I/O counters: %llu\n", (unsigned long long)sum(result.lost));
	assert_true(sum(result.lost) > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_equal_pages_are_exchanged, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_runs_side_by_side_share_a_window, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_broken_page_becomes_equal_again, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_broken_page_leaves_its_overlay, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_zero_pages_are_given_back, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_discarded_pages_are_zero, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_busy_page_is_left, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_mappings_stay_in_budget, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_unsealed_chunk_is_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_written_pages_are_told_once, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_neighbours_stay_tracked, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_mappings_are_counted, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_broken_pages_are_counted, set_up, tear_down),
		cmocka_unit_test(test_no_write_is_lost),
		cmocka_unit_test(test_without_protection_writes_are_lost),
		cmocka_unit_test(test_without_counters_direct_io_is_lost),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
