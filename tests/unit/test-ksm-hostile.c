// SPDX-License-Identifier: Apache-2.0
/* The page store of a domain with clients that lie, change, flood, or are slow; and what each may waste. */
#include "cmocka-all.h"

#include <errno.h>

#include "share-store.h"

/* Bytes that are not what was reported are stored nowhere; who told the truth shares all the same. */
static void test_lies(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b, c, *all[] = { &a, &b, &c };

	share_peer_join(&a, s, 100, 100);
	share_peer_join(&b, s, 100, 100);
	share_peer_join(&c, s, 100, 100);
	fill(&a, 0, 50, 1);
	fill(&b, 0, 50, 1);
	fill(&c, 10, 50, 1);
	b.lie = true;
	share_peer_report(&a, 0, 50);
	share_peer_report(&b, 0, 50);
	share_peers_run(all, 3, 0);
	assert_int_equal(b.fetched, 50);
	assert_int_equal(stats(s).stored_pages, 0);
	assert_int_equal(stats(s).chunks, 0);
	assert_int_equal(s->used_pending, 0);
	share_peer_report(&c, 10, 50);
	share_peers_run(all, 3, 0);
	share_peer_sync(&c, 1);
	share_peers_run(all, 3, 0);
	assert_int_equal(a.merged, 50);
	assert_int_equal(c.merged, 50);
	assert_int_equal(b.merged, 0);
	{
		struct gw_store_client_stats st;

		gw_store_client_stats(b.client, &st);
		assert_int_equal(st.lies, 50);
		gw_store_client_stats(c.client, &st);
		assert_int_equal(st.lies, 0);
		assert_int_equal(st.stored_pages, 50);
	}
	/* With two who tell the truth waiting already, one of them is asked next; leaving out is like lying. */
	fill(&a, 50, 10, 900);
	fill(&b, 50, 10, 900);
	fill(&c, 70, 10, 900);
	b.lie = false;
	b.omit = true;
	share_peer_report(&a, 50, 10);
	share_peer_report(&b, 50, 10);
	share_peer_report(&c, 70, 10);
	share_peers_run(all, 3, 0);
	share_peer_sync(&c, 2);
	share_peers_run(all, 3, 0);
	assert_int_equal(b.fetched, 60);
	assert_int_equal(a.merged, 60);
	assert_int_equal(c.merged, 60);
	check_store(s);
	share_peer_end(&a);
	share_peer_end(&b);
	share_peer_end(&c);
	gw_store_free(s);
}

/* One half of another's hash, with the other half made up: nobody takes that for the same, and it is in nobody's way. */
static void test_half_a_hash(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b, c, *all[] = { &a, &b, &c };

	share_peer_join(&a, s, 10, 10);
	share_peer_join(&b, s, 10, 10);
	share_peer_join(&c, s, 10, 10);
	/* Before the others, between them, and when the page is stored. */
	for (unsigned i = 0; i < 6; i++) {
		struct gw_share_hash h = { .page = 0 };

		fill(&a, 0, 10, 100 + i);
		fill(&b, i, 1, 100 + i);
		fill(&c, i, 1, 100 + i);
		for (unsigned k = 0; k < 4; k++) {
			share_peer_hash(&a, 100 + i, &h);
			*(i % 2 ? &h.high : &h.low) ^= 1 + (i > 3) * k;
			h.page = k;
			share_peer_say(&a, GW_SHARE_REPORT, 0, &h, 1, sizeof(h), -1);
			if (k == 1)
				share_peer_report(&b, i, 1);
			if (k == 2)
				share_peer_report(&c, i, 1);
			share_peers_run(all, 3, 0);
		}
		share_peer_sync(&c, 1);
		share_peers_run(all, 3, 0);
		assert_int_equal(b.merged, i + 1);
		assert_int_equal(c.merged, i + 1);
		check_store(s);
	}
	assert_int_equal(a.merged, 0);
	assert_int_equal(a.chunks, 0);
	share_peer_end(&a);
	share_peer_end(&b);
	share_peer_end(&c);
	gw_store_free(s);
}

