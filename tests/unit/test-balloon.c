// SPDX-License-Identifier: Apache-2.0
/* The balloon device, driven as a guest does: what it frees, what it tells, and guests that name what they must not. */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/util.h"
#include "tests/unit/virtio-guest.h"
#include "vmm/balloon.h"
#include "vmm/virtio-pci.h"

#define SLOT 5
#define ALL UINT64_MAX
#define LIST 0x300000ull /* where the guest writes its lists */
#define DATA 0x400000ull /* pages to give away: 2 MiB, here and above 4 GiB */
#define DATA_SIZE 0x200000ull
#define HIGH (FAKE_HIGH + DATA)
#define PAGE GW_PAGE_SIZE

enum { INFLATE, DEFLATE, STATS, LINUX_REPORT, REPORT };

struct fixture {
	struct fake_host *fake;
	struct gw_device dev;
	struct gw_virtio *vd;
	struct guest guest;
};

static void add_balloon(struct fixture *f)
{
	assert_int_equal(gw_balloon_new(&f->fake->host, &f->vd, NULL), 0);
	assert_int_equal(gw_virtio_pci_attach(f->vd, f->fake->pci, SLOT, NULL), 0);
	f->dev = gw_virtio_device(f->vd);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	f->fake = fake_host_new();
	add_balloon(f);
	f->dev.ops->resume(f->dev.self);
	assert_true(guest_start(&f->guest, f->fake, SLOT, ALL));
	memset(guest_ptr(&f->guest, DATA, DATA_SIZE), 0xaa, DATA_SIZE);
	memset(guest_ptr(&f->guest, HIGH, DATA_SIZE), 0xaa, DATA_SIZE);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	f->dev.ops->free(f->dev.self);
	fake_host_free(f->fake);
	free(f);
	return 0;
}

/* Pages of the two areas that the host no longer has. */
static unsigned gone(struct guest *g)
{
	const uint64_t areas[] = { DATA, HIGH };
	unsigned char vec[DATA_SIZE / PAGE];
	unsigned n = 0;

	for (unsigned a = 0; a < ARRAY_SIZE(areas); a++) {
		assert_int_equal(mincore(guest_ptr(g, areas[a], DATA_SIZE), DATA_SIZE, vec), 0);
		for (unsigned i = 0; i < ARRAY_SIZE(vec); i++)
			n += !(vec[i] & 1);
	}
	return n;
}

static uint8_t byte_at(struct guest *g, uint64_t gpa)
{
	return *(uint8_t *)guest_ptr(g, gpa, 1);
}

static uint32_t pfn(uint64_t gpa)
{
	return (uint32_t)(gpa / PAGE);
}

static void send(struct guest *g, unsigned queue, const struct guest_buf *bufs, unsigned n)
{
	guest_add(g, queue, bufs, n);
	guest_kick(g, queue);
}

/* Names pages in the inflate or deflate queue. */
static void name_pages(struct guest *g, unsigned queue, const uint32_t *pfns, unsigned n)
{
	const struct guest_buf buf = { LIST, n * 4, false };

	memcpy(guest_ptr(g, LIST, n * 4), pfns, n * 4);
	send(g, queue, &buf, 1);
}

static void report(struct guest *g, unsigned queue, uint64_t gpa, uint32_t len)
{
	send(g, queue, &(struct guest_buf){ gpa, len, true }, 1);
}

static void offers_what_it_does(void **state)
{
	struct fixture *f = *state;
	const uint64_t ours = 1 << VIRTIO_BALLOON_F_STATS_VQ | 1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM | 1 << VIRTIO_BALLOON_F_REPORTING;

	assert_int_equal(f->guest.features & 0xff, ours);
	assert_int_equal(f->guest.nqueues, 5);
	assert_true(f->guest.q[REPORT].size >= 32); /* Linux */
}

static void inflated_pages_are_gone(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	/* In disorder, one twice, above and below the hole. */
	const uint32_t pages[] = { pfn(DATA) + 7, pfn(HIGH), pfn(DATA) + 6, pfn(DATA) + 9, pfn(DATA) + 7, pfn(HIGH) + 511 };

	assert_int_equal(gone(g), 0);
	name_pages(g, INFLATE, pages, ARRAY_SIZE(pages));
	assert_true(guest_used(g, INFLATE, NULL, NULL));
	assert_int_equal(gone(g), 5);
	for (unsigned i = 0; i < ARRAY_SIZE(pages); i++)
		assert_int_equal(byte_at(g, (uint64_t)pages[i] * PAGE), 0);
	assert_int_equal(byte_at(g, DATA + 6 * PAGE - 1), 0xaa);
	assert_int_equal(byte_at(g, DATA + 8 * PAGE), 0xaa);
	assert_int_equal(byte_at(g, DATA + 10 * PAGE), 0xaa);
	/* And back: they are memory as before. */
	name_pages(g, DEFLATE, pages, 2);
	assert_true(guest_used(g, DEFLATE, NULL, NULL));
	memset(guest_ptr(g, HIGH, PAGE), 1, PAGE);
	assert_int_equal(byte_at(g, HIGH), 1);
}

