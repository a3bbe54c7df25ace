// SPDX-License-Identifier: Apache-2.0
/* Libraries that are loaded when they are needed. */
#include <errno.h>
#include <string.h>

#include "lib/late.h"
#include "tests/unit/cmocka-all.h"

static void finds_what_is_there(void **state)
{
	double (*cosine)(double) = NULL;
	const struct gw_late_function list[] = { { "cos", (void **)&cosine } };

	assert_int_equal(gw_late_load("libm.so.6", list, 1, NULL), 0);
	assert_true(cosine(0) == 1);
}

static void says_what_is_missing(void **state)
{
	void *at[2] = { NULL, NULL };
	const struct gw_late_function list[] = { { "cos", &at[0] }, { "no_such_function", &at[1] } };
	struct gw_error err = GW_ERROR_INIT;

	assert_int_equal(gw_late_load("libgodwit-none.so.1", list, 1, &err), -ENOENT);
	assert_non_null(strstr(gw_error_text(&err), "libgodwit-none.so.1 is not installed"));
	assert_int_equal(gw_late_load("libm.so.6", list, 2, &err), -ENOENT);
	assert_non_null(strstr(gw_error_text(&err), "no_such_function"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(finds_what_is_there),
		cmocka_unit_test(says_what_is_missing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
