// SPDX-License-Identifier: Apache-2.0
/* Pages that the store knows by name: offered, found, gone with their chunk; and what hostile clients may do with them. */
#include "cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "share-store.h"

/* What was found is what was offered: contents content.. under names name... */
static void assert_found(struct share_peer *p, uint64_t content, uint64_t name)
{
	for (unsigned i = 0; i < p->nfound; i++) {
		const struct gw_share_found *f = &p->found[i];
		uint8_t want[4096], got[4096], proof[GW_SHARE_PROOF_LEN];

		if (p->fd[f->chunk] >= 0) {
			assert_true(f->slot < p->slots[f->chunk]);
			share_content(content + f->index, want);
			assert_int_equal(pread(p->fd[f->chunk], got, sizeof(got), f->slot * 4096), 4096);
			assert_memory_equal(got, want, sizeof(want));
		}
		memset(proof, (int)((name + f->index) & 0xff), sizeof(proof));
		assert_memory_equal(f->proof, proof, sizeof(proof));
	}
}

static void test_found(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;
	uint64_t metadata;
	uint32_t chunk;

	share_peer_join(&a, s, 1000, 1000);
	share_peer_join(&b, s, 1000, 1000);
	share_peer_find(&b, 7, 5000, 100);
	run2(&a, &b);
	assert_int_equal(b.founds, 1);
	assert_int_equal(b.nfound, 0);
	metadata = stats(s).metadata_bytes;
	share_peer_offer(&a, 3, 1, 5000, 100);
	run2(&a, &b);
	assert_int_equal(a.adopted, 1);
	chunk = a.adopted_as;
	assert_int_not_equal(chunk, GW_SHARE_NO_CHUNK);
	assert_int_equal(a.chunks, 0);
	assert_true(stats(s).metadata_bytes >= metadata + 100 * sizeof(struct gw_share_named));
	/* Of those asked for, those that are there, behind their chunk. */
	share_peer_find(&b, 8, 4990, 200);
	run2(&a, &b);
	assert_int_equal(b.nfound, 100);
	assert_int_equal(b.found[0].index, 10);
	assert_int_equal(b.found[99].slot, 99);
	assert_int_equal(b.chunks, 1);
	assert_found(&b, 1 - 10, 4990);
	share_peer_find(&b, 9, 5050, 1);
	run2(&a, &b);
	assert_int_equal(b.chunks, 1);
	assert_int_equal(b.found[0].slot, 50);
	/* It serves by content as well. */
	fill(&b, 500, 1, 60);
	share_peer_report(&b, 500, 1);
	run2(&a, &b);
	assert_int_equal(b.merged, 1);
	check_store(s);
	/* Names go when nobody holds the chunk. */
	share_peer_end(&a);
	share_peer_drop(&b, 500, 1);
	assert_int_equal(stats(s).chunks, 0);
	assert_int_equal(s->names.count, 0);
	share_peer_find(&b, 10, 5000, 100);
	share_peer_step(&b, 0);
	assert_int_equal(b.nfound, 0);
	share_peer_end(&b);
	upkeep(s);
	assert_int_equal(memfds(), 0);
	gw_store_free(s);
}

static void test_who_is_late(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;

	share_peer_join(&a, s, 1000, 1000);
	share_peer_join(&b, s, 1000, 1000);
	/* What b has reported once it is told of as well. */
	fill(&b, 0, 100, 1);
	share_peer_report(&b, 0, 100);
	run2(&a, &b);
	share_peer_offer(&a, 0, 1, 100, 100);
	run2(&a, &b);
	assert_int_equal(b.merged, 100);
	/* Half of it is there under these names: not taken. Less than half: the first keeps them. */
	share_peer_offer(&b, 1, 1000, 150, 100);
	run2(&a, &b);
	assert_int_equal(b.adopted, 1);
	assert_int_equal(b.adopted_as, GW_SHARE_NO_CHUNK);
	assert_int_equal(stats(s).chunks, 1);
	share_peer_offer(&b, 1, 1000, 151, 100);
	run2(&a, &b);
	assert_int_not_equal(b.adopted_as, GW_SHARE_NO_CHUNK);
	assert_int_equal(stats(s).chunks, 2);
	assert_int_equal(s->names.count, 151);
	share_peer_find(&a, 0, 100, 151);
	run2(&a, &b);
	assert_int_equal(a.nfound, 151);
	assert_int_equal(a.found[99].slot, 99);
	assert_int_not_equal(a.found[99].chunk, b.adopted_as);
	assert_int_equal(a.found[100].slot, 49);
	assert_int_equal(a.found[100].chunk, b.adopted_as);
	check_store(s);
	share_peer_end(&a);
	share_peer_end(&b);
	upkeep(s);
	assert_int_equal(s->names.count, 0);
	gw_store_free(s);
}

