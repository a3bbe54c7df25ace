// SPDX-License-Identifier: Apache-2.0
/* Two VMs' memories, their sharers and a real daemon: what is shared, what is not, and what happens when the daemon dies. */
#include "cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "ksm/sharer.h"
#include "ksmd-process.h"
#include "lib/clock.h"
#include "lib/ram/pagemap.h"
#include "lib/util.h"
#include "share-peer.h"
#include "share-vm.h"

#define PAGES 4096u

static void test_two_share(void **state)
{
	struct share_vm a = share_vm_new(PAGES, &share_vm_quick), b = share_vm_new(PAGES, &share_vm_quick);

	share_vm_fill(&a, 100, 1000, 1);
	share_vm_fill(&a, 2000, 50, 100000);
	share_vm_fill(&b, 300, 1000, 1); /* the same run elsewhere */
	share_vm_fill(&b, 2000, 50, 200000);
	memset(gw_ram_page(b.ram, 3000), 0, 100 << GW_PAGE_SHIFT);
	gw_sharer_attach(a.sharer, ksmd_attach("a", "one"));
	gw_sharer_attach(b.sharer, ksmd_attach("b", "one"));
	WAIT_FOR(share_vm_stats(&a).shared_pages == 1000 && share_vm_stats(&b).shared_pages == 1000 &&
		 share_vm_stats(&b).zero_pages >= 100);
	assert_true(share_vm_holds(&a, 100, 1000, 1) && share_vm_holds(&b, 300, 1000, 1));
	assert_true(share_vm_holds(&a, 2000, 50, 100000) && share_vm_holds(&b, 2000, 50, 200000));
	/* One run, few mappings. */
	assert_true(share_vm_stats(&a).mappings < 200);
	/* What nobody writes is hashed once, also beside what was exchanged. */
	WAIT_FOR(share_vm_stats(&a).passes > 3);
	if (share_vm_stats(&a).tracks)
		assert_int_equal(share_vm_stats(&a).hashed_pages, 1050);

	/* Written pages are a VM's own; equal again, they are shared again without a new mapping. */
	share_vm_fill(&a, 150, 10, 7777777);
	WAIT_FOR(share_vm_stats(&a).broken_pages == 10);
	assert_true(share_vm_holds(&b, 350, 10, 51) && share_vm_holds(&a, 150, 10, 7777777));
	share_vm_fill(&a, 150, 10, 51);
	WAIT_FOR(share_vm_stats(&a).broken_pages == 0 && share_vm_stats(&a).again_pages == 10);
	assert_true(share_vm_holds(&a, 100, 1000, 1));
	share_vm_free(&a);
	assert_true(share_vm_holds(&b, 300, 1000, 1));
	share_vm_free(&b);
}

static void test_unwritten_pages_are_hashed_once(void **state)
{
	struct share_vm a = share_vm_new(PAGES, &share_vm_quick);
	uint64_t hashed, passes;

	if (!share_vm_stats(&a).tracks) {
		share_vm_free(&a);
		skip();
	}
	share_vm_fill(&a, 0, 500, 1);
	gw_sharer_attach(a.sharer, ksmd_attach("a", "one"));
	WAIT_FOR(share_vm_stats(&a).passes >= 2);
	hashed = share_vm_stats(&a).hashed_pages;
	passes = share_vm_stats(&a).passes;
	assert_in_range(hashed, 500, 1100); /* the rest of a huge page is zeros */
	WAIT_FOR(share_vm_stats(&a).passes >= passes + 3);
	assert_int_equal(share_vm_stats(&a).hashed_pages, hashed);
	share_vm_fill(&a, 10, 1, 99);
	WAIT_FOR(share_vm_stats(&a).hashed_pages == hashed + 1);
	share_vm_free(&a);
}

static void test_domains_do_not_share(void **state)
{
	struct share_vm a = share_vm_new(PAGES, &share_vm_quick), b = share_vm_new(PAGES, &share_vm_quick);

	share_vm_fill(&a, 0, 300, 1);
	share_vm_fill(&b, 0, 300, 1);
	gw_sharer_attach(a.sharer, ksmd_attach("a", "one"));
	gw_sharer_attach(b.sharer, ksmd_attach("b", "two"));
	WAIT_FOR(share_vm_stats(&a).passes >= 3 && share_vm_stats(&b).passes >= 3);
	assert_int_equal(share_vm_stats(&a).shared_pages, 0);
	assert_int_equal(share_vm_stats(&b).shared_pages, 0);
	share_vm_free(&a);
	share_vm_free(&b);
}

