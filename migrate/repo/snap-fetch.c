// SPDX-License-Identifier: Apache-2.0
/* Fetching pages of a snapshot: which blobs hold them, in which gets these are read, and where they are when prune has moved them. See snap.h. */
#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/index.h"
#include "migrate/repo/listing.h"
#include "migrate/repo/object.h"
#include "migrate/repo/snap-internal.h"

#define MAX_GET (4u << 20)  /* bytes of one get */
#define MAX_GAP (64u << 10) /* that are read over rather than asked for apart */

/* Pages page.. of the snapshot that lie in one blob, from its page `skip` on. */
struct piece {
	struct gw_blob_place b;
	uint32_t segment;
	uint32_t skip, count;
	uint64_t page;
};

struct plan {
	struct piece *pieces;
	size_t count, cap;
};

static void plan_release(struct plan *p)
{
	free(p->pieces);
}

struct fetch {
	struct gw_snap *s;
	struct gw_snap_reader with;
	gw_snap_pages_fn *fn;
	void *self;
	int stopped;    /* what fn returned */
	uint64_t first; /* the page that somebody waits for, if any */
};

/* ---- planning ---- */

static int add_piece(struct plan *p, const struct piece *piece)
{
	if (p->count == p->cap) {
		size_t cap = GW_MAX(p->cap * 2, (size_t)64);
		struct piece *more = realloc(p->pieces, cap * sizeof(*more));

		if (!more)
			return -ENOMEM;
		p->pieces = more;
		p->cap = cap;
	}
	p->pieces[p->count++] = *piece;
	return 0;
}

/* Part of a run: pages from..to-1. Blobs are there for all of them: the manifest was checked. */
static int plan_run(const struct gw_snap *s, struct plan *p, const struct gw_snap_run *run, uint64_t from, uint64_t to)
{
	while (from < to) {
		uint32_t slot = run->slot + (uint32_t)(from - run->page);
		const struct gw_blob_place *b = gw_places_at(&s->m.places, run->segment, slot);
		struct piece piece = { .b = *b, .segment = run->segment, .skip = slot - b->slot, .page = from };

		piece.count = (uint32_t)GW_MIN((uint64_t)(b->pages - piece.skip), to - from);
		if (add_piece(p, &piece) < 0)
			return -ENOMEM;
		from += piece.count;
	}
	return 0;
}

static int compare_pieces(const void *pa, const void *pb)
{
	const struct piece *a = pa, *b = pb;

	if (a->b.pack != b->b.pack)
		return a->b.pack < b->b.pack ? -1 : 1;
	if (a->b.offset != b->b.offset)
		return a->b.offset < b->b.offset ? -1 : 1;
	return a->page < b->page ? -1 : a->page > b->page;
}

static int make_plan(struct gw_snap *s, const struct gw_snap_range *ranges, unsigned count, struct plan *p)
{
	int r = 0;

	pthread_rwlock_rdlock(&s->moving);
	for (unsigned i = 0; i < count && r == 0; i++) {
		uint64_t page = ranges[i].page, end = page + ranges[i].count;
		const struct gw_snap_run *run;

		while (r == 0 && page < end && (run = gw_snap_run_at(s, page)) && run->page < end) {
			uint64_t from = GW_MAX(page, run->page);

			page = GW_MIN(end, run->page + run->count);
			r = plan_run(s, p, run, from, page);
		}
	}
	pthread_rwlock_unlock(&s->moving);
	if (p->count)
		qsort(p->pieces, p->count, sizeof(*p->pieces), compare_pieces);
	return r;
}

/* ---- where prune has moved blobs to ---- */

static enum gw_places_how pack_exists(void *self, const uint8_t id[16], uint64_t size)
{
	char name[GW_OBJECT_NAME];

	gw_object_name(name, "packs", id);
	return gw_listing_find(self, name) ? GW_PLACES_MOVE : GW_PLACES_SKIP;
}