/* Compaction takes names away, never to other bytes. */
static void test_compacted(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;

	share_peer_join(&a, s, 4000, 4000);
	share_peer_join(&b, s, 4000, 4000);
	for (unsigned i = 0; i < 4; i++)
		share_peer_offer(&a, i, 1 + i * 512, 10000 + i * 512, 512);
	run2(&a, &b);
	/* b maps some of each. */
	for (unsigned i = 0; i < 4; i++)
		fill(&b, i * 20, 20, 1 + i * 512);
	share_peer_report(&b, 0, 80);
	run2(&a, &b);
	assert_int_equal(b.merged, 80);
	for (unsigned i = 0; i < 4; i++)
		share_peer_live(&b, b.chunk[i * 20], 20);
	for (unsigned i = 0; i < 4; i++)
		share_peer_slots(&b, b.chunk[i * 20]);
	share_peer_end(&a);
	upkeep(s);
	while (share_peer_step(&b, 0))
		;
	assert_true(b.remapped > 0);
	share_peer_join(&a, s, 4000, 4000);
	for (unsigned i = 0; i < 2; i++) {
		share_peer_find(&a, 1, 10000 + i * 1024, 1024);
		run2(&a, &b);
		assert_found(&a, 1 + i * 1024, 10000 + i * 1024);
	}
	check_store(s);
	share_peer_end(&a);
	share_peer_end(&b);
	upkeep(s);
	assert_int_equal(stats(s).chunks, 0);
	assert_int_equal(s->names.count, 0);
	gw_store_free(s);
}

