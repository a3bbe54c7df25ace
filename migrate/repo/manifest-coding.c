// SPDX-License-Identifier: Apache-2.0
/* The contents of a manifest's head and body; see manifest.h and docs/REPOSITORY.md. */
#include <errno.h>
#include <string.h>

#include "lib/parse.h"
#include "lib/util.h"
#include "migrate/repo/manifest.h"

/* ---- head ---- */

int gw_manifest_encode_head(const struct gw_snap_info *info, const struct gw_body_bind *body, struct gw_buf *out)
{
	struct gw_enc e = { .buf = out };

	gw_enc_bytes(&e, body->tag, sizeof(body->tag));
	gw_enc_bytes(&e, info->id, 16);
	gw_enc_string(&e, info->name);
	gw_enc_varint(&e, info->generation);
	gw_enc_varint(&e, info->created_ns);
	gw_enc_string(&e, info->vm);
	gw_enc_bytes(&e, info->vm_id, 16);
	gw_enc_string(&e, info->host);
	gw_enc_bytes(&e, info->parent, 16);
	gw_enc_bytes(&e, info->origin, 16);
	gw_enc_varint(&e, info->pages);
	gw_enc_varint(&e, info->used);
	gw_enc_varint(&e, info->new_pages);
	gw_enc_varint(&e, info->new_bytes);
	gw_enc_varint(&e, info->nregions);
	for (unsigned i = 0; i < info->nregions; i++) {
		gw_enc_varint(&e, info->regions[i].gpa);
		gw_enc_varint(&e, info->regions[i].size);
	}
	gw_enc_varint(&e, info->ndisks);
	for (unsigned i = 0; i < info->ndisks; i++)
		gw_enc_string(&e, info->disks[i]);
	return e.error;
}

static void dec_id(struct gw_dec *d, uint8_t id[16])
{
	const uint8_t *p = gw_dec_bytes(d, 16);

	if (p)
		memcpy(id, p, 16);
}

static void decode_regions(struct gw_dec *d, struct gw_snap_info *info)
{
	uint64_t pages = 0, end = 0;

	info->nregions = (unsigned)gw_dec_varint_max(d, GW_RAM_MAX_REGIONS);
	for (unsigned i = 0; i < info->nregions && !d->bad; i++) {
		struct gw_snap_region *r = &info->regions[i];

		r->gpa = gw_dec_varint(d);
		r->size = gw_dec_varint_max(d, GW_SNAP_MAX_PAGES * GW_PAGE_SIZE);
		if (r->gpa % GW_PAGE_SIZE || r->size % GW_PAGE_SIZE || r->size == 0 || r->gpa < end ||
		    __builtin_add_overflow(r->gpa, r->size, &end))
			d->bad = true;
		pages += r->size / GW_PAGE_SIZE;
	}
	if (pages != info->pages || info->used > info->pages)
		d->bad = true;
}

int gw_manifest_decode_head(const void *data, uint64_t len, struct gw_snap_info *ret, struct gw_body_bind *body)
{
	struct gw_dec d = { data, (const uint8_t *)data + len, false };
	struct gw_snap_info *info = ret;
	const uint8_t *tag = gw_dec_bytes(&d, sizeof(body->tag));

	memset(info, 0, sizeof(*info));
	if (tag)
		memcpy(body->tag, tag, sizeof(body->tag));
	dec_id(&d, info->id);
	gw_dec_string(&d, info->name, sizeof(info->name));
	info->generation = gw_dec_varint(&d);
	info->created_ns = gw_dec_varint(&d);
	gw_dec_string(&d, info->vm, sizeof(info->vm));
	dec_id(&d, info->vm_id);
	gw_dec_string(&d, info->host, sizeof(info->host));
	dec_id(&d, info->parent);
	dec_id(&d, info->origin);
	info->pages = gw_dec_varint_max(&d, GW_SNAP_MAX_PAGES);
	info->used = gw_dec_varint(&d);
	info->new_pages = gw_dec_varint(&d);
	info->new_bytes = gw_dec_varint(&d);
	decode_regions(&d, info);
	info->ndisks = (unsigned)gw_dec_varint_max(&d, GW_SNAP_MAX_DISKS);
	for (unsigned i = 0; i < info->ndisks; i++)
		gw_dec_string(&d, info->disks[i], sizeof(info->disks[i]));
	if (d.bad || d.p != d.end || info->generation == 0 || gw_parse_name(info->name, "snapshot", NULL) < 0)
		return -EBADMSG;
	return 0;
}

