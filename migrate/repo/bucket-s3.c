// SPDX-License-Identifier: Apache-2.0
/*
 * A bucket of an S3-compatible server: s3://BUCKET/PREFIX (s3-config.h has the URL's parameters and the environment).
 *
 * An object is a key below the prefix; S3 itself makes it visible whole or not at all. Layers, from above: this file and s3-multipart.c (what
 * the calls of bucket.h ask), s3-call.c (signing, trying again) with s3-fault.c (what refusals mean), s3-http.c (one exchange over libcurl),
 * and beside them s3-xml.c (answers) and sigv4.c.
 *
 * If-None-Match on a PUT is honoured by Amazon's servers since 2024 and by some others; the rest leave it out of account, silently. So it is
 * tried out, once a bucket is open and somebody needs to know, on an object that no listing shows: `_conditional`, empty, made by the first
 * to try and never removed, so that two who try at once see the same.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/s3-call.h"

#define OPEN_RETRY_S 10u /* a wrong endpoint is told of soon */
#define PROBE "_conditional"
#define MAX_EMPTY_PAGES 100u
#define MAX_LISTED (1ull << 24) /* objects; more than 16 million packs is no repository */

static struct gw_s3 *to_s3(const struct gw_bucket *b)
{
	return gw_container_of(b, struct gw_s3, base);
}

static void s3_free(struct gw_bucket *b)
{
	struct gw_s3 *s = to_s3(b);

	gw_s3_http_free(s->http);
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->lock);
	pthread_mutex_destroy(&s->asking);
	gw_s3_config_release(&s->conf);
	free(s);
}

/* For questions that somebody waits for. */
static unsigned soon(const struct gw_s3 *s)
{
	return GW_MIN(OPEN_RETRY_S, s->conf.retry_s);
}

/* The page of keys from `prefix` (whole, with the bucket's) on. */
static int get_page(struct gw_s3 *s, const char *prefix, const char *token, bool just_looking, struct gw_s3_list *ret, struct gw_error *err)
{
	gw_s3_autocall c = {
		.method = "GET",
		.query = { { "list-type", "2" },
			   { "encoding-type", "url" },
			   { "max-keys", just_looking ? "1" : "1000" },
			   { "prefix", prefix },
			   { token[0] ? "continuation-token" : NULL, token } },
		.limit = GW_S3_MAX_XML,
		.retry_s = just_looking ? soon(s) : 0,
	};
	int rc;

	static_assert(GW_S3_PAGE == 1000, "max-keys says it in words");
	rc = gw_s3_call(s, &c, err);
	if (rc == 0)
		rc = gw_s3_parse_list(c.x.body.data, c.x.body.len, ret, err);
	return rc;
}

static int create_bucket(struct gw_s3 *s, struct gw_error *err)
{
	char body[256] = "";
	struct gw_bucket_piece piece = { body, 0 };
	gw_s3_autocall c = { .method = "PUT", .has_body = true, .pieces = &piece, .piece_count = 1, .limit = GW_S3_MAX_XML };
	int ret;

	/* Amazon's wants to hear of each region but the first; what others call theirs is not known. */
	if (s->conf.amazon && strcmp(s->conf.region, "us-east-1"))
		snprintf(body, sizeof(body), "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">"
			 "<LocationConstraint>%s</LocationConstraint></CreateBucketConfiguration>", s->conf.region);
	c.body_len = piece.len = strlen(body);
	ret = gw_s3_call(s, &c, err);
	/* Somebody else made it in the meantime: the next look tells whether it is ours to use. */
	return !strcmp(c.fault.code, "BucketAlreadyOwnedByYou") ? 0 : ret;
}

/* A listing needs what all else does: the endpoint, the bucket, the credentials, the clock. */
static int look(struct gw_s3 *s, bool create, struct gw_error *err)
{
	struct gw_s3_list page;
	int ret = get_page(s, s->conf.prefix, "", true, &page, err);

	if (ret == -ENOENT && create) {
		ret = create_bucket(s, err);
		if (ret == 0)
			ret = get_page(s, s->conf.prefix, "", true, &page, err);
	}
	if (ret == 0)
		gw_s3_list_release(&page);
	return ret;
}

