// SPDX-License-Identifier: Apache-2.0
/* What an S3 server answers in XML: as it should be, and as it should not. */
#include "cmocka-all.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/s3-xml.h"

#define HEAD "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">"
#define TAIL "</ListBucketResult>"
#define ENTRY(key, size, time) \
	"<Contents><Key>" key "</Key><LastModified>" time "</LastModified><ETag>&quot;x&quot;</ETag><Size>" size "</Size></Contents>"
#define WHOLE "<IsTruncated>false</IsTruncated>"
#define MORE "<IsTruncated>true</IsTruncated>"
#define TIME "2013-05-24T00:00:00.000Z"

static int parse(const char *xml, struct gw_s3_list *ret)
{
	struct gw_error err = GW_ERROR_INIT;
	int rc = gw_s3_parse_list(xml, strlen(xml), ret, &err);

	if (rc < 0)
		assert_true(err.msg[0]);
	return rc;
}

static void test_list(void **state)
{
	struct gw_s3_list list;

	assert_int_equal(parse(HEAD "<Name>b</Name><Prefix>p/</Prefix>" MORE ENTRY("p/a%2Fb+c", "12", TIME) "<KeyCount>2</KeyCount>"
			       ENTRY("p/b%C3%A9", "9223372036854775807", "2024-02-29T12:00:01Z")
			       "<NextContinuationToken>a&amp;b==</NextContinuationToken>"
			       "<CommonPrefixes><Prefix>q</Prefix></CommonPrefixes>" TAIL, &list), 0);
	assert_int_equal(list.count, 2);
	assert_string_equal(list.entries[0].key, "p/a/b c");
	assert_int_equal(list.entries[0].size, 12);
	assert_int_equal(list.entries[0].modified_s, 1369353600);
	assert_string_equal(list.entries[1].key, "p/b\xc3\xa9");
	assert_int_equal(list.entries[1].size, INT64_MAX);
	assert_int_equal(list.entries[1].modified_s, 1709208001);
	assert_true(list.truncated);
	assert_string_equal(list.token, "a&b==");
	gw_s3_list_release(&list);

	assert_int_equal(parse(HEAD WHOLE TAIL, &list), 0);
	assert_int_equal(list.count, 0);
	assert_false(list.truncated);
	gw_s3_list_release(&list);
}

static void test_list_that_is_none(void **state)
{
	static const char *const bad[] = {
		"",
		"no XML",
		"<html><body>Welcome</body></html>",
		"<Error><Code>NoSuchBucket</Code></Error>",
		HEAD WHOLE,                                             /* cut off */
		HEAD WHOLE TAIL "x",
		HEAD TAIL,                                              /* is there more? */
		HEAD "<IsTruncated>maybe</IsTruncated>" TAIL,
		HEAD MORE TAIL,                                         /* without a token */
		HEAD WHOLE ENTRY("", "1", TIME) TAIL,
		HEAD WHOLE ENTRY("a%00b", "1", TIME) TAIL,
		HEAD WHOLE ENTRY("a%2", "1", TIME) TAIL,
		HEAD WHOLE ENTRY("a%zz", "1", TIME) TAIL,
		HEAD WHOLE ENTRY("a", "-1", TIME) TAIL,
		HEAD WHOLE ENTRY("a", "9223372036854775808", TIME) TAIL,
		HEAD WHOLE ENTRY("a", "1x", TIME) TAIL,
		HEAD WHOLE ENTRY("a", "1", "yesterday") TAIL,
		HEAD WHOLE ENTRY("a", "1", "1913-05-24T00:00:00Z") TAIL,
		HEAD WHOLE ENTRY("a", "1", "2013-05-24T00:00:00.000") TAIL,
		HEAD WHOLE "<Contents><Key>a</Key><Key>b</Key><Size>1</Size><LastModified>" TIME "</LastModified></Contents>" TAIL,
		HEAD WHOLE "<Contents><Key>a</Key><Size>1</Size></Contents>" TAIL,
		HEAD WHOLE "<a><a><a><a><a><a><a><a/></a></a></a></a></a></a></a>" TAIL, /* too deep */
		"<!DOCTYPE ListBucketResult [<!ENTITY a \"b\">]><ListBucketResult>" WHOLE TAIL,
		"<!DOCTYPE x SYSTEM \"file:///etc/passwd\"><ListBucketResult>" WHOLE TAIL,
		HEAD WHOLE "\x01" TAIL,
		HEAD WHOLE "\xff\xfe" TAIL,
	};

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		struct gw_s3_list list = { .count = 77 };

		if (parse(bad[i], &list) != -EPROTO)
			fail_msg("taken: %s", bad[i]);
		assert_int_equal(list.count, 77);
	}
}

/* Entities that grow when they are expanded do not come to it. */
static void test_billion_laughs(void **state)
{
	struct gw_s3_list list;

	assert_int_equal(parse("<?xml version=\"1.0\"?><!DOCTYPE l [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">"
			       "<!ENTITY c \"&b;&b;&b;&b;&b;&b;&b;&b;\">]><ListBucketResult>&c;</ListBucketResult>", &list), -EPROTO);
}

static void append(struct gw_buf *b, const char *text)
{
	assert_int_equal(gw_buf_append(b, text, strlen(text)), 0);
}

