// SPDX-License-Identifier: Apache-2.0
/* Since when somebody waits for an answer of a moving VM, and when it answers again. */
#include "cmocka-all.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "vmm/talk.h"

enum { UDP = 17, TCP = 6 };

#define ACK 0x10
#define PUSH 0x18
#define SYN 0x02

/* What distinguishes a frame; the rest is the same in all. `from` and `to` are the last bytes of the addresses. */
struct packet {
	uint8_t from, to, proto, flags;
	uint16_t from_port, to_port;
	unsigned payload;
	bool v6;
};

static size_t make(const struct packet *p, uint8_t *f)
{
	size_t header = p->v6 ? 40 : 20, l4 = p->proto == TCP ? 20 : 8, total = l4 + p->payload + (p->v6 ? 0 : header);
	uint8_t *ip = f + 14, *t = ip + header;

	memset(f, 0, GW_TALK_HEAD);
	f[5] = p->to;
	f[11] = p->from;
	f[12] = p->v6 ? 0x86 : 0x08;
	f[13] = p->v6 ? 0xdd : 0x00;
	ip[0] = p->v6 ? 0x60 : 0x45;
	ip[p->v6 ? 4 : 2] = (uint8_t)(total >> 8);
	ip[p->v6 ? 5 : 3] = (uint8_t)total;
	ip[p->v6 ? 6 : 9] = p->proto;
	ip[p->v6 ? 23 : 15] = p->from;
	ip[p->v6 ? 39 : 19] = p->to;
	t[0] = (uint8_t)(p->from_port >> 8);
	t[1] = (uint8_t)p->from_port;
	t[2] = (uint8_t)(p->to_port >> 8);
	t[3] = (uint8_t)p->to_port;
	if (p->proto == TCP) {
		t[12] = 5 << 4;
		t[13] = p->flags;
	}
	return GW_MIN(14 + header + l4 + p->payload, (size_t)GW_TALK_HEAD);
}

/* 1 is the guest. */
static void packet(const struct packet *p)
{
	uint8_t f[GW_TALK_HEAD];
	size_t len = make(p, f);

	gw_talk_packet(f, len, p->from == 1);
}

static const struct packet question = { 2, 1, UDP, 0, 5000, 7, 8, false }, answer = { 1, 2, UDP, 0, 7, 5000, 8, false };

static void ask_times(unsigned n)
{
	while (n-- > 0)
		packet(&question);
}

static int setup(void **state)
{
	gw_talk_begin(NULL, 0);
	return 0;
}

static int teardown(void **state)
{
	gw_talk_end();
	return 0;
}

static void nobody_waits_for_an_answer_that_came(void **state)
{
	assert_int_equal(gw_talk_unanswered(), 0);
	packet(&question);
	packet(&answer);
	assert_int_equal(gw_talk_unanswered(), 0);
	assert_false(gw_talk_overdue());
}

static void the_first_question_counts(void **state)
{
	uint64_t before, after;

	packet(&question);
	packet(&answer);
	before = gw_now_ns();
	packet(&question);
	after = gw_now_ns();
	usleep(5000);
	ask_times(3);
	assert_in_range(gw_talk_unanswered(), before, after);
	assert_true(gw_talk_overdue());
}

/* As a collector of logs, which is only ever talked to. */
static void who_never_answers_is_not_waited_for(void **state)
{
	packet(&answer);
	ask_times(64);
	assert_true(gw_talk_unanswered() > 0);
	packet(&question);
	assert_int_equal(gw_talk_unanswered(), 0);
}

/* What a source tells of the conversations since its beginning. */
static void arrive_after_answers(void)
{
	uint64_t keys[GW_TALK_FLOWS];

	gw_talk_begin(keys, gw_talk_answered(keys));
}

static void who_had_answers_is_waited_for_on_arrival(void **state)
{
	ask_times(4);
	arrive_after_answers();
	ask_times(4);
	assert_int_equal(gw_talk_unanswered(), 0);
	packet(&answer);
	arrive_after_answers();
	ask_times(4);
	assert_true(gw_talk_unanswered() > 0);
	ask_times(3000);
	assert_int_equal(gw_talk_unanswered(), 0);
}

static uint64_t resumed(uint64_t from)
{
	uint64_t answered;

	while (!gw_talk_resumed(from, &answered))
		usleep(1000);
	return answered;
}

/* An arrived VM that answers others owes the collector nothing. */
static void who_waits_for_nothing_is_not_waited_for_long(void **state)
{
	uint64_t from = gw_now_ns();

	packet(&question);
	packet(&answer);
	arrive_after_answers();
	for (unsigned i = 0; i < 40; i++)
		packet(&(struct packet){ 3, 1, UDP, 0, 514, 514, 100, false });
	packet(&question);
	packet(&answer);
	assert_true(resumed(from) > 0);
	assert_int_equal(gw_talk_longest(), 0);
}