static void discards_are_in_the_log_before_they_are_told(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	struct gw_ram *ram = f->fake->host.ram;
	const uint32_t pages[] = { pfn(DATA) + 1, pfn(DATA) + 2, pfn(HIGH) + 5 };
	gw_autofree uint64_t *bitmap = calloc(gw_ram_bitmap_words(ram), sizeof(uint64_t));
	unsigned found = 0;

	gw_ram_log_start(ram);
	name_pages(g, INFLATE, pages, ARRAY_SIZE(pages));
	assert_true(guest_used(g, INFLATE, NULL, NULL));
	report(g, LINUX_REPORT, DATA + 64 * PAGE, 4 * PAGE);
	assert_true(guest_used(g, LINUX_REPORT, NULL, NULL));
	gw_ram_log_take(ram, bitmap);
	for (uint64_t i = 0; i < DATA_SIZE / PAGE; i++) {
		const uint64_t at[] = { gw_ram_index(ram, DATA + i * PAGE), gw_ram_index(ram, HIGH + i * PAGE) };
		bool low = bitmap[at[0] / 64] >> (at[0] % 64) & 1, high = bitmap[at[1] / 64] >> (at[1] % 64) & 1;

		assert_int_equal(low, i == 1 || i == 2 || (i >= 64 && i < 68));
		assert_int_equal(high, i == 5);
		found += low + high;
	}
	assert_int_equal(found, 7);
	gw_ram_log_stop(ram);
}

/* By the specification reporting has queue 4; Linux uses the first queue that is free. */
static void free_pages_are_reported_by_either_numbering(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	struct gw_balloon_info info;
	const struct guest_buf two[] = { { DATA, 16 * PAGE, true }, { HIGH + PAGE, PAGE, true } };

	send(g, REPORT, two, 2);
	assert_true(guest_used(g, REPORT, NULL, NULL));
	assert_int_equal(gone(g), 17);
	report(g, LINUX_REPORT, DATA + DATA_SIZE / 2, DATA_SIZE / 2);
	assert_true(guest_used(g, LINUX_REPORT, NULL, NULL));
	assert_int_equal(gone(g), 17 + DATA_SIZE / 2 / PAGE);
	gw_balloon_info(f->vd, &info);
	assert_true(info.reported == 17 * PAGE + DATA_SIZE / 2);
	/* Without statistics Linux' queue is 2. */
	assert_true(guest_start(g, f->fake, SLOT, ALL & ~(1ull << VIRTIO_BALLOON_F_STATS_VQ)));
	report(g, STATS, HIGH + 8 * PAGE, PAGE);
	assert_true(guest_used(g, STATS, NULL, NULL));
	assert_int_equal(byte_at(g, HIGH + 8 * PAGE), 0);
	/* Without the feature there is none. */
	assert_true(guest_start(g, f->fake, SLOT, 1ull << VIRTIO_F_VERSION_1));
	report(g, REPORT, HIGH + 12 * PAGE, PAGE);
	f->dev.ops->quiesce(f->dev.self);
	assert_int_equal(byte_at(g, HIGH + 12 * PAGE), 0xaa);
}

static void put_stats(struct guest *g, uint64_t free_bytes, unsigned kinds)
{
	struct virtio_balloon_stat *s = guest_ptr(g, LIST, kinds * sizeof(*s));

	for (unsigned i = 0; i < kinds; i++)
		s[i] = (struct virtio_balloon_stat){ (uint16_t)(kinds - 1 - i), free_bytes };
	send(g, STATS, &(struct guest_buf){ LIST, (uint32_t)(kinds * sizeof(*s)), false }, 1);
}

struct wanted {
	struct fixture *f;
	uint64_t free_bytes;
	struct gw_balloon_info info;
};

static bool told(void *arg)
{
	struct wanted *w = arg;

	gw_balloon_info(w->f->vd, &w->info);
	return w->info.has_stats && w->info.stats[VIRTIO_BALLOON_S_MEMFREE] == w->free_bytes;
}

