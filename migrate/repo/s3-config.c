// SPDX-License-Identifier: Apache-2.0
/* An S3 bucket's URL and environment; see s3-config.h. */
#include "migrate/repo/s3-config.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <strings.h>

#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"

#define MAX_CREDENTIALS (256u << 10) /* bytes of the shared file */
#define STALL_S 20
#define RETRY_S 60

#define ALNUM "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

/* The parameters after '?', decoded; "" when not given. */
struct params {
	char endpoint[256], region[64], style[16], ca[PATH_MAX], profile[64], stall[16], retry[16];
};
static const struct param {
	const char *name;
	size_t at, size;
} params[] = {
#define PARAM(name) { #name, offsetof(struct params, name), sizeof(((struct params *)0)->name) }
	PARAM(endpoint), PARAM(region), PARAM(style), PARAM(ca), PARAM(profile), PARAM(stall), PARAM(retry),
#undef PARAM
};

/* %XX; false: malformed, NUL, or more than `size` with the final NUL. */
static bool decode(const char *from, size_t len, char *to, size_t size)
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		uint8_t c = (uint8_t)from[i];

		if (c == '%') {
			char hex[3] = { i + 1 < len ? from[i + 1] : '\0', i + 2 < len ? from[i + 2] : '\0', '\0' };

			if (gw_parse_hex(hex, &c, 1, NULL) < 0)
				return false;
			i += 2;
		}
		if (!c || n + 1 >= size)
			return false;
		to[n++] = (char)c;
	}
	to[n] = '\0';
	return true;
}

static int parse_param(const char *text, size_t len, struct params *p, struct gw_error *err)
{
	const char *eq = memchr(text, '=', len);
	size_t name_len = eq ? (size_t)(eq - text) : len;

	for (unsigned i = 0; i < ARRAY_SIZE(params); i++) {
		char *to = (char *)p + params[i].at;

		if (strlen(params[i].name) != name_len || memcmp(params[i].name, text, name_len))
			continue;
		if (to[0])
			return gw_error_set(err, EINVAL, "%s is given twice", params[i].name);
		if (!eq || !decode(eq + 1, len - name_len - 1, to, params[i].size) || !to[0])
			return gw_error_set(err, EINVAL, "the value of %s is missing, malformed or too long", params[i].name);
		return 0;
	}
	return gw_error_set(err, EINVAL, "\"%.*s\" is none of the parameters of an s3:// URL: endpoint, region, style, ca, profile, stall, retry",
			    (int)GW_MIN(name_len, (size_t)64), text);
}

static int parse_params(const char *text, struct params *p, struct gw_error *err)
{
	while (*text) {
		size_t len = strcspn(text, "&");
		int ret = parse_param(text, len, p, err);

		if (ret < 0)
			return ret;
		text += len + (text[len] == '&');
	}
	return 0;
}

