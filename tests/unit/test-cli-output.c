// SPDX-License-Identifier: Apache-2.0
/* What the command line prints. */
#include "cmocka-all.h"

#include "agent/cli-output.h"
#include "lib/util.h"

static void clean_text(void **state)
{
	static const char *const texts[][2] = {
		{ "plain", "plain" },
		{ "", "" },
		{ "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\xa6", "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\xa6" },
		{ "a\x1b[31mb\n\t\x7f", "a?[31mb???" },
		{ "\xc2\x9b" "31m", "?31m" },          /* C1: CSI in one character */
		{ "\xe2\x80\xae" "evil", "?evil" },    /* right to left from here on */
		{ "\xff\xfe\x80", "???" },
		{ "\xc0\xaf", "??" },                  /* overlong */
		{ "\xed\xa0\x80", "???" },             /* a surrogate */
		{ "\xf4\x90\x80\x80", "????" },        /* beyond Unicode */
		{ "cut \xe2\x82", "cut ??" },
	};
	char out[64];

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
		assert_string_equal(gw_clean_text(texts[i][0], out, sizeof(out)), texts[i][1]);
	/* Nothing is cut within a character. */
	assert_string_equal(gw_clean_text("ab\xe2\x82\xac", out, 5), "ab");
	assert_string_equal(gw_clean_text("ab\xe2\x82\xac", out, 6), "ab\xe2\x82\xac");
	snprintf(out, sizeof(out), "x\x1by");
	assert_string_equal(gw_clean_text(out, out, sizeof(out)), "x?y");
}

static void times(void **state)
{
	char out[32];

	gw_format_utc(1769860800ull * 1000000000, out, sizeof(out));
	assert_string_equal(out, "2026-01-31T12:00:00Z");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(clean_text),
		cmocka_unit_test(times),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