/* Takes over the index's places of this segment. Under the write lock. */
static int move_segment(struct gw_places *p, uint32_t segment, const struct gw_places *now)
{
	uint32_t theirs = gw_places_find_segment(now, p->segments[segment].id);
	int r = 0;

	if (theirs == GW_NO_PLACE)
		return 0;
	for (uint32_t i = 0; i < now->segments[theirs].count && r == 0; i++) {
		struct gw_blob_place b = now->segments[theirs].blobs[i];

		/* Blobs that we do not use have no place with us. */
		if (!gw_places_at(p, segment, b.slot))
			continue;
		r = gw_places_add_pack(p, now->packs[b.pack].id, now->packs[b.pack].size, &b.pack);
		if (r == 0)
			r = gw_places_add_blob(p, segment, &b, true);
	}
	return r;
}

/* Looks all blobs up in the index as it is now, and counts only packs that are there. */
static int find_moved(struct gw_snap *s, struct gw_error *err)
{
	gw_cleanup(gw_listing_release) struct gw_listing packs = { 0 };
	gw_cleanup(gw_places_release) struct gw_places now = GW_PLACES_INIT;
	const struct gw_places_sink sink = { .wanted = pack_exists, .self = &packs, .has_digests = true };
	struct gw_crypt *c = NULL;
	int r = gw_crypt_new(gw_repo_keys(s->repo), &c);

	if (r < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_listing_read(gw_repo_bucket(s->repo), "packs/", &packs, err);
	if (r == 0)
		r = gw_index_read_all(gw_repo_bucket(s->repo), c, &now, &sink, err);
	gw_crypt_free(c);
	if (r < 0)
		return r;
	pthread_rwlock_wrlock(&s->moving);
	for (uint32_t i = 0; i < s->m.places.nsegments && r == 0; i++)
		r = move_segment(&s->m.places, i, &now);
	pthread_rwlock_unlock(&s->moving);
	return r < 0 ? gw_error_errno(err, r, "the index does not agree with %s", s->object) : 0;
}

/* ---- reading ---- */

static void pack_name(struct gw_snap *s, uint32_t pack, char name[GW_OBJECT_NAME])
{
	pthread_rwlock_rdlock(&s->moving);
	gw_object_name(name, "packs", s->m.places.packs[pack].id);
	pthread_rwlock_unlock(&s->moving);
}

static bool same_blob(const struct piece *a, const struct piece *b)
{
	return a->b.pack == b->b.pack && a->b.offset == b->b.offset;
}

/* How many pieces from `p` on are read by one get. */
static size_t group(const struct piece *p, size_t count)
{
	uint64_t start = p->b.offset, end = start + p->b.len;
	size_t n = 1;

	while (n < count && p[n].b.pack == p->b.pack && p[n].b.offset <= end + MAX_GAP &&
	       p[n].b.offset + p[n].b.len - start <= MAX_GET) {
		end = p[n].b.offset + p[n].b.len;
		n++;
	}
	return n;
}

/* Most blobs are of the segment that the last one was of. */
static int get_key(struct fetch *f, uint32_t segment)
{
	const uint8_t *id = f->s->m.places.segments[segment].id;
	int r;

	if (f->with.keyed && !memcmp(f->with.key.segment, id, sizeof(f->with.key.segment)))
		return 0;
	r = gw_blob_key_derive(f->with.coder, id, &f->with.key);
	f->with.keyed = r == 0;
	return r;
}

static int find_base(struct fetch *f, const struct gw_base_ref *ref, struct gw_base_place *ret)
{
	bool found;

	pthread_rwlock_rdlock(&f->s->moving);
	found = gw_base_find(&f->s->m.places, ref, ret);
	pthread_rwlock_unlock(&f->s->moving);
	return found ? 0 : -EBADMSG; /* the manifest was checked */
}

/* What the blob is told against, from where it is now. */
static int get_base(struct fetch *f, const struct gw_base_ref *ref, struct gw_blob_base *ret, struct gw_error *err)
{
	struct gw_base_place place;
	int r = f->with.bases ? 0 : gw_base_reader_new(gw_repo_bucket(f->s->repo), f->with.coder, &f->with.bases);

	if (r == 0)
		r = find_base(f, ref, &place);
	if (r < 0)
		return gw_error_errno(err, r, "cannot read %s", f->s->object);
	r = gw_base_read(f->with.bases, &place, ret, err);
	if (r != -ENOENT)
		return r;
	r = find_moved(f->s, err);
	if (r == 0)
		r = find_base(f, ref, &place);
	return r < 0 ? r : gw_base_read(f->with.bases, &place, ret, err);
}

static int open_blob(struct fetch *f, const struct piece *p, const uint8_t *data, struct gw_error *err)
{
	struct gw_blob_base base;
	char name[GW_OBJECT_NAME];
	int r = get_key(f, p->segment);

	if (r == 0 && p->b.base.blobs) {
		r = get_base(f, &p->b.base, &base, err);
		if (r < 0) {
			f->stopped = r; /* it is not the blob's own pack that is gone */
			return r;
		}
	}
	if (r == 0)
		r = gw_blob_open(f->with.coder, &f->with.key, p->b.number, p->b.pages, data, p->b.len, p->b.base.blobs ? &base : NULL,
				 f->with.pages);
	if (r == 0)
		return 0;
	pack_name(f->s, p->b.pack, name);
	if (r == -EBADMSG)
		return gw_error_set(err, EBADMSG, "%s is damaged, or not what belongs there, at byte %llu", name, (unsigned long long)p->b.offset);
	return gw_error_errno(err, r, "cannot decrypt %s", name);
}

static int deliver(struct fetch *f, const struct piece *p)
{
	f->stopped = f->fn(f->self, p->page, p->count, f->with.pages + p->skip * GW_PAGE_SIZE);
	return f->stopped;
}

/* Where to begin: the piece that has the first page that was asked for, or 0. */
static size_t first_piece(const struct fetch *f, const struct piece *p, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (p[i].page <= f->first && f->first - p[i].page < p[i].count)
			return i;
	return 0;
}

/* Pieces of one group. -ENOENT: the pack is not there, and nothing was delivered. */
static int read_group(struct fetch *f, const struct piece *p, size_t count, struct gw_error *err)
{
	uint64_t start = p->b.offset, end = p[count - 1].b.offset + p[count - 1].b.len;
	size_t begin = first_piece(f, p, count);
	char name[GW_OBJECT_NAME];
	int r;

	pack_name(f->s, p->b.pack, name);
	r = gw_bucket_get(gw_repo_bucket(f->s->repo), name, start, end - start, f->with.data, err);
	if (r == -EPROTO)
		return gw_object_damaged(name, err);
	for (size_t k = 0; k < count && r == 0; k++) {
		size_t i = (begin + k) % count;

		if (k == 0 || i == 0 || !same_blob(&p[i], &p[i - 1]))
			r = open_blob(f, &p[i], f->with.data + (p[i].b.offset - start), err);
		if (r == 0)
			r = deliver(f, &p[i]);
	}
	return r;
}

/* The pack is gone: asks the index, and reads the pieces one by one from where it says. */
static int read_moved(struct fetch *f, struct piece *p, size_t count, struct gw_error *err)
{
	int r = find_moved(f->s, err);

	for (size_t i = 0; i < count && r == 0; i++) {
		pthread_rwlock_rdlock(&f->s->moving);
		p[i].b = *gw_places_at(&f->s->m.places, p[i].segment, p[i].b.slot);
		pthread_rwlock_unlock(&f->s->moving);
		r = read_group(f, &p[i], 1, err);
		if (r == -ENOENT && !f->stopped) {
			char name[GW_OBJECT_NAME];

			pack_name(f->s, p[i].b.pack, name);
			return gw_error_set(err, ENOENT, "%s is missing, which %s needs", name, f->s->object);
		}
	}
	return r;
}

void gw_snap_reader_release(struct gw_snap_reader *r)
{
	gw_base_reader_free(r->bases);
	gw_blob_coder_free(r->coder);
	OPENSSL_cleanse(&r->key, sizeof(r->key));
	free(r->data);
	free(r->pages);
}

/* One that is idle, or a new one, with room for a get of so many bytes. */
static int get_reader(struct gw_snap *s, uint64_t room, struct gw_snap_reader *ret)
{
	int r;

	*ret = (struct gw_snap_reader){ 0 };
	pthread_mutex_lock(&s->lock);
	if (s->nreaders)
		*ret = s->readers[--s->nreaders];
	pthread_mutex_unlock(&s->lock);
	if (room > ret->room) {
		free(ret->data);
		ret->data = malloc(room);
		ret->room = ret->data ? room : 0;
	}
	ret->pages = ret->pages ?: malloc(GW_BLOB_MAX_PAGES * GW_PAGE_SIZE);
	r = ret->coder ? 0 : gw_blob_coder_new(gw_repo_keys(s->repo), &ret->coder);
	return ret->data && ret->pages ? r : -ENOMEM;
}

static void give_reader(struct gw_snap *s, struct gw_snap_reader *reader)
{
	bool kept;

	pthread_mutex_lock(&s->lock);
	kept = reader->coder && s->nreaders < MAX_READERS;
	if (kept)
		s->readers[s->nreaders++] = *reader;
	pthread_mutex_unlock(&s->lock);
	if (!kept)
		gw_snap_reader_release(reader);
}

static int run_group(struct fetch *f, struct piece *p, size_t count, struct gw_error *err)
{
	int r = read_group(f, p, count, err);

	return r == -ENOENT && !f->stopped ? read_moved(f, p, count, err) : r;
}

/* Groups in order, but the one first that has the first page. */
static int run_plan(struct fetch *f, struct plan *p, struct gw_error *err)
{
	size_t wanted = first_piece(f, p->pieces, p->count), first = 0, n;
	int r;

	while (first + (n = group(&p->pieces[first], p->count - first)) <= wanted)
		first += n;
	r = run_group(f, &p->pieces[first], n, err);
	for (size_t i = 0; i < p->count && r == 0; i += n) {
		n = group(&p->pieces[i], p->count - i);
		if (i != first)
			r = run_group(f, &p->pieces[i], n, err);
	}
	return r;
}

static uint64_t longest_get(const struct plan *p)
{
	uint64_t longest = 0;

	for (size_t i = 0; i < p->count;) {
		size_t n = group(&p->pieces[i], p->count - i);

		longest = GW_MAX(longest, p->pieces[i + n - 1].b.offset + p->pieces[i + n - 1].b.len - p->pieces[i].b.offset);
		i += n;
	}
	return longest;
}

int gw_snap_fetch(struct gw_snap *s, const struct gw_snap_range *ranges, unsigned count, gw_snap_pages_fn *fn, void *self, struct gw_error *err)
{
	gw_cleanup(plan_release) struct plan p = { 0 };
	struct fetch f = { .s = s, .fn = fn, .self = self, .first = count ? ranges[0].page : 0 };
	int r;

	for (unsigned i = 0; i < count; i++) {
		if (ranges[i].page > s->m.info.pages || ranges[i].count > s->m.info.pages - ranges[i].page)
			return gw_error_set(err, ERANGE, "%s has no such pages", s->m.info.name);
	}
	r = make_plan(s, ranges, count, &p);
	if (r == 0 && p.count == 0)
		return 0;
	r = r ?: get_reader(s, GW_MAX(longest_get(&p), GW_BLOB_MAX_LEN), &f.with);
	r = r < 0 ? gw_error_set(err, ENOMEM, "out of memory") : run_plan(&f, &p, err);
	give_reader(s, &f.with);
	return r;
}

struct reading {
	uint8_t *data;
	uint64_t first;
};

static int take_pages(void *self, uint64_t page, uint64_t count, const uint8_t *data)
{
	struct reading *r = self;

	memcpy(r->data + (page - r->first) * GW_PAGE_SIZE, data, count * GW_PAGE_SIZE);
	return 0;
}

int gw_snap_read(struct gw_snap *s, uint64_t first, uint64_t count, void *data, struct gw_error *err)
{
	const struct gw_snap_range range = { first, count };
	struct reading r = { data, first };

	if (first > s->m.info.pages || count > s->m.info.pages - first)
		return gw_error_set(err, ERANGE, "%s has no such pages", s->m.info.name);
	memset(data, 0, count * GW_PAGE_SIZE);
	return gw_snap_fetch(s, &range, 1, take_pages, &r, err);
}
