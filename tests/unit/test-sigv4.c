// SPDX-License-Identifier: Apache-2.0
/*
 * The signer against the examples that the Amazon S3 API Reference publishes in "Authenticating Requests: Using the Authorization
 * Header (AWS Signature Version 4)": their key, their time, their signatures.
 */
#include "cmocka-all.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/sigv4.h"

#define EMPTY "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define SCOPE "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"

static const struct gw_sigv4_key example = { "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1" };

static void expect(const struct gw_sigv4_request *r, const char *signed_headers, const char *signature)
{
	char out[GW_SIGV4_AUTHORIZATION], want[GW_SIGV4_AUTHORIZATION];

	snprintf(want, sizeof(want), SCOPE "SignedHeaders=%s,Signature=%s", signed_headers, signature);
	assert_int_equal(gw_sigv4_sign(&example, r, out), 0);
	assert_string_equal(out, want);
}

static void test_get_object(void **state)
{
	const struct gw_sigv4_pair headers[] = {
		{ "host", "examplebucket.s3.amazonaws.com" },
		{ "range", "bytes=0-9" },
		{ "x-amz-content-sha256", EMPTY },
		{ "x-amz-date", "20130524T000000Z" },
	};

	expect(&(struct gw_sigv4_request){ "GET", "/test.txt", NULL, 0, headers, ARRAY_SIZE(headers) },
	       "host;range;x-amz-content-sha256;x-amz-date", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}

/* A name that must be encoded, and headers that do not come in order. */
static void test_put_object(void **state)
{
	const struct gw_sigv4_pair headers[] = {
		{ "x-amz-storage-class", "REDUCED_REDUNDANCY" },
		{ "x-amz-date", "20130524T000000Z" },
		{ "host", "examplebucket.s3.amazonaws.com" },
		{ "date", "Fri, 24 May 2013 00:00:00 GMT" },
		{ "x-amz-content-sha256", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072" },
	};

	expect(&(struct gw_sigv4_request){ "PUT", "/test$file.text", NULL, 0, headers, ARRAY_SIZE(headers) },
	       "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
	       "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
}

static const struct gw_sigv4_pair plain_headers[] = {
	{ "host", "examplebucket.s3.amazonaws.com" },
	{ "x-amz-content-sha256", EMPTY },
	{ "x-amz-date", "20130524T000000Z" },
};

/* A parameter without a value is signed as an empty one. */
static void test_sub_resource(void **state)
{
	const struct gw_sigv4_pair query[] = { { "lifecycle", "" } };

	expect(&(struct gw_sigv4_request){ "GET", "/", query, ARRAY_SIZE(query), plain_headers, ARRAY_SIZE(plain_headers) },
	       "host;x-amz-content-sha256;x-amz-date", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
}

static void test_list_objects(void **state)
{
	const struct gw_sigv4_pair query[] = { { "prefix", "J" }, { "max-keys", "2" } };

	expect(&(struct gw_sigv4_request){ "GET", "/", query, ARRAY_SIZE(query), plain_headers, ARRAY_SIZE(plain_headers) },
	       "host;x-amz-content-sha256;x-amz-date", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
}

static void expect_query(const struct gw_sigv4_pair *query, unsigned count, const char *want)
{
	gw_autobuf out = GW_BUF_INIT;

	assert_int_equal(gw_sigv4_query(query, count, &out), 0);
	assert_int_equal(out.len, strlen(want));
	assert_memory_equal(out.data, want, out.len);
}

static void test_query_order_and_encoding(void **state)
{
	static const struct gw_sigv4_pair odd[] = {
		{ "a-b", "1" }, { "a", "~-._/ +=&%\xc3\xa9" }, { "b", "2" }, { "b", "1" }, { "B", "" },
	};

	expect_query(odd, ARRAY_SIZE(odd), "B=&a=~-._%2F%20%2B%3D%26%25%C3%A9&a-b=1&b=1&b=2");
	expect_query(NULL, 0, "");
}

static void test_path_encoding(void **state)
{
	gw_autobuf out = GW_BUF_INIT;

	assert_int_equal(gw_sigv4_path("/b/a b/%41/..~", &out), 0);
	assert_int_equal(gw_buf_append(&out, "", 1), 0);
	assert_string_equal((char *)out.data, "/b/a%20b/%2541/..~");
}

static void test_time(void **state)
{
	char text[GW_SIGV4_TIME_LEN];

	gw_sigv4_time(1369353600, text);
	assert_string_equal(text, "20130524T000000Z");
	gw_sigv4_time(951782399, text);
	assert_string_equal(text, "20000228T235959Z");
	gw_sigv4_time(UINT64_MAX, text);
	assert_string_equal(text, "99991231T235959Z");
}

/* Blanks around and inside a value count once; the signature of the bare value is the same. */
static void test_values_are_trimmed(void **state)
{
	const struct gw_sigv4_pair blanks[] = {
		{ "host", "  examplebucket.s3.amazonaws.com\t " }, { "range", " bytes=0-9" },
		{ "x-amz-content-sha256", EMPTY }, { "x-amz-date", "20130524T000000Z" },
	};

	expect(&(struct gw_sigv4_request){ "GET", "/test.txt", NULL, 0, blanks, ARRAY_SIZE(blanks) },
	       "host;range;x-amz-content-sha256;x-amz-date", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}

static void test_what_cannot_be_signed(void **state)
{
	struct gw_sigv4_pair many[GW_SIGV4_MAX_PAIRS + 1];
	char out[GW_SIGV4_AUTHORIZATION];
	struct gw_sigv4_request r = { "GET", "/", NULL, 0, plain_headers, ARRAY_SIZE(plain_headers) - 1 };

	assert_int_equal(gw_sigv4_sign(&example, &r, out), -EINVAL);
	r.headers = plain_headers + 1;
	assert_int_equal(gw_sigv4_sign(&example, &r, out), -EINVAL);
	for (unsigned i = 0; i < ARRAY_SIZE(many); i++)
		many[i] = plain_headers[i % ARRAY_SIZE(plain_headers)];
	r = (struct gw_sigv4_request){ "GET", "/", NULL, 0, many, ARRAY_SIZE(many) };
	assert_int_equal(gw_sigv4_sign(&example, &r, out), -E2BIG);
	r = (struct gw_sigv4_request){ "GET", "/", many, ARRAY_SIZE(many), plain_headers, ARRAY_SIZE(plain_headers) };
	assert_int_equal(gw_sigv4_sign(&example, &r, out), -E2BIG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_get_object),
		cmocka_unit_test(test_put_object),
		cmocka_unit_test(test_sub_resource),
		cmocka_unit_test(test_list_objects),
		cmocka_unit_test(test_query_order_and_encoding),
		cmocka_unit_test(test_path_encoding),
		cmocka_unit_test(test_time),
		cmocka_unit_test(test_values_are_trimmed),
		cmocka_unit_test(test_what_cannot_be_signed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