/* Many who lie, each with many places where it is claimed to be: those who tell the truth are asked in the end, and nobody twice. */
static void test_conspiracy(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer p[14], *all[ARRAY_SIZE(p)];
	struct share_peer *honest[2] = { &p[5], &p[8] };
	unsigned n = ARRAY_SIZE(p);

	for (unsigned i = 0; i < n; i++) {
		share_peer_join(&p[i], s, 100, 100);
		p[i].lie = true;
		for (unsigned k = 0; k < 10; k++)
			fill(&p[i], k * 10, 10, 1);
		all[i] = &p[i];
	}
	for (unsigned i = 0; i < 2; i++) {
		honest[i]->lie = false;
		fill(honest[i], 10, 90, 1000 * (i + 1));
	}
	for (unsigned i = 0; i < n; i++)
		share_peer_report(&p[i], 0, 100);
	share_peers_run(all, n, 0);
	for (unsigned i = 0; i < n; i++)
		share_peer_sync(&p[i], 1);
	share_peers_run(all, n, 0);
	assert_int_equal(honest[0]->merged, 10);
	assert_int_equal(honest[1]->merged, 10);
	for (unsigned i = 0; i < n; i++)
		assert_true(p[i].fetched <= 10 || &p[i] == honest[0] || &p[i] == honest[1]);
	assert_int_equal(s->used_pending, 0);
	check_store(s);
	for (unsigned i = 0; i < n; i++)
		share_peer_end(&p[i]);
	gw_store_free(s);
}

/* The first who reported it has all the places to wait in that it may have. */
static void test_first_is_full(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b, c, *all[] = { &a, &b, &c };

	share_peer_join(&a, s, 100, 100);
	share_peer_join(&b, s, 100, 100);
	share_peer_join(&c, s, 100, 100);
	fill(&a, 0, 1, 1);
	fill(&b, 0, 1, 1);
	fill(&c, 0, 1, 1);
	share_peer_report(&a, 0, 1);
	a.client->waiting = 100 + GW_SHARE_CHUNK_PAGES;
	share_peer_report(&b, 0, 1);
	share_peer_report(&c, 0, 1);
	share_peers_run(all, 3, 0);
	share_peer_sync(&c, 1);
	share_peers_run(all, 3, 0);
	assert_int_equal(b.merged, 1);
	assert_int_equal(c.merged, 1);
	a.client->waiting = 0;
	share_peer_end(&a);
	share_peer_end(&b);
	share_peer_end(&c);
	gw_store_free(s);
}

