// SPDX-License-Identifier: Apache-2.0
/*
 * The hand-over with two real processes, each killed, failing or frozen at every failpoint in turn; then what their agents do: read
 * the journals, settle a doubt. Never two run the VM, and where nobody does, the VM's own process was killed while it owned it.
 */
#include "cmocka-all.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "lib/clock.h"
#include "lib/failpoint.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/util.h"
#include "migrate/failpoints.h"
#include "move-pair.h"

#define SIZE (2ull << 20)
#define CHANNELS 1
static const uint8_t move_id[16] = { 0x11 };

/* What a child tells at its end, by its exit status. */
enum { RUNS = 1, DONE = 2, STAYED = 4, DOUBTED = 8 };

struct side {
	pid_t pid;
	int status;     /* as waitpid() gives */
	int orders;     /* to the child: 'h' or 't' settles a doubt */
	int news;       /* from the child: 'D' in doubt */
	char journal[96];
};

struct world {
	char dir[64];
	struct side s, d;
	int pairs[CHANNELS + 1][2];
};

static struct gw_journal *child_journal(const char *path, bool source)
{
	struct gw_journal_entry own = { .state = GW_JOURNAL_OWNER, .epoch = 1 };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_journal *j;

	if (gw_journal_open(path, &j, &err) < 0 || (source && gw_journal_write(j, &own, &err) < 0))
		_exit(100);
	return j;
}

static void settle_doubt(struct gw_move *mv, int orders, int news)
{
	char order;

	if (write(news, "D", 1) != 1 || read(orders, &order, 1) != 1)
		_exit(101);
	/* An answer that came late has settled it already. */
	if (order != 'x')
		gw_move_resolve(mv, order == 'h');
}

static void child(bool source, const struct world *w, const char *failpoints, int orders, int news)
{
	const struct side *me = source ? &w->s : &w->d;
	struct gw_move_params p = { .epoch = 2, .own_epoch = source ? 1 : 0, .channels = CHANNELS, .digest = true };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_move_vm handle;
	struct move_end end;
	struct move_vm vm;
	struct gw_journal *j;
	struct gw_move *mv;
	int result = 0;

	gw_log_init("test", source ? "source" : "destination", GW_LOG_ERROR);
	setenv("GODWIT_FAILPOINTS", failpoints, 1);
	if (gw_failpoint_init(&err) < 0)
		_exit(102);
	for (unsigned i = 0; i < ARRAY_SIZE(p.fds); i++) {
		p.fds[i] = i <= CHANNELS ? w->pairs[i][source ? 0 : 1] : -1;
		if (i <= CHANNELS)
			close(w->pairs[i][source ? 1 : 0]);
	}
	memcpy(p.move_id, move_id, sizeof(move_id));
	memset(p.secret, 9, sizeof(p.secret));
	j = child_journal(me->journal, source);
	move_vm_init(&vm, SIZE, 0);
	move_end_init(&end);
	handle = move_vm_handle(&vm);
	if (source) {
		move_vm_fill(&vm, 3, 4);
		vm.write_rate = 2000;
		move_vm_run(&vm);
	}
	if ((source ? gw_move_source_start(&p, &handle, j, move_end_progress, &end, &mv, &err) :
		      gw_move_destination_start(&p, &handle, j, move_end_progress, &end, &mv, &err)) < 0)
		_exit(103);
	move_end_wait_phase(&end, GW_MOVE_DONE);
	if (move_end_phase(&end) == GW_MOVE_DOUBT) {
		settle_doubt(mv, orders, news);
		move_end_wait(&end);
	}
	result |= end.doubted ? DOUBTED : 0;
	result |= move_end_phase(&end) == GW_MOVE_DONE ? DONE : STAYED;
	result |= move_vm_running(&vm) ? RUNS : 0;
	gw_move_free(mv);
	move_vm_release(&vm);
	gw_journal_close(j);
	_exit(result);
}

static void start_side(struct world *w, bool source, const char *failpoints)
{
	struct side *side = source ? &w->s : &w->d;
	int orders[2], news[2];

	assert_int_equal(pipe(orders), 0);
	assert_int_equal(pipe(news), 0);
	side->pid = fork();
	if (side->pid == 0) {
		close(orders[1]);
		close(news[0]);
		child(source, w, failpoints, orders[0], news[1]);
	}
	close(orders[0]);
	close(news[1]);
	side->orders = orders[1];
	side->news = news[0];
}

