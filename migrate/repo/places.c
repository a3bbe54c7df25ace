// SPDX-License-Identifier: Apache-2.0
/* Tables of segments, packs and blobs; see places.h. */
#include "migrate/repo/places.h"

#include <errno.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"
#include "migrate/repo/blob.h"
#include "migrate/repo/bucket.h"
#include "migrate/repo/similar.h"

void gw_places_release(struct gw_places *p)
{
	for (uint32_t i = 0; i < p->nsegments; i++)
		free(p->segments[i].blobs);
	free(p->segments);
	free(p->packs);
	free(p->segment_table);
	free(p->pack_table);
	*p = (struct gw_places)GW_PLACES_INIT;
}

/* ---- by id: both arrays begin their elements with it ---- */

struct by_id {
	void **array;
	uint32_t *count, *cap;
	uint32_t **table, *slots;
	size_t size; /* of an element */
};

static const uint8_t *id_of(const struct by_id *t, uint32_t number)
{
	return (const uint8_t *)*t->array + number * t->size;
}

/* Ids are random, and authenticated: eight bytes of one are a hash. */
static uint32_t find_slot(const struct by_id *t, const uint8_t id[16])
{
	uint32_t at = (uint32_t)gw_get_le64(id) & (*t->slots - 1);

	while ((*t->table)[at] && memcmp(id_of(t, (*t->table)[at] - 1), id, 16))
		at = (at + 1) & (*t->slots - 1);
	return at;
}

static uint32_t find(const struct by_id *t, const uint8_t id[16])
{
	uint32_t n = *t->slots ? (*t->table)[find_slot(t, id)] : 0;

	return n ? n - 1 : GW_NO_PLACE;
}

static int grow_table(struct by_id *t)
{
	uint32_t slots = *t->slots ? *t->slots * 2 : 64;
	uint32_t *table = calloc(slots, sizeof(*table));

	if (!table)
		return -ENOMEM;
	free(*t->table);
	*t->table = table;
	*t->slots = slots;
	for (uint32_t i = 0; i < *t->count; i++)
		table[find_slot(t, id_of(t, i))] = i + 1;
	return 0;
}

static int add(struct by_id *t, const uint8_t id[16], uint32_t *ret)
{
	if (*t->count == *t->cap) {
		uint32_t cap = GW_MAX(*t->cap * 2, 16u);
		void *more = realloc(*t->array, cap * t->size);

		if (!more)
			return -ENOMEM;
		*t->array = more;
		*t->cap = cap;
	}
	if (*t->count + 1 > *t->slots / 2 && grow_table(t) < 0)
		return -ENOMEM;
	(*t->table)[find_slot(t, id)] = *t->count + 1;
	memset((uint8_t *)*t->array + *t->count * t->size, 0, t->size);
	memcpy((uint8_t *)*t->array + *t->count * t->size, id, 16);
	*ret = (*t->count)++;
	return 0;
}

static struct by_id segments_by_id(const struct gw_places *cp)
{
	struct gw_places *p = (struct gw_places *)cp;

	return (struct by_id){ (void **)&p->segments, &p->nsegments,     &p->segments_cap,
			       &p->segment_table,     &p->segment_slots, sizeof(*p->segments) };
}

static struct by_id packs_by_id(const struct gw_places *cp)
{
	struct gw_places *p = (struct gw_places *)cp;

	return (struct by_id){ (void **)&p->packs, &p->npacks, &p->packs_cap, &p->pack_table, &p->pack_slots, sizeof(*p->packs) };
}

uint32_t gw_places_find_segment(const struct gw_places *p, const uint8_t id[16])
{
	struct by_id t = segments_by_id(p);

	return find(&t, id);
}

uint32_t gw_places_find_pack(const struct gw_places *p, const uint8_t id[16])
{
	struct by_id t = packs_by_id(p);

	return find(&t, id);
}

