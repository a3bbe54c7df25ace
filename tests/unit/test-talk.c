// SPDX-License-Identifier: Apache-2.0
/* Since when somebody waits for an answer of a departing VM. */
#include "cmocka-all.h"

#include <unistd.h>

#include "lib/clock.h"
#include "vmm/talk.h"

static int setup(void **state)
{
	gw_talk_begin();
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
	gw_talk_heard();
	gw_talk_said();
	assert_int_equal(gw_talk_unanswered(), 0);
}

static void the_first_question_counts(void **state)
{
	uint64_t before, after;

	gw_talk_heard();
	gw_talk_said();
	before = gw_now_ns();
	gw_talk_heard();
	after = gw_now_ns();
	usleep(2000);
	gw_talk_heard();
	assert_in_range(gw_talk_unanswered(), before, after);
}

/* As a collector of logs, which is only ever talked to. */
static void who_never_answers_is_not_waited_for(void **state)
{
	gw_talk_said();
	for (unsigned i = 0; i < 8; i++)
		gw_talk_heard();
	assert_true(gw_talk_unanswered() > 0);
	gw_talk_heard();
	assert_int_equal(gw_talk_unanswered(), 0);
}

static void nothing_is_noted_after_the_end(void **state)
{
	gw_talk_end();
	gw_talk_said();
	gw_talk_heard();
	assert_int_equal(gw_talk_unanswered(), 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(nobody_waits_for_an_answer_that_came),
		T(the_first_question_counts),
		T(who_never_answers_is_not_waited_for),
		T(nothing_is_noted_after_the_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