/* Every packet that is not as it must be. */
static void test_malformed(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct gw_share_hash h = { .page = 100 };
	struct gw_share_hello hello = { .version_min = 1, .version_max = 1, .pages = 100 };
	struct gw_share_page *pages = calloc(GW_SHARE_MAX_PAGES, sizeof(*pages));
	struct gw_share_slots slots = { 0 };
	struct share_peer a, b;
	struct gw_store_client *raw;
	uint8_t junk[64] = { 0 };

	share_peer_join(&a, s, 100, 100);
	share_peer_join(&b, s, 100, 100);
	assert_int_equal(share_peer_send(&a, junk, 0, -1), -EPROTO);
	assert_int_equal(share_peer_send(&a, junk, 7, -1), -EPROTO);
	assert_int_equal(share_peer_send(&a, junk, 8, -1), -EPROTO);
	for (unsigned type = 0; type < 40; type++) {
		/* Out of range, wrong length, or nothing that a client says. */
		assert_int_equal(share_peer_say(&a, type, 0, junk, 1, 5, -1), -EPROTO);
		assert_int_equal(share_peer_say(&a, type, 0, junk, 1, 63, -1), -EPROTO);
	}
	/* A page out of range, none, a cookie, a descriptor; a second HELLO. */
	assert_int_equal(share_peer_say(&a, GW_SHARE_REPORT, 0, &h, 1, sizeof(h), -1), -EPROTO);
	h.page = 0;
	assert_int_equal(share_peer_say(&a, GW_SHARE_REPORT, 0, &h, 0, sizeof(h), -1), -EPROTO);
	assert_int_equal(share_peer_say(&a, GW_SHARE_REPORT, 1, &h, 1, sizeof(h), -1), -EPROTO);
	assert_int_equal(share_peer_say(&a, GW_SHARE_REPORT, 0, &h, 1, sizeof(h), 0), -EPROTO);
	assert_int_equal(share_peer_say(&a, GW_SHARE_HELLO, 0, &hello, 1, sizeof(hello), -1), -EPROTO);
	assert_int_equal(stats(s).index_entries, 0);
	/* PAGES that nobody asked for, of other pages, more than asked for. */
	assert_int_equal(share_peer_say(&a, GW_SHARE_PAGES, 1, pages, 1, sizeof(pages[0]), -1), -EPROTO);
	fill(&a, 0, 20, 1);
	fill(&b, 0, 20, 1);
	b.silent = true;
	share_peer_report(&a, 0, 20);
	share_peer_report(&b, 0, 20);
	run2(&a, &b);
	assert_int_equal(share_peer_say(&a, GW_SHARE_PAGES, b.last_cookie, pages, 1, sizeof(pages[0]), -1), -EPROTO);
	pages[0].page = 50;
	assert_int_equal(share_peer_say(&b, GW_SHARE_PAGES, b.last_cookie, pages, 1, sizeof(pages[0]), -1), -EPROTO);
	check_store(s);
	/* SLOTS of slots that are not there. */
	share_peer_end(&b);
	share_peer_join(&b, s, 100, 100);
	fill(&b, 0, 20, 1);
	share_peer_report(&b, 0, 20);
	run2(&a, &b);
	share_peer_sync(&b, 0);
	run2(&a, &b);
	assert_int_equal(b.merged, 20);
	slots.chunk = b.chunk[0];
	slots.live[0] = 1 << 19;
	assert_int_equal(share_peer_say(&b, GW_SHARE_SLOTS, 0, &slots, 1, sizeof(slots), -1), 0);
	slots.live[0] = 1 << 20;
	assert_int_equal(share_peer_say(&b, GW_SHARE_SLOTS, 0, &slots, 1, sizeof(slots), -1), -EPROTO);
	slots.live[0] = 0;
	slots.live[7] = 1;
	assert_int_equal(share_peer_say(&b, GW_SHARE_SLOTS, 0, &slots, 1, sizeof(slots), -1), -EPROTO);
	share_peer_end(&a);
	share_peer_end(&b);

	/* Before HELLO nothing else; HELLO of another age; more RAM than the agent said. */
	assert_int_equal(gw_store_join(s, 50, NULL, &raw), 0);
	{
		struct {
			struct gw_share_head head;
			struct gw_share_hash h;
		} report = { { GW_SHARE_REPORT, 1, 0 }, { 0, 1, 1 } };
		struct {
			struct gw_share_head head;
			struct gw_share_hello h;
		} hi = { { GW_SHARE_HELLO, 1, 0 }, { 3, 4, 50 } };

		assert_int_equal(gw_store_packet(raw, &report, sizeof(report), -1), -EPROTO);
		assert_int_equal(gw_store_packet(raw, &hi, sizeof(hi), -1), -EPROTONOSUPPORT);
		hi.h = (struct gw_share_hello){ 1, 3, 51 };
		assert_int_equal(gw_store_packet(raw, &hi, sizeof(hi), -1), -EPROTO);
		hi.h.pages = 0;
		assert_int_equal(gw_store_packet(raw, &hi, sizeof(hi), -1), -EPROTO);
		hi.h.pages = 50;
		assert_int_equal(gw_store_packet(raw, &hi, sizeof(hi), -1), 0);
	}
	gw_store_leave(raw);
	gw_store_free(s);
	free(pages);
}

