// SPDX-License-Identifier: Apache-2.0
/* The page store of a domain: what is stored when, in what order, for whom it lives. */
#include "cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "share-store.h"

static void test_second_sighting(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;

	share_peer_join(&a, s, 100, 100);
	share_peer_join(&b, s, 100, 100);
	fill(&a, 0, 100, 1);
	fill(&b, 40, 60, 1000);
	fill(&b, 50, 5, 11);
	share_peer_report(&a, 0, 100);
	run2(&a, &b);
	assert_int_equal(a.dones, 1);
	assert_int_equal(a.fetches + b.fetches, 0);
	assert_int_equal(stats(s).index_entries, 100);
	share_peer_report(&b, 40, 60);
	run2(&a, &b);
	/* The second one is asked, for what is equal only. Nothing is handed out before the chunk is sealed. */
	assert_int_equal(a.fetched, 0);
	assert_int_equal(b.fetched, 5);
	assert_int_equal(a.chunks + b.chunks, 0);
	check_store(s);
	share_peer_sync(&b, 77);
	run2(&a, &b);
	assert_int_equal(b.synced, 1);
	assert_int_equal(b.last_sync, 77);
	assert_int_equal(a.merged, 5);
	assert_int_equal(b.merged, 5);
	assert_int_equal(a.runs, 1);
	assert_int_equal(b.runs, 1);
	assert_int_equal(a.chunk[10], b.chunk[50]);
	assert_int_equal(a.slot[14], b.slot[54]);
	assert_int_equal(stats(s).stored_pages, 5);
	assert_int_equal(stats(s).chunks, 1);
	/* Stored now: an order at once. */
	a.content[90] = 13;
	share_peer_report(&a, 90, 1);
	run2(&a, &b);
	assert_int_equal(a.merged, 6);
	assert_int_equal(a.chunks, 1);
	assert_int_equal(a.fetched + b.fetched, 5);
	check_store(s);
	share_peer_end(&a);
	share_peer_end(&b);
	gw_store_free(s);
	assert_int_equal(memfds(), 0);
}

static void test_runs(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;

	share_peer_join(&a, s, 3000, 3000);
	share_peer_join(&b, s, 3000, 3000);
	fill(&a, 1000, 1024, 1);
	fill(&b, 512, 1024, 1);
	share_peer_report(&a, 1000, 1024);
	/* Out of order, in small packets: the store puts them in order where it can. */
	share_peer_report(&b, 512 + 256, 768);
	share_peer_report(&b, 512, 256);
	run2(&a, &b);
	share_peer_sync(&b, 1);
	run2(&a, &b);
	assert_int_equal(a.merged, 1024);
	assert_int_equal(b.merged, 1024);
	assert_true(a.runs <= 4 && b.runs <= 4);
	share_peer_end(&a);
	share_peer_end(&b);
	/* In order: a run a chunk. */
	share_peer_join(&a, s, 3000, 3000);
	share_peer_join(&b, s, 3000, 3000);
	fill(&a, 1000, 512, 1);
	fill(&b, 7, 512, 1);
	share_peer_report(&a, 1000, 512);
	share_peer_report(&b, 7, 512);
	run2(&a, &b);
	/* A full chunk is sealed at once. */
	assert_int_equal(a.merged, 512);
	assert_int_equal(a.runs, 1);
	assert_int_equal(b.runs, 1);
	assert_int_equal(a.chunks, 1);
	share_peer_end(&a);
	share_peer_end(&b);
	gw_store_free(s);
}