static void statistics_go_round(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	struct wanted w = { .f = f, .free_bytes = 1000 };
	uint64_t begun = gw_now_ns();
	bool asked;

	gw_balloon_info(f->vd, &w.info);
	assert_false(w.info.has_stats);
	assert_true(w.info.driver);
	/* The buffer that the driver begins with tells, too. Kinds that nobody knows yet do no harm. */
	put_stats(g, 1000, 20);
	assert_true(fake_wait(told, &w));
	/* Fresh ones are not asked for again. */
	asked = guest_used_now(g, STATS, NULL, NULL);
	if (gw_now_ns() - begun > GW_NS_PER_SEC) {
		print_message("the machine is too slow for this test\n");
		skip();
	}
	assert_false(asked);
	usleep(1100000);
	gw_balloon_info(f->vd, &w.info);
	assert_true(w.info.stats_age_ms >= 1000);
	assert_true(guest_used(g, STATS, NULL, NULL));
	begun = gw_now_ns();
	put_stats(g, 2000, 5);
	w.free_bytes = 2000;
	assert_true(fake_wait(told, &w));
	assert_true(w.info.stats_age_ms <= (gw_now_ns() - begun) / GW_NS_PER_MS);
	assert_int_equal(w.info.stats[VIRTIO_BALLOON_S_AVAIL], 0); /* not told this time */
	/* While it waits it can be saved, and the same buffer is no news afterwards. */
	f->dev.ops->quiesce(f->dev.self);
	assert_int_equal(gw_virtio_check_in_flight(f->vd, STATS, 0, NULL), 0);
	((struct virtio_balloon_stat *)guest_ptr(g, LIST, 50))[0].val = 3000;
	f->dev.ops->resume(f->dev.self);
	assert_true(told(&w));
}

static bool changed(void *arg)
{
	return fake_raised(((struct fixture *)arg)->fake, GUEST_MESSAGE(SLOT, 0)) > 0;
}

static void targets_are_told_and_followed(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	struct gw_balloon_info info;
	const uint64_t all = 2 * FAKE_RAM_HALF;

	assert_int_equal(guest_config_read(g, 0, 8), 0);
	assert_int_equal(gw_balloon_set_target(f->vd, all / 2 - PAGE, NULL), -ERANGE);
	assert_int_equal(gw_balloon_set_target(f->vd, all + PAGE, NULL), -ERANGE);
	assert_int_equal(gw_balloon_set_target(f->vd, 0, NULL), -ERANGE);
	assert_false(changed(f));
	assert_int_equal(gw_balloon_set_target(f->vd, all - (1 << 20), NULL), 0);
	assert_true(fake_wait(changed, f));
	assert_int_equal(guest_config_read(g, 0, 4), 256);
	fake_write(f->fake, g->bar + 0x2000 + 4, 200, 4);
	assert_int_equal(guest_config_read(g, 4, 4), 200);
	gw_balloon_info(f->vd, &info);
	assert_true(info.target == all - (1 << 20) && info.actual == all - 200 * PAGE);
	assert_true(gw_balloon_size(f->vd) == 200 * PAGE);
	/* The target is ours, and what the guest says is only what it says. */
	fake_write(f->fake, g->bar + 0x2000, 0, 4);
	fake_write(f->fake, g->bar + 0x2000 + 4, UINT32_MAX, 4);
	assert_int_equal(guest_config_read(g, 0, 4), 256);
	gw_balloon_info(f->vd, &info);
	assert_true(info.actual == 0);
	/* A new driver finds the target and begins anew. */
	guest_reset(g);
	assert_int_equal(guest_config_read(g, 0, 8), 256);
	gw_balloon_info(f->vd, &info);
	assert_false(info.driver);
	assert_int_equal(gw_balloon_set_target(f->vd, all, NULL), 0);
	assert_int_equal(guest_config_read(g, 0, 8), 0);
}

