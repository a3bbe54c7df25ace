// SPDX-License-Identifier: Apache-2.0
/* vmm/virtqueue: chains of good and of hostile drivers, notification rules, the dirty log. */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <linux/virtio_ring.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/virtqueue.h"

#define SIZE 8
#define DESC 0x1000
#define AVAIL 0x2000
#define USED 0x3000
#define DATA 0x10000
#define RAM (4ull << 20)

struct fixture {
	struct gw_ram *ram;
	struct gw_vq vq;
	struct gw_vq_chain chain;
	struct vring_desc *desc;
	uint16_t *avail; /* flags, idx, ring[SIZE], used_event */
	uint8_t *used;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	assert_int_equal(gw_ram_new(RAM, RAM / 2, 1ull << 32, &f->ram, NULL), 0);
	gw_vq_init(&f->vq, f->ram, 16);
	f->vq.size = SIZE;
	f->vq.desc = DESC;
	f->vq.avail = AVAIL;
	f->vq.used = USED;
	f->vq.indirect = true;
	assert_int_equal(gw_vq_enable(&f->vq), 0);
	f->desc = gw_ram_ptr(f->ram, DESC, 16 * SIZE);
	f->avail = gw_ram_ptr(f->ram, AVAIL, 6 + 2 * SIZE);
	f->used = gw_ram_ptr(f->ram, USED, 6 + 8 * SIZE);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	gw_ram_free(f->ram);
	free(f);
	return 0;
}

static void set(struct fixture *f, unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	f->desc[i] = (struct vring_desc){ addr, len, flags, next };
}

static void offer(struct fixture *f, uint16_t head)
{
	f->avail[2 + f->avail[1] % SIZE] = head;
	f->avail[1]++;
}

static void expect_violation(struct fixture *f, const char *word)
{
	assert_int_equal(gw_vq_pop(&f->vq, &f->chain), -EPROTO);
	assert_non_null(f->vq.violation);
	assert_non_null(strstr(f->vq.violation, word));
}

static void chains_come_in_order(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(gw_vq_pop(&f->vq, &f->chain), 0);
	set(f, 3, DATA, 100, VRING_DESC_F_NEXT, 5);
	set(f, 5, DATA + 4096, 50, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 0);
	set(f, 0, (1ull << 32) + 8, 7, VRING_DESC_F_WRITE, 99);
	offer(f, 3);
	assert_int_equal(gw_vq_pop(&f->vq, &f->chain), 1);
	assert_int_equal(f->chain.head, 3);
	assert_int_equal(f->chain.nout, 1);
	assert_int_equal(f->chain.nin, 2);
	assert_int_equal(f->chain.out_len, 100);
	assert_int_equal(f->chain.in_len, 57);
	assert_ptr_equal(f->chain.iov[2].iov_base, gw_ram_ptr(f->ram, (1ull << 32) + 8, 7));
	assert_int_equal(gw_vq_pop(&f->vq, &f->chain), 0);
	assert_int_equal(gw_vq_in_flight(&f->vq), 1);
	gw_vq_unpop(&f->vq, 1);
	assert_int_equal(gw_vq_pop(&f->vq, &f->chain), 1);
	gw_vq_push(&f->vq, 3, 57);
	assert_int_equal(*(uint16_t *)(f->used + 2), 0);
	assert_true(gw_vq_publish(&f->vq));
	assert_int_equal(*(uint16_t *)(f->used + 2), 1);
	assert_int_equal(*(uint32_t *)(f->used + 4), 3);
	assert_int_equal(*(uint32_t *)(f->used + 8), 57);
	assert_int_equal(gw_vq_in_flight(&f->vq), 0);
}

