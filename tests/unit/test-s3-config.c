// SPDX-License-Identifier: Apache-2.0
/* S3 buckets' URLs, the environment, and the shared credentials file. */
#include "cmocka-all.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/s3-config.h"

static const char *const variables[] = {
	"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL",
	"AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE",
};

static int setup(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(variables); i++)
		unsetenv(variables[i]);
	setenv("HOME", "/nonexistent", 1);
	setenv("AWS_ACCESS_KEY_ID", "AK", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "sk", 1);
	return 0;
}

static int load(const char *url, struct gw_s3_config *c)
{
	struct gw_error err = GW_ERROR_INIT;
	int ret = gw_s3_config_load(url, c, &err);

	if (ret < 0)
		assert_true(err.msg[0]);
	return ret;
}

static void expect(const char *url, const char *origin, const char *host, bool in_path)
{
	struct gw_s3_config c;

	assert_int_equal(load(url, &c), 0);
	assert_string_equal(c.origin, origin);
	assert_string_equal(c.host, host);
	assert_int_equal(c.in_path, in_path);
}

static void test_places(void **state)
{
	expect("s3://bkt", "https://bkt.s3.us-east-1.amazonaws.com", "bkt.s3.us-east-1.amazonaws.com", false);
	expect("s3://bkt/p?region=eu-west-1", "https://bkt.s3.eu-west-1.amazonaws.com", "bkt.s3.eu-west-1.amazonaws.com", false);
	expect("s3://b.k.t/p", "https://s3.us-east-1.amazonaws.com", "s3.us-east-1.amazonaws.com", true);
	expect("s3://bkt?style=path", "https://s3.us-east-1.amazonaws.com", "s3.us-east-1.amazonaws.com", true);
	expect("s3://bkt?endpoint=http://127.0.0.1:7480/", "http://127.0.0.1:7480", "127.0.0.1:7480", true);
	expect("s3://bkt?endpoint=https%3A%2F%2Fh:443", "https://h", "h", true);
	expect("s3://bkt?endpoint=http://h:80", "http://h", "h", true);
	expect("s3://bkt?endpoint=http://h:443", "http://h:443", "h:443", true);
	expect("s3://bkt?endpoint=https://h:9000&style=virtual", "https://bkt.h:9000", "bkt.h:9000", false);
	expect("s3://bkt?endpoint=https://[::1]:9000", "https://[::1]:9000", "[::1]:9000", true);
	expect("s3://bkt?endpoint=https://[::1]", "https://[::1]", "[::1]", true);
}

static void test_environment(void **state)
{
	struct gw_s3_config c;

	setenv("AWS_DEFAULT_REGION", "r1", 1);
	setenv("AWS_ENDPOINT_URL", "http://e1", 1);
	setenv("AWS_CA_BUNDLE", "/ca.pem", 1);
	setenv("AWS_SESSION_TOKEN", "tok", 1);
	assert_int_equal(load("s3://bkt/a//?stall=3", &c), 0);
	assert_string_equal(c.prefix, "a/");
	assert_string_equal(c.region, "r1");
	assert_string_equal(c.origin, "http://e1");
	assert_string_equal(c.ca, "/ca.pem");
	assert_string_equal(c.id, "AK");
	assert_string_equal(c.secret, "sk");
	assert_string_equal(c.token, "tok");
	assert_int_equal(c.stall_s, 3);
	assert_true(c.retry_s > 0);
	/* The more particular variable goes before the other, and the URL before both. */
	setenv("AWS_REGION", "r2", 1);
	setenv("AWS_ENDPOINT_URL_S3", "http://e2", 1);
	assert_int_equal(load("s3://bkt/a/b-c_d.e/", &c), 0);
	assert_string_equal(c.prefix, "a/b-c_d.e/");
	assert_string_equal(c.region, "r2");
	assert_string_equal(c.origin, "http://e2");
	assert_int_equal(load("s3://bkt?region=r3&endpoint=http://e3&ca=/a%20b.pem&retry=7", &c), 0);
	assert_string_equal(c.prefix, "");
	assert_string_equal(c.region, "r3");
	assert_string_equal(c.origin, "http://e3");
	assert_string_equal(c.ca, "/a b.pem");
	assert_int_equal(c.retry_s, 7);
}

