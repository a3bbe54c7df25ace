// SPDX-License-Identifier: Apache-2.0
/* Index objects; see index.h. */
#include "migrate/repo/index.h"

#include <errno.h>
#include <openssl/rand.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/listing.h"
#include "migrate/repo/object.h"

#define TRIES 8 /* of reading all while prune exchanges them */

void gw_index_builder_init(struct gw_index_builder *b)
{
	memset(b, 0, sizeof(*b));
	b->enc.buf = &b->body;
}

void gw_index_builder_release(struct gw_index_builder *b)
{
	gw_buf_release(&b->body);
}

void gw_index_add_pack(struct gw_index_builder *b, const uint8_t id[16], uint64_t size, uint32_t extents)
{
	gw_enc_bytes(&b->enc, id, 16);
	gw_enc_varint(&b->enc, size);
	gw_enc_varint(&b->enc, extents);
	b->packs++;
}

void gw_index_add_extent(struct gw_index_builder *b, const struct gw_places *p, const struct gw_extent *x, const uint8_t *digests,
			 const uint8_t *hooks)
{
	const struct gw_blob_place *blobs = &p->segments[x->segment].blobs[x->first];
	uint64_t pages = 0;

	gw_extent_encode(&b->enc, p, x, hooks);
	for (uint32_t i = 0; i < x->count; i++)
		pages += blobs[i].pages;
	gw_enc_bytes(&b->enc, digests, pages * GW_PAGE_DIGEST_LEN);
}

int gw_index_write(struct gw_index_builder *b, struct gw_bucket *bucket, struct gw_crypt *c, char *ret_name, struct gw_error *err)
{
	gw_autobuf plain = GW_BUF_INIT;
	gw_autobuf object = GW_BUF_INIT;
	struct gw_enc e = { .buf = &plain };
	char name[GW_OBJECT_NAME];
	uint8_t id[16];
	int r;

	if (b->packs == 0)
		return 0;
	gw_enc_varint(&e, b->packs);
	gw_enc_bytes(&e, b->body.data, b->body.len);
	if (e.error || b->enc.error)
		return gw_error_set(err, ENOMEM, "out of memory");
	if (RAND_bytes(id, sizeof(id)) != 1)
		return gw_error_set(err, EIO, "no random numbers");
	gw_object_name(name, "index", id);
	r = gw_object_seal(c, GW_OBJECT_INDEX, name, plain.data, plain.len, &object, err);
	if (r == 0)
		r = gw_object_put(bucket, name, object.data, object.len, err);
	if (r < 0)
		return r;
	if (ret_name)
		memcpy(ret_name, name, sizeof(name));
	gw_index_builder_release(b);
	gw_index_builder_init(b);
	return 0;
}

int gw_index_decode(const void *data, uint64_t len, struct gw_places *p, const struct gw_places_sink *sink)
{
	struct gw_dec d = { data, (const uint8_t *)data + len, false };
	int r = gw_places_decode(&d, p, sink);

	return r < 0 ? r : d.p == d.end ? 0 : -EBADMSG;
}

int gw_index_read(struct gw_bucket *bucket, struct gw_crypt *c, const char *name, struct gw_places *p, const struct gw_places_sink *sink,
		  struct gw_error *err)
{
	gw_autobuf object = GW_BUF_INIT;
	gw_autobuf plain = GW_BUF_INIT;
	int r = gw_bucket_read(bucket, name, GW_INDEX_MAX_OBJECT, &object, err);

	if (r == -EFBIG)
		return gw_object_damaged(name, err);
	if (r == 0)
		r = gw_object_open(c, GW_OBJECT_INDEX, name, object.data, object.len, GW_INDEX_MAX_PLAIN, &plain, err);
	if (r < 0)
		return r;
	gw_buf_release(&object);
	r = gw_index_decode(plain.data, plain.len, p, sink);
	if (r == -EBADMSG)
		return gw_object_damaged(name, err);
	return r < 0 ? gw_error_errno(err, r, "cannot read %s", name) : 0;
}

static int read_listed(struct gw_bucket *bucket, struct gw_crypt *c, struct gw_places *p, const struct gw_places_sink *sink, struct gw_error *err)
{
	gw_cleanup(gw_listing_release) struct gw_listing l = { 0 };
	int r = gw_listing_read(bucket, "index/", &l, err);

	for (size_t i = 0; i < l.count && r == 0; i++) {
		uint8_t id[16];

		if (gw_object_parse_name(l.all[i].name, "index", id) == 0)
			r = gw_index_read(bucket, c, l.all[i].name, p, sink, err);
	}
	return r;
}

int gw_index_read_all(struct gw_bucket *bucket, struct gw_crypt *c, struct gw_places *p, const struct gw_places_sink *sink, struct gw_error *err)
{
	int r = -ENOENT;

	for (int i = 0; i < TRIES && r == -ENOENT; i++)
		r = read_listed(bucket, c, p, sink, err);
	return r;
}