static void test_only_disk_content(void **state)
{
	struct gw_sharer_config config = share_vm_quick;
	struct share_vm a, b;

	config.image_only = true;
	a = share_vm_new(PAGES, &config);
	b = share_vm_new(PAGES, &config);
	share_vm_fill(&a, 0, 300, 1);
	share_vm_fill(&b, 0, 300, 1);
	/* 100 pages came from a disk in both, from elsewhere in memory in one; 100 in one only. */
	gw_sharer_disk_read(a.sharer, 0, 200 << GW_PAGE_SHIFT);
	share_vm_fill(&b, 1000, 100, 1);
	gw_sharer_disk_read(b.sharer, 1000 << GW_PAGE_SHIFT, 100 << GW_PAGE_SHIFT);
	gw_sharer_attach(a.sharer, ksmd_attach("a", "one"));
	gw_sharer_attach(b.sharer, ksmd_attach("b", "one"));
	WAIT_FOR(share_vm_stats(&a).shared_pages == 100 && share_vm_stats(&b).shared_pages == 200);
	WAIT_FOR(share_vm_stats(&a).passes >= 3 && share_vm_stats(&b).passes >= 3);
	assert_int_equal(share_vm_stats(&a).shared_pages, 100);
	assert_int_equal(share_vm_stats(&b).shared_pages, 200);
	share_vm_free(&a);
	share_vm_free(&b);
}

static void test_daemon_dies(void **state)
{
	struct share_vm a = share_vm_new(PAGES, &share_vm_quick), b = share_vm_new(PAGES, &share_vm_quick);
	uint64_t merged;

	share_vm_fill(&a, 0, 600, 1);
	share_vm_fill(&b, 0, 600, 1);
	gw_sharer_attach(a.sharer, ksmd_attach("a", "one"));
	gw_sharer_attach(b.sharer, ksmd_attach("b", "one"));
	WAIT_FOR(share_vm_stats(&a).shared_pages == 600 && share_vm_stats(&b).shared_pages == 600);
	ksmd_kill();
	WAIT_FOR(!share_vm_stats(&a).attached && !share_vm_stats(&b).attached);
	assert_true(share_vm_stats(&a).reason[0] && share_vm_holds(&a, 0, 600, 1) && share_vm_holds(&b, 0, 600, 1));
	share_vm_fill(&a, 5, 1, 1000000);
	share_vm_fill(&a, 1000, 200, 50000);
	share_vm_fill(&b, 1000, 200, 50000);
	merged = share_vm_stats(&a).merged_pages;

	/* A new one learns what is mapped, and goes on from there: nothing that is shared is mapped anew. */
	ksmd_start(NULL);
	gw_sharer_attach(a.sharer, ksmd_attach("a", "one"));
	gw_sharer_attach(b.sharer, ksmd_attach("b", "one"));
	WAIT_FOR(share_vm_stats(&a).shared_pages == 799 && share_vm_stats(&b).shared_pages == 800);
	assert_int_equal(share_vm_stats(&a).merged_pages, merged + 200);
	share_vm_fill(&a, 5, 1, 6);
	WAIT_FOR(share_vm_stats(&a).shared_pages == 800);
	assert_true(share_vm_holds(&a, 0, 600, 1) && share_vm_holds(&b, 0, 600, 1) && share_vm_holds(&a, 1000, 200, 50000));
	share_vm_free(&a);
	share_vm_free(&b);
}

static void test_pause(void **state)
{
	struct share_vm a = share_vm_new(PAGES, &share_vm_quick), b = share_vm_new(PAGES, &share_vm_quick);
	uint64_t merged, passes;

	gw_sharer_attach(a.sharer, ksmd_attach("a", "one"));
	gw_sharer_attach(b.sharer, ksmd_attach("b", "one"));
	WAIT_FOR(share_vm_stats(&a).passes >= 1 && share_vm_stats(&b).passes >= 1);
	gw_sharer_pause(a.sharer);
	merged = share_vm_stats(&a).merged_pages;
	share_vm_fill(&a, 0, 600, 1);
	share_vm_fill(&b, 0, 600, 1);
	passes = share_vm_stats(&b).passes;
	WAIT_FOR(share_vm_stats(&b).passes >= passes + 3);
	assert_int_equal(share_vm_stats(&a).merged_pages, merged);
	assert_int_equal(share_vm_stats(&a).shared_pages, 0);
	gw_sharer_resume(a.sharer);
	WAIT_FOR(share_vm_stats(&a).shared_pages == 600 && share_vm_stats(&b).shared_pages == 600);
	/* One that is paused can be freed. */
	gw_sharer_pause(b.sharer);
	share_vm_free(&a);
	share_vm_free(&b);
}

static uint64_t stored_pages(void)
{
	Godwit__ShareReply *st = ksmd_figures();
	uint64_t pages = st->n_domains > 0 ? st->domains[0]->stored_pages : 0;

	godwit__share_reply__free_unpacked(st, NULL);
	return pages;
}

