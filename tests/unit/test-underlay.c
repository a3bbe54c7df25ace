// SPDX-License-Identifier: Apache-2.0
/* What lies under pages, kept as runs: beside an array of all pages. */
#include "cmocka-all.h"

#include <stdlib.h>

#include "ksm/underlay.h"
#include "lib/util.h"

#define PAGES 2000u /* the last piece is not whole */
#define STEPS 20000u

static uint32_t want[PAGES];

static uint32_t below(unsigned n)
{
	return (uint32_t)random() % n;
}

static void compare(const struct gw_underlay *u)
{
	uint64_t page = 0, runs = 0;
	struct gw_underlay_run r;

	for (uint64_t p = 0; p < PAGES; p++)
		assert_int_equal(gw_underlay_at(u, p), want[p]);
	for (r = gw_underlay_next(u, 0); r.count > 0; r = gw_underlay_next(u, page)) {
		for (; page < r.page; page++)
			assert_int_equal(want[page], GW_UNDERLAY_NONE);
		assert_int_equal(page, r.page);
		for (uint32_t i = 0; i < r.count; i++, page++)
			assert_int_equal(want[page], r.place + i);
		/* As long as it can be. */
		assert_true(page == PAGES || page % GW_UNDERLAY_PIECE == 0 || want[page] != r.place + r.count);
		runs++;
	}
	for (; page < PAGES; page++)
		assert_int_equal(want[page], GW_UNDERLAY_NONE);
	assert_true(gw_underlay_memory(u) < 200 + 24 * runs + 64 * (PAGES / GW_UNDERLAY_PIECE + 1));
}

static void as_an_array_would(void **state)
{
	struct gw_underlay *u;
	unsigned seed = (unsigned)time(NULL);

	print_message("seed %u\n", seed);
	srandom(seed);
	assert_int_equal(gw_underlay_new(PAGES, &u), 0);
	memset(want, 0xff, sizeof(want));
	for (unsigned step = 0; step < STEPS; step++) {
		uint32_t page = below(PAGES), count = 1 + below(step % 3 == 0 ? 700 : 4), place = below(2) ? below(1000) : 5000 + page;

		count = GW_MIN(count, PAGES - page);
		assert_int_equal(gw_underlay_clear(u, page, count), 0);
		for (uint32_t i = 0; i < count; i++)
			want[page + i] = GW_UNDERLAY_NONE;
		if (below(step % 2000 < 1000 ? 3 : 2) > 0) {
			assert_int_equal(gw_underlay_set(u, page, count, place), 0);
			for (uint32_t i = 0; i < count; i++)
				want[page + i] = place + i;
		}
		if (step % 50 == 0)
			compare(u);
	}
	assert_int_equal(gw_underlay_clear(u, 0, PAGES), 0);
	memset(want, 0xff, sizeof(want));
	compare(u);
	gw_underlay_free(u);
}

/* Every second page: as many runs as there can be, and all of them gone again. */
static void pages_alone(void **state)
{
	struct gw_underlay *u;

	assert_int_equal(gw_underlay_new(PAGES, &u), 0);
	for (unsigned i = 0; i < PAGES; i++) {
		want[i] = 7 * (PAGES - i);
		assert_int_equal(gw_underlay_set(u, i, 1, want[i]), 0);
	}
	compare(u);
	for (unsigned i = 0; i < PAGES; i += 2) {
		want[i] = GW_UNDERLAY_NONE;
		assert_int_equal(gw_underlay_clear(u, i, 1), 0);
	}
	compare(u);
	gw_underlay_free(u);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(as_an_array_would),
		cmocka_unit_test(pages_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
