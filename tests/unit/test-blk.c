// SPDX-License-Identifier: Apache-2.0
/* virtio-blk on raw files, driven as a guest does. */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/buf.h"
#include "lib/util.h"
#include "tests/unit/virtio-guest.h"
#include "vmm/blk.h"
#include "vmm/virtio-pci.h"
#include "vmm/vm.h"

#define SLOT 11
#define HEADER 0x200000
#define STATUS 0x201000
#define DATA 0x210000
#define HIGH_DATA (FAKE_HIGH + 0x300000)
#define SIZE (4u << 20)

struct fixture {
	struct fake_host *fake;
	char path[64];
	struct gw_blk *blk;
	struct gw_device dev;
	struct guest guest;
};

static int open_disk(struct fixture *f, bool readonly, bool incoming, struct gw_error *err)
{
	const struct gw_disk_config config = { .name = "vda", .path = f->path, .readonly = readonly };
	int r = gw_blk_new(&config, incoming, &f->fake->host, &f->blk, err);

	if (r < 0)
		return r;
	assert_int_equal(gw_virtio_pci_attach(gw_blk_virtio(f->blk), f->fake->pci, SLOT, NULL), 0);
	f->dev = gw_virtio_device(gw_blk_virtio(f->blk));
	return 0;
}

static void close_disk(struct fixture *f)
{
	if (f->blk)
		f->dev.ops->free(f->dev.self);
	f->blk = NULL;
}