static void test_thin_chunks_are_joined(void **state)
{
	struct share_vm a = share_vm_new(PAGES, &share_vm_quick), b = share_vm_new(PAGES, &share_vm_quick);
	uint64_t before;

	share_vm_fill(&a, 0, 3072, 1);
	share_vm_fill(&b, 0, 3072, 1);
	gw_sharer_attach(a.sharer, ksmd_attach("a", "one"));
	gw_sharer_attach(b.sharer, ksmd_attach("b", "one"));
	WAIT_FOR(share_vm_stats(&a).shared_pages == 3072 && share_vm_stats(&b).shared_pages == 3072);
	before = share_vm_stats(&a).chunks;
	assert_true(before >= 6);
	/*
	 * All but every twentieth page become different in both; at once, as it looks to the sharers: chunks that were joined while they were a
	 * quarter full are not worth joining again.
	 */
	gw_sharer_pause(a.sharer);
	gw_sharer_pause(b.sharer);
	for (unsigned i = 0; i < 3072; i++) {
		if (i % 20) {
			share_vm_fill(&a, i, 1, 1000000 + i);
			share_vm_fill(&b, i, 1, 2000000 + i);
		}
	}
	gw_sharer_resume(a.sharer);
	gw_sharer_resume(b.sharer);
	/* One chunk's worth is left, in a few: when each pass came decides in how many. */
	WAIT_FOR(stored_pages() <= GW_SHARE_CHUNK_PAGES && share_vm_stats(&a).chunks < before && share_vm_stats(&b).chunks < before);
	WAIT_FOR(share_vm_stats(&a).broken_pages < 300);
	for (unsigned i = 0; i < 3072; i++) {
		assert_true(share_vm_holds(&a, i, 1, i % 20 ? 1000000 + i : 1 + i));
		assert_true(share_vm_holds(&b, i, 1, i % 20 ? 2000000 + i : 1 + i));
	}
	share_vm_free(&a);
	share_vm_free(&b);
}

