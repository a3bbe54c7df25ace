// SPDX-License-Identifier: Apache-2.0
/* vmm/state: a table's round trip, older and newer versions, and states that do not fit. */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/state.h"

struct dev {
	bool on;
	uint8_t small;
	uint32_t word;
	uint64_t wide;
	uint16_t table[3];
	struct gw_buf queue;
};

static const struct gw_state_field fields_v1[] = {
	GW_STATE_UINT(struct dev, on, 1),     GW_STATE_UINT(struct dev, small, 1), GW_STATE_UINT(struct dev, word, 1),
	GW_STATE_BYTES(struct dev, table, 1), GW_STATE_BUF(struct dev, queue, 16, 1), {},
};
static const struct gw_state_field fields_v2[] = {
	GW_STATE_UINT(struct dev, on, 1),     GW_STATE_UINT(struct dev, small, 1),    GW_STATE_UINT(struct dev, word, 1),
	GW_STATE_BYTES(struct dev, table, 1), GW_STATE_BUF(struct dev, queue, 16, 1), GW_STATE_UINT(struct dev, wide, 2), {},
};
static const struct gw_state_desc v1 = { "dev", 1, 1, fields_v1 };
static const struct gw_state_desc v2 = { "dev", 2, 1, fields_v2 };
static const struct gw_state_desc v3_only = { "dev", 3, 3, fields_v2 };

static void save(const struct gw_state_desc *desc, struct gw_buf *out)
{
	struct dev d = { .on = true, .small = 200, .word = 0xdeadbeef, .wide = UINT64_MAX, .table = { 1, 2, 3 } };
	struct gw_state_writer *w = NULL;

	assert_int_equal(gw_buf_append(&d.queue, "hello", 5), 0);
	assert_int_equal(gw_state_writer_new(&w), 0);
	assert_int_equal(gw_state_put(w, desc, "0", &d), 0);
	assert_int_equal(gw_state_finish(w, out), 0);
	gw_state_writer_free(w);
	gw_buf_release(&d.queue);
}

static int load(const struct gw_buf *in, const struct gw_state_desc *desc, struct dev *d, struct gw_error *err)
{
	struct gw_state_reader *r = NULL;
	int ret = gw_state_reader_new(in->data, in->len, &r, err);

	if (ret == 0)
		ret = gw_state_get(r, desc, "0", d, err);
	if (ret == 0)
		ret = gw_state_reader_done(r, err);
	gw_state_reader_free(r);
	return ret;
}

static void round_trip(void **state)
{
	gw_autobuf b = GW_BUF_INIT;
	struct gw_error err = GW_ERROR_INIT;
	struct dev d = { 0 };

	save(&v2, &b);
	assert_int_equal(load(&b, &v2, &d, &err), 0);
	assert_true(d.on);
	assert_int_equal(d.small, 200);
	assert_int_equal(d.word, 0xdeadbeef);
	assert_true(d.wide == UINT64_MAX);
	assert_int_equal(d.table[2], 3);
	assert_int_equal(d.queue.len, 5);
	assert_memory_equal(d.queue.data, "hello", 5);
	gw_buf_release(&d.queue);
}

static void older_is_taken_newer_refused(void **state)
{
	gw_autobuf old = GW_BUF_INIT, new = GW_BUF_INIT;
	struct gw_error err = GW_ERROR_INIT;
	struct dev d = { .wide = 7 };

	save(&v1, &old);
	save(&v2, &new);
	assert_int_equal(load(&old, &v2, &d, &err), 0);
	assert_int_equal(d.wide, 7); /* keeps what reset gave it */
	assert_int_equal(load(&new, &v1, &d, &err), -EPROTO);
	assert_int_equal(load(&new, &v3_only, &d, &err), -EPROTO);
	assert_non_null(strstr(err.msg, "version"));
	gw_buf_release(&d.queue);
}

static void what_does_not_fit_is_refused(void **state)
{
	static const struct gw_state_field narrow[] = {
		GW_STATE_UINT(struct dev, on, 1), GW_STATE_UINT(struct dev, small, 1),
		{ "word", GW_STATE_T_UINT, 1, offsetof(struct dev, word), 2 }, /* the value needs four bytes */
		GW_STATE_BYTES(struct dev, table, 1), GW_STATE_BUF(struct dev, queue, 16, 1), {},
	};
	static const struct gw_state_field short_queue[] = {
		GW_STATE_UINT(struct dev, on, 1),     GW_STATE_UINT(struct dev, small, 1),   GW_STATE_UINT(struct dev, word, 1),
		GW_STATE_BYTES(struct dev, table, 1), GW_STATE_BUF(struct dev, queue, 4, 1), {},
	};
	static const struct gw_state_field fewer[] = { GW_STATE_UINT(struct dev, on, 1), {} };
	static const struct gw_state_field *const tables[] = { narrow, short_queue, fewer };
	gw_autobuf b = GW_BUF_INIT;
	struct gw_error err = GW_ERROR_INIT;
	struct dev d = { 0 };

	save(&v1, &b);
	for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
		const struct gw_state_desc desc = { "dev", 1, 1, tables[i] };

		assert_int_equal(load(&b, &desc, &d, &err), -EPROTO);
	}
	gw_buf_release(&d.queue);
}

static void missing_and_left_over_sections(void **state)
{
	static const struct gw_state_desc other = { "other", 1, 1, fields_v1 };
	gw_autobuf b = GW_BUF_INIT;
	struct gw_error err = GW_ERROR_INIT;
	struct gw_state_reader *r = NULL;
	struct dev d = { 0 };

	save(&v1, &b);
	assert_int_equal(gw_state_reader_new(b.data, b.len, &r, &err), 0);
	assert_int_equal(gw_state_get(r, &other, "0", &d, &err), -ENOENT);
	assert_int_equal(gw_state_reader_done(r, &err), -EPROTO);
	assert_non_null(strstr(err.msg, "dev 0"));
	gw_state_reader_free(r);
}

static void every_truncation_fails_cleanly(void **state)
{
	gw_autobuf b = GW_BUF_INIT;
	struct gw_error err = GW_ERROR_INIT;
	struct dev d = { 0 };

	save(&v2, &b);
	for (size_t len = 0; len < b.len; len++) {
		struct gw_buf cut = { b.data, len, len };

		assert_true(load(&cut, &v2, &d, &err) < 0);
	}
	gw_buf_release(&d.queue);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(older_is_taken_newer_refused),
		cmocka_unit_test(what_does_not_fit_is_refused),
		cmocka_unit_test(missing_and_left_over_sections),
		cmocka_unit_test(every_truncation_fails_cleanly),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