static void begin(struct world *w, const char *src_failpoints, const char *dst_failpoints)
{
	memset(w, 0, sizeof(*w));
	snprintf(w->dir, sizeof(w->dir), "%s/gw-test-handoff-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	assert_non_null(mkdtemp(w->dir));
	snprintf(w->s.journal, sizeof(w->s.journal), "%s/s", w->dir);
	snprintf(w->d.journal, sizeof(w->d.journal), "%s/d", w->dir);
	for (int i = 0; i <= CHANNELS; i++)
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, w->pairs[i]), 0);
	start_side(w, false, dst_failpoints);
	start_side(w, true, src_failpoints);
	for (int i = 0; i <= CHANNELS; i++) {
		close(w->pairs[i][0]);
		close(w->pairs[i][1]);
	}
}

/* What the two agents do with a source in doubt: the destination's journal decides. */
static void settle(struct world *w)
{
	struct gw_error err = GW_ERROR_INIT;
	char order = 't', c;
	int r;

	/* End of file: the child has ended without doubt. */
	if (read(w->s.news, &c, 1) == 1) {
		/*
		 * Held: it lives, or it dies just now and the kernel closes its journal after its connection. An agent waits for
		 * certainty by a pidfd; here a process that still holds it after a while lives, and its journal will say who owns.
		 */
		uint64_t dying = gw_now_ns() + 3 * GW_NS_PER_SEC, deadline = gw_now_ns() + 20 * GW_NS_PER_SEC;
		struct gw_journal_entry e = { .state = GW_JOURNAL_NONE };

		while ((r = gw_journal_abort_if_not_owner(w->d.journal, move_id, true, NULL, &err)) == -EBUSY && gw_now_ns() < dying)
			usleep(1000);
		if (r == -EBUSY) {
			while (gw_now_ns() < deadline && e.state != GW_JOURNAL_OWNER && e.state != GW_JOURNAL_ABORTED)
				assert_int_equal(gw_journal_read(w->d.journal, &e, &err), 0);
			r = e.state == GW_JOURNAL_OWNER ? -EEXIST : 0;
		}
		assert_true(r == 0 || r == -EEXIST);
		order = r == 0 ? 'h' : 't';
		assert_int_equal(write(w->s.orders, &order, 1), 1);
	}
}

static int result_of(const struct side *side)
{
	if (WIFSIGNALED(side->status)) {
		assert_int_equal(WTERMSIG(side->status), SIGKILL);
		return -1;
	}
	assert_true(WEXITSTATUS(side->status) < 100);
	return WEXITSTATUS(side->status);
}

static void finish(struct world *w)
{
	assert_int_equal(waitpid(w->s.pid, &w->s.status, 0), w->s.pid);
	assert_int_equal(waitpid(w->d.pid, &w->d.status, 0), w->d.pid);
	close(w->s.orders);
	close(w->s.news);
	close(w->d.orders);
	close(w->d.news);
}

static void clean(struct world *w)
{
	unlink(w->s.journal);
	unlink(w->d.journal);
	assert_int_equal(rmdir(w->dir), 0);
}

