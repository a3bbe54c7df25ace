// SPDX-License-Identifier: Apache-2.0
/* A wire that is cut, or changes a bit, at any byte: the move fails on both sides, or succeeds, or leaves a doubt; nothing else. */
#include "cmocka-all.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/util.h"
#include "move-pair.h"

#define SIZE (128ull << 10)
#define NEVER UINT64_MAX

/* One direction of one connection, forwarded by the wire's thread. */
struct lane {
	int from, to;
	uint64_t passed;
	uint64_t cut_at, flip_at; /* byte number from 0 */
	bool open;
};

struct wire {
	struct lane lanes[8];
	unsigned count;
	pthread_t thread;
};

static void close_lane(struct wire *w, struct lane *l)
{
	/* A cut takes both directions. */
	for (unsigned i = 0; i < w->count; i++) {
		struct lane *o = &w->lanes[i];

		if (o->open && (o->from == l->from || o->from == l->to)) {
			o->open = false;
			shutdown(o->from, SHUT_RDWR);
			shutdown(o->to, SHUT_RDWR);
		}
	}
}

static void forward(struct wire *w, struct lane *l)
{
	uint8_t data[65536];
	ssize_t n = recv(l->from, data, sizeof(data), MSG_DONTWAIT);
	size_t pass = n > 0 ? (size_t)n : 0;

	if (n <= 0) {
		if (n == 0 || errno != EAGAIN)
			close_lane(w, l);
		return;
	}
	if (l->flip_at >= l->passed && l->flip_at < l->passed + pass)
		data[l->flip_at - l->passed] ^= 0x04;
	if (l->cut_at < l->passed + pass)
		pass = l->cut_at - l->passed;
	if (pass && send(l->to, data, pass, MSG_NOSIGNAL) != (ssize_t)pass)
		close_lane(w, l);
	l->passed += pass;
	if (l->passed == l->cut_at)
		close_lane(w, l);
}

static void *wire_main(void *arg)
{
	struct wire *w = arg;

	for (;;) {
		struct pollfd p[8];
		bool any = false;

		for (unsigned i = 0; i < w->count; i++) {
			p[i] = (struct pollfd){ .fd = w->lanes[i].open ? w->lanes[i].from : -1, .events = POLLIN };
			any |= w->lanes[i].open;
		}
		if (!any)
			return NULL;
		poll(p, w->count, -1);
		for (unsigned i = 0; i < w->count; i++) {
			if (p[i].revents && w->lanes[i].open)
				forward(w, &w->lanes[i]);
		}
	}
}

/* Puts the wire between the two ends of a pair that has not started. */
static void insert(struct wire *w, struct move_pair *p)
{
	memset(w, 0, sizeof(*w));
	for (unsigned i = 0; i <= p->ps.channels; i++) {
		int a[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, a), 0);
		/* source fds[i] <-> pd's old end is replaced: source -- [fds] pd.fds | a[0] -- a[1] destination */
		w->lanes[w->count++] = (struct lane){ p->pd.fds[i], a[0], 0, NEVER, NEVER, true };
		w->lanes[w->count++] = (struct lane){ a[0], p->pd.fds[i], 0, NEVER, NEVER, true };
		p->pd.fds[i] = a[1];
	}
}

static void remove_wire(struct wire *w)
{
	pthread_join(w->thread, NULL);
	for (unsigned i = 0; i < w->count; i += 2) {
		close(w->lanes[i].from);
		close(w->lanes[i].to);
	}
}

enum outcome { MOVED, FAILED, DOUBT_HERE, DOUBT_THERE };

/* One move with a fault on one lane; checks the rules and says how it ended. */
static enum outcome one(unsigned lane, uint64_t cut_at, uint64_t flip_at, uint64_t *lengths)
{
	struct move_pair p;
	struct wire w;
	enum outcome o;

	move_pair_init(&p, SIZE, 0, 1);
	insert(&w, &p);
	w.lanes[lane].cut_at = cut_at;
	w.lanes[lane].flip_at = flip_at;
	pthread_create(&w.thread, NULL, wire_main, &w);
	move_pair_start(&p);
	move_pair_wait(&p);
	if (p.es.doubted && !p.es.ended) {
		bool there = gw_journal_last(p.jd)->state == GW_JOURNAL_OWNER;

		assert_int_equal(gw_move_resolve(p.ms, !there), 0);
		move_end_wait(&p.es);
		o = there ? DOUBT_THERE : DOUBT_HERE;
	} else {
		o = p.es.latest.phase == GW_MOVE_DONE ? MOVED : FAILED;
	}
	assert_int_equal(move_pair_running(&p), 1);
	assert_int_equal(move_vm_running(&p.s), o == FAILED || o == DOUBT_HERE);
	if (o == FAILED)
		assert_true(p.es.latest.message[0] != '\0' && p.ed.latest.message[0] != '\0');
	if (o == MOVED) {
		move_vm_stop(&p.d);
		assert_true(move_pair_equal(&p));
	}
	move_pair_finish(&p);
	remove_wire(&w);
	for (unsigned i = 0; lengths && i < w.count; i++)
		lengths[i] = w.lanes[i].passed;
	move_pair_release(&p);
	return o;
}

static void sweep(bool flip)
{
	uint64_t lengths[8];
	unsigned seen[4] = { 0 };
	/* Steps that no frame or record length divides; `make` of a sanitizer variant is slow enough with fewer. */
	uint64_t parts = getenv("GW_TEST_THOROUGH") ? 2000 : 30;

	assert_int_equal(one(0, NEVER, NEVER, lengths), MOVED);
	for (unsigned lane = 0; lane < 4; lane++) {
		uint64_t step = GW_MAX(lengths[lane] / parts, 1ull) | 1;

		for (uint64_t at = 0; at < lengths[lane]; at += step) {
			enum outcome o = one(lane, flip ? NEVER : at, flip ? at : NEVER, NULL);

			seen[o]++;
			/* A changed byte is always noticed, at the latest by the record's tag; unless all was over. */
			if (flip && o == MOVED)
				assert_true(at > lengths[lane] - 100);
		}
	}
	print_message("moved %u, failed %u, doubt settled here %u, there %u\n", seen[MOVED], seen[FAILED], seen[DOUBT_HERE],
		      seen[DOUBT_THERE]);
	assert_true(seen[FAILED] > 25);
}

static void cut_at_any_byte(void **state)
{
	sweep(false);
}

static void changed_at_any_byte(void **state)
{
	sweep(true);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(cut_at_any_byte), cmocka_unit_test(changed_at_any_byte) };

	gw_log_init("test", NULL, GW_LOG_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