/* Asked for in the order of pages, whatever the order of reports; ordered in the order of each one's own pages. */
static void test_order(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;

	share_peer_join(&a, s, 4096, 4096);
	share_peer_join(&b, s, 4096, 4096);
	fill(&b, 0, 4096, 1);
	/* a has b's blocks of 64 pages in reverse. */
	for (unsigned i = 0; i < 64; i++)
		fill(&a, i * 64, 64, 1 + (63 - i) * 64);
	share_peer_report(&a, 0, 4096);
	run2(&a, &b);
	share_peer_report(&b, 0, 1024);
	for (unsigned i = 15; i > 4; i--)
		share_peer_report(&b, i * 256, 256);
	run2(&a, &b);
	/* What follows the first four FETCHes. */
	assert_int_equal(b.fetched, 1024 + 11 * 256);
	for (unsigned i = 1025; i < b.fetched; i++)
		assert_true(b.fetched_page[i] > b.fetched_page[i - 1]);
	share_peer_report(&b, 1024, 256);
	/* SYNCED comes after the orders of what is still to be asked for. */
	share_peer_sync(&b, 9);
	run2(&a, &b);
	assert_int_equal(b.synced, 1);
	assert_int_equal(b.merged_at_sync, 4096);
	assert_int_equal(a.merged, 4096);
	assert_true(a.runs <= 64 + 8);
	assert_true(b.runs <= 10);
	share_peer_end(&a);
	share_peer_end(&b);
	gw_store_free(s);
}

static void test_one_client(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a;

	share_peer_join(&a, s, 100, 100);
	fill(&a, 0, 20, 1);
	fill(&a, 50, 20, 1);
	share_peer_report(&a, 0, 70);
	while (share_peer_step(&a, 0))
		;
	share_peer_sync(&a, 1);
	while (share_peer_step(&a, 0))
		;
	/* Pages 20 to 49 are all content 0: one more content. */
	assert_int_equal(stats(s).stored_pages, 21);
	assert_int_equal(a.merged, 70);
	check_store(s);
	/* The same again is no second sighting. */
	fill(&a, 80, 10, 500);
	share_peer_report(&a, 80, 10);
	share_peer_report(&a, 80, 10);
	while (share_peer_step(&a, 0))
		;
	assert_int_equal(a.fetched, 21);
	share_peer_end(&a);
	gw_store_free(s);
}

/* A third who reports while the bytes are under way, and one while the chunk is open. */
static void test_third_sighting(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer p[4], *all[] = { &p[0], &p[1], &p[2], &p[3] };

	for (unsigned i = 0; i < 4; i++) {
		share_peer_join(&p[i], s, 10, 10);
		fill(&p[i], i, 5, 100);
	}
	share_peer_report(&p[0], 0, 5);
	share_peer_report(&p[1], 1, 5);
	/* Pending: not read by p[1] yet. */
	share_peer_report(&p[2], 2, 5);
	share_peers_run(all, 4, 0);
	assert_int_equal(stats(s).stored_pages, 5);
	share_peer_report(&p[3], 3, 5);
	assert_true(gw_store_needs_tick(s));
	assert_true(gw_store_tick(s, gw_now_ns()));
	assert_false(gw_store_tick(s, gw_now_ns() + 2 * GW_NS_PER_SEC));
	share_peers_run(all, 4, 0);
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(p[i].merged, 5);
		assert_int_equal(p[i].runs, 1);
	}
	assert_int_equal(p[0].fetched + p[1].fetched + p[2].fetched + p[3].fetched, 5);
	assert_int_equal(s->used_pending, 0);
	assert_int_equal(s->used_waiters, 0);
	check_store(s);
	for (unsigned i = 0; i < 4; i++)
		share_peer_end(&p[i]);
	gw_store_free(s);
}

/* Pages that come one by one do not keep a chunk open for ever. */
static void test_trickle(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;
	uint64_t start = gw_now_ns();

	share_peer_join(&a, s, 100, 100);
	share_peer_join(&b, s, 100, 100);
	fill(&a, 0, 100, 1);
	fill(&b, 0, 100, 1);
	share_peer_report(&a, 0, 100);
	for (unsigned i = 0; i < 24; i++) {
		share_peer_report(&b, i, 1);
		run2(&a, &b);
		/* As if it had come half a second after the one before. */
		b.client->open_ns = start + i * GW_NS_PER_SEC / 2;
		b.client->opened_ns = start;
		gw_store_tick(s, b.client->open_ns + GW_NS_PER_MS);
		run2(&a, &b);
		assert_int_equal(b.merged > 0, i >= 20);
	}
	share_peer_end(&a);
	share_peer_end(&b);
	gw_store_free(s);
}

