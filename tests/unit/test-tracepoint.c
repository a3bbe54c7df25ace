// SPDX-License-Identifier: Apache-2.0
/* Tracepoints: the field's place as tracefs tells it, and the records of a ring as the kernel leaves them there. */
#include <errno.h>
#include <linux/perf_event.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka-all.h"
#include "lib/util.h"
#include "vmm/tracepoint.h"

#define BYTES 256u

static const char format[] = "name: kvm_page_fault\nID: 1234\nformat:\n"
			     "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"
			     "\tfield:unsigned int vcpu_id;\toffset:8;\tsize:4;\tsigned:0;\n"
			     "\tfield:u64 not_fault_address;\toffset:32;\tsize:8;\tsigned:0;\n"
			     "\tfield:u64 fault_address;\toffset:24;\tsize:8;\tsigned:0;\n"
			     "\nprint fmt: \"address %016llx\", REC->fault_address\n";

static void a_field_is_found(void **state)
{
	size_t at = 0;

	(void)state;
	assert_int_equal(gw_tracepoint_field(format, "fault_address", &at), 0);
	assert_int_equal(at, 24);
	assert_int_equal(gw_tracepoint_field(format, "address", &at), -ENOTSUP);
	assert_int_equal(gw_tracepoint_field(format, "vcpu_id", &at), -ENOTSUP); /* not of 8 bytes */
	assert_int_equal(gw_tracepoint_field("", "fault_address", &at), -ENOTSUP);
	assert_int_equal(gw_tracepoint_field("fault_address; offset:8; size:8;", "fault_address", &at), -ENOTSUP);
}

struct ring {
	_Alignas(64) struct perf_event_mmap_page page;
	uint8_t data[BYTES];
};

static void put(struct ring *ring, const void *bytes, size_t len)
{
	for (size_t i = 0; i < len; i++)
		ring->data[ring->page.data_head++ % BYTES] = ((const uint8_t *)bytes)[i];
}

/* A record of 4 + 8 + 8 bytes, whose value is the last 8. */
static void put_record(struct ring *ring, uint32_t type, uint64_t value)
{
	struct perf_event_header h = { .type = type, .size = sizeof(h) + 20 };
	uint64_t other = UINT64_MAX;
	uint32_t raw = 16;

	put(ring, &h, sizeof(h));
	put(ring, &raw, sizeof(raw));
	put(ring, &other, sizeof(other));
	put(ring, &value, sizeof(value));
}

struct seen {
	uint64_t values[64];
	unsigned count;
};

static void see(void *self, uint64_t value)
{
	struct seen *seen = self;

	assert_true(seen->count < ARRAY_SIZE(seen->values));
	seen->values[seen->count++] = value;
}

static const struct gw_tracepoint point = { .at = 8 };

static struct ring *new_ring(void)
{
	struct ring *ring = calloc(1, sizeof(*ring));

	assert_non_null(ring);
	ring->page.data_offset = offsetof(struct ring, data);
	ring->page.data_size = BYTES;
	return ring;
}

/* Records cross the ring's end, and others lie between. */
static void records_come_in_order(void **state)
{
	struct ring *ring = new_ring();
	struct seen seen = { 0 };

	(void)state;
	for (uint64_t i = 0; i < ARRAY_SIZE(seen.values); i++) {
		put_record(ring, PERF_RECORD_LOST, i + 1000);
		put_record(ring, PERF_RECORD_SAMPLE, i << 56 | i);
		gw_trace_read_ring(&point, &ring->page, see, &seen);
		assert_int_equal(seen.count, i + 1);
		assert_int_equal(ring->page.data_tail, ring->page.data_head);
	}
	for (uint64_t i = 0; i < seen.count; i++)
		assert_int_equal(seen.values[i], i << 56 | i);
	free(ring);
}

static void what_is_too_short_is_left(void **state)
{
	struct perf_event_header small = { .type = PERF_RECORD_SAMPLE, .size = sizeof(small) + 12 }, none = { .type = PERF_RECORD_SAMPLE, .size = 4 };
	struct ring *ring = new_ring();
	struct seen seen = { 0 };
	uint64_t end;

	(void)state;
	put(ring, &small, sizeof(small));
	put(ring, "elevenbytes", 12);
	put_record(ring, PERF_RECORD_SAMPLE, 7);
	end = ring->page.data_head;
	put(ring, &none, sizeof(none));
	gw_trace_read_ring(&point, &ring->page, see, &seen);
	assert_int_equal(seen.count, 1);
	assert_int_equal(seen.values[0], 7);
	assert_int_equal(ring->page.data_tail, end);
	/* A record that is longer than what is there. */
	ring->page.data_head = end;
	none.size = 200;
	put(ring, &none, sizeof(none));
	gw_trace_read_ring(&point, &ring->page, see, &seen);
	assert_int_equal(seen.count, 1);
	assert_int_equal(ring->page.data_tail, end);
	free(ring);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_field_is_found),
		cmocka_unit_test(records_come_in_order),
		cmocka_unit_test(what_is_too_short_is_left),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