static void indirect_tables_are_followed(void **state)
{
	struct fixture *f = *state;
	struct vring_desc *table = gw_ram_ptr(f->ram, DATA, 4096);

	table[0] = (struct vring_desc){ DATA + 4096, 16, VRING_DESC_F_NEXT, 2 };
	table[2] = (struct vring_desc){ DATA + 8192, 32, VRING_DESC_F_WRITE, 0 };
	set(f, 0, DATA + 12288, 4, VRING_DESC_F_NEXT, 1);
	set(f, 1, DATA, 3 * 16, VRING_DESC_F_INDIRECT, 0);
	offer(f, 0);
	assert_int_equal(gw_vq_pop(&f->vq, &f->chain), 1);
	assert_int_equal(f->chain.nout, 2);
	assert_int_equal(f->chain.nin, 1);
	assert_int_equal(f->chain.out_len, 20);
}

static void bad_indirect_tables_are_refused(void **state)
{
	static const struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags, inner_flags, inner_next;
		const char *word;
	} cases[] = {
		{ DATA, 17, VRING_DESC_F_INDIRECT, 0, 0, "size" },
		{ DATA, 0, VRING_DESC_F_INDIRECT, 0, 0, "size" },
		{ RAM, 32, VRING_DESC_F_INDIRECT, 0, 0, "outside of RAM" },
		{ DATA, 32, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 0, 0, "with a next" },
		{ DATA, 32, VRING_DESC_F_INDIRECT, VRING_DESC_F_INDIRECT, 0, "within an indirect" },
		{ DATA, 32, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, 2, "outside of the indirect" },
		{ DATA, 32, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, 0, "longer than the queue" },
	};
	struct fixture *f = *state;
	struct vring_desc *table = gw_ram_ptr(f->ram, DATA, 4096);

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		table[0] = (struct vring_desc){ DATA + 4096, 16, cases[i].inner_flags, cases[i].inner_next };
		set(f, 0, cases[i].addr, cases[i].len, cases[i].flags, 1);
		f->avail[1] = f->vq.last_avail;
		offer(f, 0);
		expect_violation(f, cases[i].word);
	}
	set(f, 0, DATA, 32, VRING_DESC_F_INDIRECT, 1);
	f->vq.indirect = false;
	expect_violation(f, "without the feature");
}

static void bad_chains_are_refused(void **state)
{
	static const struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags, next, flags2;
		const char *word;
	} cases[] = {
		{ RAM / 2 - 8, 16, 0, 0, 0, "outside of RAM" }, /* into the hole */
		{ (1ull << 32) + RAM / 2 - 1, 2, 0, 0, 0, "outside of RAM" },
		{ UINT64_MAX - 4, 16, 0, 0, 0, "outside of RAM" },
		{ DATA, UINT32_MAX, 0, 0, 0, "outside of RAM" },
		{ DATA, 0, 0, 0, 0, "no length" },
		{ DATA, 8, VRING_DESC_F_NEXT, SIZE, 0, "outside of the table" },
		{ DATA, 8, VRING_DESC_F_NEXT, 0, 0, "longer than the queue" }, /* a cycle of one */
		{ DATA, 8, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1, 0, "after a writable" },
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		set(f, 0, cases[i].addr, cases[i].len, cases[i].flags, cases[i].next);
		set(f, 1, DATA + 4096, 8, cases[i].flags2, 0);
		f->avail[1] = f->vq.last_avail;
		offer(f, 0);
		expect_violation(f, cases[i].word);
	}
	f->avail[1] = f->vq.last_avail;
	offer(f, SIZE);
	expect_violation(f, "outside of the descriptor table");
	f->avail[1] = (uint16_t)(f->vq.last_avail + SIZE + 1);
	expect_violation(f, "more than a queue ahead");
}

static void in_flight_is_bounded(void **state)
{
	struct fixture *f = *state;

	set(f, 0, DATA, 8, 0, 0);
	for (int i = 0; i < SIZE; i++) {
		offer(f, 0);
		assert_int_equal(gw_vq_pop(&f->vq, &f->chain), 1);
	}
	offer(f, 0);
	expect_violation(f, "more chains");
}

