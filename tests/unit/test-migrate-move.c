// SPDX-License-Identifier: Apache-2.0
/* A whole move of a VM without KVM: what arrives, what is refused, and who runs the VM afterwards. */
#include "cmocka-all.h"

#include <errno.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "move-pair.h"

#define MIB (1ull << 20)

static void assert_moved(struct move_pair *p)
{
	move_pair_wait(p);
	if (p->es.latest.phase != GW_MOVE_DONE)
		fprintf(stderr, "source: %s\ndestination: %s\n", p->es.latest.message, p->ed.latest.message);
	assert_int_equal(p->es.latest.phase, GW_MOVE_DONE);
	assert_int_equal(p->ed.latest.phase, GW_MOVE_DONE);
	assert_int_equal(gw_journal_last(p->js)->state, GW_JOURNAL_RELEASED);
	assert_int_equal(gw_journal_last(p->jd)->state, GW_JOURNAL_OWNER);
	assert_int_equal(gw_journal_last(p->jd)->epoch, 2);
	assert_false(move_vm_running(&p->s));
}

static void assert_stayed(struct move_pair *p, enum gw_move_phase phase)
{
	move_pair_wait(p);
	assert_int_equal(p->es.latest.phase, phase);
	assert_in_range(p->ed.latest.phase, GW_MOVE_FAILED, GW_MOVE_CANCELLED);
	assert_true(move_vm_running(&p->s));
	assert_false(move_vm_running(&p->d));
	assert_int_equal(gw_journal_last(p->js)->state, GW_JOURNAL_OWNER);
	assert_int_not_equal(gw_journal_last(p->jd)->state, GW_JOURNAL_OWNER);
	/* And it can still move. */
	move_pair_again(p);
}

static void moves_an_idle_vm(void **state)
{
	struct move_pair p;

	move_pair_init(&p, 16 * MIB, 0, 2);
	move_pair_start(&p);
	assert_moved(&p);
	assert_true(move_vm_running(&p.d));
	assert_true(p.d.announced);
	assert_int_equal(p.d.renewed, 0);
	assert_int_equal(p.d.owned_epoch, 2);
	move_vm_stop(&p.d);
	assert_true(move_pair_equal(&p));
	assert_true(p.es.latest.encrypted);
	assert_non_null(strstr(p.es.latest.cipher, "TLS_"));
	/* A third of the pages were never touched: not sent. */
	assert_in_range(p.es.latest.bytes_sent, 10 * MIB, 12 * MIB);
	assert_true(p.es.latest.blackout_us > 0);
	move_pair_release(&p);
}

/* The blackout lasts until the guest is heard of again, by the destination's word. */
static void the_blackout_ends_with_an_answer(void **state)
{
	static const unsigned after_ms[] = { 0, 60 };
	uint64_t told[ARRAY_SIZE(after_ms)];

	for (unsigned i = 0; i < ARRAY_SIZE(after_ms); i++) {
		struct move_pair p;

		move_pair_init(&p, 4 * MIB, 0, 1);
		p.d.answers_after_ms = after_ms[i];
		move_pair_start(&p);
		assert_moved(&p);
		assert_true(p.d.released);
		told[i] = p.es.latest.blackout_us;
		move_pair_release(&p);
	}
	assert_true(told[1] >= 60000);
	assert_true(told[0] > 0);
}

static void the_blackout_begins_where_answers_are_missed(void **state)
{
	struct move_pair p;

	move_pair_init(&p, 4 * MIB, 0, 1);
	p.s.unanswered_ms = 700;
	move_pair_start(&p);
	assert_moved(&p);
	assert_true(p.es.latest.blackout_us >= 700000);
	move_pair_release(&p);
}

static void a_longer_silence_is_the_blackout(void **state)
{
	for (unsigned at_source = 0; at_source < 2; at_source++) {
		struct move_pair p;

		move_pair_init(&p, 4 * MIB, 0, 1);
		/* Longer than a blackout of a busy machine. */
		*(at_source ? &p.s.silent_ms : &p.d.silent_ms) = 3900;
		p.s.answered = 0x123456789abcdef0 + at_source;
		move_pair_start(&p);
		assert_moved(&p);
		assert_int_equal(p.d.answered, p.s.answered);
		assert_int_equal(p.es.latest.blackout_us, 3900000);
		move_pair_release(&p);
	}
}

