// SPDX-License-Identifier: Apache-2.0
/* Upkeep of a page store: compaction, chunks that clients bring back, digests. */
#include "cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "share-store.h"

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif

static void map_all(struct share_peer *a, struct share_peer *b, unsigned n)
{
	share_peer_report(a, 0, n);
	share_peer_report(b, 0, n);
	run2(a, b);
	share_peer_sync(b, 1);
	run2(a, b);
	assert_int_equal(a->merged, n);
	assert_int_equal(b->merged, n);
}

static void test_compaction(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b, c, *all[] = { &a, &b, &c };
	uint32_t old[4];

	share_peer_join(&a, s, 4096, 4096);
	share_peer_join(&b, s, 4096, 4096);
	share_peer_join(&c, s, 4096, 4096);
	fill(&a, 0, 2048, 1);
	fill(&b, 0, 2048, 1);
	map_all(&a, &b, 2048);
	assert_int_equal(stats(s).chunks, 4);
	/* Of each chunk few pages stay mapped: runs of 8, other ones at a than at b, some at both. */
	for (unsigned k = 0; k < 4; k++) {
		old[k] = a.chunk[k * 512];
		share_peer_drop(&a, k * 512 + 8, 504);
		share_peer_drop(&b, k * 512, 4);
		share_peer_drop(&b, k * 512 + 12, 500);
		share_peer_slots(&a, old[k]);
		upkeep(s);
		assert_int_equal(stats(s).compacted_chunks, 0);
	}
	/* Only when every holder has told. */
	for (unsigned k = 0; k < 4; k++)
		share_peer_slots(&b, old[k]);
	upkeep(s);
	assert_int_equal(stats(s).compacted_chunks, 4);
	run2(&a, &b);
	assert_int_equal(a.remapped, 32);
	assert_int_equal(b.remapped, 32);
	assert_true(a.remap_runs <= 8);
	/* Each is told of what he maps, no more. */
	assert_int_equal(a.remap_pages, 32);
	assert_int_equal(b.remap_pages, 32);
	assert_int_equal(stats(s).chunks, 1);
	assert_int_equal(stats(s).stored_pages, 48);
	check_store(s);
	for (unsigned k = 0; k < 4; k++) {
		for (unsigned i = 0; i < 8; i++)
			assert_true(a.chunk[k * 512 + i] != GW_SHARE_NO_CHUNK && b.chunk[k * 512 + 4 + i] != GW_SHARE_NO_CHUNK);
		assert_int_equal(a.chunk[k * 512 + 5], b.chunk[k * 512 + 5]);
		assert_int_equal(a.slot[k * 512 + 5], b.slot[k * 512 + 5]);
	}
	/* A new one finds them there; what was dropped is where it was seen. */
	fill(&c, 0, 16, 1);
	share_peer_report(&c, 0, 16);
	share_peers_run(all, 3, 0);
	assert_int_equal(c.merged, 12);
	assert_int_equal(c.chunk[0], a.chunk[0]);
	assert_int_equal(c.fetched, 4);
	share_peer_sync(&c, 1);
	share_peers_run(all, 3, 0);
	assert_int_equal(c.merged, 16);
	check_store(s);
	upkeep(s);
	assert_int_equal(stats(s).compacted_chunks, 4);
	share_peer_end(&a);
	share_peer_end(&b);
	share_peer_end(&c);
	upkeep(s);
	assert_int_equal(memfds(), 0);
	gw_store_free(s);
}