/* The rules that hold whatever happened. */
static void check_rules(struct world *w, const char *what)
{
	int s = result_of(&w->s), d = result_of(&w->d);
	struct gw_error err = GW_ERROR_INIT;
	struct gw_journal_entry js = { .state = GW_JOURNAL_NONE }, jd = { .state = GW_JOURNAL_NONE };

	(void)gw_journal_read(w->s.journal, &js, &err);
	(void)gw_journal_read(w->d.journal, &jd, &err);
	if ((s > 0 && (s & RUNS) && d > 0 && (d & RUNS)) || (s > 0 && d > 0 && !(s & RUNS) && !(d & RUNS)))
		fprintf(stderr, "%s: source %d, destination %d\n", what, s, d);
	assert_false(s > 0 && (s & RUNS) && d > 0 && (d & RUNS));
	/* With both processes alive exactly one runs it. */
	if (s >= 0 && d >= 0)
		assert_true((s & RUNS) || (d & RUNS));
	/* The source runs only when the destination never will, by its own journal. */
	if (s >= 0 && (s & RUNS)) {
		assert_int_equal(js.state, GW_JOURNAL_OWNER);
		assert_int_not_equal(jd.state, GW_JOURNAL_OWNER);
	}
	/* The destination runs only when the source's journal forbids the source to. */
	if (d >= 0 && (d & RUNS)) {
		assert_int_equal(jd.state, GW_JOURNAL_OWNER);
		assert_true(js.state == GW_JOURNAL_COMMITTING || js.state == GW_JOURNAL_RELEASED);
	}
	/* Where the source does not run it any more although it lives, the destination had become the owner. */
	if (s >= 0 && !(s & RUNS))
		assert_int_equal(jd.state, GW_JOURNAL_OWNER);
}

static void run_case(const char *point, const char *action, bool source, struct world *w)
{
	char list[128];

	snprintf(list, sizeof(list), "%s=%s", point, action);
	begin(w, source ? list : "", source ? "" : list);
	settle(w);
	finish(w);
	check_rules(w, list);
}

static const char *const src_points[] = {
	GW_FP_SRC_CONNECT, GW_FP_SRC_HELLO, GW_FP_SRC_COPY, GW_FP_SRC_ROUND, GW_FP_SRC_STOP, GW_FP_SRC_STATE,
	GW_FP_SRC_READY, GW_FP_SRC_COMMIT_JOURNALLED, GW_FP_SRC_COMMIT_SENT, GW_FP_SRC_RUNNING,
};
static const char *const dst_points[] = {
	GW_FP_DST_CONNECT, GW_FP_DST_HELLO, GW_FP_DST_COPY, GW_FP_DST_STATE, GW_FP_DST_READY_SENT,
	GW_FP_DST_COMMIT_RECEIVED, GW_FP_DST_OWNER_JOURNALLED, GW_FP_DST_STARTED, GW_FP_DST_RUNNING_SENT,
};

static void source_killed(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(src_points); i++) {
		struct world w;

		run_case(src_points[i], "kill", true, &w);
		assert_int_equal(result_of(&w.s), -1);
		/* From COMMIT on the destination has it. */
		assert_int_equal(!!(result_of(&w.d) & RUNS), i >= 8);
		clean(&w);
	}
}

static void source_fails(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(src_points); i++) {
		struct world w;

		run_case(src_points[i], "error", true, &w);
		assert_int_equal(!!(result_of(&w.s) & RUNS), i < 8);
		clean(&w);
	}
}

static void destination_killed(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(dst_points); i++) {
		struct world w;

		run_case(dst_points[i], "kill", false, &w);
		assert_int_equal(result_of(&w.d), -1);
		/* Once RUNNING had left, it was the destination's VM that died. */
		assert_int_equal(!!(result_of(&w.s) & RUNS), i < 8);
		if (i >= 5 && i <= 7)
			assert_true(result_of(&w.s) & DOUBTED);
		clean(&w);
	}
}

static void destination_fails(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(dst_points); i++) {
		struct world w;

		run_case(dst_points[i], "error", false, &w);
		assert_int_equal(!!(result_of(&w.d) & RUNS), i >= 6);
		clean(&w);
	}
}

/* Frozen between COMMIT and its answer until the source is in doubt; then it answers, late. */
static void late_answer_settles(void **state)
{
	struct world w;
	char c;

	begin(&w, "", GW_FP_DST_OWNER_JOURNALLED "=stop");
	assert_int_equal(read(w.s.news, &c, 1), 1);
	kill(w.d.pid, SIGCONT);
	assert_int_equal(write(w.s.orders, "x", 1), 1);
	finish(&w);
	check_rules(&w, "late answer");
	assert_int_equal(result_of(&w.s), DONE | DOUBTED);
	assert_int_equal(result_of(&w.d), DONE | RUNS);
	clean(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(source_killed),      cmocka_unit_test(source_fails),        cmocka_unit_test(destination_killed),
		cmocka_unit_test(destination_fails), cmocka_unit_test(late_answer_settles),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
