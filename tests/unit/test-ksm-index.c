// SPDX-License-Identifier: Apache-2.0
/* The page store's index against a model, under growth, removal, cleaning and keys that were chosen to hurt. */
#include "cmocka-all.h"

#include <string.h>

#include "ksm/index.h"
#include "lib/clock.h"
#include "lib/util.h"

#define TAGS 40000u

struct model {
	uint64_t where[TAGS]; /* 0: not there */
	bool dead[TAGS];      /* keep() says no */
	unsigned asked;
};

static uint64_t rnd(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* A location tells its tag, so that keep() can look it up. */
static uint64_t where_of(uint32_t tag, uint64_t version)
{
	return version << 32 | tag | 1ull << 31;
}

static bool keep(void *ctx, uint64_t key, uint64_t where)
{
	struct model *m = ctx;

	m->asked++;
	return !m->dead[(uint32_t)where & 0x7fffffff];
}

static void prefetch(void *ctx, uint64_t where)
{
	struct model *m = ctx;

	__builtin_prefetch(&m->dead[(uint32_t)where & 0x7fffffff]);
}

static void check_order(const struct gw_index *ix)
{
	uint64_t count = 0, bytes = 0;

	for (unsigned i = 0; i < GW_INDEX_SHARDS; i++) {
		const struct gw_index_shard *s = &ix->shard[i];
		uint64_t last = 0;
		uint32_t n = 0;

		for (uint32_t p = 0; p < s->total; p++) {
			uint32_t home;

			if (s->at[p].where == 0)
				continue;
			home = gw_index_home(s->at[p].key, s->cap);
			assert_int_equal(s->at[p].key >> (64 - GW_INDEX_SHARD_BITS), i);
			assert_true(n == 0 || s->at[p].key > last);
			assert_true(home <= p);
			/* No gap between the home and the entry. */
			assert_true(home == p || s->at[p - 1].where != 0);
			last = s->at[p].key;
			n++;
		}
		assert_int_equal(n, s->count);
		count += n;
		bytes += s->total * sizeof(s->at[0]);
	}
	assert_int_equal(count, ix->count);
	assert_int_equal(bytes, ix->bytes);
}

static void check_model(const struct gw_index *ix, const struct model *m)
{
	for (uint32_t t = 0; t < TAGS; t++) {
		uint64_t *w = gw_index_find(ix, gw_index_key(ix, t));

		if (m->where[t] == 0)
			assert_null(w);
		else if (!m->dead[t])
			assert_true(w && *w == m->where[t]);
	}
}

static void test_model(void **state)
{
	gw_autofree struct model *m = calloc(1, sizeof(*m));
	struct gw_index ix;
	uint64_t seed = 42;

	assert_int_equal(gw_index_init(&ix, &(struct gw_index_owner){ keep, prefetch, m }), 0);
	for (unsigned round = 0; round < 12; round++) {
		/* Rounds that mostly add, remove, or let entries go stale. */
		for (unsigned i = 0; i < TEST_TIMES(30000u); i++) {
			uint32_t t = (uint32_t)(rnd(&seed) % TAGS);
			uint64_t key = gw_index_key(&ix, t);
			unsigned what = (unsigned)(rnd(&seed) % 10);

			if (what < (round % 3 == 0 ? 9u : 3u)) {
				/* One that is thought dead and is put again lives. */
				m->where[t] = where_of(t, i);
				m->dead[t] = false;
				assert_int_equal(gw_index_put(&ix, key, m->where[t]), 0);
			} else if (round % 3 != 2) {
				assert_true(gw_index_remove(&ix, key) == (m->where[t] != 0) || m->dead[t]);
				m->where[t] = 0;
				m->dead[t] = false;
			} else if (m->where[t] && !m->dead[t]) {
				m->dead[t] = true;
				gw_index_stale(&ix, key);
			}
		}
		check_order(&ix);
		check_model(&ix, m);
		while (gw_index_sweep(&ix))
			;
		check_order(&ix);
		check_model(&ix, m);
	}
	gw_index_release(&ix);
}

static bool keep_all(void *ctx, uint64_t key, uint64_t where)
{
	return true;
}

static bool keep_none(void *ctx, uint64_t key, uint64_t where)
{
	return false;
}

static void prefetch_none(void *ctx, uint64_t where)
{
}

/* Bytes an entry, from some thousands up. */
static void test_size(void **state)
{
	struct gw_index ix;
	double sum = 0;
	unsigned n = 0;

	assert_int_equal(gw_index_init(&ix, &(struct gw_index_owner){ keep_all, prefetch_none, NULL }), 0);
	for (uint64_t t = 0; t < 1000000; t++) {
		assert_int_equal(gw_index_put(&ix, gw_index_key(&ix, t), t + 1), 0);
		if (t >= 200000 && t % 1000 == 0) {
			assert_true(ix.bytes <= ix.count * 28);
			sum += (double)ix.bytes / (double)ix.count;
			n++;
		}
	}
	assert_true(sum / n < 24.5);
	for (uint64_t t = 0; t < 1000000; t += 997)
		assert_int_equal(*gw_index_find(&ix, gw_index_key(&ix, t)), t + 1);
	gw_index_release(&ix);
}

/* All entries are stale: a table that is only ever added to stays as small as what is true of it. */
static void test_stale(void **state)
{
	struct gw_index ix;
	uint64_t most = 0;

	assert_int_equal(gw_index_init(&ix, &(struct gw_index_owner){ keep_none, prefetch_none, NULL }), 0);
	for (uint64_t t = 0; t < TEST_TIMES(2000000u); t++) {
		assert_int_equal(gw_index_put(&ix, gw_index_key(&ix, t), 1), 0);
		gw_index_stale(&ix, gw_index_key(&ix, t));
		most = GW_MAX(most, ix.bytes);
	}
	assert_true(most < 1 << 20);
	while (gw_index_sweep(&ix))
		;
	assert_int_equal(ix.count, 0);
	assert_int_equal(ix.bytes, 0);
	/* An estimate for all. */
	for (uint64_t t = 0; t < TEST_TIMES(100000u); t++)
		assert_int_equal(gw_index_put(&ix, gw_index_key(&ix, t), 1), 0);
	gw_index_stale_many(&ix, TEST_TIMES(100000u));
	while (gw_index_sweep(&ix))
		;
	assert_int_equal(ix.count, 0);
	gw_index_release(&ix);
}

/* Sequences that make plain linear probing slow: the way to an entry stays short. */
static void test_hostile_tags(void **state)
{
	static const struct {
		uint64_t base, step;
	} seq[] = { { 0, 1 }, { 0, 1ull << 56 }, { 0, 1ull << 32 }, { 1, 1ull << 44 }, { 7, 0x9e3779b97f4a7c15 }, { 0, 1ull << 40 } };

	for (size_t k = 0; k < ARRAY_SIZE(seq); k++) {
		uint32_t n = seq[k].step == 1ull << 56 ? 256 : seq[k].step == 1ull << 44 || seq[k].step == 1ull << 40 ? TEST_TIMES(1u << 18) : TEST_TIMES(1u << 20);
		struct gw_index ix;
		uint64_t way = 0;

		assert_int_equal(gw_index_init(&ix, &(struct gw_index_owner){ keep_all, prefetch_none, NULL }), 0);
		for (uint64_t i = 0; i < n; i++)
			assert_int_equal(gw_index_put(&ix, gw_index_key(&ix, seq[k].base + i * seq[k].step), i + 1), 0);
		for (unsigned s = 0; s < GW_INDEX_SHARDS; s++)
			for (uint32_t p = 0; p < ix.shard[s].total; p++)
				if (ix.shard[s].at[p].where)
					way += p - gw_index_home(ix.shard[s].at[p].key, ix.shard[s].cap);
		assert_true(way < ix.count * 8);
		gw_index_release(&ix);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_model),
		cmocka_unit_test(test_size),
		cmocka_unit_test(test_stale),
		cmocka_unit_test(test_hostile_tags),
	};

	return cmocka_run_group_tests_name("ksm-index", tests, NULL, NULL);
}