static void test_list_bounds(void **state)
{
	gw_autobuf xml = GW_BUF_INIT;
	struct gw_s3_list list;
	char entry[256];

	append(&xml, HEAD WHOLE);
	for (unsigned i = 0; i < GW_S3_PAGE; i++) {
		snprintf(entry, sizeof(entry), ENTRY("k%u", "1", TIME), i);
		append(&xml, entry);
	}
	append(&xml, TAIL);
	assert_int_equal(gw_s3_parse_list(xml.data, xml.len, &list, NULL), 0);
	assert_int_equal(list.count, GW_S3_PAGE);
	assert_string_equal(list.entries[GW_S3_PAGE - 1].key, "k999");
	gw_s3_list_release(&list);

	/* One more than asked for. */
	xml.len -= strlen(TAIL);
	append(&xml, ENTRY("k", "1", TIME) TAIL);
	assert_int_equal(gw_s3_parse_list(xml.data, xml.len, &list, NULL), -EPROTO);

	/* A key of 1025 bytes, and a text that never ends. */
	for (unsigned len = GW_S3_MAX_KEY; len < 1u << 20; len = len == GW_S3_MAX_KEY ? len + 1 : len * 16) {
		xml.len = 0;
		append(&xml, HEAD WHOLE "<Contents><Key>");
		for (unsigned i = 0; i < len; i++)
			append(&xml, "k");
		append(&xml, "</Key><Size>1</Size><LastModified>" TIME "</LastModified></Contents>" TAIL);
		assert_int_equal(gw_s3_parse_list(xml.data, xml.len, &list, NULL), len == GW_S3_MAX_KEY ? 0 : -EPROTO);
		if (len == GW_S3_MAX_KEY)
			gw_s3_list_release(&list);
	}
}

static void fault(const char *xml, const char *code, const char *message, const char *region)
{
	struct gw_s3_fault f;

	gw_s3_parse_fault(xml, strlen(xml), &f);
	assert_string_equal(f.code, code);
	assert_string_equal(f.message, message);
	assert_string_equal(f.region, region);
}

static void test_fault(void **state)
{
	struct gw_s3_fault f;
	char longer[4096];

	fault("<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code><Message>The key\n\x1b[31m \xc3\xa9</Message><Key>a</Key></Error>", "NoSuchKey",
	      "", ""); /* an escape is no XML */
	fault("<Error><Code>NoSuchKey</Code><Message>The key\n&lt;\xc3\xa9</Message><Key>a</Key></Error>", "NoSuchKey", "The key?<\?\?", "");
	fault("<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>", "AuthorizationHeaderMalformed", "", "eu-west-1");
	fault("<html>503 busy</html>", "", "", "");
	fault("", "", "", "");
	fault("<Error><Code>Cut", "", "", "");
	memset(longer, 'm', sizeof(longer));
	memcpy(longer, "<Error><Code>", 13);
	memcpy(longer + sizeof(longer) - 16, "</Code></Error>", 16);
	gw_s3_parse_fault(longer, sizeof(longer) - 1, &f);
	assert_int_equal(strlen(f.code), sizeof(f.code) - 1);
}

static void test_upload(void **state)
{
	static const char good[] = "<InitiateMultipartUploadResult xmlns=\"x\"><Bucket>b</Bucket><UploadId>2~a&amp;b</UploadId></InitiateMultipartUploadResult>";
	static const char *const bad[] = {
		"", "<Error><UploadId>x</UploadId></Error>", "<InitiateMultipartUploadResult/>",
		"<InitiateMultipartUploadResult><UploadId/></InitiateMultipartUploadResult>",
		"<InitiateMultipartUploadResult><UploadId>a</UploadId><UploadId>b</UploadId></InitiateMultipartUploadResult>",
	};
	char id[GW_S3_MAX_TOKEN + 1] = "before";

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(gw_s3_parse_upload(bad[i], strlen(bad[i]), id, NULL), -EPROTO);
	assert_string_equal(id, "before");
	assert_int_equal(gw_s3_parse_upload(good, strlen(good), id, NULL), 0);
	assert_string_equal(id, "2~a&b");
}

static void test_complete(void **state)
{
	static const char good[] = "   \n<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>";
	static const char refused[] = "<Error><Code>InternalError</Code><Message>again</Message></Error>";
	struct gw_s3_fault f;

	assert_int_equal(gw_s3_parse_complete(good, strlen(good), &f, NULL), 0);
	assert_int_equal(gw_s3_parse_complete(refused, strlen(refused), &f, NULL), -EIO);
	assert_string_equal(f.code, "InternalError");
	assert_int_equal(gw_s3_parse_complete("", 0, &f, NULL), -EPROTO);
	assert_int_equal(gw_s3_parse_complete("<html/>", 7, &f, NULL), -EPROTO);
	assert_int_equal(gw_s3_parse_complete(good, strlen(good) - 5, &f, NULL), -EPROTO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_list),     cmocka_unit_test(test_list_that_is_none), cmocka_unit_test(test_billion_laughs),
		cmocka_unit_test(test_list_bounds), cmocka_unit_test(test_fault),          cmocka_unit_test(test_upload),
		cmocka_unit_test(test_complete),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