/* Two domains with the same content. */
static void test_domains(void **state)
{
	struct gw_store *s = store_new(key_a), *t = store_new(key_b), *again = store_new(key_a);
	struct share_peer a, b, c;

	share_peer_join(&a, s, 600, 600);
	share_peer_join(&b, t, 600, 600);
	share_peer_join(&c, again, 600, 600);
	fill(&a, 0, 600, 1);
	fill(&b, 0, 600, 1);
	share_peer_report(&a, 0, 600);
	share_peer_report(&b, 0, 600);
	run2(&a, &b);
	assert_int_equal(a.fetched + b.fetched + a.chunks + b.chunks, 0);
	/* The secret follows from the key alone, and tells domains apart. */
	assert_memory_not_equal(a.secret, b.secret, sizeof(a.secret));
	assert_memory_equal(a.secret, c.secret, sizeof(a.secret));
	assert_true(gw_store_has_key(s, key_a));
	assert_false(gw_store_has_key(s, key_b));
	share_peer_end(&a);
	share_peer_end(&b);
	share_peer_end(&c);
	gw_store_free(s);
	gw_store_free(t);
	gw_store_free(again);
}

/* What a client gets can be read, and changed by nobody. */
static void test_sealed(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;
	char path[64];
	struct stat st;
	int fd, again;

	share_peer_join(&a, s, 10, 10);
	share_peer_join(&b, s, 10, 10);
	fill(&a, 0, 10, 1);
	fill(&b, 0, 10, 1);
	share_peer_report(&a, 0, 10);
	share_peer_report(&b, 0, 10);
	run2(&a, &b);
	share_peer_sync(&b, 1);
	run2(&a, &b);
	fd = a.fd[a.chunk[0]];
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0400);
	assert_int_equal(st.st_size, 10 * 4096);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	/* root may open anything; the seals hold for him too. */
	again = open(path, O_RDWR | O_CLOEXEC);
	for (unsigned i = 0; i < 2; i++) {
		int with = i == 0 ? fd : again;

		if (with < 0)
			continue;
		assert_true(pwrite(with, "x", 1, 0) < 0);
		assert_int_equal(errno, EPERM);
		assert_true(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, with, 0) == MAP_FAILED);
		assert_true(ftruncate(with, 0) < 0);
		assert_true(ftruncate(with, 1 << 20) < 0);
		assert_true(fallocate(with, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) < 0);
		assert_true(fcntl(with, F_ADD_SEALS, F_SEAL_WRITE) < 0);
	}
	if (again >= 0)
		close(again);
	share_peer_end(&a);
	share_peer_end(&b);
	gw_store_free(s);
}

/* LIVE 0 of all holders closes a chunk; where it was seen is remembered. */
static void test_live(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;

	share_peer_join(&a, s, 100, 100);
	share_peer_join(&b, s, 100, 100);
	fill(&a, 0, 10, 1);
	fill(&b, 0, 10, 1);
	share_peer_report(&a, 0, 10);
	share_peer_report(&b, 0, 10);
	run2(&a, &b);
	share_peer_sync(&b, 1);
	run2(&a, &b);
	share_peer_live(&a, a.chunk[0], 10);
	share_peer_live(&b, b.chunk[0], 9);
	assert_int_equal(stats(s).live_pages, 19);
	check_store(s);
	share_peer_drop(&a, 0, 10);
	assert_int_equal(stats(s).live_pages, 9);
	assert_int_equal(stats(s).chunks, 1);
	share_peer_drop(&b, 0, 10);
	assert_int_equal(stats(s).chunks, 0);
	assert_int_equal(stats(s).stored_pages, 0);
	upkeep(s);
	assert_int_equal(memfds(), 0);
	check_store(s);
	/* b brought them and still has them, as far as is known: a's next report is the second sighting. */
	fill(&a, 50, 10, 1);
	share_peer_report(&a, 50, 10);
	run2(&a, &b);
	assert_int_equal(a.fetched, 10);
	share_peer_sync(&a, 1);
	run2(&a, &b);
	assert_int_equal(a.merged, 20);
	assert_int_equal(b.merged, 20);
	/* A chunk that is not held: 0 is nothing new, more is a lie. */
	share_peer_live(&a, 999, 0);
	assert_int_equal(a.error, 0);
	share_peer_live(&a, 999, 1);
	assert_int_equal(a.error, -EPROTO);
	share_peer_live(&a, a.chunk[50], 101);
	assert_int_equal(a.error, -EPROTO);
	check_store(s);
	share_peer_end(&a);
	share_peer_end(&b);
	gw_store_free(s);
}