/* Before COMMIT and after RUNNING, in order, and only to a VM that may be seen from outside. */
static void packets_follow_it(void **state)
{
	struct move_pair p;

	move_pair_init(&p, 4 * MIB, 0, 1);
	p.s.packets = 2;
	p.s.packet_calls = 3;
	p.d.packets = 6;
	move_pair_start(&p);
	assert_moved(&p);
	assert_memory_equal(p.d.got, "\1\2\3\4\5\6", 6);
	move_pair_release(&p);
}

static void moves_a_paused_vm_paused(void **state)
{
	struct move_pair p;

	move_pair_init(&p, 4 * MIB, 0, 1);
	p.paused = true;
	move_pair_start(&p);
	assert_moved(&p);
	assert_false(move_vm_running(&p.d));
	assert_true(move_pair_equal(&p));
	move_pair_release(&p);
}

/* The destination compares a digest taken after the stop, so equality is tested at the very moment of the hand-over. */
static void moves_under_writes(void **state)
{
	static const unsigned channels[] = { 1, 2, 4 };

	for (unsigned i = 0; i < ARRAY_SIZE(channels); i++) {
		struct move_pair p;

		move_pair_init(&p, 32 * MIB, 20 * MIB, channels[i]);
		p.s.write_rate = 20000;
		p.s.hot_pages = 3000;
		p.ps.digest = true;
		move_pair_start(&p);
		assert_moved(&p);
		assert_true(p.es.latest.round >= 2);
		move_pair_release(&p);
	}
}

/* Slow enough for several looks at the dirty log within a round: pages ahead of the senders are dropped from it, others not. */
static void moves_slowly_under_writes(void **state)
{
	struct move_pair p;

	move_pair_init(&p, 16 * MIB, 0, 2);
	p.s.write_rate = 1000;
	p.ps.digest = true;
	p.ps.bandwidth = 10 * MIB;
	move_pair_start(&p);
	assert_moved(&p);
	assert_true(p.es.latest.elapsed_ms > 1000);
	move_pair_release(&p);
}

/* Sent at 2,560 pages a second and written at 4,000 of 1,000 hot ones: the rounds would leave 620 for ever. */
static void one_that_does_not_converge_is_slowed_down(void **state)
{
	struct move_pair p;

	move_pair_init(&p, 8 * MIB, 0, 1);
	p.s.write_rate = 4000;
	p.s.hot_pages = 1000;
	p.ps.bandwidth = 10 * MIB;
	p.ps.downtime_ms = 50;
	p.ps.timeout_ms = 30000;
	p.ps.digest = true;
	move_pair_start(&p);
	assert_moved(&p);
	assert_in_range(p.s.slowest, 50, 75);
	assert_int_equal(p.es.latest.slowed, p.s.slowest);
	assert_int_equal(p.d.slowest, 0);
	move_pair_release(&p);
}

/* And is as fast as before when it stays. */
static void one_that_stays_is_not_left_slow(void **state)
{
	struct move_pair p;

	move_pair_init(&p, 8 * MIB, 0, 1);
	p.s.write_rate = 40000;
	p.s.hot_pages = 1000;
	p.ps.bandwidth = 4 * MIB;
	p.ps.downtime_ms = 50;
	p.ps.timeout_ms = 0;
	move_pair_start(&p);
	move_end_wait_slowed(&p.es, 75);
	assert_int_equal(gw_move_cancel(p.ms), 0);
	assert_stayed(&p, GW_MOVE_CANCELLED);
	assert_int_equal(p.s.slowest, 75);
	assert_int_equal(p.s.slowed, 0);
	move_pair_release(&p);
}