static void rings_are_checked(void **state)
{
	static const struct {
		uint16_t size;
		uint64_t desc, avail, used;
		bool good;
	} cases[] = {
		{ 8, DESC, AVAIL, USED, true },
		{ 16, DESC, AVAIL, USED, true },
		{ 32, DESC, AVAIL, USED, false },
		{ 0, DESC, AVAIL, USED, false },
		{ 6, DESC, AVAIL, USED, false },
		{ 8, DESC + 8, AVAIL, USED, false },
		{ 8, DESC, AVAIL + 1, USED, false },
		{ 8, DESC, AVAIL, USED + 2, false },
		{ 8, RAM / 2 - 112, AVAIL, USED, false },
		{ 8, RAM / 2 - 128, AVAIL, USED, true },
		{ 8, DESC, RAM / 2 - 20, USED, false },
		{ 8, DESC, RAM / 2 - 22, USED, true },
		{ 8, DESC, AVAIL, RAM / 2 - 68, false },
		{ 8, DESC, AVAIL, RAM / 2 - 72, true },
		{ 8, UINT64_MAX & ~15ull, AVAIL, USED, false },
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		gw_vq_reset(&f->vq);
		f->vq.size = cases[i].size;
		f->vq.desc = cases[i].desc;
		f->vq.avail = cases[i].avail;
		f->vq.used = cases[i].used;
		assert_int_equal(gw_vq_enable(&f->vq), cases[i].good ? 0 : -EINVAL);
		assert_int_equal(f->vq.enabled, cases[i].good);
	}
}

static void flags_rule_without_event_indexes(void **state)
{
	struct fixture *f = *state;

	f->avail[0] = VRING_AVAIL_F_NO_INTERRUPT;
	gw_vq_push(&f->vq, 0, 0);
	assert_false(gw_vq_publish(&f->vq));
	f->avail[0] = 0;
	gw_vq_push(&f->vq, 0, 0);
	assert_true(gw_vq_publish(&f->vq));
	assert_false(gw_vq_publish(&f->vq));
	gw_vq_disable_kicks(&f->vq);
	assert_int_equal(*(uint16_t *)f->used, VRING_USED_F_NO_NOTIFY);
	assert_false(gw_vq_enable_kicks(&f->vq));
	assert_int_equal(*(uint16_t *)f->used, 0);
	offer(f, 0);
	assert_true(gw_vq_enable_kicks(&f->vq));
}

static void event_indexes_rule(void **state)
{
	struct fixture *f = *state;
	uint16_t *used_event = &f->avail[2 + SIZE], *avail_event = (uint16_t *)(f->used + 4 + 8 * SIZE);

	f->vq.event_idx = true;
	*used_event = 3;
	gw_vq_push(&f->vq, 0, 0);
	assert_true(gw_vq_publish(&f->vq)); /* the first after enabling always */
	gw_vq_push(&f->vq, 0, 0);
	gw_vq_push(&f->vq, 0, 0);
	assert_false(gw_vq_publish(&f->vq)); /* 1 -> 3: index 3 is not used yet */
	gw_vq_push(&f->vq, 0, 0);
	assert_true(gw_vq_publish(&f->vq));
	gw_vq_push(&f->vq, 0, 0);
	assert_false(gw_vq_publish(&f->vq));
	f->vq.last_avail = f->avail[1] = 77;
	assert_false(gw_vq_enable_kicks(&f->vq));
	assert_int_equal(*avail_event, 77);
}

/* Whoever has asked to be told of the next chain only has seen all that there is. */
static void an_interrupt_may_be_due(void **state)
{
	struct fixture *f = *state;
	uint16_t *used_event = &f->avail[2 + SIZE];

	assert_true(gw_vq_may_await_interrupt(&f->vq)); /* without the feature it cannot be known */
	f->vq.event_idx = true;
	assert_false(gw_vq_may_await_interrupt(&f->vq));
	gw_vq_push(&f->vq, 0, 0);
	assert_true(gw_vq_may_await_interrupt(&f->vq));
	*used_event = 1;
	assert_false(gw_vq_may_await_interrupt(&f->vq));
}

