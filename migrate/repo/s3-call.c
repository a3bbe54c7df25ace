// SPDX-License-Identifier: Apache-2.0
/* Calls to S3: signing and trying again; see s3-call.h. */
#include "migrate/repo/s3-call.h"

#include <errno.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/random.h>

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "lib/util.h"
#include "migrate/repo/retry.h"

#define LONGEST_WISH_S 15u            /* of a server, by Retry-After */
#define PROGRESS (1u << 20)           /* bytes that are as good as a success: failing begins anew after them */
#define SLOWEST (64u << 10)           /* bytes a second that a call must reach on the whole, beside what it may fail */
#define PATIENCE_S 600u               /* what a server's work may take that it is silent about */
#define LAST_WORDS_NS (2 * GW_NS_PER_SEC)

int gw_s3_mark(char ret[33])
{
	uint8_t random[16];

	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		return -EIO;
	gw_format_hex(random, sizeof(random), ret);
	return 0;
}

/* The hash of the body, which is the same in each try. */
static int hash_body(const struct gw_s3_call *c, char ret[GW_SIGV4_HASH_LEN])
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	uint64_t skip = c->body_at, left = c->body_len;
	uint8_t hash[32];
	bool ok = ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1;

	for (unsigned i = 0; ok && left && i < c->piece_count; i++) {
		uint64_t from = GW_MIN(skip, c->pieces[i].len), n = GW_MIN(c->pieces[i].len - from, left);

		ok = !n || EVP_DigestUpdate(ctx, (const uint8_t *)c->pieces[i].data + from, n) == 1;
		skip -= from;
		left -= n;
	}
	ok = ok && EVP_DigestFinal_ex(ctx, hash, NULL) == 1;
	EVP_MD_CTX_free(ctx);
	if (!ok)
		return -EIO;
	gw_format_hex(hash, sizeof(hash), ret);
	return 0;
}

/* What is signed of a try. */
struct ask {
	struct gw_sigv4_pair headers[GW_S3_MAX_HEADERS + 6];
	unsigned headers_count;
	char path[sizeof(((struct gw_s3_config *)0)->bucket) + GW_S3_MAX_PREFIX + GW_BUCKET_MAX_NAME + 4];
	char when[GW_SIGV4_TIME_LEN];
	char range[64];
	char etag[128];
};

static void add_header(struct ask *a, const char *name, const char *value)
{
	a->headers[a->headers_count++] = (struct gw_sigv4_pair){ name, value };
}

/* `got` bytes of the range are there already, of the object with `etag` (which may be ""). */
static void compose(const struct gw_s3 *s, const struct gw_s3_call *c, const char *hash, uint64_t got, struct ask *a)
{
	snprintf(a->path, sizeof(a->path), "/%s%s%s%s", s->conf.in_path ? s->conf.bucket : "", s->conf.in_path && c->name ? "/" : "",
		 c->name ? s->conf.prefix : "", c->name ?: "");
	gw_sigv4_time(gw_realtime_ns() / GW_NS_PER_SEC, a->when);
	add_header(a, "host", s->conf.host);
	add_header(a, "x-amz-date", a->when);
	add_header(a, "x-amz-content-sha256", hash);
	if (s->conf.token[0])
		add_header(a, "x-amz-security-token", s->conf.token);
	if (c->to) {
		snprintf(a->range, sizeof(a->range), "bytes=%llu-%llu", (unsigned long long)(c->from + got),
			 (unsigned long long)(c->from + c->len - 1));
		add_header(a, "range", a->range);
		if (got && a->etag[0])
			add_header(a, "if-match", a->etag);
	}
	for (unsigned i = 0; i < GW_S3_MAX_HEADERS && c->headers[i].name; i++)
		add_header(a, c->headers[i].name, c->headers[i].value);
}

static int make_url(const struct gw_s3 *s, const struct ask *a, const struct gw_sigv4_request *r, struct gw_buf *url)
{
	int ret = gw_buf_append(url, s->conf.origin, strlen(s->conf.origin));

	if (ret == 0)
		ret = gw_sigv4_path(a->path, url);
	if (ret == 0 && r->queries)
		ret = gw_buf_append(url, "?", 1);
	if (ret == 0)
		ret = gw_sigv4_query(r->query, r->queries, url);
	return ret == 0 ? gw_buf_append(url, "", 1) : ret;
}

