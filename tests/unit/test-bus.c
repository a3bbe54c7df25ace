// SPDX-License-Identifier: Apache-2.0
/* Address buses: look-up, overlaps, and ranges that come and go while many threads use them. */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/bus.h"

struct dev {
	uint64_t offset;
	unsigned len;
	uint8_t data[8];
	unsigned calls;   /* atomic */
	unsigned running; /* atomic: handlers at work */
	bool gone;        /* atomic: no handler may run any more */
	struct gw_bus *bus;
};

static void dev_read(void *arg, uint64_t offset, void *data, unsigned len)
{
	struct dev *d = arg;

	d->offset = offset;
	d->len = len;
	memset(data, 0x5a, len);
}

static void dev_write(void *arg, uint64_t offset, const void *data, unsigned len)
{
	struct dev *d = arg;

	d->offset = offset;
	d->len = len;
	memcpy(d->data, data, len);
}

static const struct gw_bus_ops ops = { .read = dev_read, .write = dev_write };

static void test_lookup(void **arg)
{
	struct gw_bus *bus = gw_bus_new();
	struct dev a = { 0 }, b = { 0 };
	uint32_t v = 0;

	assert_int_equal(gw_bus_add(bus, 0x1000, 0x100, &ops, &a), 0);
	assert_int_equal(gw_bus_add(bus, UINT64_MAX - 0xfff, 0x1000, &ops, &b), 0);
	assert_int_equal(gw_bus_add(bus, 0x10ff, 1, &ops, &b), -EEXIST);
	assert_int_equal(gw_bus_add(bus, 0xfff, 2, &ops, &b), -EEXIST);
	assert_int_equal(gw_bus_add(bus, 0, UINT64_MAX, &ops, &b), -EEXIST);
	assert_int_equal(gw_bus_add(bus, UINT64_MAX, 2, &ops, &b), -EINVAL);
	assert_int_equal(gw_bus_add(bus, 0x1100, 0, &ops, &b), -EINVAL);
	assert_int_equal(gw_bus_add(bus, 0x1100, 1, &ops, &b), 0);

	assert_int_equal(gw_bus_read(bus, 0x1004, &v, 4), 1);
	assert_int_equal(v, 0x5a5a5a5a);
	assert_int_equal(a.offset, 4);
	assert_int_equal(a.len, 4);
	v = 0x12345678;
	assert_int_equal(gw_bus_write(bus, 0x10fc, &v, 4), 1);
	assert_memory_equal(a.data, &v, 4);
	/* Across an end, or nowhere: all ones. */
	assert_int_equal(gw_bus_read(bus, 0x10fe, &v, 4), 0);
	assert_int_equal(v, 0xffffffff);
	assert_int_equal(gw_bus_write(bus, 0x10fe, &v, 4), 0);
	assert_int_equal(gw_bus_read(bus, 0xffe, &v, 4), 0);
	assert_int_equal(gw_bus_read(bus, 0x2000, &v, 4), 0);
	assert_int_equal(gw_bus_read(bus, UINT64_MAX, &v, 1), 1);

	gw_bus_remove(bus, 0x1000);
	gw_bus_remove(bus, 0x1234);
	assert_int_equal(gw_bus_read(bus, 0x1004, &v, 4), 0);
	assert_int_equal(gw_bus_add(bus, 0xfff, 2, &ops, &b), 0);
	gw_bus_free(bus);
}

static void busy_handler(void *arg, uint64_t offset, void *data, unsigned len)
{
	struct dev *d = arg;

	__atomic_fetch_add(&d->running, 1, __ATOMIC_SEQ_CST);
	assert_false(__atomic_load_n(&d->gone, __ATOMIC_SEQ_CST));
	__atomic_fetch_add(&d->calls, 1, __ATOMIC_SEQ_CST);
	__atomic_fetch_sub(&d->running, 1, __ATOMIC_SEQ_CST);
}

static const struct gw_bus_ops busy_ops = { .read = busy_handler, .write = dev_write };

static void *reader(void *arg)
{
	struct dev *d = arg;
	uint32_t v;

	for (int i = 0; i < 50000; i++)
		gw_bus_read(d->bus, 0x1000, &v, 4);
	return NULL;
}

static void test_removal_waits(void **arg)
{
	struct gw_bus *bus = gw_bus_new();
	struct dev d = { .bus = bus };
	pthread_t threads[4];

	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, reader, &d), 0);
	for (int i = 0; i < 300; i++) {
		__atomic_store_n(&d.gone, false, __ATOMIC_SEQ_CST);
		assert_int_equal(gw_bus_add(bus, 0x1000, 4, &busy_ops, &d), 0);
		sched_yield();
		gw_bus_remove(bus, 0x1000);
		__atomic_store_n(&d.gone, true, __ATOMIC_SEQ_CST);
		assert_int_equal(__atomic_load_n(&d.running, __ATOMIC_SEQ_CST), 0);
	}
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		pthread_join(threads[i], NULL);
	gw_bus_free(bus);
}

static void removing_handler(void *arg, uint64_t offset, void *data, unsigned len)
{
	struct dev *d = arg;

	/* As a PCI device does whose BAR is moved by a write through that very BAR. */
	gw_bus_remove(d->bus, 0x1000);
	d->calls++;
}

static void test_removal_from_within(void **arg)
{
	static const struct gw_bus_ops removing = { .read = removing_handler, .write = dev_write };
	struct gw_bus *bus = gw_bus_new();
	struct dev d = { .bus = bus };
	uint32_t v;

	assert_int_equal(gw_bus_add(bus, 0x1000, 4, &removing, &d), 0);
	assert_int_equal(gw_bus_read(bus, 0x1000, &v, 4), 1);
	assert_int_equal(gw_bus_read(bus, 0x1000, &v, 4), 0);
	assert_int_equal(d.calls, 1);
	gw_bus_free(bus);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lookup),
		cmocka_unit_test(test_removal_waits),
		cmocka_unit_test(test_removal_from_within),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