/* One that is gone had most of a chunk for itself: that comes back without anybody's word. */
static void test_left_behind(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b, c, *all[] = { &a, &b, &c };
	unsigned compacted;

	share_peer_join(&a, s, 1024, 1024);
	share_peer_join(&b, s, 1024, 1024);
	share_peer_join(&c, s, 1024, 1024);
	/* Two have 200 pages in common with the one that goes, one another 50; it has 100 twice. */
	fill(&a, 0, 200, 1);
	fill(&b, 100, 200, 1);
	fill(&b, 300, 50, 500);
	fill(&c, 0, 200, 1);
	fill(&c, 200, 50, 500);
	fill(&c, 250, 100, 1000);
	fill(&c, 350, 100, 1000);
	share_peer_report(&a, 0, 200);
	share_peer_report(&b, 100, 250);
	share_peer_sync(&b, 1);
	run2(&a, &b);
	share_peer_report(&c, 0, 450);
	share_peer_sync(&c, 1);
	share_peers_run(all, 3, 0);
	share_peers_run(all, 3, 0);
	assert_int_equal(c.merged, 450);
	assert_int_equal(stats(s).stored_pages, 350);
	assert_int_equal(stats(s).compacted_chunks, 0);
	share_peer_end(&c);
	upkeep(s);
	run2(&a, &b);
	assert_int_equal(stats(s).stored_pages, 250);
	assert_int_equal(a.merged - a.remapped, 200);
	assert_int_equal(b.merged - b.remapped, 250);
	check_store(s);
	/* One that is gone before its chunk was sealed. */
	share_peer_join(&c, s, 1024, 1024);
	fill(&a, 300, 50, 3000);
	fill(&c, 0, 50, 3000);
	fill(&c, 50, 100, 4000);
	fill(&c, 150, 100, 4000);
	share_peer_report(&a, 300, 50);
	run2(&a, &b);
	share_peer_report(&c, 0, 250);
	share_peers_run(all, 3, 0);
	assert_int_equal(stats(s).stored_pages, 400);
	share_peer_end(&c);
	run2(&a, &b);
	upkeep(s);
	run2(&a, &b);
	assert_int_equal(stats(s).stored_pages, 300);
	check_store(s);
	/* Somebody goes who had nothing of its own there: nothing is copied. */
	compacted = (unsigned)stats(s).compacted_chunks;
	assert_true(compacted > 0);
	share_peer_join(&c, s, 1024, 1024);
	fill(&c, 0, 200, 1);
	share_peer_report(&c, 0, 200);
	share_peers_run(all, 3, 0);
	assert_int_equal(c.merged, 200);
	share_peer_end(&c);
	upkeep(s);
	assert_int_equal(stats(s).compacted_chunks, compacted);
	share_peer_end(&a);
	share_peer_end(&b);
	gw_store_free(s);
	assert_int_equal(memfds(), 0);
}

/* A holder that does not follow keeps its chunk, and is not asked for ever. */
static void test_compaction_ignored(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;
	uint32_t k;

	share_peer_join(&a, s, 1024, 1024);
	share_peer_join(&b, s, 1024, 1024);
	fill(&a, 0, 512, 1);
	fill(&b, 0, 512, 1);
	map_all(&a, &b, 512);
	k = a.chunk[0];
	share_peer_drop(&a, 4, 508);
	share_peer_drop(&b, 0, 512);
	for (unsigned i = 0; i < 10; i++) {
		struct gw_share_slots m = { .chunk = k, .live = { 0xf } };

		share_peer_say(&a, GW_SHARE_SLOTS, 0, &m, 1, sizeof(m), -1);
		upkeep(s);
		check_store(s);
	}
	assert_true(stats(s).compacted_chunks <= 3);
	assert_true(stats(s).compacted_chunks >= 1);
	assert_true(stats(s).chunks <= 2);
	share_peer_end(&a);
	share_peer_end(&b);
	gw_store_free(s);
	assert_int_equal(memfds(), 0);
}

/* Chunks of a page or two, as a trickle of sightings makes them, become one. */
static void test_small_chunks(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;
	uint64_t now = gw_now_ns();
	unsigned most = 0;

	share_peer_join(&a, s, 1024, 1024);
	share_peer_join(&b, s, 1024, 1024);
	fill(&a, 0, 1000, 1);
	fill(&b, 0, 1000, 1);
	share_peer_report(&a, 0, 1000);
	run2(&a, &b);
	for (unsigned i = 0; i < 1000; i += 2) {
		share_peer_report(&b, i, 2);
		run2(&a, &b);
		now += 20 * GW_NS_PER_SEC;
		gw_store_tick(s, now);
		run2(&a, &b);
		upkeep(s);
		run2(&a, &b);
		check_store(s);
		most = GW_MAX(most, (unsigned)stats(s).chunks);
	}
	assert_true(most <= 32);
	assert_int_equal(stats(s).stored_pages, 1000);
	for (unsigned i = 0; i < 1000; i++) {
		assert_true(a.chunk[i] != GW_SHARE_NO_CHUNK);
		assert_int_equal(a.chunk[i], b.chunk[i]);
		assert_int_equal(a.slot[i], b.slot[i]);
	}
	upkeep(s);
	assert_int_equal(memfds(), stats(s).chunks * 3);
	/* A page is copied twice or so, not for ever. */
	assert_true(a.remapped <= 2500);
	share_peer_end(&a);
	share_peer_end(&b);
	gw_store_free(s);
	assert_int_equal(memfds(), 0);
}

