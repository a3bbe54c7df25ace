// SPDX-License-Identifier: Apache-2.0
/* Frames of the stream: strict decoding, and golden files of each version that must stay readable. */
#include "cmocka-all.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/buf.h"
#include "lib/bytes.h"
#include "lib/io.h"
#include "lib/util.h"
#include "migrate/pages.h"
#include "migrate/receiver.h"
#include "migrate/stream.h"
#include "proto/frame.h"
#include "proto/stream.pb-c.h"

#define PAGES 40u

static int decode(const struct gw_page_frame *f, uint64_t pages, struct gw_page_frame *ret)
{
	struct gw_error err = GW_ERROR_INIT;
	uint8_t raw[GW_STREAM_HEADER];

	gw_page_frame_encode(f, raw);
	return gw_page_frame_decode(raw, pages, ret, &err);
}

static void frames_come_back(void **state)
{
	static const struct gw_page_frame good[] = {
		{ GW_PAGE_RAW, false, 1, 0 },	 { GW_PAGE_RAW, false, 512, 488 }, { GW_PAGE_ZERO, false, 7, 993 },
		{ GW_PAGE_END, false, 0, 1 },	 { GW_PAGE_END, true, 0, 77 },	   { GW_PAGE_ACK, false, 0, 77 },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(good); i++) {
		struct gw_page_frame f;

		assert_int_equal(decode(&good[i], 1000, &f), 0);
		assert_int_equal(f.type, good[i].type);
		assert_int_equal(f.last, good[i].last);
		assert_int_equal(f.count, good[i].count);
		assert_int_equal(f.index, good[i].index);
	}
}