/* ---- body ---- */

static int by_pack(const void *pa, const void *pb, void *self)
{
	const struct gw_manifest *m = self;
	const struct gw_extent *a = pa, *b = pb;
	const struct gw_blob_place *x = &m->places.segments[a->segment].blobs[a->first], *y = &m->places.segments[b->segment].blobs[b->first];

	if (x->pack != y->pack)
		return x->pack < y->pack ? -1 : 1;
	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Blobs of a segment that follow each other in a pack become one extent. */
static int find_extents(const struct gw_places *p, struct gw_extent **ret, uint32_t *count)
{
	struct gw_extent *x = NULL;
	uint32_t n = 0, cap = 0;

	for (uint32_t s = 0; s < p->nsegments; s++) {
		const struct gw_blob_place *b = p->segments[s].blobs;

		for (uint32_t i = 0; i < p->segments[s].count; i++) {
			if (i && b[i].pack == b[i - 1].pack && b[i].number == b[i - 1].number + 1 &&
			    b[i].offset == b[i - 1].offset + b[i - 1].len && b[i].slot == b[i - 1].slot + b[i - 1].pages) {
				x[n - 1].count++;
				continue;
			}
			if (n == cap) {
				struct gw_extent *more = realloc(x, (cap = GW_MAX(cap * 2, 64u)) * sizeof(*x));

				if (!more) {
					free(x);
					return -ENOMEM;
				}
				x = more;
			}
			x[n++] = (struct gw_extent){ s, i, 1 };
		}
	}
	*ret = x;
	*count = n;
	return 0;
}

/*
 * Writes the table, and in map[] which number each segment will have for the reader, who counts them as they come.
 */
static int encode_places(struct gw_enc *e, const struct gw_manifest *m, uint32_t *map)
{
	const struct gw_places *p = &m->places;
	gw_autofree struct gw_extent *x = NULL;
	uint32_t n, packs = 0, seen = 0;
	int r = find_extents(p, &x, &n);

	if (r < 0)
		return r;
	for (uint32_t i = 0; i < p->nsegments; i++)
		map[i] = GW_NO_PLACE;
	if (n)
		qsort_r(x, n, sizeof(*x), by_pack, (void *)m);
#define PACK(i) (p->segments[x[i].segment].blobs[x[i].first].pack)
	for (uint32_t i = 0; i < n; i++)
		packs += i == 0 || PACK(i) != PACK(i - 1);
	gw_enc_varint(e, packs);
	for (uint32_t i = 0; i < n; i++) {
		if (i == 0 || PACK(i) != PACK(i - 1)) {
			uint32_t k = i;

			while (k < n && PACK(k) == PACK(i))
				k++;
			gw_enc_bytes(e, p->packs[PACK(i)].id, 16);
			gw_enc_varint(e, p->packs[PACK(i)].size);
			gw_enc_varint(e, k - i);
		}
		if (map[x[i].segment] == GW_NO_PLACE)
			map[x[i].segment] = seen++;
		gw_extent_encode(e, p, &x[i], NULL);
	}
#undef PACK
	return e->error;
}

/* A run that goes on where the last one of its segment ended costs three bytes or four. */
static int encode_runs(struct gw_enc *e, const struct gw_manifest *m, const uint32_t *map)
{
	gw_autofree uint32_t *next = calloc(m->places.nsegments + 1, sizeof(*next));
	uint64_t page = 0;

	if (!next)
		return -ENOMEM;
	gw_enc_varint(e, m->nruns);
	for (uint64_t i = 0; i < m->nruns; i++) {
		const struct gw_snap_run *r = &m->runs[i];

		gw_enc_varint(e, r->page - page);
		gw_enc_varint(e, r->count);
		gw_enc_varint(e, map[r->segment]);
		gw_enc_signed(e, (int64_t)r->slot - next[r->segment]);
		next[r->segment] = r->slot + r->count;
		page = r->page + r->count;
	}
	return e->error;
}

int gw_manifest_encode_body(const struct gw_manifest *m, struct gw_buf *out)
{
	struct gw_enc e = { .buf = out };
	gw_autofree uint32_t *map = calloc(m->places.nsegments + 1, sizeof(*map));
	int r = map ? encode_places(&e, m, map) : -ENOMEM;

	if (r == 0)
		r = encode_runs(&e, m, map);
	gw_enc_varint(&e, m->nparts);
	for (unsigned i = 0; i < m->nparts; i++) {
		gw_enc_string(&e, m->parts[i].name);
		gw_enc_varint(&e, m->parts[i].len);
		gw_enc_bytes(&e, m->parts[i].data, m->parts[i].len);
	}
	return r < 0 ? r : e.error;
}

/* Whether blobs hold all slots of the run. */
static bool run_has_blobs(const struct gw_places *p, const struct gw_snap_run *run)
{
	uint64_t slot = run->slot, end = slot + run->count;

	while (slot < end) {
		const struct gw_blob_place *b = gw_places_at(p, run->segment, (uint32_t)slot);

		if (!b)
			return false;
		slot = (uint64_t)b->slot + b->pages;
	}
	return true;
}

/* A snapshot is read without an index. */
static bool have_bases(const struct gw_places *p)
{
	for (uint32_t s = 0; s < p->nsegments; s++) {
		for (uint32_t i = 0; i < p->segments[s].count; i++) {
			const struct gw_base_ref *base = &p->segments[s].blobs[i].base;
			uint32_t segment;

			if (base->blobs && !gw_places_base(p, base, &segment))
				return false;
		}
	}
	return true;
}

static int decode_runs(struct gw_dec *d, struct gw_manifest *m)
{
	gw_autofree uint32_t *next = calloc(m->places.nsegments + 1, sizeof(*next));
	uint64_t n = gw_dec_varint_max(d, gw_dec_left(d) / 4), page = 0, used = 0;

	m->runs = malloc((n + 1) * sizeof(*m->runs));
	if (!next || !m->runs)
		return -ENOMEM;
	for (uint64_t i = 0; i < n; i++) {
		struct gw_snap_run *r = &m->runs[i];
		uint64_t gap = gw_dec_varint_max(d, GW_SNAP_MAX_PAGES);
		int64_t slot;

		r->count = (uint32_t)gw_dec_varint_max(d, UINT32_MAX);
		r->segment = (uint32_t)gw_dec_varint_max(d, UINT32_MAX);
		slot = gw_dec_signed(d);
		if (d->bad || r->segment >= m->places.nsegments || r->count == 0 || slot > UINT32_MAX || slot < -(int64_t)UINT32_MAX)
			return -EBADMSG;
		slot += next[r->segment];
		r->page = page + gap;
		page = r->page + r->count;
		if (slot < 0 || slot + r->count > GW_PLACES_MAX_SLOT || page > m->info.pages)
			return -EBADMSG;
		r->slot = (uint32_t)slot;
		next[r->segment] = r->slot + r->count;
		used += r->count;
		if (!run_has_blobs(&m->places, r))
			return -EBADMSG;
	}
	m->nruns = n;
	return used == m->info.used ? 0 : -EBADMSG;
}

static int decode_parts(struct gw_dec *d, struct gw_manifest *m)
{
	unsigned n = (unsigned)gw_dec_varint_max(d, GW_SNAP_MAX_PARTS);

	for (unsigned i = 0; i < n && !d->bad; i++) {
		char name[sizeof(m->parts[0].name)];
		const uint8_t *data;
		uint64_t len;
		int r;

		gw_dec_string(d, name, sizeof(name));
		len = gw_dec_varint_max(d, GW_SNAP_MAX_PART);
		data = gw_dec_bytes(d, len);
		if (d->bad)
			break;
		r = gw_manifest_set_part(m, name, data, len);
		if (r < 0)
			return r == -EINVAL ? -EBADMSG : r;
	}
	return d->bad || d->p != d->end || m->nparts != n ? -EBADMSG : 0;
}

int gw_manifest_decode_body(const void *data, uint64_t len, struct gw_manifest *m)
{
	const struct gw_places_sink sink = { 0 };
	struct gw_dec d = { data, (const uint8_t *)data + len, false };
	int r = gw_places_decode(&d, &m->places, &sink);

	if (r == 0 && !have_bases(&m->places))
		r = -EBADMSG;
	if (r == 0)
		r = decode_runs(&d, m);
	if (r == 0)
		r = decode_parts(&d, m);
	return r;
}
