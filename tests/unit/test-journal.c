// SPDX-License-Identifier: Apache-2.0
/* The ownership journal: what survives torn writes and dead processes, and who may write ABORTED. */
#include "cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "lib/io.h"
#include "lib/util.h"
#include "migrate/journal.h"

static char dir[64], path[96];
static const uint8_t id1[16] = { 1 }, id2[16] = { 2 };

static int setup(void **state)
{
	snprintf(dir, sizeof(dir), "/tmp/gw-test-journal-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/journal", dir);
	return 0;
}

static int teardown(void **state)
{
	unlink(path);
	return rmdir(dir);
}

static struct gw_journal *open_ok(void)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_journal *j;

	assert_int_equal(gw_journal_open(path, &j, &err), 0);
	return j;
}

static void write_ok(struct gw_journal *j, enum gw_journal_state state, uint64_t epoch, const uint8_t *id)
{
	struct gw_journal_entry e = { .state = state, .epoch = epoch, .peer = "host-b" };
	struct gw_error err = GW_ERROR_INIT;

	if (id)
		memcpy(e.move_id, id, sizeof(e.move_id));
	assert_int_equal(gw_journal_write(j, &e, &err), 0);
}

static struct gw_journal_entry read_ok(void)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_journal_entry e;

	assert_int_equal(gw_journal_read(path, &e, &err), 0);
	return e;
}

static void records_come_back(void **state)
{
	struct gw_journal *j = open_ok();
	struct gw_journal_entry e = read_ok();

	assert_int_equal(e.state, GW_JOURNAL_NONE);
	for (unsigned i = 1; i <= 20; i++) {
		write_ok(j, i % 2 ? GW_JOURNAL_OWNER : GW_JOURNAL_COMMITTING, i, id1);
		e = read_ok();
		assert_int_equal(e.state, i % 2 ? GW_JOURNAL_OWNER : GW_JOURNAL_COMMITTING);
		assert_int_equal(e.epoch, i);
		assert_int_equal(e.seq, i);
		assert_memory_equal(e.move_id, id1, 16);
		assert_string_equal(e.peer, "host-b");
	}
	gw_journal_close(j);
	j = open_ok();
	assert_int_equal(gw_journal_last(j)->epoch, 20);
	gw_journal_close(j);
}

/* Whatever part of the newest record did not reach the disk: the one before it counts. */
static void a_torn_write_leaves_the_older(void **state)
{
	struct gw_journal *j = open_ok();
	char *whole;
	size_t len;

	write_ok(j, GW_JOURNAL_OWNER, 5, NULL);
	write_ok(j, GW_JOURNAL_COMMITTING, 6, id1);
	gw_journal_close(j);
	assert_int_equal(gw_read_file(path, 1 << 20, &whole, &len, NULL), 0);
	for (size_t i = 0; i < 136; i++) {
		int fd = open(path, O_WRONLY);
		struct gw_journal_entry e;
		char flipped = whole[i] ^ 0x40;

		/* The second record is in slot 0: sequence 2. */
		assert_int_equal(pwrite(fd, &flipped, 1, (off_t)i), 1);
		e = read_ok();
		assert_int_equal(e.state, GW_JOURNAL_OWNER);
		assert_int_equal(e.epoch, 5);
		assert_int_equal(pwrite(fd, &whole[i], 1, (off_t)i), 1);
		close(fd);
	}
	assert_int_equal(read_ok().state, GW_JOURNAL_COMMITTING);
	free(whole);
}

static void damage_is_an_error(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_journal_entry e;
	struct gw_journal *j;
	int fd;

	assert_int_equal(gw_journal_read(path, &e, &err), -ENOENT);
	fd = open(path, O_WRONLY | O_CREAT, 0600);
	assert_int_equal(write(fd, "not a journal at all", 20), 20);
	close(fd);
	assert_int_equal(gw_journal_open(path, &j, &err), -EPROTO);
	assert_int_equal(gw_journal_read(path, &e, &err), -EPROTO);
	assert_int_equal(truncate(path, 0), 0);
	/* Made, and its maker died before the first record. */
	assert_int_equal(gw_journal_read(path, &e, &err), 0);
	assert_int_equal(e.state, GW_JOURNAL_NONE);
	j = open_ok();
	write_ok(j, GW_JOURNAL_OWNER, 1, NULL);
	gw_journal_close(j);
	fd = open(path, O_WRONLY);
	assert_int_equal(pwrite(fd, "x", 1, 4096 + 20), 1);
	close(fd);
	assert_int_equal(gw_journal_read(path, &e, &err), -EPROTO);
}