/* The daemon says what no daemon says: the session ends, the memory stays. */
static void test_hostile_daemon(void **state)
{
	struct share_vm a = share_vm_new(PAGES, &share_vm_quick);
	struct gw_share_head head = { .type = GW_SHARE_MERGE, .count = 1 };
	struct gw_share_merge beyond = { .page = PAGES, .chunk = 0, .slot = 0, .count = 1 };
	struct {
		struct gw_share_head head;
		struct gw_share_welcome welcome;
	} welcome = { .head = { .type = GW_SHARE_WELCOME, .count = 1 }, .welcome = { .version = GW_SHARE_VERSION } };
	struct {
		struct gw_share_head head;
		struct gw_share_merge merge;
	} merge = { head, beyond };
	uint8_t junk[100];

	memset(junk, 0xff, sizeof(junk));
	share_vm_fill(&a, 0, 100, 1);
	for (unsigned i = 0; i < 3; i++) {
		int pair[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
		if (i > 0)
			assert_int_equal(send(pair[0], &welcome, sizeof(welcome), 0), sizeof(welcome));
		if (i == 1)
			assert_int_equal(send(pair[0], &merge, sizeof(merge), 0), sizeof(merge));
		else
			assert_int_equal(send(pair[0], junk, sizeof(junk), 0), sizeof(junk));
		gw_sharer_attach(a.sharer, pair[1]);
		WAIT_FOR(!share_vm_stats(&a).attached && strstr(share_vm_stats(&a).reason, "daemon"));
		close(pair[0]);
		assert_true(share_vm_holds(&a, 0, 100, 1));
	}
	share_vm_free(&a);
}

/* A daemon played by the test: it hands out a chunk, orders nothing until the VM has let go of it, and then orders a page that is in it. */
struct late {
	int sock, file;
	unsigned reports, before, chunks; /* of the page; when it was ordered; sent */
	unsigned pages[5];                /* that it said it maps of each chunk */
	bool let_go, ordered;
};

static void late_say(struct late *d, unsigned type, const void *entry, size_t size, int fd)
{
	struct share_peer p = { .sock = d->sock };

	assert_int_equal(share_peer_say(&p, type, 0, entry, size > 0, size, fd), 0);
}

static void late_chunk(struct late *d)
{
	struct gw_share_chunk chunk = { .chunk = 3 + d->chunks++, .slots = 1 };

	late_say(d, GW_SHARE_CHUNK, &chunk, sizeof(chunk), d->file);
}

static void late_order(struct late *d)
{
	struct gw_share_merge merge = { .page = 5, .chunk = 2 + d->chunks, .slot = 0, .count = 1 };

	late_say(d, GW_SHARE_MERGE, &merge, sizeof(merge), -1);
}

static void late_handle(struct late *d, const struct gw_share_head *head)
{
	const struct gw_share_welcome welcome = { .version = GW_SHARE_VERSION };
	const struct gw_share_hash *hash = (const void *)(head + 1);
	const struct gw_share_live *live = (const void *)(head + 1);

	switch (head->type) {
	case GW_SHARE_HELLO:
		late_say(d, GW_SHARE_WELCOME, &welcome, sizeof(welcome), -1);
		break;
	case GW_SHARE_REPORT:
		for (unsigned i = 0; i < head->count; i++)
			d->reports += hash[i].page == 5;
		late_say(d, GW_SHARE_DONE, NULL, 0, -1);
		break;
	case GW_SHARE_SYNC:
		if (d->chunks == 0 || (d->ordered && d->chunks == 1 && d->reports > d->before)) {
			late_chunk(d);
			if (d->ordered)
				late_order(d);
		}
		late_say(d, GW_SHARE_SYNCED, NULL, 0, -1);
		break;
	case GW_SHARE_LIVE:
		for (unsigned i = 0; i < head->count; i++)
			d->pages[live[i].chunk] = live[i].pages;
		d->let_go = d->let_go || (live->chunk == 3 && live->pages == 0);
		break;
	default:
		break;
	}
	if (d->let_go && !d->ordered) {
		d->before = d->reports;
		d->ordered = true;
		late_order(d);
	}
}

/* One packet of the VM's, if one comes, is handled. */
static void late_step(struct late *d)
{
	static uint8_t packet[GW_SHARE_MAX_PACKET] __attribute__((aligned(8)));
	struct pollfd p = { .fd = d->sock, .events = POLLIN };

	if (poll(&p, 1, 10) > 0 && recv(d->sock, packet, sizeof(packet), 0) > 0)
		late_handle(d, (const void *)packet);
}

/* The chunk holds what the VM has in page 5. */
static void late_attach(struct late *d, struct share_vm *vm)
{
	int pair[2];

	d->file = memfd_create("chunk", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(pwrite(d->file, gw_ram_page(vm->ram, 5), 4096, 0), 4096);
	assert_int_equal(fcntl(d->file, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	d->sock = pair[0];
	gw_sharer_attach(vm->sharer, pair[1]);
}

static void test_an_order_that_is_late(void **state)
{
	struct share_vm a = share_vm_new(PAGES, &share_vm_quick);
	struct late d = { 0 };
	uint64_t end = gw_now_ns() + TEST_PATIENCE;

	share_vm_fill(&a, 5, 1, 1);
	late_attach(&d, &a);
	while (share_vm_stats(&a).shared_pages == 0 && gw_now_ns() < end)
		late_step(&d);
	assert_true(d.let_go && d.ordered);
	/* It was not forgotten: reported once more, and shared then. */
	assert_int_equal(d.reports, d.before + 1);
	assert_int_equal(share_vm_stats(&a).shared_pages, 1);
	assert_true(share_vm_holds(&a, 5, 1, 1));
	close(d.sock);
	close(d.file);
	share_vm_free(&a);
}

/* What is ordered and moved on in one breath lies where it was moved to: the daemon then forgets the first place. */
static void test_an_order_that_moves_on(void **state)
{
	struct share_vm a = share_vm_new(PAGES, &share_vm_quick);
	const struct gw_share_remap remap = { .from_chunk = 3, .to_chunk = 4, .count = 1 };
	struct late d = { .ordered = true, .chunks = 9 }; /* nothing is handed out until below */
	uint64_t end = gw_now_ns() + TEST_PATIENCE;

	share_vm_fill(&a, 5, 1, 1);
	late_attach(&d, &a);
	while (share_vm_stats(&a).passes == 0 && gw_now_ns() < end)
		late_step(&d);
	d.chunks = 0;
	gw_sharer_pause(a.sharer);
	late_chunk(&d);
	late_order(&d);
	late_chunk(&d);
	late_say(&d, GW_SHARE_REMAP, &remap, sizeof(remap), -1);
	gw_sharer_resume(a.sharer);
	while (!d.let_go && gw_now_ns() < end)
		late_step(&d);
	assert_true(d.let_go);
	assert_int_equal(d.pages[4], 1);
	assert_true(share_vm_holds(&a, 5, 1, 1));
	close(d.sock);
	close(d.file);
	share_vm_free(&a);
}

static int set_up(void **state)
{
	ksmd_start(NULL);
	return 0;
}

static int tear_down(void **state)
{
	ksmd_kill();
	return 0;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_two_share),
		TEST(test_unwritten_pages_are_hashed_once),
		TEST(test_domains_do_not_share),
		TEST(test_only_disk_content),
		TEST(test_daemon_dies),
		TEST(test_an_order_that_is_late),
		TEST(test_an_order_that_moves_on),
		TEST(test_pause),
		TEST(test_thin_chunks_are_joined),
		TEST(test_hostile_daemon),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