/* The header lines, one after the other in `text`, each ended by a NUL, and where they begin. */
static int make_lines(const struct ask *a, const char *authorization, struct gw_buf *text, const char **lines)
{
	size_t at[GW_S3_MAX_HEADERS + 7];
	unsigned i;

	for (i = 0; i <= a->headers_count; i++) {
		const char *name = i < a->headers_count ? a->headers[i].name : "authorization";
		const char *value = i < a->headers_count ? a->headers[i].value : authorization;

		at[i] = text->len;
		if (gw_buf_append(text, name, strlen(name)) < 0 || gw_buf_append(text, ": ", 2) < 0 ||
		    gw_buf_append(text, value, strlen(value) + 1) < 0)
			return -ENOMEM;
	}
	while (i--)
		lines[i] = (const char *)text->data + at[i];
	return 0;
}

/* One try. */
static int attempt(struct gw_s3 *s, struct gw_s3_call *c, const char *hash, uint64_t got, const char *etag, struct gw_error *err)
{
	const struct gw_sigv4_key key = { s->conf.id, s->conf.secret, s->conf.region };
	struct ask a = { .headers_count = 0 };
	gw_autobuf url = GW_BUF_INIT, text = GW_BUF_INIT;
	char authorization[GW_SIGV4_AUTHORIZATION];
	const char *lines[GW_S3_MAX_HEADERS + 7];
	struct gw_sigv4_request r;
	unsigned queries = 0;
	int ret;

	while (queries < GW_S3_MAX_QUERY && c->query[queries].name)
		queries++;
	snprintf(a.etag, sizeof(a.etag), "%s", etag);
	compose(s, c, hash, got, &a);
	r = (struct gw_sigv4_request){ c->method, a.path, c->query, queries, a.headers, a.headers_count };
	ret = gw_sigv4_sign(&key, &r, authorization);
	if (ret == 0)
		ret = make_url(s, &a, &r, &url);
	if (ret == 0)
		ret = make_lines(&a, authorization, &text, lines);
	if (ret < 0)
		return gw_error_errno(err, ret, "the request cannot be signed");
	c->x.method = c->method;
	c->x.url = (const char *)url.data;
	c->x.headers = lines;
	c->x.header_count = a.headers_count + 1;
	c->x.has_body = c->has_body;
	c->x.pieces = c->pieces;
	c->x.piece_count = c->piece_count;
	c->x.body_at = c->body_at;
	c->x.body_len = c->body_len;
	c->x.patient = c->patient;
	c->x.anyway = c->last_words;
	c->x.to = c->to ? (uint8_t *)c->to + got : NULL;
	c->x.room = c->to ? c->len - got : 0;
	c->x.from = c->from + got;
	c->x.limit = c->limit;
	ret = gw_s3_http_do(s->http, &c->x, err);
	c->x.url = NULL;
	c->x.headers = NULL;
	return ret;
}

/* Sleeps; -ECANCELED when that was cancelled. */
static int pause_ms(struct gw_s3 *s, unsigned ms)
{
	uint64_t until = gw_now_ns() + ms * GW_NS_PER_MS;
	const struct timespec ts = { (time_t)(until / GW_NS_PER_SEC), (long)(until % GW_NS_PER_SEC) };
	int ret = 0;

	pthread_mutex_lock(&s->lock);
	while (!s->cancelled && ret == 0)
		ret = pthread_cond_clockwait(&s->changed, &s->lock, CLOCK_MONOTONIC, &ts);
	ret = s->cancelled ? -ECANCELED : 0;
	pthread_mutex_unlock(&s->lock);
	return ret;
}

/* What one try came to: 0, or the error, and whether it may pass. */
static int evaluate(struct gw_s3 *s, struct gw_s3_call *c, int ret, bool *may_pass, struct gw_error *err)
{
	*may_pass = false;
	c->fault = (struct gw_s3_fault){ "", "", "" };
	if (ret < 0) {
		*may_pass = ret == -EHOSTUNREACH || ret == -ETIMEDOUT || ret == -EIO;
		return ret;
	}
	if (c->x.head.status == 200 || c->x.head.status == 206 || (c->x.head.status == 204 && !c->to))
		return 0;
	gw_s3_parse_fault(c->x.body.data, c->x.body.len, &c->fault);
	*may_pass = gw_s3_may_pass(&c->x.head, &c->fault);
	ret = gw_s3_refused(&s->conf, &c->x.head, &c->fault, (int64_t)(gw_realtime_ns() / GW_NS_PER_SEC), err);
	/* Nobody must take a bucket that is gone for one in which an object is missing. */
	if (ret == -ENOENT && c->name && !strcmp(c->fault.code, "NoSuchBucket")) {
		ret = -EIO;
		if (err)
			err->code = EIO;
	}
	return ret;
}