/* Reports without reading, orders without reading, no answer. */
static void test_patience(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;
	int r = 0;

	share_peer_join(&a, s, 2000, 2000);
	share_peer_join(&b, s, 2000, 2000);
	fill(&a, 0, 2000, 1);
	for (unsigned i = 0; i < GW_SHARE_REPORTS_AHEAD; i++) {
		share_peer_report(&a, i, 1);
		assert_int_equal(a.error, 0);
	}
	share_peer_report(&a, 16, 1);
	assert_int_equal(a.error, -EPROTO);
	share_peer_step(&a, 0);
	assert_int_equal(a.dones, 16);
	share_peer_report(&a, 16, 1);
	assert_int_equal(a.error, 0);
	/* A client that is owed too much is lost, and only it: SYNCs are answered for ever. */
	for (unsigned i = 0; i < 1000000 && r == 0 && !gw_store_outbox(a.client)->overflow; i++)
		r = share_peer_say(&a, GW_SHARE_SYNC, i, NULL, 0, 0, -1);
	assert_true(gw_store_outbox(a.client)->overflow);
	assert_true(gw_store_outbox(a.client)->bytes <= GW_OUTBOX_MAX);
	assert_false(gw_store_outbox(b.client)->overflow);
	share_peer_end(&a);

	share_peer_join(&a, s, 2000, 2000);
	fill(&a, 0, 100, 1);
	fill(&b, 0, 100, 1);
	b.silent = true;
	share_peer_report(&a, 0, 100);
	share_peer_report(&b, 0, 100);
	run2(&a, &b);
	assert_true(gw_store_tick(s, gw_now_ns() + 29 * GW_NS_PER_SEC));
	assert_false(gw_store_outbox(b.client)->overflow);
	gw_store_tick(s, gw_now_ns() + 31 * GW_NS_PER_SEC);
	assert_true(gw_store_outbox(b.client)->overflow);
	share_peer_end(&a);
	share_peer_end(&b);
	gw_store_free(s);
}

/* DONE waits when too much is to be asked for; nothing is lost by it. */
static void test_flow_control(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;

	share_peer_join(&a, s, 20000, 20000);
	share_peer_join(&b, s, 20000, 20000);
	fill(&a, 0, 12000, 1);
	fill(&b, 0, 12000, 1);
	share_peer_report(&a, 0, 12000);
	run2(&a, &b);
	assert_int_equal(a.dones, 12);
	share_peer_report(&b, 0, 12000);
	assert_int_equal(b.error, 0);
	assert_true(gw_store_outbox(b.client)->dones < 12);
	run2(&a, &b);
	assert_int_equal(b.dones, 12);
	share_peer_sync(&b, 1);
	run2(&a, &b);
	assert_int_equal(a.merged, 12000);
	assert_int_equal(b.merged, 12000);
	assert_true(a.runs < 60);
	check_store(s);
	share_peer_end(&a);
	share_peer_end(&b);
	gw_store_free(s);
}

/* A page that was reported as something else before it was asked for. */
static void test_changed(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;

	share_peer_join(&a, s, 6000, 6000);
	share_peer_join(&b, s, 6000, 6000);
	fill(&a, 0, 6000, 1);
	fill(&b, 0, 6000, 1);
	share_peer_report(&a, 0, 6000);
	run2(&a, &b);
	share_peer_report(&b, 0, 6000);
	/* The first 1,024 are asked for; the others are still to be. */
	fill(&b, 2000, 4000, 100000);
	share_peer_report(&b, 2000, 4000);
	run2(&a, &b);
	share_peer_sync(&b, 1);
	run2(&a, &b);
	/* What a page was reported as is known by 16 bits: of 4,000 that changed one now and then is asked for all the same. */
	assert_in_range(b.fetched, 2000, 2008);
	assert_int_equal(b.merged, 2000);
	assert_int_equal(a.merged, 2000);
	assert_int_equal(b.refused + a.refused, 0);
	check_store(s);
	share_peer_end(&a);
	share_peer_end(&b);
	gw_store_free(s);
}