/* A chunk that is let go of before its descriptor has left: what is sent is that chunk still, never another file. */
static void test_let_go_early(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a;
	int other;

	share_peer_join(&a, s, 100, 100);
	fill(&a, 0, 10, 1);
	fill(&a, 50, 10, 1);
	share_peer_report(&a, 0, 10);
	share_peer_report(&a, 50, 10);
	while (share_peer_step(&a, 0))
		;
	share_peer_sync(&a, 1);
	/* Queued, not sent. */
	share_peer_live(&a, 0, 0);
	assert_int_equal(stats(s).chunks, 0);
	upkeep(s);
	/* Takes the number of a descriptor that was closed too early. */
	other = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_int_equal(a.chunks, 0);
	share_peer_step(&a, 0);
	assert_int_equal(a.chunks, 1);
	assert_int_equal(a.merged, 20);
	assert_int_equal(memfds(), 1);
	close(other);
	check_store(s);
	share_peer_end(&a);
	gw_store_free(s);
}

/* A client ends in the middle of anything. */
static void test_death(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b, c, *all[] = { &a, &b, &c };

	share_peer_join(&a, s, 5000, 5000);
	share_peer_join(&b, s, 5000, 5000);
	share_peer_join(&c, s, 5000, 5000);
	fill(&a, 0, 3000, 1);
	fill(&b, 0, 3000, 1);
	fill(&c, 0, 3000, 1);
	b.silent = true;
	share_peer_report(&a, 0, 3000);
	share_peer_report(&b, 0, 3000);
	share_peer_report(&c, 0, 1000);
	share_peers_run(all, 3, 0);
	assert_int_equal(b.fetched, 1024);
	assert_int_equal(s->used_pending, 3000);
	check_store(s);
	/* Its fetches go to one who waits with another. */
	share_peer_end(&b);
	check_store(s);
	assert_int_equal(s->used_pending, 1000);
	run2(&a, &c);
	assert_int_equal(a.fetched + c.fetched, 1000);
	share_peer_sync(&a, 1);
	share_peer_sync(&c, 1);
	run2(&a, &c);
	assert_int_equal(a.merged, 1000);
	assert_int_equal(c.merged, 1000);
	/* The rest is seen at a alone: the third is the second again. */
	share_peer_report(&c, 1000, 2000);
	run2(&a, &c);
	share_peer_end(&a);
	check_store(s);
	share_peer_sync(&c, 2);
	while (share_peer_step(&c, 0))
		;
	check_store(s);
	share_peer_end(&c);
	assert_int_equal(stats(s).chunks, 0);
	assert_int_equal(stats(s).stored_pages, 0);
	upkeep(s);
	assert_int_equal(stats(s).index_entries, 0);
	assert_int_equal(memfds(), 0);
	gw_store_free(s);
}