/* How a series of tries stands. */
struct series {
	uint64_t deadline_ns;
	uint64_t give_up_ns; /* 0: has not failed since the last progress */
	uint64_t progress;   /* bytes that were there then */
	unsigned failures, in_a_row;
};

/* After a failure that may pass: 0 to try again now, else `ret` or -ECANCELED. */
static int after_failure(struct gw_s3 *s, struct gw_s3_call *c, struct series *t, int ret, uint64_t got, struct gw_error *err)
{
	uint64_t retry_ns = (c->retry_s ?: s->conf.retry_s) * GW_NS_PER_SEC, now = gw_now_ns();
	unsigned ms, wish_ms = GW_MIN(c->x.head.retry_after_s, LONGEST_WISH_S) * 1000;

	if (got < t->progress) {
		t->progress = got;
	} else if (got - t->progress >= PROGRESS) {
		t->progress = got;
		t->give_up_ns = 0;
		t->in_a_row = 0;
	}
	if (!t->give_up_ns)
		t->give_up_ns = now + retry_ns;
	t->failures++;
	ms = GW_MAX(gw_retry_pause_ms(t->in_a_row++), wish_ms);
	if (now + ms * GW_NS_PER_MS >= GW_MIN(t->give_up_ns, t->deadline_ns)) {
		if (ret == -ETIMEDOUT)
			ret = -EHOSTUNREACH;
		if (err)
			err->code = -ret;
		gw_error_wrap(err, "given up after %u tries", t->failures);
		return ret;
	}
	gw_debug("s3: %s %s: %s; again in %u ms", c->method, c->name ?: s->conf.bucket, err ? gw_error_text(err) : "failed", ms);
	if (pause_ms(s, ms) < 0)
		return gw_error_set(err, ECANCELED, "cancelled");
	return 0;
}

int gw_s3_call(struct gw_s3 *s, struct gw_s3_call *c, struct gw_error *err)
{
	uint64_t begun = gw_now_ns(), got = 0;
	struct series t = { .deadline_ns = begun + (c->retry_s ?: s->conf.retry_s) * 2 * GW_NS_PER_SEC +
			    (c->body_len + (c->to ? c->len : 0)) * (GW_NS_PER_SEC / SLOWEST) };
	char hash[GW_SIGV4_HASH_LEN], etag[sizeof(c->x.head.etag)] = "";
	bool may_pass;
	int ret;

	if (hash_body(c, hash) < 0)
		return gw_error_set(err, EIO, "OpenSSL cannot hash");
	if (c->patient)
		t.deadline_ns += PATIENCE_S * GW_NS_PER_SEC;
	if (c->last_words)
		t.deadline_ns = begun + LAST_WORDS_NS;
	c->x.deadline_ns = t.deadline_ns;
	for (;;) {
		ret = evaluate(s, c, attempt(s, c, hash, got, etag, err), &may_pass, err);
		got += c->x.got;
		/* A range that broke off is gone on with where it did, of the same object; when it is another by now, from the start. */
		if (c->x.got && !etag[0])
			memcpy(etag, c->x.head.etag, sizeof(etag));
		if (!etag[0])
			got = 0;
		if (ret == -EEXIST && c->to && got) {
			got = 0;
			etag[0] = '\0';
			may_pass = true;
			ret = gw_error_set(err, EIO, "the object was replaced while it was read");
		}
		if (ret == 0 || !may_pass || c->last_words)
			break;
		/* When a connection breaks while a body is sent, why may never be read: the next time the server is asked before. */
		c->x.careful = !c->x.head.status && c->body_len;
		ret = after_failure(s, c, &t, ret, got, err);
		if (ret < 0)
			break;
	}
	if (ret < 0 && ret != -ECANCELED)
		gw_error_wrap(err, "%s %s%s%s at %s", c->method, s->conf.bucket, c->name ? "/" : "", c->name ?: "", s->conf.origin);
	return ret;
}

void gw_s3_call_release(struct gw_s3_call *c)
{
	gw_buf_release(&c->x.body);
}