static int parse_bucket(const char *text, size_t len, struct gw_s3_config *c, struct gw_error *err)
{
	if (memchr(text, '@', len))
		return gw_error_set(err, EINVAL, "an s3:// URL holds no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
	if (len < 3 || len >= sizeof(c->bucket) || strspn(text, ALNUM "._-") < len || !isalnum((unsigned char)text[0]))
		return gw_error_set(err, EINVAL, "a bucket's name has 3 to 63 letters, digits, '.', '-' or '_'");
	memcpy(c->bucket, text, len);
	return 0;
}

/* Words of [A-Za-z0-9._-] between single slashes, none of them "." or "..": nothing that is written differently in a URL. */
static int parse_prefix(const char *text, size_t len, struct gw_s3_config *c, struct gw_error *err)
{
	size_t n = 0;

	while (len && text[len - 1] == '/')
		len--;
	for (size_t i = 0; i < len;) {
		size_t word = strspn(text + i, ALNUM "._-");

		word = GW_MIN(word, len - i);
		if (!word || (i + word < len && text[i + word] != '/') || (text[i] == '.' && (word == 1 || (word == 2 && text[i + 1] == '.'))))
			return gw_error_set(err, EINVAL, "the path in a bucket is of words of letters, digits, '.', '-' and '_' between single slashes");
		if (n + word + 2 > sizeof(c->prefix))
			return gw_error_set(err, EINVAL, "the path in a bucket may have at most %u bytes", GW_S3_MAX_PREFIX);
		memcpy(c->prefix + n, text + i, word);
		n += word;
		c->prefix[n++] = '/';
		i += word + 1;
	}
	c->prefix[n] = '\0';
	return 0;
}

static const char *env(const char *first, const char *second)
{
	const char *v = secure_getenv(first);

	if ((!v || !*v) && second)
		v = secure_getenv(second);
	return v && *v ? v : NULL;
}

/* The first of `a` (unless "") and `b` (unless NULL) that is there, else `c`. */
static int choose(char *to, size_t size, const char *what, const char *a, const char *b, const char *c, struct gw_error *err)
{
	const char *v = a[0] ? a : b ?: c;

	if (strlen(v) >= size)
		return gw_error_set(err, EINVAL, "%s is too long", what);
	snprintf(to, size, "%s", v);
	return 0;
}

/* "scheme://host[:port][/]" into origin and host, with the bucket before the host unless it goes into the path. */
static int set_endpoint(const char *endpoint, struct gw_s3_config *c, struct gw_error *err)
{
	bool tls = !strncasecmp(endpoint, "https://", 8), plain = !strncasecmp(endpoint, "http://", 7);
	const char *host = endpoint + (tls ? 8 : 7), *port;
	size_t len;
	uint64_t number;

	if (!tls && !plain)
		return gw_error_set(err, EINVAL, "the endpoint \"%.100s\" does not begin with https:// (or http://)", endpoint);
	len = strcspn(host, "/?#");
	if (!len || (host[len] && strcmp(host + len, "/")) || strspn(host, ALNUM ".-:[]") < len || len > 253)
		return gw_error_set(err, EINVAL, "the endpoint \"%.100s\" is not https://HOST[:PORT]", endpoint);
	/* A port that goes without saying is not in the Host header, and would then not be what was signed. */
	port = memrchr(host, ':', len);
	if (port && !memchr(port, ']', len - (size_t)(port - host))) {
		char digits[8] = "";

		snprintf(digits, sizeof(digits), "%.*s", (int)(len - (size_t)(port - host) - 1), port + 1);
		if (gw_parse_uint(digits, "the endpoint's port", 1, 65535, &number, err) < 0)
			return -EINVAL;
		if (number == (tls ? 443 : 80))
			len = (size_t)(port - host);
	}
	snprintf(c->host, sizeof(c->host), "%s%s%.*s", c->in_path ? "" : c->bucket, c->in_path ? "" : ".", (int)len, host);
	snprintf(c->origin, sizeof(c->origin), "%s://%s%s%.*s", tls ? "https" : "http", c->in_path ? "" : c->bucket, c->in_path ? "" : ".",
		 (int)len, host);
	return 0;
}

/* Amazon's wants buckets in the host; with a dot in its name a bucket fits no certificate there. Others rarely have such names. */
static int set_place(const struct params *p, struct gw_s3_config *c, struct gw_error *err)
{
	char endpoint[256], standard[128];
	const char *given = env("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL");
	int ret = choose(c->region, sizeof(c->region), "the region", p->region, env("AWS_REGION", "AWS_DEFAULT_REGION"), "us-east-1", err);

	if (ret < 0)
		return ret;
	if (strspn(c->region, ALNUM "-_") != strlen(c->region))
		return gw_error_set(err, EINVAL, "a region is of letters, digits, '-' and '_', as in eu-west-1");
	c->amazon = !p->endpoint[0] && !given;
	snprintf(standard, sizeof(standard), "https://s3.%s.amazonaws.com", c->region);
	ret = choose(endpoint, sizeof(endpoint), "the endpoint", p->endpoint, given, standard, err);
	if (ret < 0)
		return ret;
	if (!p->style[0])
		c->in_path = !c->amazon || strpbrk(c->bucket, "._ABCDEFGHIJKLMNOPQRSTUVWXYZ");
	else if (!strcmp(p->style, "path") || !strcmp(p->style, "virtual"))
		c->in_path = p->style[0] == 'p';
	else
		return gw_error_set(err, EINVAL, "style is path (https://HOST/BUCKET/) or virtual (https://BUCKET.HOST/)");
	return set_endpoint(endpoint, c, err);
}

/* "name = value" or "[profile]" of one line, trimmed in place. */
static char *trim(char *text)
{
	size_t len;

	while (isspace((unsigned char)*text))
		text++;
	len = strlen(text);
	while (len && isspace((unsigned char)text[len - 1]))
		text[--len] = '\0';
	return text;
}

int gw_s3_credentials_parse(const char *text, const char *profile, struct gw_s3_config *c)
{
	const struct {
		const char *name;
		char *to;
		size_t size;
	} known[] = {
		{ "aws_access_key_id", c->id, sizeof(c->id) },
		{ "aws_secret_access_key", c->secret, sizeof(c->secret) },
		{ "aws_session_token", c->token, sizeof(c->token) },
	};
	bool ours = false;

	while (*text) {
		char copy[4200], *line, *eq;
		size_t len = strcspn(text, "\n");

		if (len >= sizeof(copy))
			return -EINVAL;
		memcpy(copy, text, len);
		copy[len] = '\0';
		text += len + (text[len] == '\n');
		line = trim(copy);
		if (line[0] == '[') {
			line[strcspn(line, "]")] = '\0';
			ours = !strcmp(trim(line + 1), profile);
			continue;
		}
		eq = strchr(line, '=');
		if (!ours || line[0] == '#' || line[0] == ';' || !eq)
			continue;
		*eq = '\0';
		for (unsigned i = 0; i < ARRAY_SIZE(known); i++) {
			if (strcmp(trim(line), known[i].name))
				continue;
			if (snprintf(known[i].to, known[i].size, "%s", trim(eq + 1)) >= (int)known[i].size)
				return -EINVAL;
		}
		explicit_bzero(copy, sizeof(copy));
	}
	return c->id[0] && c->secret[0] ? 0 : -ENOENT;
}

static int credentials_from_file(const char *profile, struct gw_s3_config *c, struct gw_error *err)
{
	const char *given = env("AWS_SHARED_CREDENTIALS_FILE", NULL), *home = env("HOME", NULL);
	struct gw_error why = GW_ERROR_INIT;
	char path[PATH_MAX], *text = NULL;
	size_t len = 0;
	int ret;

	snprintf(path, sizeof(path), "%s%s", given ?: home ?: "", given ? "" : "/.aws/credentials");
	ret = gw_read_file(path, MAX_CREDENTIALS, &text, &len, &why);
	if (ret == 0)
		ret = gw_s3_credentials_parse(text, profile, c);
	if (text)
		explicit_bzero(text, len);
	free(text);
	if (ret == -EINVAL)
		return gw_error_set(err, EINVAL, "%s: a line or value is too long", path);
	if (ret < 0)
		return gw_error_set(err, EACCES, "no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or have them in [%s] of %s",
				    profile, path);
	return 0;
}

static int set_credentials(const struct params *p, struct gw_s3_config *c, struct gw_error *err)
{
	const char *id = env("AWS_ACCESS_KEY_ID", NULL), *secret = env("AWS_SECRET_ACCESS_KEY", NULL);
	int ret;

	/* A profile that the URL names says more than an environment that all URLs share. */
	if (p->profile[0] || !id || !secret) {
		ret = credentials_from_file(p->profile[0] ? p->profile : env("AWS_PROFILE", NULL) ?: "default", c, err);
	} else {
		ret = choose(c->id, sizeof(c->id), "AWS_ACCESS_KEY_ID", id, NULL, "", err);
		if (ret == 0)
			ret = choose(c->secret, sizeof(c->secret), "AWS_SECRET_ACCESS_KEY", secret, NULL, "", err);
		if (ret == 0)
			ret = choose(c->token, sizeof(c->token), "AWS_SESSION_TOKEN", "", env("AWS_SESSION_TOKEN", NULL), "", err);
	}
	if (ret < 0)
		return ret;
	/* Both go into header lines. */
	for (const char *s = c->id; *s; s++) {
		if (*s <= ' ' || *s > '~' || *s == '/' || *s == ',')
			return gw_error_set(err, EINVAL, "the access key holds a character that no access key has");
	}
	for (const char *s = c->token; *s; s++) {
		if (*s <= ' ' || *s > '~')
			return gw_error_set(err, EINVAL, "the session token holds a character that no token has");
	}
	return 0;
}

static int seconds(const char *text, const char *what, unsigned standard, unsigned *ret, struct gw_error *err)
{
	uint64_t v = standard;

	if (text[0] && gw_parse_uint(text, what, 1, 86400, &v, err) < 0)
		return -EINVAL;
	*ret = (unsigned)v;
	return 0;
}

int gw_s3_config_load(const char *url, struct gw_s3_config *ret, struct gw_error *err)
{
	struct gw_s3_config loaded = { .bucket = "" }, *c = &loaded;
	struct params given = { .endpoint = "" }, *p = &given; /* some KiB each */
	const char *bucket = url + 5, *prefix, *query;
	int rc;

	if (strncmp(url, "s3://", 5))
		return gw_error_set(err, EINVAL, "no s3:// URL");
	query = bucket + strcspn(bucket, "?");
	prefix = bucket + strcspn(bucket, "/?");
	rc = parse_bucket(bucket, (size_t)(prefix - bucket), c, err);
	if (rc == 0 && *prefix == '/')
		rc = parse_prefix(prefix + 1, (size_t)(query - prefix - 1), c, err);
	if (rc == 0 && *query)
		rc = parse_params(query + 1, p, err);
	if (rc == 0)
		rc = set_place(p, c, err);
	if (rc == 0)
		rc = seconds(p->stall, "stall", STALL_S, &c->stall_s, err);
	if (rc == 0)
		rc = seconds(p->retry, "retry", RETRY_S, &c->retry_s, err);
	if (rc == 0)
		rc = choose(c->ca, sizeof(c->ca), "the CA file's path", p->ca, env("AWS_CA_BUNDLE", NULL), "", err);
	if (rc == 0)
		rc = set_credentials(p, c, err);
	if (rc == 0)
		*ret = *c;
	gw_s3_config_release(c);
	return rc;
}

void gw_s3_config_release(struct gw_s3_config *c)
{
	explicit_bzero(c->secret, sizeof(c->secret));
	explicit_bzero(c->token, sizeof(c->token));
}
