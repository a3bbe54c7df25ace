// SPDX-License-Identifier: Apache-2.0
/* The generation ID: when it changes, where it lies, and what older or wrong states do to it. */
#include "cmocka-all.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/genid.h"
#include "vmm/memmap.h"
#include "vmm/vm.h"

static int setup(void **state)
{
	struct gw_ram *ram;

	assert_int_equal(gw_ram_new(16 << 20, GW_GPA_HOLE_START, GW_GPA_HOLE_END, &ram, NULL), 0);
	*state = ram;
	return 0;
}

static int teardown(void **state)
{
	gw_ram_free(*state);
	return 0;
}

static void seen_by_guest(struct gw_ram *ram, uint8_t id[16])
{
	assert_int_equal(gw_ram_read(ram, GW_GPA_GENID, id, 16), 0);
}

static void save(const struct gw_genid *genid, struct gw_buf *out)
{
	struct gw_state_writer *w;

	assert_int_equal(gw_state_writer_new(&w), 0);
	if (genid)
		assert_int_equal(gw_genid_save(genid, w, NULL), 0);
	assert_int_equal(gw_state_finish(w, out), 0);
	gw_state_writer_free(w);
}

static int load(struct gw_genid *genid, const struct gw_buf *in, struct gw_error *err)
{
	struct gw_state_reader *r;
	int ret = gw_state_reader_new(in->data, in->len, &r, err);

	if (ret < 0)
		return ret;
	ret = gw_genid_load(genid, r, err) ?: gw_state_reader_done(r, err);
	gw_state_reader_free(r);
	return ret;
}

static void another_after_a_snapshot_alone(void **state)
{
	struct gw_genid here, there;
	gw_autobuf saved = GW_BUF_INIT;
	uint8_t first[16], now[16];

	assert_int_equal(gw_genid_init(&here, NULL), 0);
	assert_int_equal(gw_genid_init(&there, NULL), 0);
	assert_memory_not_equal(here.id, there.id, 16);
	assert_int_equal(gw_genid_show(&here, *state, NULL), 0);
	seen_by_guest(*state, first);
	assert_memory_equal(first, here.id, 16);
	/* A reboot shows the same again; a move brings it along, and leaves RAM alone. */
	assert_int_equal(gw_genid_show(&here, *state, NULL), 0);
	save(&here, &saved);
	assert_int_equal(load(&there, &saved, NULL), 0);
	assert_true(there.shown);
	assert_memory_equal(there.id, first, 16);
	seen_by_guest(*state, now);
	assert_memory_equal(now, first, 16);
	assert_int_equal(gw_genid_renew(&there, *state, NULL), 0);
	seen_by_guest(*state, now);
	assert_memory_not_equal(now, first, 16);
	assert_memory_equal(now, there.id, 16);
}

/* Where it lies is the guest's own memory for all that we know: nothing is written before it boots with our tables. */
static void an_older_guest_does_not_see_it(void **state)
{
	static const uint8_t zeros[16];
	struct gw_genid genid;
	gw_autobuf older = GW_BUF_INIT;
	uint8_t now[16];

	save(NULL, &older);
	assert_int_equal(gw_genid_init(&genid, NULL), 0);
	assert_int_equal(load(&genid, &older, NULL), 0);
	assert_int_equal(gw_genid_renew(&genid, *state, NULL), 0);
	assert_false(genid.shown);
	seen_by_guest(*state, now);
	assert_memory_equal(now, zeros, 16);
	assert_int_equal(gw_genid_show(&genid, *state, NULL), 0);
	assert_true(genid.shown);
}

static void wrong_states_are_refused(void **state)
{
	struct gw_genid genid = { .shown = true }, kept;
	struct gw_error err = GW_ERROR_INIT;
	gw_autobuf good = GW_BUF_INIT;
	unsigned refused = 0;

	memset(genid.id, 0xee, sizeof(genid.id));
	save(&genid, &good);
	for (size_t i = 0; i < good.len; i++) {
		for (unsigned bit = 0; bit < 8; bit++) {
			gw_autobuf bad = GW_BUF_INIT;

			assert_int_equal(gw_buf_append(&bad, good.data, good.len), 0);
			bad.data[i] ^= (uint8_t)(1u << bit);
			kept = genid;
			err = (struct gw_error)GW_ERROR_INIT;
			if (load(&kept, &bad, &err) < 0) {
				assert_true(err.code && err.msg[0]);
				refused++;
			}
		}
	}
	/* All but the bits of the ID itself, about. */
	assert_true(refused > good.len * 8 - 16 * 8 - 16);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(another_after_a_snapshot_alone, setup, teardown),
		cmocka_unit_test_setup_teardown(an_older_guest_does_not_see_it, setup, teardown),
		cmocka_unit_test_setup_teardown(wrong_states_are_refused, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