/* Clients come and go for ever. */
static void test_thousand_lives(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;
	struct gw_store_stats before = { 0 }, after;

	share_peer_join(&a, s, 300, 300);
	fill(&a, 0, 300, 1);
	share_peer_report(&a, 0, 300);
	for (unsigned life = 0; life < TEST_TIMES(1000u); life++) {
		share_peer_join(&b, s, 300, 300);
		fill(&b, 0, 200, 1 + life % 7);
		fill(&b, 200, 100, 100000 + life * 100);
		b.silent = life % 3 == 1;
		share_peer_report(&b, 0, 300);
		run2(&a, &b);
		if (life % 2) {
			share_peer_sync(&b, 1);
			run2(&a, &b);
		}
		share_peer_end(&b);
		run2(&a, &a);
		/* a lets go of all and reports anew now and then. */
		share_peer_drop(&a, 0, 300);
		if (life % 5 == 0)
			share_peer_report(&a, 0, 300);
		run2(&a, &a);
		upkeep(s);
		/* By then its tables are as long as they get, or nearly: each shard of the index has had its fullest moment, which chance decides. */
		if (life == TEST_TIMES(1000u) / 2)
			before = stats(s);
	}
	check_store(s);
	after = stats(s);
	assert_true(after.index_entries < 2000);
	assert_true(after.metadata_bytes < before.metadata_bytes * 3 / 2);
	assert_true(after.chunks <= 4);
	share_peer_end(&a);
	upkeep(s);
	assert_int_equal(stats(s).chunks, 0);
	assert_int_equal(stats(s).index_entries, 0);
	assert_int_equal(memfds(), 0);
	gw_store_free(s);
}

/* Anything in any order, checked against the tables and the bytes all along. */
static void test_random(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer p[4], *all[] = { &p[0], &p[1], &p[2], &p[3] };
	uint64_t seed = 7;
	unsigned merged = 0;

	for (unsigned i = 0; i < 4; i++)
		share_peer_join(&p[i], s, 700, 700);
	for (unsigned step = 0; step < TEST_TIMES(6000u); step++) {
		struct share_peer *x;
		unsigned first, n;

		seed = seed * 6364136223846793005 + 1442695040888963407;
		x = &p[seed >> 33 & 3];
		first = (unsigned)(seed >> 35) % 600;
		n = 1 + (unsigned)(seed >> 45) % 100;
		switch (seed >> 53 & 15) {
		case 0:
		case 1:
		case 2:
			fill(x, first, n, 1 + (seed >> 40 & 0x1ff));
			share_peer_drop(x, first, n);
			break;
		case 3:
			share_peer_drop(x, first, n);
			break;
		case 4:
			share_peer_sync(x, step);
			break;
		case 5:
			x->lie = seed & 1ull << 60;
			break;
		case 6:
			x->silent = false;
			gw_store_tick(s, gw_now_ns() + 5 * GW_NS_PER_SEC);
			break;
		case 7:
			if (step % 8 == 0) {
				merged += x->merged;
				share_peer_end(x);
				share_peer_join(x, s, 700, 700);
			}
			break;
		case 8:
			for (unsigned k = 0; k < PEER_CHUNKS; k++)
				if (x->fd[k] >= 0)
					share_peer_slots(x, k);
			gw_store_idle(s);
			break;
		case 9:
			gw_store_idle(s);
			break;
		default:
			share_peer_report(x, first, n);
			break;
		}
		assert_int_equal(x->error, 0);
		if (seed >> 57 & 1)
			share_peers_run(all, 4, 0);
		if (step % 50 == 0)
			check_store(s);
	}
	for (unsigned i = 0; i < 4; i++) {
		merged += p[i].merged;
		share_peer_end(&p[i]);
	}
	assert_true(merged > TEST_TIMES(10000u));
	assert_int_equal(stats(s).chunks, 0);
	upkeep(s);
	assert_int_equal(stats(s).index_entries, 0);
	assert_int_equal(memfds(), 0);
	gw_store_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_second_sighting),
		cmocka_unit_test(test_runs),
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_one_client),
		cmocka_unit_test(test_third_sighting),
		cmocka_unit_test(test_trickle),
		cmocka_unit_test(test_domains),
		cmocka_unit_test(test_sealed),
		cmocka_unit_test(test_live),
		cmocka_unit_test(test_let_go_early),
		cmocka_unit_test(test_death),
		cmocka_unit_test(test_thousand_lives),
		cmocka_unit_test(test_random),
	};

	return cmocka_run_group_tests_name("ksm-store", tests, NULL, NULL);
}