static void nonsense_is_refused(void **state)
{
	static const struct gw_page_frame bad[] = {
		{ 0, false, 1, 0 },		  { 5, false, 1, 0 },		    { GW_PAGE_RAW, false, 0, 0 },
		{ GW_PAGE_RAW, false, 513, 0 },	  { GW_PAGE_RAW, false, 1, 1000 },  { GW_PAGE_RAW, false, 2, 999 },
		{ GW_PAGE_RAW, true, 1, 0 },	  { GW_PAGE_ZERO, true, 1, 0 },	    { GW_PAGE_ACK, true, 0, 1 },
		{ GW_PAGE_RAW, false, 1, UINT64_MAX }, { GW_PAGE_ZERO, false, 512, UINT64_MAX - 511 }, { GW_PAGE_END, false, 1, 1 },
		{ GW_PAGE_END, false, 0, 0 },	  { GW_PAGE_END, false, 0, 1ull << 32 },
	};
	struct gw_page_frame f = { .count = 12345 };
	struct gw_error err = GW_ERROR_INIT;
	uint8_t raw[GW_STREAM_HEADER];

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(decode(&bad[i], 1000, &f), -EPROTO);
	assert_int_equal(f.count, 12345);
	gw_page_frame_encode(&(struct gw_page_frame){ GW_PAGE_RAW, false, 1, 0 }, raw);
	for (unsigned bit = 0; bit < 24; bit++) {
		raw[1 + bit / 8] ^= (uint8_t)(1u << bit % 8);
		assert_int_equal(gw_page_frame_decode(raw, 1000, &f, &err), -EPROTO);
		raw[1 + bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
}

static void zero_pages_are_seen(void **state)
{
	_Alignas(64) uint8_t page[4096];

	memset(page, 0, sizeof(page));
	assert_true(gw_page_is_zero(page));
	for (unsigned i = 0; i < sizeof(page); i++) {
		page[i] = 1;
		assert_false(gw_page_is_zero(page));
		page[i] = 0;
	}
}

struct reader {
	const uint8_t *p;
	size_t left;
	uint32_t acks;
};

static int read_bytes(void *self, void *data, size_t len)
{
	struct reader *r = self;

	if (len > r->left)
		return -EPIPE;
	memcpy(data, r->p, len);
	r->p += len;
	r->left -= len;
	return 0;
}

static int count_acks(void *self, const void *data, size_t len)
{
	struct gw_page_frame f;
	struct gw_error err = GW_ERROR_INIT;

	assert_int_equal(len, GW_STREAM_HEADER);
	assert_int_equal(gw_page_frame_decode(data, PAGES, &f, &err), 0);
	assert_int_equal(f.type, GW_PAGE_ACK);
	assert_int_equal(f.index, ++((struct reader *)self)->acks);
	return 0;
}

/* What the golden stream of pages leaves in page i: 0 for a page of zeros. */
static uint8_t golden_byte(unsigned i)
{
	if (i == 5 || i == 6)
		return 0xee;
	return i >= 20 && i < 30 ? (uint8_t)(0x40 + i) : 0;
}

/* Two rounds: a run over the border of two regions, then zeros over a part of it and a newer page. */
static void make_golden_pages(struct gw_buf *out)
{
	static const struct gw_page_frame frames[] = {
		{ GW_PAGE_RAW, false, 10, 20 }, { GW_PAGE_RAW, false, 3, 4 },	{ GW_PAGE_END, false, 0, 1 },
		{ GW_PAGE_ZERO, false, 1, 4 },	{ GW_PAGE_RAW, false, 2, 5 },	{ GW_PAGE_END, true, 0, 2 },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(frames); i++) {
		uint8_t raw[GW_STREAM_HEADER], page[4096];

		gw_page_frame_encode(&frames[i], raw);
		assert_int_equal(gw_buf_append(out, raw, sizeof(raw)), 0);
		for (unsigned k = 0; frames[i].type == GW_PAGE_RAW && k < frames[i].count; k++) {
			uint8_t byte = golden_byte((unsigned)frames[i].index + k);

			memset(page, i == 1 ? 0x77 : byte, sizeof(page));
			assert_int_equal(gw_buf_append(out, page, sizeof(page)), 0);
		}
	}
}

/* A block of 2 MiB that becomes zeros goes back to the host; one that spans two regions is cleared as well. */
static void blocks_of_zeros_go_back(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	uint8_t raw[GW_STREAM_HEADER];
	unsigned char vec[512];
	struct gw_ram *ram;
	uint32_t round = 0;
	uint64_t pages = 0;

	assert_int_equal(gw_ram_new(6 << 20, 4 << 20, 1 << 30, &ram, &err), 0);
	for (uint64_t first = 0; first <= 768; first += 768) {
		struct reader in = { raw, sizeof(raw), 0 };
		const struct gw_page_io io = { read_bytes, count_acks, &in };

		for (uint64_t i = 0; i < gw_ram_pages(ram); i++)
			memset(gw_ram_page(ram, i), 1, GW_PAGE_SIZE);
		gw_page_frame_encode(&(struct gw_page_frame){ GW_PAGE_ZERO, false, 512, first }, raw);
		assert_int_equal(gw_receive_frame(&io, ram, &round, &pages, &err), 0);
		assert_int_equal(mincore(gw_ram_page(ram, 0), 2 << 20, vec), 0);
		assert_int_equal(vec[0] & 1, first != 0);
		for (uint64_t i = 0; i < gw_ram_pages(ram); i++)
			assert_int_equal(gw_page_is_zero(gw_ram_page(ram, i)), i >= first && i < first + 512);
	}
	gw_ram_free(ram);
}

static void make_golden_hello(struct gw_buf *out)
{
	Godwit__StreamHello hello = GODWIT__STREAM_HELLO__INIT;
	Godwit__StreamMachine machine = GODWIT__STREAM_MACHINE__INIT;
	Godwit__StreamRegion region = GODWIT__STREAM_REGION__INIT, *regions[] = { &region };
	Godwit__StreamDisk disk = GODWIT__STREAM_DISK__INIT, *disks[] = { &disk };
	uint8_t id[16] = { 1, 2, 3 };

	region.size = 256ull << 20;
	disk.name = (char *)"vda";
	disk.size = 1ull << 30;
	machine.name = (char *)"golden";
	machine.cpus = 2;
	machine.n_regions = machine.n_disks = 1;
	machine.regions = regions;
	machine.disks = disks;
	machine.state_version = 1;
	hello.version_min = hello.version_max = 1;
	hello.move_id.data = id;
	hello.move_id.len = sizeof(id);
	hello.epoch = 7;
	hello.channels = 2;
	hello.machine = &machine;
	assert_int_equal(gw_frame_pack(out, GW_STREAM_HELLO, &hello.base), 0);
}

/* With GW_WRITE_GOLDEN set the file is made anew: only for a new version of the stream, under a new name. */
static void load_golden(const char *name, void (*make)(struct gw_buf *), struct gw_buf *out)
{
	struct gw_error err = GW_ERROR_INIT;
	char path[128], *data;
	size_t len;

	snprintf(path, sizeof(path), "tests/golden/%s", name);
	make(out);
	if (getenv("GW_WRITE_GOLDEN"))
		assert_int_equal(gw_write_file_atomic(path, out->data, out->len, 0644, &err), 0);
	if (gw_read_file(path, 1 << 20, &data, &len, &err) < 0) {
		print_message("%s\n", gw_error_text(&err));
		fail();
	}
	/* The encoder still writes the same, and what follows reads the file's bytes. */
	assert_int_equal(len, out->len);
	assert_memory_equal(data, out->data, len);
	out->len = 0;
	assert_int_equal(gw_buf_append(out, data, len), 0);
	free(data);
}

static void golden_pages_are_taken(void **state)
{
	gw_autobuf stream = GW_BUF_INIT;
	struct gw_error err = GW_ERROR_INIT;
	struct reader in = { 0 };
	const struct gw_page_io io = { read_bytes, count_acks, &in };
	struct gw_ram *ram;
	uint32_t round = 0;
	uint64_t pages = 0;
	int r;

	load_golden("stream-v1-pages.bin", make_golden_pages, &stream);
	in.p = stream.data;
	in.left = stream.len;
	assert_int_equal(gw_ram_new(PAGES * GW_PAGE_SIZE, 25 * GW_PAGE_SIZE, 1 << 20, &ram, &err), 0);
	do {
		r = gw_receive_frame(&io, ram, &round, &pages, &err);
	} while (r == 0);
	assert_int_equal(r, 1);
	assert_int_equal(in.left, 0);
	assert_int_equal(in.acks, 1);
	assert_int_equal(round, 2);
	assert_int_equal(pages, 15);
	for (unsigned i = 0; i < PAGES; i++) {
		const uint8_t *page = gw_ram_page(ram, i);

		for (unsigned k = 0; k < 4096; k++)
			assert_int_equal(page[k], golden_byte(i));
	}
	gw_ram_free(ram);
}

static void golden_pages_cut_anywhere_fail(void **state)
{
	gw_autobuf stream = GW_BUF_INIT;
	struct gw_ram *ram;
	struct gw_error err = GW_ERROR_INIT;

	make_golden_pages(&stream);
	assert_int_equal(gw_ram_new(PAGES * GW_PAGE_SIZE, 25 * GW_PAGE_SIZE, 1 << 20, &ram, &err), 0);
	for (size_t cut = 0; cut < stream.len; cut += cut % 4096 < 64 ? 1 : 509) {
		struct reader in = { .p = stream.data, .left = cut };
		const struct gw_page_io io = { read_bytes, count_acks, &in };
		uint32_t round = 0;
		uint64_t pages = 0;
		int r;

		do {
			r = gw_receive_frame(&io, ram, &round, &pages, &err);
		} while (r == 0);
		assert_int_equal(r, -EPIPE);
	}
	gw_ram_free(ram);
}

static void golden_hello_is_understood(void **state)
{
	gw_autobuf stream = GW_BUF_INIT;
	struct gw_frame_header h;
	Godwit__StreamHello *hello;

	load_golden("stream-v1-hello.bin", make_golden_hello, &stream);
	assert_int_equal(gw_frame_parse_header(stream.data, &h), 0);
	assert_int_equal(h.type, GW_STREAM_HELLO);
	hello = godwit__stream_hello__unpack(NULL, h.len, stream.data + GW_FRAME_HEADER);
	assert_non_null(hello);
	assert_int_equal(hello->version_max, 1);
	assert_int_equal(hello->epoch, 7);
	assert_int_equal(hello->machine->cpus, 2);
	assert_int_equal(hello->machine->regions[0]->size, 256ull << 20);
	assert_string_equal(hello->machine->disks[0]->name, "vda");
	godwit__stream_hello__free_unpacked(hello, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(frames_come_back),
		cmocka_unit_test(nonsense_is_refused),
		cmocka_unit_test(zero_pages_are_seen),
		cmocka_unit_test(blocks_of_zeros_go_back),
		cmocka_unit_test(golden_pages_are_taken),
		cmocka_unit_test(golden_pages_cut_anywhere_fail),
		cmocka_unit_test(golden_hello_is_understood),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