/* A page whose chunk is gone again is reported once more, as what it was, while its content is on its way by another: it is not forgotten. */
static void test_waits_again(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b, c, d;
	struct gw_share_page answer = { .page = 0 };

	share_peer_join(&a, s, 64, 64);
	share_peer_join(&b, s, 64, 64);
	fill(&a, 0, 1, 1);
	fill(&b, 0, 1, 1);
	share_peer_report(&a, 0, 1);
	share_peer_report(&b, 0, 1);
	run2(&a, &b);
	share_peer_sync(&b, 1);
	run2(&a, &b);
	assert_int_equal(a.merged, 1);
	share_peer_end(&b);
	share_peer_drop(&a, 0, 1);
	assert_int_equal(stats(s).stored_pages, 0);
	share_peer_join(&c, s, 64, 64);
	share_peer_join(&d, s, 64, 64);
	fill(&c, 0, 1, 1);
	fill(&d, 0, 1, 1);
	d.silent = true;
	share_peer_report(&c, 0, 1);
	share_peer_report(&d, 0, 1);
	run2(&c, &d);
	assert_int_equal(d.fetches, 1);
	share_peer_report(&a, 0, 1);
	share_content(1, answer.bytes);
	share_peer_say(&d, GW_SHARE_PAGES, d.last_cookie, &answer, 1, sizeof(answer), -1);
	share_peer_sync(&d, 1);
	run2(&c, &d);
	run2(&a, &c);
	assert_int_equal(a.merged, 2);
	assert_int_equal(c.merged, 1);
	check_store(s);
	share_peer_end(&a);
	share_peer_end(&c);
	share_peer_end(&d);
	gw_store_free(s);
}

/* Content that nobody else has is stored up to the size of the client's RAM; RAM that is claimed costs nothing. */
static void test_budget(void **state)
{
	struct gw_store *s = store_new(key_a);
	struct share_peer a, b;
	struct gw_store_client_stats st;

	share_peer_join(&a, s, 2000, 2000);
	for (unsigned round = 0; round < 8; round++) {
		/* Every content twice; what was handed out is kept and never told to be let go of. */
		fill(&a, 0, 1000, 1 + round * 10000);
		fill(&a, 1000, 1000, 1 + round * 10000);
		share_peer_report(&a, 0, 2000);
		while (share_peer_step(&a, 0))
			;
		share_peer_sync(&a, round);
		while (share_peer_step(&a, 0))
			;
		share_peer_drop_quietly(&a, 0, 2000);
		check_store(s);
	}
	assert_true(stats(s).stored_pages <= 2000);
	assert_true(stats(s).stored_pages >= 1000);
	share_peer_end(&a);

	/* Two who help each other: what they hold is bounded all the same. */
	share_peer_join(&a, s, 600, 600);
	share_peer_join(&b, s, 600, 600);
	for (unsigned round = 0; round < 40; round++) {
		fill(&a, 0, 600, 1 + round * 10000);
		fill(&b, 0, 600, 1 + round * 10000);
		share_peer_report(&a, 0, 600);
		share_peer_report(&b, 0, 600);
		run2(&a, &b);
		share_peer_sync(&b, round);
		run2(&a, &b);
		share_peer_drop_quietly(&a, 0, 600);
		share_peer_drop_quietly(&b, 0, 600);
		check_store(s);
	}
	assert_true(stats(s).stored_pages <= 2 * (4 * 600 + 8 * 512));
	share_peer_end(&a);
	share_peer_end(&b);

	share_peer_join(&a, s, 10, GW_SHARE_MAX_CLIENT_PAGES);
	fill(&a, 0, 10, 1);
	share_peer_report(&a, 0, 10);
	gw_store_client_stats(a.client, &st);
	assert_int_equal(st.pages, GW_SHARE_MAX_CLIENT_PAGES);
	assert_true(st.metadata_bytes < 64 << 10);
	share_peer_end(&a);
	gw_store_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lies),
		cmocka_unit_test(test_conspiracy),
		cmocka_unit_test(test_first_is_full),
		cmocka_unit_test(test_half_a_hash),
		cmocka_unit_test(test_malformed),
		cmocka_unit_test(test_patience),
		cmocka_unit_test(test_flow_control),
		cmocka_unit_test(test_changed),
		cmocka_unit_test(test_waits_again),
		cmocka_unit_test(test_budget),
	};

	return cmocka_run_group_tests_name("ksm-hostile", tests, NULL, NULL);
}