static int sealed_file(unsigned pages, unsigned extra, int seals, uint64_t content)
{
	int fd = memfd_create("godwit-chunk", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint8_t page[4096];

	for (unsigned i = 0; i < pages; i++) {
		share_content(content + i, page);
		assert_int_equal(pwrite(fd, page, 4096, i * 4096), 4096);
	}
	assert_int_equal(ftruncate(fd, pages * 4096 + extra), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static uint32_t adopt(struct share_peer *p, int fd, uint32_t pages)
{
	struct gw_share_adopt m = { .chunk = 7, .pages = pages };

	p->adopted_as = 12345;
	share_peer_say(p, GW_SHARE_ADOPT, 0, &m, 1, sizeof(m), fd);
	share_peer_step(p, 0);
	return p->adopted_as;
}

static void test_adopt(void **state)
{
	static const int all = F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b, c;
	int fd = sealed_file(100, 0, all, 1), bad;
	uint32_t id;

	share_peer_join(&a, s, 1000, 1000);
	share_peer_join(&b, s, 1000, 1000);
	share_peer_join(&c, s, 1000, 1000);
	/* What could still change, or is no such file at all. */
	for (unsigned i = 0; i < 4; i++) {
		bad = sealed_file(10, 0, all & ~(int[]){ F_SEAL_WRITE, F_SEAL_GROW, F_SEAL_SHRINK, F_SEAL_SEAL }[i], 1);
		assert_int_equal(adopt(&a, bad, 1), GW_SHARE_NO_CHUNK);
		close(bad);
	}
	bad = sealed_file(10, 1, all, 1);
	assert_int_equal(adopt(&a, bad, 1), GW_SHARE_NO_CHUNK);
	close(bad);
	bad = sealed_file(513, 0, all, 1);
	assert_int_equal(adopt(&a, bad, 1), GW_SHARE_NO_CHUNK);
	close(bad);
	bad = sealed_file(0, 0, all, 1);
	assert_int_equal(adopt(&a, bad, 0), GW_SHARE_NO_CHUNK);
	close(bad);
	bad = open("/dev/zero", O_RDWR | O_CLOEXEC);
	assert_int_equal(adopt(&a, bad, 1), GW_SHARE_NO_CHUNK);
	close(bad);
	bad = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	assert_int_equal(adopt(&a, bad, 1), GW_SHARE_NO_CHUNK);
	close(bad);
	bad = memfd_create("godwit-chunk", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_HUGE_2MB);
	if (bad >= 0 && ftruncate(bad, 2 << 20) == 0 && fcntl(bad, F_ADD_SEALS, all) == 0)
		assert_int_equal(adopt(&a, bad, 1), GW_SHARE_NO_CHUNK);
	gw_closep(&bad);
	assert_int_equal(stats(s).chunks, 0);
	assert_int_equal(memfds(), 1);
	/* The same file from two clients is one chunk. */
	id = adopt(&a, fd, 100);
	assert_int_not_equal(id, GW_SHARE_NO_CHUNK);
	assert_int_equal(adopt(&b, fd, 40), id);
	assert_int_equal(stats(s).chunks, 1);
	assert_int_equal(stats(s).stored_pages, 100);
	assert_int_equal(stats(s).live_pages, 140);
	check_store(s);
	/* Its pages are known: a third that reports them gets an order and the chunk. */
	fill(&c, 200, 100, 1);
	share_peer_report(&c, 200, 100);
	run2(&c, &c);
	assert_int_equal(c.merged, 100);
	assert_int_equal(c.runs, 1);
	assert_int_equal(c.chunk[200], id);
	assert_int_equal(c.fetched, 0);
	/* What was reported before it was brought is told of it. */
	fill(&c, 0, 3, 5000);
	share_peer_report(&c, 0, 3);
	run2(&c, &c);
	bad = sealed_file(3, 0, all, 5000);
	assert_int_not_equal(adopt(&b, bad, 0), GW_SHARE_NO_CHUNK);
	close(bad);
	run2(&b, &c);
	assert_int_equal(c.merged, 103);
	check_store(s);
	share_peer_drop(&c, 0, 3);
	share_peer_live(&b, b.adopted_as, 0);
	/* Too late after a report; without a descriptor. */
	share_peer_say(&c, GW_SHARE_ADOPT, 0, &(struct gw_share_adopt){ 1, 1 }, 1, sizeof(struct gw_share_adopt), fd);
	assert_int_equal(c.error, -EPROTO);
	share_peer_say(&a, GW_SHARE_ADOPT, 0, &(struct gw_share_adopt){ 1, 1 }, 1, sizeof(struct gw_share_adopt), -1);
	assert_int_equal(a.error, -EPROTO);
	/* The first lets go, then all. */
	share_peer_live(&a, id, 0);
	share_peer_live(&b, id, 0);
	assert_int_equal(stats(s).chunks, 1);
	share_peer_drop(&c, 200, 100);
	assert_int_equal(stats(s).chunks, 0);
	/* No more than its RAM. */
	share_peer_end(&c);
	share_peer_join(&c, s, 150, 150);
	assert_int_not_equal(adopt(&c, fd, 1), GW_SHARE_NO_CHUNK);
	bad = sealed_file(51, 0, all, 1000);
	assert_int_equal(adopt(&c, bad, 1), GW_SHARE_NO_CHUNK);
	close(bad);
	check_store(s);
	share_peer_end(&a);
	share_peer_end(&b);
	share_peer_end(&c);
	close(fd);
	gw_store_free(s);
	assert_int_equal(memfds(), 0);
}

/* A daemon's successor: what the old one stored is shared on, under the same hashes. */
static void test_restart(void **state)
{
	struct gw_store *s = store_new(key_a), *t;
	struct share_peer a, b, c, d;
	uint32_t id;

	share_peer_join(&a, s, 1000, 1000);
	share_peer_join(&b, s, 1000, 1000);
	fill(&a, 0, 300, 1);
	fill(&b, 0, 300, 1);
	map_all(&a, &b, 300);
	gw_store_leave(a.client);
	gw_store_leave(b.client);
	a.client = b.client = NULL;
	gw_store_free(s);
	t = store_new(key_a);
	share_peer_join(&c, t, 1000, 1000);
	share_peer_join(&d, t, 1000, 1000);
	id = adopt(&c, a.fd[a.chunk[0]], 300);
	assert_int_equal(adopt(&d, b.fd[b.chunk[0]], 300), id);
	fill(&d, 500, 1, 42);
	d.fd[id] = dup(b.fd[b.chunk[0]]);
	d.slots[id] = 300;
	share_peer_report(&d, 500, 1);
	run2(&c, &d);
	assert_int_equal(d.merged, 1);
	assert_int_equal(d.slot[500], a.slot[41]);
	share_peer_end(&a);
	share_peer_end(&b);
	share_peer_end(&c);
	share_peer_end(&d);
	gw_store_free(t);
	assert_int_equal(memfds(), 0);
}

static void test_digest(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;
	uint8_t page[4096], want[32], got[32];
	unsigned len;

	share_peer_join(&a, s, 100, 100);
	share_peer_join(&b, s, 100, 100);
	fill(&a, 0, 100, 1);
	fill(&b, 0, 100, 1);
	map_all(&a, &b, 100);
	/* Neither time nor memory is spent on what nobody asks for. */
	upkeep(s);
	assert_null(s->chunk[a.chunk[0]]->digest);
	for (unsigned i = 20; i < 100; i += 79) {
		share_content(1 + i, page);
		HMAC(EVP_sha256(), key_a, 32, page, sizeof(page), want, &len);
		assert_int_equal(gw_store_digest(s, a.chunk[i], a.slot[i], got), 0);
		assert_memory_equal(want, got, 32);
		assert_int_equal(s->chunk[a.chunk[0]]->digested, i + 1);
	}
	assert_int_equal(gw_store_digest(s, a.chunk[0], 100, got), -ENOENT);
	assert_int_equal(gw_store_digest(s, 99, 0, got), -ENOENT);
	share_peer_end(&a);
	share_peer_end(&b);
	gw_store_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_compaction),
		cmocka_unit_test(test_left_behind),
		cmocka_unit_test(test_compaction_ignored),
		cmocka_unit_test(test_small_chunks),
		cmocka_unit_test(test_adopt),
		cmocka_unit_test(test_restart),
		cmocka_unit_test(test_digest),
	};

	return cmocka_run_group_tests_name("ksm-upkeep", tests, NULL, NULL);
}