/* Where a VM answers by data its TCP's acknowledgement is no answer, at the destination neither; where it only takes data it is. */
static void acknowledgements_are_answers_to_uploads_only(void **state)
{
	static const struct packet data = { 2, 1, TCP, ACK, 5000, 6379, 59, false }, ack = { 1, 2, TCP, ACK, 6379, 5000, 0, false },
				   reply = { 1, 2, TCP, ACK, 6379, 5000, 5, false };

	packet(&data);
	packet(&ack);
	assert_int_equal(gw_talk_unanswered(), 0);
	packet(&data);
	packet(&reply);
	packet(&data);
	packet(&ack);
	assert_true(gw_talk_unanswered() > 0);
	packet(&reply);
	assert_int_equal(gw_talk_unanswered(), 0);
	arrive_after_answers();
	packet(&data);
	packet(&ack);
	assert_true(gw_talk_unanswered() > 0);
	packet(&reply);
	assert_int_equal(gw_talk_unanswered(), 0);
	/* Mostly sent some. */
	for (unsigned i = 0; i < 200; i++)
		packet(&data);
	packet(&ack);
	assert_int_equal(gw_talk_unanswered(), 0);
}

/* What the VM has heard where it was, and not answered yet. */
static void a_question_moves_along(void **state)
{
	static const struct packet data = { 2, 1, TCP, ACK, 5000, 6379, 59, false }, reply = { 1, 2, TCP, ACK, 6379, 5000, 5, false };
	uint64_t from, told;

	packet(&data);
	packet(&reply);
	packet(&data);
	packet(&question);
	packet(&answer);
	arrive_after_answers();
	assert_true(gw_talk_unanswered() > 0);
	packet(&question);
	packet(&answer);
	from = gw_now_ns();
	assert_false(gw_talk_resumed(from, &told));
	packet(&reply);
	told = resumed(from);
	assert_true(told >= from);
	assert_int_equal(gw_talk_unanswered(), 0);
}

static void who_repeats_is_known(void **state)
{
	uint8_t f[GW_TALK_HEAD];

	assert_true(gw_talk_repeats(f, make(&(struct packet){ 2, 1, TCP, ACK, 5000, 6379, 59, false }, f)));
	assert_true(gw_talk_repeats(f, make(&(struct packet){ 2, 1, TCP, SYN, 5000, 6379, 0, true }, f)));
	assert_false(gw_talk_repeats(f, make(&question, f)));
	assert_false(gw_talk_repeats(f, 13));
}

static void an_answer_to_another_is_none(void **state)
{
	static const struct packet others[] = {
		{ 1, 3, UDP, 0, 7, 5000, 8, false },
		{ 1, 2, UDP, 0, 7, 5001, 8, false },
		{ 1, 2, UDP, 0, 8, 5000, 8, false },
		{ 1, 2, TCP, ACK, 7, 5000, 0, false },
		{ 1, 2, UDP, 0, 7, 5000, 8, true },
	};

	packet(&answer);
	ask_times(4);
	for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
		packet(&others[i]);
		assert_true(gw_talk_unanswered() > 0);
	}
	packet(&answer);
	assert_int_equal(gw_talk_unanswered(), 0);
}

/* As those of a name server to the VM. */
static void what_may_be_answers_asks_for_nothing(void **state)
{
	packet(&answer);
	ask_times(3);
	assert_int_equal(gw_talk_unanswered(), 0);
	packet(&question);
	assert_true(gw_talk_unanswered() > 0);
}

static void bare_acknowledgements_ask_for_nothing(void **state)
{
	for (int v6 = 0; v6 < 2; v6++) {
		packet(&(struct packet){ 1, 2, TCP, PUSH, 22, 5000, 100, v6 });
		packet(&(struct packet){ 2, 1, TCP, ACK, 5000, 22, 0, v6 });
		assert_int_equal(gw_talk_unanswered(), 0);
		packet(&(struct packet){ 2, 1, TCP, PUSH, 5000, 22, 1, v6 });
		assert_true(gw_talk_unanswered() > 0);
		packet(&(struct packet){ 1, 2, TCP, PUSH, 22, 5000, 1, v6 });
		assert_int_equal(gw_talk_unanswered(), 0);
		packet(&(struct packet){ 2, 1, TCP, SYN, 5000, 22, 0, v6 });
		assert_true(gw_talk_unanswered() > 0);
		packet(&(struct packet){ 1, 2, TCP, SYN | ACK, 22, 5000, 0, v6 });
		assert_int_equal(gw_talk_unanswered(), 0);
	}
}

static void broadcasts_are_for_others_as_well(void **state)
{
	uint8_t f[GW_TALK_HEAD];
	size_t len = make(&question, f);

	packet(&answer);
	f[0] = 0xff;
	for (unsigned i = 0; i < 4; i++)
		gw_talk_packet(f, len, false);
	assert_int_equal(gw_talk_unanswered(), 0);
}