static int s3_open(const char *url, const struct gw_ticket *ticket, bool create, struct gw_bucket **ret, struct gw_error *err)
{
	struct gw_s3 *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return gw_error_set(err, ENOMEM, "out of memory");
	pthread_mutex_init(&s->lock, NULL);
	pthread_mutex_init(&s->asking, NULL);
	pthread_cond_init(&s->changed, NULL);
	rc = gw_s3_config_load(url, &s->conf, err);
	if (rc == 0)
		rc = gw_s3_http_new(s->conf.ca, s->conf.stall_s, &s->http, err);
	if (rc == 0)
		rc = look(s, create, err);
	if (rc < 0) {
		s3_free(&s->base);
		return rc;
	}
	*ret = &s->base;
	return 0;
}

static int put_probe(struct gw_s3 *s, int *status)
{
	struct gw_error why = GW_ERROR_INIT;
	gw_s3_autocall c = { .method = "PUT", .name = PROBE, .headers = { { "if-none-match", "*" } }, .has_body = true,
			     .limit = GW_S3_MAX_XML, .retry_s = soon(s) };
	int ret = gw_s3_call(s, &c, &why);

	*status = c.x.head.status;
	return ret;
}

/* At the latest the second of two conditional puts is refused by a server that honours them. */
static bool s3_exclusive(const struct gw_bucket *b)
{
	struct gw_s3 *s = to_s3(b);
	int ret = 0, status = 0;
	bool exact;

	pthread_mutex_lock(&s->asking);
	if (s->conditional == GW_S3_NOT_ASKED) {
		for (unsigned i = 0; i < 2 && ret == 0; i++)
			ret = put_probe(s, &status);
		if (ret == -EEXIST)
			s->conditional = GW_S3_EXACT;
		/* What may pass, or a lack of rights that is told of when something is to be put, says nothing of what the server can do. */
		else if (ret == 0 || status == 400 || status == 405 || status == 501)
			s->conditional = GW_S3_INEXACT;
	}
	exact = s->conditional == GW_S3_EXACT;
	pthread_mutex_unlock(&s->asking);
	return exact;
}

/* 0 with its head, or -ENOENT. */
static int look_at(struct gw_s3 *s, const char *name, struct gw_s3_head *ret, struct gw_error *err)
{
	gw_s3_autocall c = { .method = "HEAD", .name = name };
	int rc = gw_s3_call(s, &c, err);

	if (rc == 0)
		*ret = c.x.head;
	return rc;
}

/*
 * One request, with the condition that the object is new when `conditional`. When a try was carried out though its answer was lost, the next
 * one, which may be libcurl's own when a kept connection breaks, finds the object there: the mark tells whether it is ours.
 */
static int put_whole(struct gw_s3 *s, const char *name, const struct gw_bucket_piece *pieces, unsigned count, uint64_t total,
		     bool conditional, struct gw_error *err)
{
	char mark[33];
	struct gw_s3_head head;
	gw_s3_autocall c = {
		.method = "PUT", .name = name, .has_body = true, .pieces = pieces, .piece_count = count, .body_len = total,
		.headers = { { conditional ? "if-none-match" : NULL, "*" }, { "x-amz-meta-godwit-put", mark } },
		.limit = GW_S3_MAX_XML,
	};
	int ret;

	if (conditional && gw_s3_mark(mark) < 0)
		return gw_error_set(err, EIO, "no random numbers");
	ret = gw_s3_call(s, &c, err);
	if (ret == -EEXIST && look_at(s, name, &head, NULL) == 0 && !strcmp(head.mark, mark))
		return 0;
	return ret;
}

static int s3_put(struct gw_bucket *b, const char *name, const struct gw_bucket_piece *pieces, unsigned count, enum gw_bucket_put how,
		  struct gw_error *err)
{
	struct gw_s3 *s = to_s3(b);
	bool conditional = how == GW_BUCKET_IF_ABSENT && s3_exclusive(b);
	struct gw_s3_head head;
	uint64_t total = 0;
	int ret;

	for (unsigned i = 0; i < count; i++)
		total += pieces[i].len;
	if (how == GW_BUCKET_IF_ABSENT && !conditional) {
		ret = look_at(s, name, &head, err);
		if (ret == 0)
			return gw_error_set(err, EEXIST, "%s is there already", name);
		if (ret != -ENOENT)
			return ret;
	}
	/* Servers that honour conditions of a PUT may not do so at the end of an upload in parts. */
	if (!conditional && total > 2 * GW_S3_PART)
		return gw_s3_put_parts(s, name, pieces, count, total, err);
	return put_whole(s, name, pieces, count, total, conditional, err);
}

