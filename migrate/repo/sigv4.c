// SPDX-License-Identifier: Apache-2.0
/* AWS Signature Version 4; see sigv4.h. */
#include "migrate/repo/sigv4.h"

#include <errno.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>
#include <time.h>

#include "lib/parse.h"
#include "lib/util.h"

#define SHA256_LEN 32
#define DAY_LEN 8 /* "20130524" */
#define LAST_SECOND 253402300799ull /* of the year 9999 */

void gw_sigv4_time(uint64_t seconds, char out[GW_SIGV4_TIME_LEN])
{
	time_t t = (time_t)GW_MIN(seconds, (uint64_t)LAST_SECOND);
	struct tm tm;

	gmtime_r(&t, &tm);
	strftime(out, GW_SIGV4_TIME_LEN, "%Y%m%dT%H%M%SZ", &tm);
}

static int add(struct gw_buf *out, const char *text)
{
	return gw_buf_append(out, text, strlen(text));
}

/* RFC 3986 §2.3: what stays as it is. */
static bool unreserved(unsigned char c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~';
}

static int encode(const char *text, bool keep_slash, struct gw_buf *out)
{
	static const char digits[] = "0123456789ABCDEF";
	char *to = gw_buf_reserve(out, strlen(text) * 3 + 1);

	if (!to)
		return -ENOMEM;
	for (const char *from = text; *from; from++) {
		unsigned char c = (unsigned char)*from;

		if (unreserved(c) || (keep_slash && c == '/')) {
			*to++ = (char)c;
			continue;
		}
		*to++ = '%';
		*to++ = digits[c >> 4];
		*to++ = digits[c & 15];
	}
	out->len = (size_t)((uint8_t *)to - out->data);
	return 0;
}

int gw_sigv4_path(const char *path, struct gw_buf *out)
{
	return encode(path, true, out);
}

/* Sorted by what is compared encoded, names first: "a" goes before "a-b", though '=' goes after '-'. */
static int compare_pairs(const void *a, const void *b)
{
	const struct gw_sigv4_pair *x = a, *y = b;
	int c = strcmp(x->name, y->name);

	return c ? c : strcmp(x->value, y->value);
}

static void release_encoded(struct gw_buf (*e)[2 * GW_SIGV4_MAX_PAIRS])
{
	for (unsigned i = 0; i < ARRAY_SIZE(*e); i++)
		gw_buf_release(&(*e)[i]);
}

int gw_sigv4_query(const struct gw_sigv4_pair *query, unsigned count, struct gw_buf *out)
{
	__attribute__((cleanup(release_encoded))) struct gw_buf encoded[2 * GW_SIGV4_MAX_PAIRS] = { { 0 } };
	struct gw_sigv4_pair sorted[GW_SIGV4_MAX_PAIRS];

	if (count > GW_SIGV4_MAX_PAIRS)
		return -E2BIG;
	for (unsigned i = 0; i < count; i++) {
		struct gw_buf *name = &encoded[2 * i], *value = &encoded[2 * i + 1];

		if (encode(query[i].name, false, name) < 0 || gw_buf_append(name, "", 1) < 0 ||
		    encode(query[i].value, false, value) < 0 || gw_buf_append(value, "", 1) < 0)
			return -ENOMEM;
		sorted[i] = (struct gw_sigv4_pair){ (char *)name->data, (char *)value->data };
	}
	qsort(sorted, count, sizeof(sorted[0]), compare_pairs);
	for (unsigned i = 0; i < count; i++) {
		if ((i && add(out, "&") < 0) || add(out, sorted[i].name) < 0 || add(out, "=") < 0 || add(out, sorted[i].value) < 0)
			return -ENOMEM;
	}
	return 0;
}

/* Without blanks at its ends, and those inside one each. */
static int add_trimmed(struct gw_buf *out, const char *value)
{
	bool blank = false, begun = false;

	for (; *value; value++) {
		if (*value == ' ' || *value == '\t') {
			blank = begun;
			continue;
		}
		if ((blank && add(out, " ") < 0) || gw_buf_append(out, value, 1) < 0)
			return -ENOMEM;
		blank = false;
		begun = true;
	}
	return 0;
}

/* Both end with a NUL. */
static int canonical_headers(const struct gw_sigv4_pair *headers, unsigned count, struct gw_buf *lines, struct gw_buf *names)
{
	struct gw_sigv4_pair sorted[GW_SIGV4_MAX_PAIRS];

	if (count > GW_SIGV4_MAX_PAIRS)
		return -E2BIG;
	memcpy(sorted, headers, count * sizeof(sorted[0]));
	qsort(sorted, count, sizeof(sorted[0]), compare_pairs);
	for (unsigned i = 0; i < count; i++) {
		if ((i && add(names, ";") < 0) || add(names, sorted[i].name) < 0 || add(lines, sorted[i].name) < 0 || add(lines, ":") < 0 ||
		    add_trimmed(lines, sorted[i].value) < 0 || add(lines, "\n") < 0)
			return -ENOMEM;
	}
	return gw_buf_append(names, "", 1) < 0 || gw_buf_append(lines, "", 1) < 0 ? -ENOMEM : 0;
}