static void its_areas_are_marked(void **state)
{
	struct fixture *f = *state;
	gw_autofree uint64_t *bitmap = calloc(gw_ram_bitmap_words(f->vq.ram), sizeof(uint64_t));
	const uint64_t areas[] = { f->vq.desc, f->vq.avail, f->vq.used };
	unsigned marked = 0;

	assert_non_null(bitmap);
	gw_vq_mark_areas(&f->vq, bitmap);
	for (size_t i = 0; i < ARRAY_SIZE(areas); i++) {
		uint64_t page = gw_ram_index(f->vq.ram, areas[i]);

		assert_true(bitmap[page / 64] >> (page % 64) & 1);
	}
	for (size_t i = 0; i < gw_ram_bitmap_words(f->vq.ram); i++)
		marked += (unsigned)__builtin_popcountll(bitmap[i]);
	assert_in_range(marked, 1, 2 * ARRAY_SIZE(areas));
}

static void indexes_wrap(void **state)
{
	struct fixture *f = *state;

	set(f, 2, DATA, 8, 0, 0);
	f->vq.last_avail = f->vq.used_idx = f->vq.published = f->avail[1] = 65534;
	for (int i = 0; i < 5; i++) {
		offer(f, 2);
		assert_int_equal(gw_vq_pop(&f->vq, &f->chain), 1);
		gw_vq_push(&f->vq, f->chain.head, (uint32_t)i);
		assert_true(gw_vq_publish(&f->vq));
		assert_int_equal(*(uint32_t *)(f->used + 8 + 8 * ((65534 + i) % SIZE)), i);
	}
	assert_int_equal(*(uint16_t *)(f->used + 2), 3);
}

static bool dirty(struct fixture *f, uint64_t gpa)
{
	uint64_t bitmap[RAM / 4096 / 64 + 1] = { 0 };
	uint64_t page = gw_ram_index(f->ram, gpa);

	gw_ram_log_take(f->ram, bitmap);
	return bitmap[page / 64] >> (page % 64) & 1;
}

static void what_the_device_writes_is_logged(void **state)
{
	struct fixture *f = *state;

	gw_ram_log_start(f->ram);
	set(f, 0, DATA, 4096, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
	set(f, 1, DATA + 8192, 4096, VRING_DESC_F_WRITE, 0);
	offer(f, 0);
	assert_int_equal(gw_vq_pop(&f->vq, &f->chain), 1);
	gw_vq_mark_dirty(&f->vq, &f->chain, 4096);
	assert_true(dirty(f, DATA));
	gw_vq_mark_dirty(&f->vq, &f->chain, 4096);
	assert_false(dirty(f, DATA + 8192));
	gw_vq_mark_dirty(&f->vq, &f->chain, 4097);
	assert_true(dirty(f, DATA + 8192));
	gw_vq_push(&f->vq, 0, 4097);
	assert_true(dirty(f, USED));
	gw_vq_publish(&f->vq);
	assert_true(dirty(f, USED));
	gw_vq_enable_kicks(&f->vq);
	assert_true(dirty(f, USED));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(chains_come_in_order, setup, teardown),
		cmocka_unit_test_setup_teardown(indirect_tables_are_followed, setup, teardown),
		cmocka_unit_test_setup_teardown(bad_indirect_tables_are_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(bad_chains_are_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(in_flight_is_bounded, setup, teardown),
		cmocka_unit_test_setup_teardown(rings_are_checked, setup, teardown),
		cmocka_unit_test_setup_teardown(flags_rule_without_event_indexes, setup, teardown),
		cmocka_unit_test_setup_teardown(event_indexes_rule, setup, teardown),
		cmocka_unit_test_setup_teardown(an_interrupt_may_be_due, setup, teardown),
		cmocka_unit_test_setup_teardown(its_areas_are_marked, setup, teardown),
		cmocka_unit_test_setup_teardown(indexes_wrap, setup, teardown),
		cmocka_unit_test_setup_teardown(what_the_device_writes_is_logged, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
