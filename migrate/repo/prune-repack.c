// SPDX-License-Identifier: Apache-2.0
/* Packs of which little is used are written again without the rest; see prune-internal.h. */
#include <errno.h>
#include <openssl/rand.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/blob.h"
#include "migrate/repo/index.h"
#include "migrate/repo/object.h"
#include "migrate/repo/prune-internal.h"
#include "migrate/repo/similar.h"

#define NEW_PACK (16u << 20)

/* A blob that moves. */
struct item {
	struct gw_blob_place b; /* where it is, by the survey */
	uint32_t segment;       /* the survey's */
	uint64_t digests;       /* position of the first */
	uint64_t hooks;
};

struct repacking {
	struct gw_survey *s;
	const struct gw_pack_set *packs;
	struct gw_places scratch;    /* of the index that is read */
	struct item *items;
	uint64_t nitems, items_cap;
	struct gw_buf digests, hooks;
	struct gw_blob_coder *coder;
	/* the pack that is filled */
	uint8_t id[16];
	struct gw_buf data;
	uint64_t first;              /* item in it */
	struct gw_places moved;      /* where blobs are from now on */
	struct gw_index_builder builder;
	uint64_t written;
};

/* ---- which blobs ---- */

static enum gw_places_how want_chosen(void *self, const uint8_t id[16], uint64_t size)
{
	return gw_pack_set_has(((struct repacking *)self)->packs, id) ? GW_PLACES_ADD : GW_PLACES_SKIP;
}

static int take_digests(void *self, uint32_t segment, const struct gw_blob_place *b, const uint8_t *digests, const uint8_t *hooks)
{
	struct repacking *rp = self;
	struct gw_survey *s = rp->s;
	uint32_t ours = gw_places_find_segment(&s->places, rp->scratch.segments[segment].id);
	const struct gw_blob_place *at = ours == GW_NO_PLACE ? NULL : gw_places_at(&s->places, ours, b->slot);

	/* Of blobs in several packs the survey has chosen one. */
	if (!at || at->number != b->number || at->offset != b->offset || !gw_survey_uses(s, ours, at) ||
	    memcmp(s->places.packs[at->pack].id, rp->scratch.packs[b->pack].id, 16))
		return 0;
	if (rp->nitems == rp->items_cap) {
		uint64_t cap = GW_MAX(rp->items_cap * 2, (uint64_t)1024);
		struct item *more = realloc(rp->items, cap * sizeof(*more));

		if (!more)
			return -ENOMEM;
		rp->items = more;
		rp->items_cap = cap;
	}
	rp->items[rp->nitems] = (struct item){ *at, ours, rp->digests.len, rp->hooks.len };
	rp->items[rp->nitems++].b.hooks = b->hooks;
	if (gw_buf_append(&rp->hooks, hooks, b->hooks * GW_HOOK_LEN) < 0)
		return -ENOMEM;
	return gw_buf_append(&rp->digests, digests, (size_t)b->pages * GW_PAGE_DIGEST_LEN);
}

static int find_items(struct repacking *rp, struct gw_error *err)
{
	const struct gw_places_sink sink = { .wanted = want_chosen, .digests = take_digests, .self = rp, .has_digests = true };
	int r = 0;

	for (size_t i = 0; i < rp->s->indexes.count && r == 0; i++) {
		uint8_t id[16];

		if (gw_object_parse_name(rp->s->indexes.all[i].name, "index", id) < 0)
			continue;
		r = gw_index_read(gw_repo_bucket(rp->s->repo), rp->s->crypt, rp->s->indexes.all[i].name, &rp->scratch, &sink, err);
		gw_places_release(&rp->scratch);
	}
	return r;
}

static int compare_items(const void *pa, const void *pb)
{
	const struct item *a = pa, *b = pb;

	if (a->b.pack != b->b.pack)
		return a->b.pack < b->b.pack ? -1 : 1;
	return a->b.offset < b->b.offset ? -1 : a->b.offset > b->b.offset;
}