static void moves_under_writes_with_uffd(void **state)
{
	struct move_pair p;

	move_pair_init(&p, 32 * MIB, 0, 2);
	p.s.write_rate = 20000;
	p.s.hot_pages = 3000;
	p.ps.digest = true;
	if (!move_vm_use_uffd(&p.s)) {
		move_pair_release(&p);
		skip();
	}
	move_pair_start(&p);
	assert_moved(&p);
	move_pair_release(&p);
}

static void moves_there_and_back(void **state)
{
	for (int i = 0; i < 20; i++) {
		struct move_pair p;

		move_pair_init(&p, 4 * MIB, 0, 2);
		p.s.write_rate = 50000;
		p.s.rng += (uint64_t)i * 7919;
		p.ps.digest = true;
		p.ps.timeout_ms = 2000; /* how long its blackout is does not matter here */
		move_pair_start(&p);
		assert_moved(&p);
		assert_true(move_vm_running(&p.d));
		move_pair_release(&p);
	}
}

static void large_state_travels(void **state)
{
	struct move_pair p;

	move_pair_init(&p, 4 * MIB, 0, 2);
	p.s.save_size = p.d.save_size = 3 * MIB;
	move_pair_start(&p);
	assert_moved(&p);
	move_vm_stop(&p.d);
	assert_true(move_pair_equal(&p));
	move_pair_release(&p);
}

static void failures_leave_it_running(void **state)
{
	struct move_pair p;

	move_pair_init(&p, 8 * MIB, 0, 2);
	p.s.write_rate = 10000;
	p.pd.secret[5] ^= 1;
	move_pair_start(&p);
	assert_stayed(&p, GW_MOVE_FAILED);
	p.pd.secret[5] ^= 1;

	p.pd.move_id[0] ^= 1;
	move_pair_start(&p);
	assert_stayed(&p, GW_MOVE_FAILED);
	p.pd.move_id[0] ^= 1;

	p.pd.epoch = 9;
	move_pair_start(&p);
	assert_stayed(&p, GW_MOVE_FAILED);
	p.pd.epoch = 2;

	p.d.cpus = 3;
	move_pair_start(&p);
	assert_stayed(&p, GW_MOVE_FAILED);

	p.d.fail_load = true;
	move_pair_start(&p);
	assert_stayed(&p, GW_MOVE_FAILED);

	p.s.fail_save = true;
	move_pair_start(&p);
	assert_stayed(&p, GW_MOVE_FAILED);
	p.s.fail_save = false;

	/* After all this, nothing is lost. */
	p.ps.digest = true;
	move_pair_start(&p);
	assert_moved(&p);
	move_pair_release(&p);
}

static void errors_are_clear(void **state)
{
	struct move_pair p;

	move_pair_init(&p, 4 * MIB, 0, 1);
	p.pd.secret[31] ^= 0x80;
	move_pair_start(&p);
	move_pair_wait(&p);
	assert_non_null(strstr(p.es.latest.message, "secret"));
	assert_non_null(strstr(p.ed.latest.message, "secret"));
	p.pd.secret[31] ^= 0x80;
	move_pair_again(&p);

	p.d.cpus = 3;
	move_pair_start(&p);
	move_pair_wait(&p);
	assert_string_equal(p.es.latest.message, "the destination ended the move: the VM has 1 CPUs at the source");
	move_pair_again(&p);

	p.d.fail_load = true;
	move_pair_start(&p);
	move_pair_wait(&p);
	assert_string_equal(p.es.latest.message, "the destination ended the move: the state does not fit the test's VM");
	move_pair_release(&p);
}

static void memory_must_agree(void **state)
{
	struct move_pair p;

	move_pair_init(&p, 4 * MIB, 0, 1);
	move_vm_release(&p.d);
	move_vm_init(&p.d, 8 * MIB, 0);
	move_pair_start(&p);
	move_pair_wait(&p);
	assert_string_equal(p.es.latest.message,
			    "the destination ended the move: the VM has 4 MiB of memory at the source and 8 MiB here");
	assert_true(move_vm_running(&p.s));
	move_pair_release(&p);
}