/* What breaks the device frees nothing but what was named rightly. */
static void wrong_pages_break_the_device(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	static const uint32_t bad[][2] = {
		{ FAKE_RAM_HALF / PAGE, FAKE_RAM_HALF / PAGE },         /* the hole */
		{ FAKE_RAM_HALF / PAGE - 1, FAKE_RAM_HALF / PAGE },     /* over the end of a region */
		{ FAKE_HIGH / PAGE - 1, FAKE_HIGH / PAGE },             /* and its beginning */
		{ UINT32_MAX, UINT32_MAX - 1 },
		{ (FAKE_HIGH + FAKE_RAM_HALF) / PAGE, UINT32_MAX },
	};

	*(uint8_t *)guest_ptr(g, FAKE_RAM_HALF - 1, 1) = 0xaa;
	*(uint8_t *)guest_ptr(g, FAKE_HIGH, 1) = 0xaa;
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		name_pages(g, INFLATE, bad[i], 2);
		assert_true(guest_broken(g));
		f->dev.ops->quiesce(f->dev.self);
		assert_int_equal(f->vd->violations, i + 1);
		assert_int_equal(gw_virtio_check_in_flight(f->vd, INFLATE, 0, NULL), 0);
		f->dev.ops->resume(f->dev.self);
		assert_true(guest_start(g, f->fake, SLOT, ALL));
	}
	assert_int_equal(byte_at(g, FAKE_RAM_HALF - 1), 0xaa);
	assert_int_equal(byte_at(g, FAKE_HIGH), 0xaa);
	assert_int_equal(gone(g), 0);
}

static void wrong_reports_break_the_device(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	static const struct guest_buf bad[][2] = {
		{ { DATA + 1, PAGE, true }, { DATA, PAGE, true } },
		{ { DATA, PAGE - 1, true }, { DATA, PAGE, true } },
		{ { DATA, 1, true }, { DATA + PAGE, PAGE, true } },
		{ { FAKE_RAM_HALF - PAGE, 2 * PAGE, true }, { DATA, PAGE, true } }, /* into the hole */
		{ { FAKE_HIGH - PAGE, 2 * PAGE, true }, { DATA, PAGE, true } },
		{ { DATA, UINT32_MAX, true }, { DATA, PAGE, true } },
	};
	struct guest_buf all[] = { { 0, FAKE_RAM_HALF, true }, { FAKE_HIGH, FAKE_RAM_HALF, true }, { DATA, PAGE, true } };

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		send(g, REPORT, bad[i], 2);
		assert_true(guest_broken(g));
		assert_true(guest_start(g, f->fake, SLOT, ALL));
	}
	/* More than there is. */
	send(g, REPORT, all, 3);
	assert_true(guest_broken(g));
	assert_true(guest_start(g, f->fake, SLOT, ALL));
	assert_int_equal(gone(g), 0);
	/* What the device could only read is no report. */
	send(g, REPORT, &(struct guest_buf){ DATA, PAGE, false }, 1);
	assert_true(guest_used(g, REPORT, NULL, NULL));
	assert_int_equal(gone(g), 0);
}

static void odd_lists_and_floods_are_bounded(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	const struct guest_buf write_only = { LIST, 64, true }, split[] = { { LIST, 6, false }, { LIST + 6, 5, false } };
	struct guest_buf long_list = { DATA, DATA_SIZE, false };
	uint32_t *list = guest_ptr(g, LIST, 64);
	uint16_t ids[GUEST_QUEUE_SIZE];

	/* No list, a list in pieces that ends within a number. */
	send(g, INFLATE, &write_only, 1);
	assert_true(guest_used(g, INFLATE, NULL, NULL));
	list[0] = pfn(HIGH);
	list[1] = pfn(HIGH) + 1;
	list[2] = pfn(HIGH) + 2;
	send(g, INFLATE, split, 2);
	assert_true(guest_used(g, INFLATE, NULL, NULL));
	assert_int_equal(gone(g), 2);
	/* Half a million pages at once, in the list's own memory: only its beginning is looked at. */
	list = guest_ptr(g, DATA, DATA_SIZE);
	for (size_t i = 0; i < DATA_SIZE / 4; i++)
		list[i] = i < 4096 ? pfn(HIGH) + 3 + i % 2 : pfn(HIGH) + 100;
	send(g, INFLATE, &long_list, 1);
	assert_true(guest_used(g, INFLATE, NULL, NULL));
	assert_int_equal(gone(g), 4);
	/* All queues full of large requests: each is answered, and others have their turn in between. */
	for (unsigned i = 0; i < GUEST_QUEUE_SIZE; i++) {
		ids[i] = guest_add(g, REPORT, &(struct guest_buf){ HIGH, DATA_SIZE, true }, 1);
		guest_add(g, INFLATE, &long_list, 1);
	}
	guest_kick(g, REPORT);
	guest_kick(g, INFLATE);
	for (unsigned i = 0; i < GUEST_QUEUE_SIZE; i++) {
		uint16_t id;

		assert_true(guest_used(g, REPORT, &id, NULL));
		assert_int_equal(id, ids[i]);
		assert_true(guest_used(g, INFLATE, NULL, NULL));
	}
	/* More buffers for statistics than the one that there should be: the others wait. All have the one list, which is not written again. */
	put_stats(g, 1, 0x1000);
	for (unsigned i = 0; i < 2; i++)
		send(g, STATS, &(struct guest_buf){ LIST, 4 * sizeof(struct virtio_balloon_stat), false }, 1);
	f->dev.ops->quiesce(f->dev.self);
	assert_int_equal(gw_virtio_check_in_flight(f->vd, STATS, 0, NULL), 0);
	assert_false(guest_used_now(g, STATS, NULL, NULL));
	assert_int_equal(f->vd->violations, 0);
}