static void test_bad_urls(void **state)
{
	static const char *const bad[] = {
		"s3:", "s3://", "s3://ab", "s3:///x", "s3://-bkt", "s3://b kt", "s3://ak:sk@bkt/p", "s3://bkt//a", "s3://bkt/a//b", "s3://bkt/./a",
		"s3://bkt/a/..", "s3://bkt/a b", "s3://bkt/%41", "s3://bkt/a#b", "s3://bkt?nonsense=1", "s3://bkt?region", "s3://bkt?region=",
		"s3://bkt?region=a&region=b", "s3://bkt?region=a/b", "s3://bkt?region=%00", "s3://bkt?region=%4", "s3://bkt?style=other",
		"s3://bkt?endpoint=ftp://h", "s3://bkt?endpoint=h:80", "s3://bkt?endpoint=http://", "s3://bkt?endpoint=http://h/path",
		"s3://bkt?endpoint=http://u@h", "s3://bkt?endpoint=http://h:0", "s3://bkt?endpoint=http://h:65536", "s3://bkt?endpoint=http://h:x",
		"s3://bkt?endpoint=http://h%0d%0aX:1", "s3://bkt?endpoint=http://h/?x", "s3://bkt?stall=0", "s3://bkt?stall=x", "s3://bkt?retry=1x",
		"file:///x",
	};
	char longer[GW_S3_MAX_PREFIX + 64] = "s3://bkt/";
	struct gw_s3_config c = { .stall_s = 77 };

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		if (load(bad[i], &c) != -EINVAL)
			fail_msg("taken: %s", bad[i]);
		assert_int_equal(c.stall_s, 77);
	}
	memset(longer + 9, 'p', GW_S3_MAX_PREFIX);
	assert_int_equal(load(longer, &c), -EINVAL);
	longer[9 + GW_S3_MAX_PREFIX - 1] = '\0';
	assert_int_equal(load(longer, &c), 0);
	assert_int_equal(strlen(c.prefix), GW_S3_MAX_PREFIX);
}

static void test_no_credentials(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_s3_config c;

	unsetenv("AWS_SECRET_ACCESS_KEY");
	assert_int_equal(gw_s3_config_load("s3://bkt", &c, &err), -EACCES);
	assert_non_null(strstr(err.msg, "AWS_SECRET_ACCESS_KEY"));
	setenv("AWS_SECRET_ACCESS_KEY", "sk", 1);
	setenv("AWS_ACCESS_KEY_ID", "A K", 1);
	assert_int_equal(gw_s3_config_load("s3://bkt", &c, &err), -EINVAL);
	setenv("AWS_ACCESS_KEY_ID", "AK", 1);
	setenv("AWS_SESSION_TOKEN", "a\r\nx-evil: 1", 1);
	assert_int_equal(gw_s3_config_load("s3://bkt", &c, &err), -EINVAL);
}

static void test_credentials_file(void **state)
{
	static const char text[] = "# comment\n[default]\r\naws_access_key_id = D\naws_secret_access_key=d/+==\n\n[other]\n"
				   "aws_access_key_id=O\n aws_secret_access_key = o \naws_session_token=t\nregion=x\n[half]\naws_access_key_id=H\n";
	char path[] = "/tmp/godwit-s3-XXXXXX";
	struct gw_s3_config c = { .stall_s = 0 };
	int fd;

	assert_int_equal(gw_s3_credentials_parse(text, "other", &c), 0);
	assert_string_equal(c.id, "O");
	assert_string_equal(c.secret, "o");
	assert_string_equal(c.token, "t");
	c = (struct gw_s3_config){ .stall_s = 0 };
	assert_int_equal(gw_s3_credentials_parse(text, "half", &c), -ENOENT);
	c = (struct gw_s3_config){ .stall_s = 0 };
	assert_int_equal(gw_s3_credentials_parse(text, "none", &c), -ENOENT);

	/* A profile in the URL goes before the environment, the file's default after it. */
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, sizeof(text) - 1), sizeof(text) - 1);
	close(fd);
	setenv("AWS_SHARED_CREDENTIALS_FILE", path, 1);
	assert_int_equal(load("s3://bkt?profile=other", &c), 0);
	assert_string_equal(c.id, "O");
	assert_int_equal(load("s3://bkt", &c), 0);
	assert_string_equal(c.id, "AK");
	unsetenv("AWS_ACCESS_KEY_ID");
	assert_int_equal(load("s3://bkt", &c), 0);
	assert_string_equal(c.id, "D");
	assert_string_equal(c.secret, "d/+==");
	assert_string_equal(c.token, "");
	assert_int_equal(load("s3://bkt?profile=half", &c), -EACCES);
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_places, setup),         cmocka_unit_test_setup(test_environment, setup),
		cmocka_unit_test_setup(test_bad_urls, setup),       cmocka_unit_test_setup(test_no_credentials, setup),
		cmocka_unit_test_setup(test_credentials_file, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
