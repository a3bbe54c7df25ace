// SPDX-License-Identifier: Apache-2.0
/* Mark objects; see marks.h. */
#include "migrate/repo/marks.h"

#include <errno.h>
#include <openssl/rand.h>
#include <string.h>

#include "lib/buf.h"
#include "lib/util.h"
#include "migrate/repo/coding.h"
#include "migrate/repo/listing.h"
#include "migrate/repo/object.h"

#define MAX_PLAIN (64u << 20)

void gw_pack_set_release(struct gw_pack_set *s)
{
	free(s->ids);
	memset(s, 0, sizeof(*s));
}

int gw_pack_set_add(struct gw_pack_set *s, const uint8_t id[16])
{
	if (s->count == s->cap) {
		size_t cap = GW_MAX(s->cap * 2, (size_t)64);
		void *more = realloc(s->ids, cap * 16);

		if (!more)
			return -ENOMEM;
		s->ids = more;
		s->cap = cap;
	}
	memcpy(s->ids[s->count++], id, 16);
	return 0;
}

static int compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, 16);
}

void gw_pack_set_sort(struct gw_pack_set *s)
{
	if (s->count)
		qsort(s->ids, s->count, 16, compare_ids);
}

bool gw_pack_set_has(const struct gw_pack_set *s, const uint8_t id[16])
{
	return s->count && bsearch(id, s->ids, s->count, 16, compare_ids);
}

int gw_mark_decode(const void *data, uint64_t len, struct gw_pack_set *s)
{
	struct gw_dec d = { data, (const uint8_t *)data + len, false };
	uint64_t n = gw_dec_varint_max(&d, gw_dec_left(&d) / 16);
	int r = 0;

	for (uint64_t i = 0; i < n && r == 0; i++) {
		const uint8_t *id = gw_dec_bytes(&d, 16);

		r = id ? gw_pack_set_add(s, id) : -EBADMSG;
	}
	return r < 0 ? r : d.bad || d.p != d.end ? -EBADMSG : 0;
}

int gw_mark_read(struct gw_bucket *bucket, struct gw_crypt *c, const char *name, struct gw_pack_set *s, struct gw_error *err)
{
	gw_autobuf object = GW_BUF_INIT;
	gw_autobuf plain = GW_BUF_INIT;
	int r = gw_bucket_read(bucket, name, MAX_PLAIN * 2, &object, err);

	if (r == 0)
		r = gw_object_open(c, GW_OBJECT_MARK, name, object.data, object.len, MAX_PLAIN, &plain, err);
	if (r < 0)
		return r;
	r = gw_mark_decode(plain.data, plain.len, s);
	if (r == -EBADMSG)
		return gw_object_damaged(name, err);
	return r < 0 ? gw_error_errno(err, r, "cannot read %s", name) : 0;
}

int gw_marks_read_all(struct gw_bucket *bucket, struct gw_crypt *c, struct gw_pack_set *s, struct gw_error *err)
{
	gw_cleanup(gw_listing_release) struct gw_listing l = { 0 };
	int r = gw_listing_read(bucket, "marks/", &l, err);

	for (size_t i = 0; i < l.count && r == 0; i++) {
		uint8_t id[16];

		if (gw_object_parse_name(l.all[i].name, "marks", id) < 0)
			continue;
		r = gw_mark_read(bucket, c, l.all[i].name, s, err);
		/* Prune is done with it. */
		if (r == -ENOENT)
			r = 0;
	}
	gw_pack_set_sort(s);
	return r;
}

int gw_mark_write(struct gw_bucket *bucket, struct gw_crypt *c, const struct gw_pack_set *s, char *name, struct gw_error *err)
{
	gw_autobuf plain = GW_BUF_INIT;
	gw_autobuf object = GW_BUF_INIT;
	struct gw_enc e = { .buf = &plain };
	uint8_t id[16];
	int r;

	gw_enc_varint(&e, s->count);
	if (s->count)
		gw_enc_bytes(&e, s->ids, s->count * 16);
	if (e.error)
		return gw_error_set(err, ENOMEM, "out of memory");
	if (RAND_bytes(id, sizeof(id)) != 1)
		return gw_error_set(err, EIO, "no random numbers");
	gw_object_name(name, "marks", id);
	r = gw_object_seal(c, GW_OBJECT_MARK, name, plain.data, plain.len, &object, err);
	return r < 0 ? r : gw_object_put(bucket, name, object.data, object.len, err);
}