static int s3_get(struct gw_bucket *b, const char *name, uint64_t offset, uint64_t len, void *data, struct gw_error *err)
{
	gw_s3_autocall c = { .method = "GET", .name = name, .to = data, .from = offset, .len = len };

	return len ? gw_s3_call(to_s3(b), &c, err) : 0;
}

static int s3_read(struct gw_bucket *b, const char *name, uint64_t limit, struct gw_buf *out, struct gw_error *err)
{
	gw_s3_autocall c = { .method = "GET", .name = name, .limit = limit };
	int ret = gw_s3_call(to_s3(b), &c, err);

	if (ret < 0)
		return ret;
	if (c.x.head.status != 200)
		return gw_error_set(err, EPROTO, "%s: the server answers %d to a request for all of it", name, c.x.head.status);
	if (out->data || out->len)
		return gw_buf_append(out, c.x.body.data, c.x.body.len) < 0 ? gw_error_set(err, ENOMEM, "out of memory") : 0;
	*out = c.x.body;
	c.x.body = (struct gw_buf)GW_BUF_INIT;
	return 0;
}

static int s3_remove(struct gw_bucket *b, const char *name, struct gw_error *err)
{
	gw_s3_autocall c = { .method = "DELETE", .name = name, .limit = GW_S3_MAX_XML };
	int ret = gw_s3_call(to_s3(b), &c, err);

	return ret == -ENOENT ? 0 : ret;
}

/* What a listing remembers from page to page. */
struct listing {
	char last[GW_S3_MAX_KEY + 1]; /* key */
	uint64_t count;
	unsigned empty;
};

/* Keys rise: so a server cannot go on for ever with the same ones, and the order is what bucket.h promises. */
static int deliver(struct gw_s3 *s, const struct gw_s3_list *page, const char *prefix, struct listing *l, gw_bucket_entry_fn *fn, void *self,
		   struct gw_error *err)
{
	size_t skip = strlen(s->conf.prefix);
	int ret;

	for (unsigned i = 0; i < page->count; i++) {
		const struct gw_s3_entry *e = &page->entries[i];
		struct gw_bucket_entry ours = { e->key + skip, e->size, e->modified_s };

		if (strncmp(e->key, prefix, strlen(prefix)))
			return gw_error_set(err, EPROTO, "the server lists what was not asked for");
		if (strcmp(e->key, l->last) <= 0)
			return gw_error_set(err, EPROTO, "the server's listing is not in order");
		memcpy(l->last, e->key, strlen(e->key) + 1);
		if (++l->count > MAX_LISTED)
			return gw_error_set(err, EPROTO, "the server's listing does not end");
		if (!gw_bucket_name_ok(ours.name))
			continue;
		ret = fn(self, &ours);
		if (ret)
			return ret;
	}
	l->empty = page->count ? 0 : l->empty + 1;
	if (page->truncated && l->empty > MAX_EMPTY_PAGES)
		return gw_error_set(err, EPROTO, "the server's listing does not end");
	return 0;
}

static int s3_list(struct gw_bucket *b, const char *prefix, gw_bucket_entry_fn *fn, void *self, struct gw_error *err)
{
	struct gw_s3 *s = to_s3(b);
	char whole[GW_S3_MAX_PREFIX + GW_BUCKET_MAX_NAME + 1], token[GW_S3_MAX_TOKEN + 1] = "";
	struct listing l = { "", 0, 0 };
	bool more = true;
	int ret = 0;

	/* No object of ours has a longer name. */
	if (strlen(prefix) > GW_BUCKET_MAX_NAME)
		return 0;
	snprintf(whole, sizeof(whole), "%s%s", s->conf.prefix, prefix);
	while (more && ret == 0) {
		struct gw_s3_list page;

		ret = get_page(s, whole, token, false, &page, err);
		if (ret < 0)
			break;
		ret = deliver(s, &page, whole, &l, fn, self, err);
		more = page.truncated;
		memcpy(token, page.token, sizeof(token));
		gw_s3_list_release(&page);
	}
	return ret;
}

static void s3_cancel(struct gw_bucket *b)
{
	struct gw_s3 *s = to_s3(b);

	gw_s3_http_cancel(s->http);
	pthread_mutex_lock(&s->lock);
	s->cancelled = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

const struct gw_bucket_ops gw_bucket_s3 = {
	.scheme = "s3://",
	.open = s3_open,
	.free = s3_free,
	.exclusive = s3_exclusive,
	.put = s3_put,
	.get = s3_get,
	.read = s3_read,
	.remove = s3_remove,
	.list = s3_list,
	.cancel = s3_cancel,
};