static void test_malformed(void **state)
{
	static struct gw_share_named named[GW_SHARE_CHUNK_PAGES + 1];
	static struct gw_share_find find[GW_SHARE_MAX_FIND + 1];
	const size_t size = sizeof(named[0]), ask = sizeof(find[0]);
	struct gw_store *s = store_new(key_a);
	int file = memfd_create("mine", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct gw_store_client *old;
	struct share_peer a;

	share_peer_join(&a, s, 100, 100);
	assert_int_equal(ftruncate(file, 10 * 4096), 0);
	assert_int_equal(share_peer_say(&a, GW_SHARE_FIND, 1, find, 0, ask, -1), -EPROTO);
	assert_int_equal(share_peer_say(&a, GW_SHARE_FIND, 1, find, GW_SHARE_MAX_FIND + 1, ask, -1), -EPROTO);
	assert_int_equal(share_peer_say(&a, GW_SHARE_FIND, 1, find, 3, ask - 1, -1), -EPROTO);
	assert_int_equal(share_peer_say(&a, GW_SHARE_FIND, 1, find, 1, ask, file), -EPROTO);
	assert_int_equal(share_peer_say(&a, GW_SHARE_FOUND, 1, find, 0, ask, -1), -EPROTO);
	assert_int_equal(share_peer_say(&a, GW_SHARE_OFFER, 1, named, 10, size, -1), -EPROTO);
	assert_int_equal(share_peer_say(&a, GW_SHARE_OFFER, 1, named, 0, size, file), -EPROTO);
	assert_int_equal(share_peer_say(&a, GW_SHARE_OFFER, 1, named, GW_SHARE_CHUNK_PAGES + 1, size, file), -EPROTO);
	assert_int_equal(share_peer_say(&a, GW_SHARE_OFFER, 1, named, 10, size + 1, file), -EPROTO);
	assert_int_equal(share_peer_say(&a, GW_SHARE_OFFER, 1u << 31, named, 10, size, file), -EPROTO);
	/* Not sealed; sealed, and not as long as its names are many: refused. */
	for (unsigned i = 0; i < 2; i++) {
		a.adopted_as = 1;
		assert_int_equal(share_peer_say(&a, GW_SHARE_OFFER, 1, named, 9 + (i == 0), size, file), 0);
		share_peer_step(&a, 0);
		assert_int_equal(a.adopted, i + 1);
		assert_int_equal(a.adopted_as, GW_SHARE_NO_CHUNK);
		assert_int_equal(fcntl(file, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL), i ? -1 : 0);
	}
	assert_int_equal(stats(s).chunks, 0);
	/* All of its pages called the same: the first has it. */
	assert_int_equal(share_peer_say(&a, GW_SHARE_OFFER, 1, named, 10, size, file), 0);
	share_peer_step(&a, 0);
	assert_int_not_equal(a.adopted_as, GW_SHARE_NO_CHUNK);
	assert_int_equal(s->names.count, 1);
	assert_int_equal(share_peer_say(&a, GW_SHARE_FIND, 1, find, 2, ask, -1), 0);
	share_peer_step(&a, 0);
	assert_int_equal(a.nfound, 2);
	/* Again the same file, under the first names or others: it keeps those that it has. */
	named[0].name = named[3].name = named[4].name = 99;
	for (unsigned i = 0; i < 10; i++)
		named[i].name += i * 100 + 1;
	assert_int_equal(share_peer_say(&a, GW_SHARE_OFFER, 1, named, 10, size, file), 0);
	assert_int_equal(s->names.count, 1);
	assert_int_equal(stats(s).chunks, 1);
	close(file);
	share_peer_end(&a);
	assert_int_equal(s->names.count, 0);

	/* A client of the version before does not know of names. */
	assert_int_equal(gw_store_join(s, 100, NULL, &old), 0);
	{
		struct {
			struct gw_share_head head;
			struct gw_share_hello h;
		} hi = { { GW_SHARE_HELLO, 1, 0 }, { 1, 1, 50 } };
		struct {
			struct gw_share_head head;
			struct gw_share_find f;
		} ask_one = { { GW_SHARE_FIND, 1, 0 }, { 1 } };

		assert_int_equal(gw_store_packet(old, &ask_one, sizeof(ask_one), -1), -EPROTO);
		assert_int_equal(gw_store_packet(old, &hi, sizeof(hi), -1), 0);
		assert_int_equal(gw_store_packet(old, &ask_one, sizeof(ask_one), -1), -EPROTO);
	}
	gw_store_leave(old);
	gw_store_free(s);
}

/* What a client brings is bounded by its own memory, and what it is owed by its outbox; nobody else notices. */
static void test_flood(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;
	unsigned taken = 0;

	share_peer_join(&a, s, 2000, 2000);
	share_peer_join(&b, s, 1000, 1000);
	share_peer_offer(&b, 0, 1, 1, 100);
	share_peer_step(&b, 0);
	for (unsigned i = 0; i < 50; i++) {
		share_peer_offer(&a, i, 100000 + i * 512, 100000 + i * 512, 512);
		assert_int_equal(a.error, 0);
		share_peer_step(&a, 0);
		taken += a.adopted_as != GW_SHARE_NO_CHUNK;
	}
	assert_int_equal(taken, 3);
	assert_int_equal(stats(s).stored_pages, 3 * 512 + 100);
	assert_int_equal(s->names.count, 3 * 512 + 100);
	check_store(s);
	for (unsigned i = 0; i < 100000 && !gw_store_outbox(a.client)->overflow; i++)
		share_peer_find(&a, i, 100000, GW_SHARE_MAX_FIND);
	assert_true(gw_store_outbox(a.client)->overflow);
	assert_true(gw_store_outbox(a.client)->bytes <= GW_OUTBOX_MAX);
	assert_false(gw_store_outbox(b.client)->overflow);
	share_peer_end(&a);
	assert_int_equal(s->names.count, 100);
	share_peer_find(&b, 0, 1, 100);
	share_peer_step(&b, 0);
	assert_int_equal(b.nfound, 100);
	/* What it holds of others is bounded as well. */
	share_peer_join(&a, s, 1000, 1000);
	share_peer_end(&b);
	share_peer_join(&b, s, 40000, 40000);
	for (unsigned i = 0; i < 60; i++)
		share_peer_offer(&b, i, 100000 + i * 512, 100000 + i * 512, 512);
	for (unsigned i = 0; i < 60; i++) {
		share_peer_find(&a, i, 100000 + i * 512, 512);
		run2(&a, &b);
	}
	assert_true(a.chunks >= 1000 / 512 && a.chunks <= (4 * 1000 + 8 * 512) / 512);
	share_peer_end(&a);
	share_peer_end(&b);
	upkeep(s);
	assert_int_equal(memfds(), 0);
	gw_store_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_found),
		cmocka_unit_test(test_who_is_late),
		cmocka_unit_test(test_compacted),
		cmocka_unit_test(test_malformed),
		cmocka_unit_test(test_flood),
	};

	return cmocka_run_group_tests_name("ksm-names", tests, NULL, NULL);
}