static void one_process_holds_it(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_journal *j, *other;
	int ready[2];
	pid_t pid;
	char c;

	assert_int_equal(gw_journal_held(path, &err), 0);
	assert_int_equal(pipe(ready), 0);
	pid = fork();
	if (pid == 0) {
		j = open_ok();
		write_ok(j, GW_JOURNAL_INCOMING, 2, id1);
		if (write(ready[1], "r", 1) != 1)
			_exit(1);
		pause();
		_exit(0);
	}
	assert_int_equal(read(ready[0], &c, 1), 1);
	assert_int_equal(gw_journal_held(path, &err), 1);
	assert_int_equal(gw_journal_open(path, &other, &err), -EBUSY);
	assert_int_equal(gw_journal_abort_if_not_owner(path, id1, true, NULL, &err), -EBUSY);
	/* Reading needs no lock. */
	assert_int_equal(read_ok().state, GW_JOURNAL_INCOMING);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_int_equal(gw_journal_held(path, &err), 0);
	assert_int_equal(gw_journal_abort_if_not_owner(path, id1, false, NULL, &err), 0);
	assert_int_equal(read_ok().state, GW_JOURNAL_ABORTED);
	assert_int_equal(read_ok().epoch, 2);
	close(ready[0]);
	close(ready[1]);
}

static void the_effect_word_survives(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_journal_entry e;
	pid_t pid;

	for (int effect = 0; effect < 2; effect++) {
		pid = fork();
		if (pid == 0) {
			struct gw_journal *j = open_ok();

			atomic_store(gw_journal_effect_word(j), 0);
			write_ok(j, GW_JOURNAL_OWNER, 3, id1);
			if (effect)
				atomic_store(gw_journal_effect_word(j), 1);
			raise(SIGKILL);
		}
		waitpid(pid, NULL, 0);
		e = read_ok();
		assert_int_equal(e.state, GW_JOURNAL_OWNER);
		assert_int_equal(e.effect, effect);
		assert_int_equal(gw_journal_abort_if_not_owner(path, id1, false, NULL, &err), -EEXIST);
		assert_int_equal(gw_journal_abort_if_not_owner(path, id2, true, NULL, &err), -ESTALE);
		assert_int_equal(gw_journal_abort_if_not_owner(path, id1, true, &e, &err), effect ? -EEXIST : 0);
		assert_int_equal(e.state, GW_JOURNAL_OWNER);
		assert_int_equal(read_ok().state, effect ? GW_JOURNAL_OWNER : GW_JOURNAL_ABORTED);
	}
}

static void aborting(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_journal *j;

	/* The VMM died before it made its journal. */
	assert_int_equal(gw_journal_abort_if_not_owner(path, id1, false, NULL, &err), 0);
	assert_int_equal(read_ok().state, GW_JOURNAL_ABORTED);
	assert_int_equal(gw_journal_abort_if_not_owner(path, id1, false, NULL, &err), 0);
	assert_int_equal(read_ok().seq, 1);
	/* An earlier life on this host left RELEASED. */
	j = open_ok();
	write_ok(j, GW_JOURNAL_RELEASED, 4, id1);
	gw_journal_close(j);
	assert_int_equal(gw_journal_abort_if_not_owner(path, id2, false, NULL, &err), 0);
	assert_memory_equal(read_ok().move_id, id2, 16);
	/* A source's journal is not a destination's. */
	j = open_ok();
	write_ok(j, GW_JOURNAL_COMMITTING, 5, id2);
	gw_journal_close(j);
	assert_int_equal(gw_journal_abort_if_not_owner(path, id2, true, NULL, &err), -ESTALE);
	assert_int_equal(gw_journal_abort_if_not_owner(path, id1, true, NULL, &err), -ESTALE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(records_come_back, setup, teardown),
		cmocka_unit_test_setup_teardown(a_torn_write_leaves_the_older, setup, teardown),
		cmocka_unit_test_setup_teardown(damage_is_an_error, setup, teardown),
		cmocka_unit_test_setup_teardown(one_process_holds_it, setup, teardown),
		cmocka_unit_test_setup_teardown(the_effect_word_survives, setup, teardown),
		cmocka_unit_test_setup_teardown(aborting, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
