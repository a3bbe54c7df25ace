// SPDX-License-Identifier: Apache-2.0
/* lib/ram: ranges over the hole, page indexes, the device write log under threads. */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/ram/ram.h"
#include "lib/util.h"

#define MIB (1ull << 20)

static struct gw_ram *two_regions(void)
{
	struct gw_ram *ram = NULL;

	/* 8 MiB below a hole at 8 MiB, the rest from 16 MiB on. */
	assert_int_equal(gw_ram_new(12 * MIB, 8 * MIB, 16 * MIB, &ram, NULL), 0);
	return ram;
}

static void ranges_are_checked_whole(void **state)
{
	struct gw_ram *ram = two_regions();

	assert_non_null(gw_ram_ptr(ram, 0, 8 * MIB));
	assert_null(gw_ram_ptr(ram, 0, 8 * MIB + 1));
	assert_null(gw_ram_ptr(ram, 8 * MIB, 1));
	assert_null(gw_ram_ptr(ram, 16 * MIB - 1, 2));
	assert_non_null(gw_ram_ptr(ram, 16 * MIB, 4 * MIB));
	assert_null(gw_ram_ptr(ram, 20 * MIB, 1));
	assert_null(gw_ram_ptr(ram, UINT64_MAX, 1));
	assert_null(gw_ram_ptr(ram, 4096, UINT64_MAX));
	assert_null(gw_ram_ptr(ram, 4096, 0));
	assert_int_equal(gw_ram_write(ram, 8 * MIB - 1, "ab", 2), -EFAULT);
	gw_ram_free(ram);
}

static void indexes_skip_the_hole(void **state)
{
	struct gw_ram *ram = two_regions();

	assert_int_equal(gw_ram_pages(ram), 3072);
	for (uint64_t i = 0; i < gw_ram_pages(ram); i++)
		assert_int_equal(gw_ram_index(ram, gw_ram_gpa(ram, i)), i);
	assert_int_equal(gw_ram_gpa(ram, 2048), 16 * MIB);
	assert_true(gw_ram_index(ram, 8 * MIB) == UINT64_MAX);
	assert_int_equal(gw_ram_contiguous(ram, 2047), 1);
	assert_int_equal(gw_ram_contiguous(ram, 2048), 1024);
	assert_ptr_equal(gw_ram_page(ram, 2048), gw_ram_ptr(ram, 16 * MIB, 1));
	gw_ram_free(ram);
}

static void sizes_are_refused(void **state)
{
	struct gw_ram *ram = NULL;

	assert_int_equal(gw_ram_new(0, MIB, 2 * MIB, &ram, NULL), -EINVAL);
	assert_int_equal(gw_ram_new(4097, MIB, 2 * MIB, &ram, NULL), -EINVAL);
	assert_null(ram);
}

static void log_tells_spans_once(void **state)
{
	struct gw_ram *ram = two_regions();
	uint64_t bitmap[48] = { 0 };

	gw_ram_mark_dirty(ram, 0, 1); /* not logging yet */
	gw_ram_log_start(ram);
	assert_int_equal(gw_ram_log_take(ram, bitmap), 0);
	gw_ram_mark_dirty(ram, 4095, 2);
	gw_ram_mark_dirty(ram, 16 * MIB, 4096);
	gw_ram_mark_dirty(ram, 8 * MIB, 4096);       /* hole */
	gw_ram_mark_dirty(ram, 20 * MIB - 1, 4096); /* past the end */
	assert_int_equal(gw_ram_log_take(ram, bitmap), 3);
	assert_int_equal(bitmap[0], 3);
	assert_int_equal(bitmap[32], 1);
	assert_int_equal(gw_ram_log_take(ram, bitmap), 0);
	gw_ram_log_stop(ram);
	gw_ram_free(ram);
}

static void *mark_pages(void *arg)
{
	struct gw_ram *ram = arg;

	for (int round = 0; round < 20; round++) {
		for (uint64_t gpa = 0; gpa < 8 * MIB; gpa += 4096)
			gw_ram_mark_dirty(ram, gpa, 4096);
	}
	return NULL;
}

static void no_mark_is_lost_between_takes(void **state)
{
	struct gw_ram *ram = two_regions();
	uint64_t all[48] = { 0 };
	pthread_t threads[2];

	gw_ram_log_start(ram);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, mark_pages, ram), 0);
	for (int i = 0; i < 200; i++)
		gw_ram_log_take(ram, all);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	memset(all, 0, sizeof(all));
	mark_pages(ram);
	assert_int_equal(gw_ram_log_take(ram, all), 2048);
	gw_ram_free(ram);
}

/* What the host has of `pages` pages. */
static unsigned resident(const struct gw_ram *ram, uint64_t gpa, unsigned pages)
{
	unsigned char vec[64];
	unsigned n = 0;

	assert_true(pages <= sizeof(vec));
	assert_int_equal(mincore(gw_ram_ptr(ram, gpa, pages * 4096ull), pages * 4096ull, vec), 0);
	for (unsigned i = 0; i < pages; i++)
		n += vec[i] & 1;
	return n;
}

static void discarded_pages_are_gone_and_dirty(void **state)
{
	struct gw_ram *ram = two_regions();
	uint64_t bitmap[48] = { 0 };
	uint8_t *p = gw_ram_ptr(ram, MIB, MIB);

	memset(p, 1, MIB);
	gw_ram_log_start(ram);
	assert_int_equal(gw_ram_discard(ram, MIB + 4096, 8 * 4096), 0);
	assert_int_equal(resident(ram, MIB, 32), 24);
	assert_int_equal(p[4095], 1);
	assert_int_equal(p[4096], 0);
	assert_int_equal(p[9 * 4096 - 1], 0);
	assert_int_equal(p[9 * 4096], 1);
	assert_int_equal(gw_ram_log_take(ram, bitmap), 8);
	assert_int_equal(bitmap[4], 0x1fe); /* page 256 is the first of the mebibyte */
	/* Nothing but whole pages, all of RAM. */
	assert_int_equal(gw_ram_discard(ram, MIB + 1, 4096), -EINVAL);
	assert_int_equal(gw_ram_discard(ram, MIB, 4095), -EINVAL);
	assert_int_equal(gw_ram_discard(ram, MIB, 0), -EFAULT);
	assert_int_equal(gw_ram_discard(ram, 8 * MIB, 4096), -EFAULT);
	assert_int_equal(gw_ram_discard(ram, MIB, 16 * MIB), -EFAULT);
	assert_int_equal(gw_ram_discard(ram, UINT64_MAX & ~4095ull, 8192), -EFAULT);
	assert_int_equal(gw_ram_log_take(ram, bitmap), 0);
	assert_int_equal(p[0], 1);
	gw_ram_free(ram);
}

static void digest_sees_one_bit(void **state)
{
	struct gw_ram *a = two_regions(), *b = two_regions();
	uint8_t da[16], db[16];

	gw_ram_digest(a, da);
	gw_ram_digest(b, db);
	assert_memory_equal(da, db, 16);
	assert_int_equal(gw_ram_write(b, 19 * MIB + 77, "\1", 1), 0);
	gw_ram_digest(b, db);
	assert_memory_not_equal(da, db, 16);
	gw_ram_free(a);
	gw_ram_free(b);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(ranges_are_checked_whole), cmocka_unit_test(indexes_skip_the_hole),
		cmocka_unit_test(sizes_are_refused),        cmocka_unit_test(log_tells_spans_once),
		cmocka_unit_test(no_mark_is_lost_between_takes), cmocka_unit_test(digest_sees_one_bit),
		cmocka_unit_test(discarded_pages_are_gone_and_dirty),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