/* In the order of packs, each once: two indexes may have told of it. */
static void sort_items(struct repacking *rp)
{
	uint64_t n = 0;

	if (rp->nitems)
		qsort(rp->items, rp->nitems, sizeof(*rp->items), compare_items);
	for (uint64_t i = 0; i < rp->nitems; i++) {
		if (n == 0 || compare_items(&rp->items[n - 1], &rp->items[i]))
			rp->items[n++] = rp->items[i];
	}
	rp->nitems = n;
}

/* ---- new packs ---- */

static int begin_pack(struct repacking *rp, uint64_t first)
{
	uint8_t *at;

	rp->data.len = 0;
	rp->first = first;
	at = gw_buf_reserve(&rp->data, NEW_PACK + GW_BLOB_MAX_LEN);
	if (!at)
		return -ENOMEM;
	if (RAND_bytes(rp->id, sizeof(rp->id)) != 1)
		return -EIO;
	gw_object_prefix(at, GW_OBJECT_PACK, 0);
	memcpy(at + GW_OBJECT_PREFIX, rp->id, sizeof(rp->id));
	rp->data.len = GW_PACK_HEADER;
	return 0;
}

/* Blobs first..end-1 lie one after the other in the new pack. */
static int add_places(struct repacking *rp, uint64_t end)
{
	uint64_t offset = GW_PACK_HEADER;
	uint32_t pack, segment;
	int r = gw_places_add_pack(&rp->moved, rp->id, rp->data.len, &pack);

	for (uint64_t i = rp->first; i < end && r == 0; i++) {
		struct gw_blob_place b = rp->items[i].b;

		b.pack = pack;
		b.offset = offset;
		offset += b.len;
		r = gw_places_add_segment(&rp->moved, rp->s->places.segments[rp->items[i].segment].id, &segment);
		if (r == 0)
			r = gw_places_add_blob(&rp->moved, segment, &b, true);
	}
	return r;
}

static uint64_t extent_end(const struct repacking *rp, uint64_t first, uint64_t end)
{
	const struct item *x = rp->items;
	uint64_t i = first + 1;

	while (i < end && x[i].segment == x[first].segment && x[i].b.number == x[i - 1].b.number + 1 &&
	       x[i].b.slot == x[i - 1].b.slot + x[i - 1].b.pages)
		i++;
	return i;
}

static int index_pack(struct repacking *rp, uint64_t end)
{
	uint32_t extents = 0;
	int r = add_places(rp, end);

	for (uint64_t i = rp->first; i < end; i = extent_end(rp, i, end))
		extents++;
	if (r == 0)
		gw_index_add_pack(&rp->builder, rp->id, rp->data.len, extents);
	for (uint64_t i = rp->first, to; i < end && r == 0; i = to) {
		gw_autobuf digests = GW_BUF_INIT;
		gw_autobuf hooks = GW_BUF_INIT;
		const struct gw_segment *seg;
		struct gw_extent x;

		to = extent_end(rp, i, end);
		x.segment = gw_places_find_segment(&rp->moved, rp->s->places.segments[rp->items[i].segment].id);
		seg = &rp->moved.segments[x.segment];
		x.first = (uint32_t)(gw_places_at(&rp->moved, x.segment, rp->items[i].b.slot) - seg->blobs);
		x.count = (uint32_t)(to - i);
		for (uint64_t k = i; k < to && r == 0; k++) {
			const struct item *item = &rp->items[k];

			r = gw_buf_append(&digests, rp->digests.data + item->digests, (size_t)item->b.pages * GW_PAGE_DIGEST_LEN);
			if (r == 0)
				r = gw_buf_append(&hooks, rp->hooks.data + item->hooks, item->b.hooks * GW_HOOK_LEN);
		}
		if (r == 0)
			gw_index_add_extent(&rp->builder, &rp->moved, &x, digests.data, hooks.data);
	}
	return r;
}

static int end_pack(struct repacking *rp, uint64_t end, struct gw_error *err)
{
	char name[GW_OBJECT_NAME];
	int r;

	if (end == rp->first)
		return 0;
	gw_object_name(name, "packs", rp->id);
	r = gw_object_put(gw_repo_bucket(rp->s->repo), name, rp->data.data, rp->data.len, err);
	if (r < 0)
		return r;
	rp->written += rp->data.len;
	r = index_pack(rp, end);
	if (r < 0)
		return gw_error_errno(err, r, "cannot make an index of %s", name);
	if (rp->builder.body.len >= GW_INDEX_TARGET)
		r = gw_index_write(&rp->builder, gw_repo_bucket(rp->s->repo), rp->s->crypt, NULL, err);
	return r;
}