static const char *header(const struct gw_sigv4_request *r, const char *name)
{
	for (unsigned i = 0; i < r->header_count; i++) {
		if (!strcmp(r->headers[i].name, name))
			return r->headers[i].value;
	}
	return NULL;
}

/* The request as it is hashed ("Task 1: Create a canonical request"). */
static int canonical_request(const struct gw_sigv4_request *r, const char *payload, const struct gw_buf *lines,
			     const struct gw_buf *names, struct gw_buf *out)
{
	int ret;

	if (add(out, r->method) < 0 || add(out, "\n") < 0 || gw_sigv4_path(r->path, out) < 0 || add(out, "\n") < 0)
		return -ENOMEM;
	ret = gw_sigv4_query(r->query, r->queries, out);
	if (ret < 0)
		return ret;
	if (add(out, "\n") < 0 || add(out, (const char *)lines->data) < 0 || add(out, "\n") < 0 ||
	    add(out, (const char *)names->data) < 0 || add(out, "\n") < 0 || add(out, payload) < 0)
		return -ENOMEM;
	return 0;
}

static bool hmac(const uint8_t *key, size_t key_len, const char *text, uint8_t out[SHA256_LEN])
{
	unsigned len = SHA256_LEN;

	return HMAC(EVP_sha256(), key, (int)key_len, (const unsigned char *)text, strlen(text), out, &len) != NULL;
}

/* "Task 3": the key of one day, region and service. */
static bool signing_key(const struct gw_sigv4_key *key, const char *day, uint8_t out[SHA256_LEN])
{
	gw_autobuf first = GW_BUF_INIT;
	bool ok = add(&first, "AWS4") == 0 && add(&first, key->secret) == 0 && hmac(first.data, first.len, day, out) &&
		  hmac(out, SHA256_LEN, key->region, out) && hmac(out, SHA256_LEN, "s3", out) &&
		  hmac(out, SHA256_LEN, "aws4_request", out);

	if (first.data)
		OPENSSL_cleanse(first.data, first.len);
	return ok;
}

int gw_sigv4_sign(const struct gw_sigv4_key *key, const struct gw_sigv4_request *r, char out[GW_SIGV4_AUTHORIZATION])
{
	gw_autobuf lines = GW_BUF_INIT, names = GW_BUF_INIT, canonical = GW_BUF_INIT;
	const char *when = header(r, "x-amz-date"), *payload = header(r, "x-amz-content-sha256");
	uint8_t hash[SHA256_LEN], sign[SHA256_LEN];
	char day[DAY_LEN + 1], scope[128], text[512], hex[GW_SIGV4_HASH_LEN];
	bool ok;
	int ret;

	if (!when || strlen(when) != GW_SIGV4_TIME_LEN - 1 || !payload || !header(r, "host"))
		return -EINVAL;
	ret = canonical_headers(r->headers, r->header_count, &lines, &names);
	if (ret == 0)
		ret = canonical_request(r, payload, &lines, &names, &canonical);
	if (ret < 0)
		return ret;
	snprintf(day, sizeof(day), "%.*s", DAY_LEN, when);
	if (snprintf(scope, sizeof(scope), "%s/%s/s3/aws4_request", day, key->region) >= (int)sizeof(scope))
		return -E2BIG;
	if (EVP_Digest(canonical.data, canonical.len, hash, NULL, EVP_sha256(), NULL) != 1)
		return -EIO;
	gw_format_hex(hash, sizeof(hash), hex);
	snprintf(text, sizeof(text), "AWS4-HMAC-SHA256\n%s\n%s\n%s", when, scope, hex);
	ok = signing_key(key, day, sign) && hmac(sign, sizeof(sign), text, hash);
	OPENSSL_cleanse(sign, sizeof(sign));
	if (!ok)
		return -EIO;
	gw_format_hex(hash, sizeof(hash), hex);
	ret = snprintf(out, GW_SIGV4_AUTHORIZATION, "AWS4-HMAC-SHA256 Credential=%s/%s,SignedHeaders=%s,Signature=%s", key->id, scope,
		       (const char *)names.data, hex);
	return ret >= GW_SIGV4_AUTHORIZATION ? -E2BIG : 0;
}
