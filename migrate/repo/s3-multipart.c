// SPDX-License-Identifier: Apache-2.0
/*
 * Objects in parts: each is sent, and when need be sent again, by itself; the object appears when the server is told that all are there. When
 * that comes to nothing, what was sent is removed; if we die before, a rule of the bucket for unfinished uploads does it.
 */
#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/s3-call.h"

struct upload {
	struct gw_s3 *s;
	const char *name;
	char id[GW_S3_MAX_TOKEN + 1];
	char mark[33];
	unsigned parts;
	char (*etags)[128]; /* of `parts` */
};

static int begin(struct upload *u, struct gw_error *err)
{
	gw_s3_autocall c = { .method = "POST", .name = u->name, .query = { { "uploads", "" } },
			     .headers = { { "x-amz-meta-godwit-put", u->mark } }, .has_body = true, .limit = GW_S3_MAX_XML };
	int ret = gw_s3_call(u->s, &c, err);

	return ret == 0 ? gw_s3_parse_upload(c.x.body.data, c.x.body.len, u->id, err) : ret;
}

/* An ETag goes back into a document: one that needs quoting in there is none. */
static bool sane_etag(const char *etag)
{
	return etag[0] && strspn(etag, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.=+/\"") == strlen(etag);
}

static int send_part(struct upload *u, unsigned number, const struct gw_bucket_piece *pieces, unsigned count, uint64_t total,
		     struct gw_error *err)
{
	uint64_t at = (uint64_t)number * GW_S3_PART, len = GW_MIN(GW_S3_PART, total - at);
	char text[16];
	gw_s3_autocall c = {
		.method = "PUT", .name = u->name, .query = { { "partNumber", text }, { "uploadId", u->id } },
		.has_body = true, .pieces = pieces, .piece_count = count, .body_at = at, .body_len = len,
		.limit = GW_S3_MAX_XML,
	};
	int ret;

	snprintf(text, sizeof(text), "%u", number + 1);
	ret = gw_s3_call(u->s, &c, err);
	/* To the caller, what is missing is not the object. */
	if (ret == -ENOENT)
		return gw_error_set(err, EIO, "%s: the server has forgotten the upload", u->name);
	if (ret < 0)
		return ret;
	if (!sane_etag(c.x.head.etag))
		return gw_error_set(err, EPROTO, "%s: the server acknowledges a part without a sensible ETag", u->name);
	memcpy(u->etags[number], c.x.head.etag, sizeof(u->etags[number]));
	return 0;
}

/* Whether the object is there as we put it. */
static bool is_there(struct upload *u, uint64_t total)
{
	gw_s3_autocall c = { .method = "HEAD", .name = u->name };

	return gw_s3_call(u->s, &c, NULL) == 0 && c.x.head.length == total && !strcmp(c.x.head.mark, u->mark);
}

static int finish(struct upload *u, uint64_t total, struct gw_error *err)
{
	gw_autobuf body = GW_BUF_INIT;
	struct gw_bucket_piece piece;
	struct gw_s3_fault fault;
	int ret = gw_buf_append(&body, "<CompleteMultipartUpload>", strlen("<CompleteMultipartUpload>"));

	for (unsigned i = 0; i < u->parts && ret == 0; i++) {
		char part[256];
		int len = snprintf(part, sizeof(part), "<Part><PartNumber>%u</PartNumber><ETag>%s</ETag></Part>", i + 1, u->etags[i]);

		ret = gw_buf_append(&body, part, (size_t)len);
	}
	if (ret == 0)
		ret = gw_buf_append(&body, "</CompleteMultipartUpload>", strlen("</CompleteMultipartUpload>"));
	if (ret < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	piece = (struct gw_bucket_piece){ body.data, body.len };
	/* A few times: the server says 200 before it knows, and then that it did not work. */
	for (unsigned i = 0; i < 3; i++) {
		gw_s3_autocall c = { .method = "POST", .name = u->name, .query = { { "uploadId", u->id } }, .has_body = true, .pieces = &piece,
				     .piece_count = 1, .body_len = body.len, .limit = GW_S3_MAX_XML, .patient = true };

		ret = gw_s3_call(u->s, &c, err);
		if (ret == 0)
			ret = gw_s3_parse_complete(c.x.body.data, c.x.body.len, &fault, err);
		if (ret == 0)
			return 0;
		/* The answer to one that was carried out may have been lost. */
		if (ret != -ECANCELED && is_there(u, total))
			return 0;
		if (ret != -EIO || c.x.head.status != 200)
			break;
	}
	return ret == -ENOENT ? gw_error_set(err, EIO, "%s: the server has forgotten the upload", u->name) : ret;
}

/* One try that does not take long, cancelled or not: what is left costs its owner money. */
static void give_up(struct upload *u)
{
	gw_s3_autocall c = { .method = "DELETE", .name = u->name, .query = { { "uploadId", u->id } }, .limit = GW_S3_MAX_XML, .last_words = true };

	gw_s3_call(u->s, &c, NULL);
}

int gw_s3_put_parts(struct gw_s3 *s, const char *name, const struct gw_bucket_piece *pieces, unsigned count, uint64_t total,
		    struct gw_error *err)
{
	struct upload upload = { .s = s, .name = name, .parts = (unsigned)((total + GW_S3_PART - 1) / GW_S3_PART) }, *u = &upload;
	gw_autofree char (*etags)[128] = calloc(u->parts, sizeof(*etags));
	int ret;

	u->etags = etags;
	if (!etags)
		return gw_error_set(err, ENOMEM, "out of memory");
	if (gw_s3_mark(u->mark) < 0)
		return gw_error_set(err, EIO, "no random numbers");
	ret = begin(u, err);
	if (ret < 0)
		return ret;
	for (unsigned i = 0; i < u->parts && ret == 0; i++)
		ret = send_part(u, i, pieces, count, total, err);
	if (ret == 0)
		ret = finish(u, total, err);
	if (ret < 0)
		give_up(u);
	return ret;
}
