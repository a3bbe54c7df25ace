// SPDX-License-Identifier: Apache-2.0
/* What of an HTTP answer's head is of use; see s3-http.h. */
#include <string.h>
#include <strings.h>

#include "lib/parse.h"
#include "lib/util.h"
#include "migrate/repo/late-curl.h"
#include "migrate/repo/s3-http.h"

/* "bytes 5-9/100" */
static void parse_content_range(const char *value, struct gw_s3_head *head)
{
	uint64_t *const to[] = { &head->range_from, &head->range_to, &head->range_of };
	static const char ends[] = { '-', '/', '\0' };
	uint64_t v[ARRAY_SIZE(to)];

	if (strncasecmp(value, "bytes ", 6))
		return;
	value += 6;
	for (unsigned i = 0; i < ARRAY_SIZE(to); i++) {
		char digits[24];
		size_t n = strspn(value, "0123456789");

		if (value[n] != ends[i] || n >= sizeof(digits))
			return;
		memcpy(digits, value, n);
		digits[n] = '\0';
		if (gw_parse_uint(digits, "range", 0, INT64_MAX, &v[i], NULL) < 0)
			return;
		value += n + 1;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(to); i++)
		*to[i] = v[i];
}

static void parse_header(const char *name, const char *value, struct gw_s3_head *head)
{
	const struct {
		const char *name;
		char *to;
		size_t size;
	} texts[] = {
		{ "etag", head->etag, sizeof(head->etag) },
		{ "x-amz-bucket-region", head->region, sizeof(head->region) },
		{ "x-amz-meta-godwit-put", head->mark, sizeof(head->mark) },
	};
	uint64_t v;

	for (unsigned i = 0; i < ARRAY_SIZE(texts); i++) {
		if (!strcasecmp(name, texts[i].name) && strlen(value) < texts[i].size)
			snprintf(texts[i].to, texts[i].size, "%s", value);
	}
	if (!strcasecmp(name, "content-range"))
		parse_content_range(value, head);
	else if (!strcasecmp(name, "content-length") && gw_parse_uint(value, "length", 0, INT64_MAX, &v, NULL) == 0)
		head->length = v;
	else if (!strcasecmp(name, "date"))
		head->date_s = curl_getdate(value, NULL);
	else if (!strcasecmp(name, "retry-after") && gw_parse_uint(value, "seconds", 1, 3600, &v, NULL) == 0)
		head->retry_after_s = (unsigned)v;
}

void gw_s3_head_clear(struct gw_s3_head *head)
{
	*head = (struct gw_s3_head){ .length = GW_S3_UNKNOWN, .range_from = GW_S3_UNKNOWN, .range_to = GW_S3_UNKNOWN,
				     .range_of = GW_S3_UNKNOWN, .date_s = -1 };
}

/* Of "HTTP/1.1 200 OK"; 0: malformed. */
static int status_of(const char *line, size_t len)
{
	const char *p = memchr(line, ' ', len);
	uint64_t v;
	char digits[4];

	if (!p || len - (size_t)(p - line) < 5)
		return 0;
	memcpy(digits, p + 1, 3);
	digits[3] = '\0';
	return gw_parse_uint(digits, "status", 100, 599, &v, NULL) == 0 ? (int)v : 0;
}

void gw_s3_head_line(struct gw_s3_head *head, const char *data, size_t len)
{
	char line[1024], *colon;

	/* What lines before the last status line said (of a "100 Continue") does not count. */
	if (len > 5 && !memcmp(data, "HTTP/", 5)) {
		gw_s3_head_clear(head);
		head->status = status_of(data, len);
		return;
	}
	while (len && (data[len - 1] == '\r' || data[len - 1] == '\n' || data[len - 1] == ' '))
		len--;
	if (len >= sizeof(line))
		return;
	memcpy(line, data, len);
	line[len] = '\0';
	colon = strchr(line, ':');
	if (!colon)
		return;
	*colon = '\0';
	parse_header(line, colon + 1 + strspn(colon + 1, " \t"), head);
}