/* Written faster than the cap allows to send: it never converges. */
static void timeout_policies(void **state)
{
	struct move_pair p;

	move_pair_init(&p, 16 * MIB, 0, 2);
	p.s.write_rate = 200000;
	p.ps.bandwidth = 20 * MIB;
	p.ps.timeout_ms = 1500;
	p.ps.timeout_stops = false;
	p.ps.downtime_ms = 20;
	move_pair_start(&p);
	move_pair_wait(&p);
	assert_non_null(strstr(p.es.latest.message, "did not converge within 1500 ms"));
	assert_stayed(&p, GW_MOVE_FAILED);

	p.ps.timeout_stops = true;
	p.ps.digest = true;
	move_pair_start(&p);
	assert_moved(&p);
	assert_true(p.es.latest.elapsed_ms >= 1500);
	move_pair_release(&p);
}

static void cap_holds(void **state)
{
	struct move_pair p;

	move_pair_init(&p, 12 * MIB, 0, 2); /* 8 MiB with content */
	p.ps.bandwidth = 8 * MIB;
	move_pair_start(&p);
	assert_moved(&p);
	assert_true(p.es.latest.elapsed_ms >= 850);
	/* Five tell the steps: the others come in between, several a second. */
	assert_true(p.es.reports >= 8);
	move_pair_release(&p);
}

static void cancels(void **state)
{
	/* At moments all over the copying, which takes some seconds. */
	for (unsigned ms = 0; ms < 400; ms += 40) {
		struct move_pair p;

		move_pair_init(&p, 12 * MIB, 0, 2);
		p.s.write_rate = 10000;
		p.ps.bandwidth = 2 * MIB;
		move_pair_start(&p);
		usleep(ms * 1000);
		assert_int_equal(gw_move_cancel(ms % 80 ? p.ms : p.md), 0);
		move_pair_wait(&p);
		if (ms % 80) {
			assert_int_equal(p.es.latest.phase, GW_MOVE_CANCELLED);
			assert_string_equal(p.es.latest.message, "cancelled");
		} else {
			assert_int_equal(p.ed.latest.phase, GW_MOVE_CANCELLED);
			assert_int_equal(p.es.latest.phase, GW_MOVE_FAILED);
		}
		assert_true(move_vm_running(&p.s));
		assert_false(move_vm_running(&p.d));
		move_pair_release(&p);
	}
}

static void refuses_nonsense(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct move_pair p;
	struct gw_move_vm vm;

	move_pair_init(&p, 4 * MIB, 0, 1);
	vm = move_vm_handle(&p.s);
	p.ps.channels = 0;
	assert_int_equal(gw_move_source_start(&p.ps, &vm, NULL, move_end_progress, &p.es, &p.ms, &err), -EINVAL);
	p.pd.channels = GW_STREAM_MAX_CHANNELS + 1;
	assert_int_equal(gw_move_destination_start(&p.pd, &vm, NULL, move_end_progress, &p.ed, &p.md, &err), -EINVAL);
	assert_null(p.ms);
	move_pair_release(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(moves_an_idle_vm),
		cmocka_unit_test(the_blackout_ends_with_an_answer),
		cmocka_unit_test(the_blackout_begins_where_answers_are_missed),
		cmocka_unit_test(packets_follow_it),
		cmocka_unit_test(a_longer_silence_is_the_blackout),
		cmocka_unit_test(moves_a_paused_vm_paused),
		cmocka_unit_test(moves_under_writes),
		cmocka_unit_test(moves_slowly_under_writes),
		cmocka_unit_test(one_that_does_not_converge_is_slowed_down),
		cmocka_unit_test(one_that_stays_is_not_left_slow),
		cmocka_unit_test(moves_under_writes_with_uffd),
		cmocka_unit_test(moves_there_and_back),
		cmocka_unit_test(large_state_travels),
		cmocka_unit_test(failures_leave_it_running),
		cmocka_unit_test(errors_are_clear),
		cmocka_unit_test(memory_must_agree),
		cmocka_unit_test(timeout_policies),
		cmocka_unit_test(cap_holds),
		cmocka_unit_test(cancels),
		cmocka_unit_test(refuses_nonsense),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