int gw_places_add_segment(struct gw_places *p, const uint8_t id[16], uint32_t *ret)
{
	struct by_id t = segments_by_id(p);
	uint32_t n = find(&t, id);

	if (n == GW_NO_PLACE)
		return add(&t, id, ret);
	*ret = n;
	return 0;
}

int gw_places_add_pack(struct gw_places *p, const uint8_t id[16], uint64_t size, uint32_t *ret)
{
	struct by_id t = packs_by_id(p);
	uint32_t n = find(&t, id);
	int r = 0;

	if (n == GW_NO_PLACE) {
		r = add(&t, id, &n);
		if (r == 0)
			p->packs[n].size = size;
	} else if (p->packs[n].size != size) {
		r = -EBADMSG;
	}
	if (r == 0)
		*ret = n;
	return r;
}

/* ---- blobs ---- */

/* The first whose number is not below. */
static uint32_t lower_bound(const struct gw_segment *s, uint32_t number)
{
	uint32_t low = 0, high = s->count;

	if (s->count && s->blobs[s->count - 1].number < number)
		return s->count;
	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (s->blobs[mid].number < number)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* Each blob holds at least a page: so numbers and slots must leave room for those that are not known. */
static bool in_order(const struct gw_blob_place *a, const struct gw_blob_place *b)
{
	return a->slot + a->pages <= b->slot && b->slot - (a->slot + a->pages) >= b->number - a->number - 1;
}

static bool same_base(const struct gw_base_ref *a, const struct gw_base_ref *b)
{
	return a->blobs == b->blobs && a->slot == b->slot && !memcmp(a->segment, b->segment, sizeof(a->segment));
}

bool gw_places_same_blob(const struct gw_blob_place *a, const struct gw_blob_place *b)
{
	return a->number == b->number && a->slot == b->slot && a->pages == b->pages && a->len == b->len && same_base(&a->base, &b->base);
}

int gw_places_add_blob(struct gw_places *p, uint32_t segment, const struct gw_blob_place *b, bool move)
{
	struct gw_segment *s = &p->segments[segment];
	uint32_t at = lower_bound(s, b->number);

	if (at < s->count && s->blobs[at].number == b->number) {
		if (!gw_places_same_blob(&s->blobs[at], b))
			return -EBADMSG;
		if (move)
			s->blobs[at] = *b;
		return 0;
	}
	if (b->slot < b->number || (at > 0 && !in_order(&s->blobs[at - 1], b)) || (at < s->count && !in_order(b, &s->blobs[at])))
		return -EBADMSG;
	if (s->count == s->cap) {
		uint32_t cap = GW_MAX(s->cap * 2, 16u);
		struct gw_blob_place *more = realloc(s->blobs, cap * sizeof(*more));

		if (!more)
			return -ENOMEM;
		s->blobs = more;
		s->cap = cap;
	}
	memmove(&s->blobs[at + 1], &s->blobs[at], (s->count - at) * sizeof(*s->blobs));
	s->blobs[at] = *b;
	s->count++;
	return 0;
}

const struct gw_blob_place *gw_places_at(const struct gw_places *p, uint32_t segment, uint32_t slot)
{
	const struct gw_segment *s;
	uint32_t low = 0, high;

	if (segment >= p->nsegments)
		return NULL;
	s = &p->segments[segment];
	high = s->count;
	while (low < high) { /* the first that begins after the slot */
		uint32_t mid = low + (high - low) / 2;

		if (s->blobs[mid].slot <= slot)
			low = mid + 1;
		else
			high = mid;
	}
	return low && slot - s->blobs[low - 1].slot < s->blobs[low - 1].pages ? &s->blobs[low - 1] : NULL;
}

const struct gw_blob_place *gw_places_base(const struct gw_places *p, const struct gw_base_ref *base, uint32_t *segment)
{
	const struct gw_blob_place *b, *end;

	*segment = gw_places_find_segment(p, base->segment);
	b = gw_places_at(p, *segment, base->slot);
	if (!b || b->slot != base->slot)
		return NULL;
	end = p->segments[*segment].blobs + p->segments[*segment].count;
	for (uint32_t i = 0; i < base->blobs; i++) {
		if (&b[i] == end || b[i].base.blobs || b[i].number != b->number + i)
			return NULL;
	}
	return b;
}

/* ---- coding ---- */

/* After a blob's number of pages, which is at most 64. Where there is neither, it is as it was in the first version of the format. */
#define PAGES_MASK 0x7fu
#define HAS_BASE 0x80u  /* id of its segment, varint slot, varint blobs */
#define HAS_HOOKS 0x100u /* varint number, four bytes each */
#define MAX_FLAGS 0x1ffu

static void encode_blob(struct gw_enc *e, const struct gw_blob_place *b, const uint8_t *hooks)
{
	const bool has_hooks = hooks && b->hooks;

	gw_enc_varint(e, b->len);
	gw_enc_varint(e, b->pages | (b->base.blobs ? HAS_BASE : 0) | (has_hooks ? HAS_HOOKS : 0));
	if (b->base.blobs) {
		gw_enc_bytes(e, b->base.segment, sizeof(b->base.segment));
		gw_enc_varint(e, b->base.slot);
		gw_enc_varint(e, b->base.blobs);
	}
	if (has_hooks) {
		gw_enc_varint(e, b->hooks);
		gw_enc_bytes(e, hooks, b->hooks * GW_HOOK_LEN);
	}
}

void gw_extent_encode(struct gw_enc *e, const struct gw_places *p, const struct gw_extent *x, const uint8_t *hooks)
{
	const struct gw_segment *s = &p->segments[x->segment];
	const struct gw_blob_place *b = &s->blobs[x->first];

	gw_enc_bytes(e, s->id, 16);
	gw_enc_varint(e, b->number);
	gw_enc_varint(e, b->slot);
	gw_enc_varint(e, b->offset);
	gw_enc_varint(e, x->count);
	for (uint32_t i = 0; i < x->count; i++) {
		encode_blob(e, &b[i], hooks);
		if (hooks)
			hooks += b[i].hooks * GW_HOOK_LEN;
	}
}

static void decode_base(struct gw_dec *d, struct gw_base_ref *base)
{
	const uint8_t *segment = gw_dec_bytes(d, sizeof(base->segment));

	if (segment)
		memcpy(base->segment, segment, sizeof(base->segment));
	base->slot = (uint32_t)gw_dec_varint_max(d, GW_PLACES_MAX_SLOT);
	base->blobs = (uint32_t)gw_dec_varint_max(d, GW_BASE_MAX_BLOBS);
	d->bad |= base->blobs == 0;
}

/* Reads one blob of an extent. */
static bool decode_blob(struct gw_dec *d, struct gw_blob_place *b, uint64_t size, const uint8_t **hooks)
{
	uint64_t flags;

	b->len = (uint32_t)gw_dec_varint_max(d, GW_BLOB_MAX_LEN);
	flags = gw_dec_varint_max(d, MAX_FLAGS);
	b->pages = (uint32_t)(flags & PAGES_MASK);
	b->base = (struct gw_base_ref){ 0 };
	if (flags & HAS_BASE)
		decode_base(d, &b->base);
	b->hooks = flags & HAS_HOOKS ? (uint32_t)gw_dec_varint_max(d, GW_BLOB_MAX_HOOKS) : 0;
	*hooks = gw_dec_bytes(d, b->hooks * GW_HOOK_LEN);
	return !d->bad && b->pages <= GW_BLOB_MAX_PAGES && b->len > GW_BLOB_HEADER && b->pages != 0 && b->len <= GW_BLOB_HEADER + b->pages * GW_PAGE_SIZE &&
	       b->offset + b->len <= size && b->slot <= GW_PLACES_MAX_SLOT - b->pages && b->number != UINT32_MAX;
}

static void next_blob(struct gw_blob_place *b)
{
	b->offset += b->len;
	b->slot += b->pages;
	b->number++;
}

/* The digests come after all blobs of the extent, which are read again from `blobs` on. */
static int decode_digests(struct gw_dec *d, struct gw_dec blobs, struct gw_blob_place b, uint32_t count, uint64_t pages, uint64_t size,
			  uint32_t segment, enum gw_places_how how, const struct gw_places_sink *sink)
{
	const uint8_t *digests = gw_dec_bytes(d, pages * GW_PAGE_DIGEST_LEN);
	int r = digests ? 0 : -EBADMSG;

	for (uint32_t i = 0; i < count && r == 0 && how != GW_PLACES_SKIP && sink->digests; i++) {
		const uint8_t *hooks;

		decode_blob(&blobs, &b, size, &hooks);
		r = sink->digests(sink->self, segment, &b, digests, hooks);
		digests += b.pages * GW_PAGE_DIGEST_LEN;
		next_blob(&b);
	}
	return r;
}

static int decode_extent(struct gw_dec *d, struct gw_places *p, uint32_t pack, uint64_t size, enum gw_places_how how,
			 const struct gw_places_sink *sink)
{
	const uint8_t *id = gw_dec_bytes(d, 16);
	struct gw_blob_place b = { .pack = pack }, first;
	uint32_t segment = GW_NO_PLACE, count;
	const uint8_t *hooks;
	struct gw_dec blobs;
	int r = 0;

	b.number = (uint32_t)gw_dec_varint_max(d, UINT32_MAX - 1);
	b.slot = (uint32_t)gw_dec_varint_max(d, GW_PLACES_MAX_SLOT);
	b.offset = gw_dec_varint_max(d, GW_BUCKET_MAX_OBJECT);
	count = (uint32_t)gw_dec_varint_max(d, gw_dec_left(d) / 2);
	if (d->bad || count == 0 || b.offset < GW_PACK_HEADER)
		return -EBADMSG;
	first = b;
	blobs = *d;
	if (how != GW_PLACES_SKIP)
		r = gw_places_add_segment(p, id, &segment);
	for (uint32_t i = 0; i < count && r == 0; i++) {
		if (!decode_blob(d, &b, size, &hooks))
			return -EBADMSG;
		if (how != GW_PLACES_SKIP)
			r = gw_places_add_blob(p, segment, &b, how == GW_PLACES_MOVE);
		next_blob(&b);
	}
	if (r == 0 && sink->has_digests)
		r = decode_digests(d, blobs, first, count, b.slot - first.slot, size, segment, how, sink);
	return r;
}

int gw_places_decode(struct gw_dec *d, struct gw_places *p, const struct gw_places_sink *sink)
{
	uint64_t packs = gw_dec_varint(d);
	int r = 0;

	for (uint64_t i = 0; i < packs && r == 0 && !d->bad; i++) {
		const uint8_t *start = d->p;
		const uint8_t *id = gw_dec_bytes(d, 16);
		uint64_t size = gw_dec_varint_max(d, GW_BUCKET_MAX_OBJECT), extents = gw_dec_varint(d);
		uint32_t pack = GW_NO_PLACE;
		enum gw_places_how how;

		if (d->bad)
			break;
		how = sink->wanted ? sink->wanted(sink->self, id, size) : GW_PLACES_ADD;
		if (how != GW_PLACES_SKIP)
			r = gw_places_add_pack(p, id, size, &pack);
		for (uint64_t k = 0; k < extents && r == 0; k++)
			r = decode_extent(d, p, pack, size, how, sink);
		if (r == 0 && sink->section)
			r = sink->section(sink->self, id, start, (uint64_t)(d->p - start));
	}
	return d->bad ? -EBADMSG : r;
}