static void the_longest_silence_is_one_that_somebody_asked_in(void **state)
{
	packet(&question);
	packet(&answer);
	packet(&question);
	usleep(20000);
	packet(&answer);
	assert_int_equal(gw_talk_longest(), 0);
	for (unsigned i = 0; i < 16; i++) {
		if (i % 4 == 0)
			packet(&answer);
		usleep(500);
		packet(&question);
	}
	assert_int_equal(gw_talk_longest(), 0);
	packet(&answer);
	for (unsigned i = 0; i < 16; i++) {
		usleep(1000);
		packet(&question);
	}
	packet(&answer);
	assert_in_range(gw_talk_longest(), 15 * GW_NS_PER_MS, 10 * GW_NS_PER_SEC);
}

static void many_conversations_take_the_place_of_old_ones(void **state)
{
	struct packet p = answer;

	packet(&answer);
	ask_times(4);
	for (unsigned i = 0; i < 1000; i++) {
		p.to_port++;
		packet(&p);
	}
	assert_int_equal(gw_talk_unanswered(), 0);
}

static void nothing_is_noted_after_the_end(void **state)
{
	gw_talk_end();
	packet(&answer);
	ask_times(4);
	assert_int_equal(gw_talk_unanswered(), 0);
	assert_false(gw_talk_overdue());
}

static const struct packet other_question = { 3, 1, TCP, PUSH, 99, 80, 8, false }, other_answer = { 1, 3, TCP, ACK, 80, 99, 8, false };

/* When who asked last had the answer: between these two. */
struct arrival {
	uint64_t before_ns, after_ns;
};

static void *arrive(void *arg)
{
	struct arrival *a = arg;

	ask_times(3);
	packet(&answer);
	for (unsigned i = 0; i < 20; i++) {
		packet(&other_question);
		usleep(1000);
	}
	a->before_ns = gw_now_ns();
	packet(&other_answer);
	a->after_ns = gw_now_ns();
	/* Of a conversation that began later: it is no part of the arrival. */
	packet(&(struct packet){ 4, 1, TCP, PUSH, 99, 80, 8, false });
	packet(&(struct packet){ 1, 4, TCP, ACK, 80, 99, 8, false });
	return NULL;
}

static void all_who_asked_are_waited_for(void **state)
{
	struct arrival a = { 0 };
	uint64_t from = gw_now_ns(), told;
	pthread_t t;

	packet(&question);
	packet(&answer);
	packet(&other_question);
	packet(&other_answer);
	arrive_after_answers();
	packet(&question);
	/* Who asks so often is waited for until the thread below has had its time on a busy machine. */
	for (unsigned i = 0; i < 20; i++)
		packet(&other_question);
	assert_int_equal(pthread_create(&t, NULL, arrive, &a), 0);
	told = resumed(from);
	pthread_join(t, NULL);
	assert_in_range(told, a.before_ns, a.after_ns);
	assert_true(gw_talk_longest() >= 19 * GW_NS_PER_MS);
}

static void nobody_is_not_waited_for_long(void **state)
{
	uint64_t from = gw_now_ns();

	packet(&question);
	packet(&answer);
	arrive_after_answers();
	assert_int_equal(resumed(from), 0);
	assert_true(gw_now_ns() >= from + 100 * GW_NS_PER_MS);
	from = gw_now_ns();
	ask_times(4);
	assert_int_equal(resumed(from), 0);
	assert_true(gw_now_ns() >= from + 400 * GW_NS_PER_MS);
}

/* Whatever comes from a wire or a guest. Sanitizers watch. */
static void random_frames_do_no_harm(void **state)
{
	srand(7);
	for (unsigned n = 0; n < 20000; n++) {
		size_t len = (size_t)rand() % (GW_TALK_HEAD + 1);
		uint8_t *f = malloc(len ?: 1);

		assert_non_null(f);
		for (size_t i = 0; i < len; i++)
			f[i] = (uint8_t)rand();
		/* Most of them as far as into the headers. */
		if (len > 14) {
			f[0] &= 0xfe;
			f[12] = n & 1 ? 0x08 : 0x86;
			f[13] = n & 1 ? 0x00 : 0xdd;
		}
		gw_talk_packet(f, len, n & 2);
		free(f);
	}
	(void)gw_talk_longest();
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(nobody_waits_for_an_answer_that_came),
		T(the_first_question_counts),
		T(who_never_answers_is_not_waited_for),
		T(who_had_answers_is_waited_for_on_arrival),
		T(who_waits_for_nothing_is_not_waited_for_long),
		T(acknowledgements_are_answers_to_uploads_only),
		T(a_question_moves_along),
		T(who_repeats_is_known),
		T(an_answer_to_another_is_none),
		T(what_may_be_answers_asks_for_nothing),
		T(bare_acknowledgements_ask_for_nothing),
		T(broadcasts_are_for_others_as_well),
		T(the_longest_silence_is_one_that_somebody_asked_in),
		T(many_conversations_take_the_place_of_old_ones),
		T(nothing_is_noted_after_the_end),
		T(all_who_asked_are_waited_for),
		T(nobody_is_not_waited_for_long),
		T(random_frames_do_no_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
