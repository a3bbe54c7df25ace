// SPDX-License-Identifier: Apache-2.0
/* Reading what a blob is told against; see base.h. */
#include "migrate/repo/base.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/object.h"

#define MAX_AHEAD (512u << 10) /* bytes */
#define FIRST_AHEAD (64u << 10)
#define NEAR (256u << 10)      /* so far behind what was read last is still in order */
#define BLOB_ROOM (GW_BLOB_MAX_PAGES * (size_t)GW_PAGE_SIZE)

struct gw_base_reader {
	struct gw_bucket *bucket;
	struct gw_blob_coder *coder;
	/* What the last get has brought. */
	uint8_t pack[16];
	uint64_t start, len;
	uint8_t *data; /* DATA_ROOM */
	uint64_t ahead;
	/* The last base. */
	struct gw_base_ref ref; /* blobs 0: none */
	size_t first_len;       /* bytes of pages of its first blob */
	uint8_t *pages;         /* GW_BASE_MAX_BLOBS * BLOB_ROOM */
};
#define DATA_ROOM (MAX_AHEAD + (uint64_t)GW_BLOB_MAX_LEN)

bool gw_base_find(const struct gw_places *p, const struct gw_base_ref *ref, struct gw_base_place *ret)
{
	uint32_t segment;
	const struct gw_blob_place *b = gw_places_base(p, ref, &segment);

	if (!b)
		return false;
	ret->ref = *ref;
	for (uint32_t i = 0; i < ref->blobs; i++) {
		ret->blobs[i] = b[i];
		ret->packs[i] = p->packs[b[i].pack];
	}
	return true;
}

int gw_base_reader_new(struct gw_bucket *bucket, struct gw_blob_coder *coder, struct gw_base_reader **ret)
{
	struct gw_base_reader *r = calloc(1, sizeof(*r));

	if (!r)
		return -ENOMEM;
	r->bucket = bucket;
	r->coder = coder;
	r->data = malloc(DATA_ROOM);
	r->pages = malloc(GW_BASE_MAX_BLOBS * BLOB_ROOM);
	if (!r->data || !r->pages) {
		gw_base_reader_free(r);
		return -ENOMEM;
	}
	*ret = r;
	return 0;
}

void gw_base_reader_free(struct gw_base_reader *r)
{
	if (!r)
		return;
	free(r->data);
	free(r->pages);
	free(r);
}

/* The sealed bytes of a blob, of the last get where they are in it. */
static int get(struct gw_base_reader *r, const struct gw_blob_place *b, const struct gw_pack_place *pack, const char *name, const uint8_t **ret,
	       struct gw_error *err)
{
	const bool same = r->len && !memcmp(r->pack, pack->id, sizeof(r->pack));
	int e;

	if (!same || b->offset < r->start || b->offset + b->len > r->start + r->len) {
		const bool in_order = same && b->offset >= r->start && b->offset <= r->start + r->len + NEAR;

		r->ahead = !in_order ? 0 : r->ahead ? GW_MIN(r->ahead * 2, (uint64_t)MAX_AHEAD) : FIRST_AHEAD;
		memcpy(r->pack, pack->id, sizeof(r->pack));
		r->start = b->offset;
		r->len = GW_MIN(b->len + r->ahead, pack->size - b->offset);
		e = gw_bucket_get(r->bucket, name, r->start, r->len, r->data, err);
		if (e < 0) {
			r->len = 0;
			return e == -EPROTO ? gw_object_damaged(name, err) : e;
		}
	}
	*ret = r->data + (b->offset - r->start);
	return 0;
}

static int read_blob(struct gw_base_reader *r, const struct gw_blob_key *key, const struct gw_blob_place *b, const struct gw_pack_place *pack,
		     uint8_t *out, struct gw_error *err)
{
	char name[GW_OBJECT_NAME];
	const uint8_t *data = NULL;
	int e;

	gw_object_name(name, "packs", pack->id);
	e = get(r, b, pack, name, &data, err);
	if (e < 0)
		return e;
	e = gw_blob_open(r->coder, key, b->number, b->pages, data, b->len, NULL, out);
	if (e == -EBADMSG)
		return gw_error_set(err, e, "%s is damaged, or not what belongs there, at byte %llu", name, (unsigned long long)b->offset);
	return e < 0 ? gw_error_errno(err, e, "cannot decrypt %s", name) : 0;
}

/* The last one's second blob is often this one's first. Returns how many blobs are there. */
static uint32_t take_over(struct gw_base_reader *r, const struct gw_base_place *base)
{
	if (r->ref.blobs < 2 || memcmp(r->ref.segment, base->ref.segment, sizeof(r->ref.segment)) ||
	    base->ref.slot != r->ref.slot + r->first_len / GW_PAGE_SIZE)
		return 0;
	memmove(r->pages, r->pages + r->first_len, base->blobs[0].pages * GW_PAGE_SIZE);
	return 1;
}

static int read_all(struct gw_base_reader *r, const struct gw_base_place *base, struct gw_error *err)
{
	uint32_t i = take_over(r, base);
	struct gw_blob_key key;
	size_t len = 0;
	int e = gw_blob_key_derive(r->coder, base->ref.segment, &key);

	r->ref.blobs = 0;
	r->first_len = base->blobs[0].pages * GW_PAGE_SIZE;
	for (len = i * r->first_len; i < base->ref.blobs && e == 0; i++) {
		e = read_blob(r, &key, &base->blobs[i], &base->packs[i], r->pages + len, err);
		len += base->blobs[i].pages * GW_PAGE_SIZE;
	}
	OPENSSL_cleanse(&key, sizeof(key));
	if (e == 0)
		r->ref = base->ref;
	return e;
}

int gw_base_read(struct gw_base_reader *r, const struct gw_base_place *base, struct gw_blob_base *ret, struct gw_error *err)
{
	int e = 0;

	if (r->ref.blobs != base->ref.blobs || r->ref.slot != base->ref.slot || memcmp(r->ref.segment, base->ref.segment, sizeof(r->ref.segment)))
		e = read_all(r, base, err);
	if (e < 0)
		return e;
	ret->ref = base->ref;
	ret->pages = r->pages;
	ret->len = 0;
	for (uint32_t i = 0; i < base->ref.blobs; i++)
		ret->len += base->blobs[i].pages * GW_PAGE_SIZE;
	return 0;
}