/* ---- moving ---- */

static int take_blob(struct repacking *rp, const struct item *item, const char *name, const struct gw_buf *pack, struct gw_error *err)
{
	const struct gw_blob_place *b = &item->b;
	struct gw_blob_key key;
	int r = b->offset + b->len <= pack->len ? 0 : -EBADMSG;

	if (r == 0)
		r = gw_blob_key_derive(rp->coder, rp->s->places.segments[item->segment].id, &key);
	if (r == 0)
		r = gw_blob_verify(rp->coder, &key, b->number, b->pages, pack->data + b->offset, b->len, b->base.blobs ? &b->base : NULL);
	if (r == 0)
		r = gw_buf_append(&rp->data, pack->data + b->offset, b->len);
	if (r == -EBADMSG)
		return gw_object_damaged(name, err);
	return r < 0 ? gw_error_errno(err, r, "cannot rewrite %s", name) : 0;
}

/* Of the packs that are read. */
static uint64_t packed_bytes(const struct repacking *rp)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < rp->nitems; i++) {
		if (i == 0 || rp->items[i].b.pack != rp->items[i - 1].b.pack)
			n += rp->s->places.packs[rp->items[i].b.pack].size;
	}
	return n;
}

static int move_items(struct repacking *rp, struct gw_upkeep *upkeep, struct gw_error *err)
{
	gw_autobuf pack = GW_BUF_INIT;
	char name[GW_OBJECT_NAME];
	int r = 0;

	if (upkeep)
		atomic_store(&upkeep->total, packed_bytes(rp));
	for (uint64_t i = 0; i < rp->nitems && r == 0; i++) {
		const struct item *item = &rp->items[i];

		if (upkeep && atomic_load(&upkeep->stop))
			return gw_error_set(err, ECANCELED, "cancelled");
		if (i == 0 || item->b.pack != rp->items[i - 1].b.pack) {
			if (upkeep)
				atomic_fetch_add(&upkeep->done, pack.len);
			gw_object_name(name, "packs", rp->s->places.packs[item->b.pack].id);
			pack.len = 0;
			r = gw_bucket_read(gw_repo_bucket(rp->s->repo), name, GW_BUCKET_MAX_OBJECT, &pack, err);
		}
		if (r == 0 && (i == 0 || rp->data.len >= NEW_PACK)) {
			if (i)
				r = end_pack(rp, i, err);
			if (r == 0 && begin_pack(rp, i) < 0)
				r = gw_error_set(err, ENOMEM, "out of memory");
		}
		if (r == 0)
			r = take_blob(rp, item, name, &pack, err);
	}
	if (r == 0 && upkeep)
		atomic_fetch_add(&upkeep->done, pack.len);
	if (r == 0 && rp->nitems)
		r = end_pack(rp, rp->nitems, err);
	return r < 0 ? r : gw_index_write(&rp->builder, gw_repo_bucket(rp->s->repo), rp->s->crypt, NULL, err);
}

int gw_prune_repack(struct gw_survey *s, const struct gw_pack_set *packs, struct gw_upkeep *upkeep, uint64_t *written, struct gw_error *err)
{
	struct repacking rp = { .s = s, .packs = packs, .scratch = GW_PLACES_INIT, .moved = GW_PLACES_INIT };
	int r;

	gw_index_builder_init(&rp.builder);
	r = gw_blob_coder_new(gw_repo_keys(s->repo), &rp.coder);
	if (r < 0)
		gw_error_set(err, ENOMEM, "out of memory");
	if (r == 0)
		r = find_items(&rp, err);
	if (r == 0) {
		sort_items(&rp);
		r = move_items(&rp, upkeep, err);
	}
	if (r == 0)
		*written = rp.written;
	gw_index_builder_release(&rp.builder);
	gw_places_release(&rp.moved);
	gw_blob_coder_free(rp.coder);
	gw_buf_release(&rp.digests);
	gw_buf_release(&rp.hooks);
	gw_buf_release(&rp.data);
	free(rp.items);
	return r;
}