static void save(struct fixture *f, struct gw_buf *out)
{
	struct gw_state_writer *w = NULL;

	f->dev.ops->quiesce(f->dev.self);
	assert_int_equal(gw_state_writer_new(&w), 0);
	assert_int_equal(f->dev.ops->save(f->dev.self, w, NULL), 0);
	assert_int_equal(gw_state_finish(w, out), 0);
	gw_state_writer_free(w);
}

static int load(struct fixture *f, const struct gw_buf *in)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_state_reader *r = NULL;
	int ret;

	if (gw_state_reader_new(in->data, in->len, &r, &err) < 0)
		return -EPROTO;
	ret = f->dev.ops->load(f->dev.self, r, &err);
	gw_state_reader_free(r);
	return ret;
}

static void state_goes_over(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	gw_autobuf buf = GW_BUF_INIT;
	struct wanted w = { .f = f, .free_bytes = 5 };
	const uint32_t page = pfn(DATA);

	put_stats(g, 5, 5);
	assert_true(fake_wait(told, &w));
	assert_int_equal(gw_balloon_set_target(f->vd, FAKE_RAM_HALF, NULL), 0);
	fake_write(f->fake, g->bar + 0x2000 + 4, 77, 4);
	save(f, &buf);
	f->dev.ops->free(f->dev.self);
	add_balloon(f);
	assert_int_equal(load(f, &buf), 0);
	/* A driver that is behind its target is told again. */
	assert_false(changed(f));
	f->dev.ops->resume(f->dev.self);
	assert_true(changed(f));
	assert_int_equal(guest_config_read(g, 0, 4), FAKE_RAM_HALF / PAGE);
	assert_true(gw_balloon_size(f->vd) == 77 * PAGE);
	/* The buffer that waited is not taken for news. It is asked for, and the answer is. */
	gw_balloon_info(f->vd, &w.info);
	assert_false(w.info.has_stats);
	assert_true(guest_used(g, STATS, NULL, NULL));
	/* The question goes over as well. */
	buf.len = 0;
	save(f, &buf);
	f->dev.ops->free(f->dev.self);
	add_balloon(f);
	assert_int_equal(load(f, &buf), 0);
	f->dev.ops->resume(f->dev.self);
	put_stats(g, 6, 5);
	w.free_bytes = 6;
	assert_true(fake_wait(told, &w));
	name_pages(g, INFLATE, &page, 1);
	assert_true(guest_used(g, INFLATE, NULL, NULL));
	assert_int_equal(gone(g), 1);
}

/* Each bit of a state turned over: either refused or harmless, never a crash. */
static void hostile_state_is_refused_or_harmless(void **state)
{
	struct fixture *f = *state;
	gw_autobuf buf = GW_BUF_INIT;
	struct gw_balloon_info info;
	unsigned refused = 0;

	put_stats(&f->guest, 5, 5);
	assert_int_equal(gw_balloon_set_target(f->vd, FAKE_RAM_HALF, NULL), 0);
	save(f, &buf);
	for (size_t i = 0; i < buf.len * 8; i += 3) {
		buf.data[i / 8] ^= (uint8_t)(1 << i % 8);
		if (load(f, &buf) < 0) {
			refused++;
		} else {
			f->dev.ops->resume(f->dev.self);
			gw_balloon_info(f->vd, &info);
			assert_true(info.target <= 2 * FAKE_RAM_HALF && info.actual <= 2 * FAKE_RAM_HALF);
			f->dev.ops->quiesce(f->dev.self);
		}
		buf.data[i / 8] ^= (uint8_t)(1 << i % 8);
	}
	assert_true(refused > 10);
	assert_int_equal(load(f, &buf), 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(offers_what_it_does),
		T(inflated_pages_are_gone),
		T(discards_are_in_the_log_before_they_are_told),
		T(free_pages_are_reported_by_either_numbering),
		T(statistics_go_round),
		T(targets_are_told_and_followed),
		T(wrong_pages_break_the_device),
		T(wrong_reports_break_the_device),
		T(odd_lists_and_floods_are_bounded),
		T(state_goes_over),
		T(hostile_state_is_refused_or_harmless),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