static void start(struct fixture *f)
{
	f->dev.ops->resume(f->dev.self);
	assert_true(guest_start(&f->guest, f->fake, SLOT, UINT64_MAX));
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int fd;

	assert_non_null(f);
	memcpy(f->path, "/tmp/gw-test-blk-XXXXXX", 24);
	fd = mkstemp(f->path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	close(fd);
	f->fake = fake_host_new();
	assert_int_equal(open_disk(f, false, false, NULL), 0);
	start(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	close_disk(f);
	fake_host_free(f->fake);
	unlink(f->path);
	free(f);
	return 0;
}

static void put_header(struct guest *g, uint32_t type, uint64_t sector)
{
	const struct virtio_blk_outhdr hdr = { .type = type, .sector = sector };

	memcpy(guest_ptr(g, HEADER, sizeof(hdr)), &hdr, sizeof(hdr));
	*(uint8_t *)guest_ptr(g, STATUS, 1) = 0xaa;
}

static uint8_t finish(struct guest *g, uint32_t *written)
{
	guest_kick(g, 0);
	assert_true(guest_used(g, 0, NULL, written));
	return *(uint8_t *)guest_ptr(g, STATUS, 1);
}

/* One request with `n` data buffers of `len` bytes each, which lie apart. */
static uint8_t request(struct guest *g, uint32_t type, uint64_t sector, uint64_t data, uint32_t len, unsigned n, uint32_t *written)
{
	struct guest_buf bufs[18] = { { HEADER, 16, false } };

	put_header(g, type, sector);
	for (unsigned i = 0; i < n; i++)
		bufs[1 + i] = (struct guest_buf){ data + i * 2ull * len, len, type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID };
	bufs[1 + n] = (struct guest_buf){ STATUS, 1, true };
	guest_add(g, 0, bufs, n + 2);
	return finish(g, written);
}

static void data_goes_to_the_file_and_back(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	uint8_t disk[4096];
	uint32_t written;
	int fd;

	for (unsigned i = 0; i < 8; i++)
		memset(guest_ptr(g, HIGH_DATA + i * 1024, 512), 'a' + (int)i, 512);
	assert_int_equal(request(g, VIRTIO_BLK_T_OUT, 16, HIGH_DATA, 512, 8, &written), VIRTIO_BLK_S_OK);
	assert_int_equal(written, 1);
	assert_int_equal(request(g, VIRTIO_BLK_T_FLUSH, 0, 0, 0, 0, NULL), VIRTIO_BLK_S_OK);
	fd = open(f->path, O_RDONLY);
	assert_int_equal(pread(fd, disk, sizeof(disk), 8192), sizeof(disk));
	close(fd);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(disk[512 * i + 511], 'a' + i);
	assert_int_equal(request(g, VIRTIO_BLK_T_IN, 16, DATA, 2048, 2, &written), VIRTIO_BLK_S_OK);
	assert_int_equal(written, 4097);
	assert_memory_equal(guest_ptr(g, DATA, 2048), disk, 2048);
	assert_memory_equal(guest_ptr(g, DATA + 4096, 2048), disk + 2048, 2048);
}

/* Header and status may lie anyhow over the descriptors (virtio 1.2 §2.7.4.1). */
static void framing_is_free(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	const struct guest_buf bufs[] = {
		{ HEADER, 5, false }, { HEADER + 5, 11, false }, { DATA, 500, true }, { DATA + 500, 13, true },
	};

	put_header(g, VIRTIO_BLK_T_IN, 0);
	memset(guest_ptr(g, DATA, 513), 0xaa, 513);
	guest_add(g, 0, bufs, 4);
	guest_kick(g, 0);
	assert_true(guest_used(g, 0, NULL, NULL));
	assert_int_equal(*(uint8_t *)guest_ptr(g, DATA + 512, 1), VIRTIO_BLK_S_OK);
	assert_int_equal(*(uint8_t *)guest_ptr(g, DATA + 511, 1), 0);
}

static void bad_requests_fail_alone(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	const struct guest_buf headless[] = { { HEADER, 8, false }, { STATUS, 1, true } };

	assert_int_equal(request(g, VIRTIO_BLK_T_IN, SIZE / 512, DATA, 512, 1, NULL), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(g, VIRTIO_BLK_T_IN, SIZE / 512 - 1, DATA, 1024, 1, NULL), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(g, VIRTIO_BLK_T_OUT, UINT64_MAX, DATA, 512, 1, NULL), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(g, VIRTIO_BLK_T_OUT, 0, DATA, 100, 1, NULL), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(g, 77, 0, DATA, 512, 1, NULL), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(request(g, VIRTIO_BLK_T_IN, 0, DATA, 512, 1, NULL), VIRTIO_BLK_S_OK);
	guest_add(g, 0, headless, 2);
	guest_kick(g, 0);
	assert_true(guest_broken(g));
	assert_true(guest_start(g, f->fake, SLOT, UINT64_MAX));
	assert_int_equal(request(g, VIRTIO_BLK_T_IN, 0, DATA, 512, 1, NULL), VIRTIO_BLK_S_OK);
}

static void identity_and_discard(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	struct virtio_blk_discard_write_zeroes seg = { .sector = 8, .num_sectors = 8, .flags = 1 };
	uint8_t *data = guest_ptr(g, DATA, 4096);
	struct stat st;

	assert_int_equal(guest_config_read(g, 0, 8), SIZE / 512);
	assert_int_equal(request(g, VIRTIO_BLK_T_GET_ID, 0, DATA, 20, 1, NULL), VIRTIO_BLK_S_OK);
	assert_string_equal((char *)data, "vda");
	memset(data, 0x55, 4096);
	assert_int_equal(request(g, VIRTIO_BLK_T_OUT, 8, DATA, 4096, 1, NULL), VIRTIO_BLK_S_OK);
	memcpy(data, &seg, sizeof(seg));
	assert_int_equal(request(g, VIRTIO_BLK_T_WRITE_ZEROES, 0, DATA, 16, 1, NULL), VIRTIO_BLK_S_OK);
	assert_int_equal(request(g, VIRTIO_BLK_T_IN, 8, DATA, 4096, 1, NULL), VIRTIO_BLK_S_OK);
	assert_int_equal(data[0] | data[4095], 0);
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_size, SIZE);
	seg = (struct virtio_blk_discard_write_zeroes){ .sector = SIZE / 512, .num_sectors = 1 };
	memcpy(data, &seg, sizeof(seg));
	assert_int_equal(request(g, VIRTIO_BLK_T_DISCARD, 0, DATA, 16, 1, NULL), VIRTIO_BLK_S_IOERR);
	seg = (struct virtio_blk_discard_write_zeroes){ .sector = 0, .num_sectors = 8, .flags = 2 };
	memcpy(data, &seg, sizeof(seg));
	assert_int_equal(request(g, VIRTIO_BLK_T_DISCARD, 0, DATA, 16, 1, NULL), VIRTIO_BLK_S_UNSUPP);
}

static void read_only_disks_stay_so(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;

	close_disk(f);
	chmod(f->path, 0400);
	assert_int_equal(open_disk(f, true, false, NULL), 0);
	start(f);
	assert_true(g->features >> VIRTIO_BLK_F_RO & 1);
	assert_int_equal(request(g, VIRTIO_BLK_T_OUT, 0, DATA, 512, 1, NULL), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(g, VIRTIO_BLK_T_IN, 0, DATA, 512, 1, NULL), VIRTIO_BLK_S_OK);
	assert_int_equal(request(g, VIRTIO_BLK_T_FLUSH, 0, 0, 0, 0, NULL), VIRTIO_BLK_S_OK);
}

static void a_cut_file_is_an_error(void **state)
{
	struct fixture *f = *state;
	struct gw_error err = GW_ERROR_INIT;

	assert_int_equal(truncate(f->path, 4096), 0);
	assert_int_equal(request(&f->guest, VIRTIO_BLK_T_IN, 0, DATA, 4096, 2, NULL), VIRTIO_BLK_S_IOERR);
	close_disk(f);
	assert_int_equal(truncate(f->path, 1000), 0);
	assert_true(open_disk(f, false, false, &err) < 0);
	assert_non_null(strstr(err.msg, "512"));
	assert_int_equal(truncate(f->path, 0), 0);
	assert_true(open_disk(f, false, false, &err) < 0);
	assert_non_null(strstr(err.msg, "empty"));
}

static void one_writer_only(void **state)
{
	struct fixture *f = *state, other = *f;
	struct gw_error err = GW_ERROR_INIT;
	struct gw_blk *second = NULL;
	const struct gw_disk_config config = { .name = "vdb", .path = f->path };

	assert_int_equal(gw_blk_new(&config, false, &f->fake->host, &second, &err), -EBUSY);
	assert_non_null(strstr(err.msg, "another process"));
	/* An arriving VM opens it, and gets it when the owner has let go. */
	assert_int_equal(gw_blk_new(&config, true, &f->fake->host, &second, &err), 0);
	other.blk = second;
	other.dev = gw_virtio_device(gw_blk_virtio(second));
	other.dev.ops->resume(other.dev.self);
	assert_int_equal(f->fake->failures, 1);
	other.dev.ops->quiesce(other.dev.self);
	f->dev.ops->quiesce(f->dev.self);
	other.dev.ops->resume(other.dev.self);
	assert_int_equal(f->fake->failures, 1);
	/* The source must not run on. */
	f->dev.ops->resume(f->dev.self);
	assert_int_equal(f->fake->failures, 2);
	assert_int_equal(request(&f->guest, VIRTIO_BLK_T_OUT, 0, DATA, 512, 1, NULL), VIRTIO_BLK_S_IOERR);
	other.dev.ops->free(other.dev.self);
}

/* Requests under way when the device is quiesced are all answered, and it goes on elsewhere where it stopped. */
static void quiesce_answers_all(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	struct gw_state_writer *w = NULL;
	struct gw_state_reader *r = NULL;
	struct gw_buf buf = GW_BUF_INIT;
	struct gw_error err = GW_ERROR_INIT;
	unsigned done = 0;

	for (int i = 0; i < 10; i++) {
		const struct guest_buf bufs[] = { { HEADER, 16, false }, { DATA + i * 65536ull, 65536, false }, { STATUS, 1, true } };

		put_header(g, VIRTIO_BLK_T_OUT, 128 * (uint64_t)i);
		guest_add(g, 0, bufs, 3);
	}
	guest_kick(g, 0);
	f->dev.ops->quiesce(f->dev.self);
	while (guest_used_now(g, 0, NULL, NULL))
		done++;
	assert_int_equal(gw_state_writer_new(&w), 0);
	assert_int_equal(f->dev.ops->save(f->dev.self, w, &err), 0);
	assert_int_equal(gw_state_finish(w, &buf), 0);
	gw_state_writer_free(w);
	close_disk(f);
	assert_int_equal(open_disk(f, false, true, NULL), 0);
	assert_int_equal(gw_state_reader_new(buf.data, buf.len, &r, &err), 0);
	assert_int_equal(f->dev.ops->load(f->dev.self, r, &err), 0);
	gw_state_reader_free(r);
	f->dev.ops->resume(f->dev.self);
	for (; done < 10; done++)
		assert_true(guest_used(g, 0, NULL, NULL));
	assert_int_equal(request(g, VIRTIO_BLK_T_IN, 0, DATA, 512, 1, NULL), VIRTIO_BLK_S_OK);
	gw_buf_release(&buf);
}

static void samples_tell_disks_apart(void **state)
{
	struct fixture *f = *state;
	const uint64_t offsets[] = { 0, 8192, SIZE - 512 };
	uint8_t a[32], b[32];
	struct gw_blk_identity id;

	gw_blk_identity(f->blk, &id);
	assert_string_equal(id.kind, "file");
	assert_int_equal(id.size, SIZE);
	assert_int_equal(gw_blk_sample(f->blk, offsets, 3, a, NULL), 0);
	assert_int_equal(gw_blk_sample(f->blk, offsets, 3, b, NULL), 0);
	assert_memory_equal(a, b, 32);
	memset(guest_ptr(&f->guest, DATA, 512), 1, 512);
	assert_int_equal(request(&f->guest, VIRTIO_BLK_T_OUT, SIZE / 512 - 1, DATA, 512, 1, NULL), VIRTIO_BLK_S_OK);
	assert_int_equal(gw_blk_sample(f->blk, offsets, 3, b, NULL), 0);
	assert_memory_not_equal(a, b, 32);
	assert_int_equal(gw_blk_sample(f->blk, (uint64_t[]){ SIZE }, 1, b, NULL), -EINVAL);
}

static void bad_paths_are_clear_errors(void **state)
{
	static const struct {
		const char *path, *word;
	} cases[] = {
		{ "/nonexistent/disk", "No such file" },
		{ "/tmp", "" },
		{ "/dev/null", "neither a regular file" },
		{ "http://host/disk", "neither a path" },
		{ "nbd+unix:///?socket=/nonexistent/socket", "nonexistent" },
		{ "", "neither" },
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct gw_disk_config config = { .name = "vdx", .path = (char *)cases[i].path };
		struct gw_error err = GW_ERROR_INIT;
		struct gw_blk *blk = NULL;

		assert_true(gw_blk_new(&config, false, &f->fake->host, &blk, &err) < 0);
		assert_non_null(strstr(err.msg, cases[i].word));
		assert_non_null(strstr(err.msg, "vdx"));
	}
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(data_goes_to_the_file_and_back),
		T(framing_is_free),
		T(bad_requests_fail_alone),
		T(identity_and_discard),
		T(read_only_disks_stay_so),
		T(a_cut_file_is_an_error),
		T(one_writer_only),
		T(quiesce_answers_all),
		T(samples_tell_disks_apart),
		T(bad_paths_are_clear_errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
