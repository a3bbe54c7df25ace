// SPDX-License-Identifier: Apache-2.0
/* All that is in a repository; see survey.h. */
#include "migrate/repo/survey.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/index.h"
#include "migrate/repo/object.h"

struct making {
	struct gw_survey *s;
	const struct gw_survey_sink *sink;
	struct gw_error *err;
	const char *object; /* that is read */
};

/* 0 when the survey goes on without the object. */
static int problem(struct making *m, const char *object, int r, const struct gw_error *err)
{
	if (!m->sink || (r != -EBADMSG && r != -EPROTONOSUPPORT && r != -EPROTO))
		return gw_error_set(m->err, r, "%s", gw_error_text(err));
	m->sink->problem(m->sink->self, object, gw_error_text(err));
	return 0;
}

void gw_survey_release(struct gw_survey *s)
{
	for (uint32_t i = 0; s->used && i < s->places.nsegments; i++)
		free(s->used[i]);
	free(s->used);
	free(s->used_words);
	free(s->pack_used);
	gw_places_release(&s->places);
	gw_pack_set_release(&s->marked);
	gw_listing_release(&s->marks);
	gw_listing_release(&s->packs);
	gw_listing_release(&s->indexes);
	gw_listing_release(&s->manifests);
	gw_crypt_free(s->crypt);
	memset(s, 0, sizeof(*s));
}

const struct gw_listed *gw_survey_pack(const struct gw_survey *s, const uint8_t id[16])
{
	char name[GW_OBJECT_NAME];

	gw_object_name(name, "packs", id);
	return gw_listing_find(&s->packs, name);
}

bool gw_survey_uses(const struct gw_survey *s, uint32_t segment, const struct gw_blob_place *b)
{
	for (uint32_t slot = b->slot; slot < b->slot + b->pages; slot++) {
		if (slot / 64 < s->used_words[segment] && s->used[segment][slot / 64] >> (slot % 64) & 1)
			return true;
	}
	return false;
}

/* ---- marks and indexes ---- */

static int read_marks(struct making *m)
{
	struct gw_survey *s = m->s;
	int r = 0;

	for (size_t i = 0; i < s->marks.count && r == 0; i++) {
		struct gw_error one = GW_ERROR_INIT;
		uint8_t id[16];

		if (gw_object_parse_name(s->marks.all[i].name, "marks", id) < 0)
			continue;
		r = gw_mark_read(gw_repo_bucket(s->repo), s->crypt, s->marks.all[i].name, &s->marked, &one);
		if (r < 0)
			r = r == -ENOENT ? 0 : problem(m, s->marks.all[i].name, r, &one);
	}
	gw_pack_set_sort(&s->marked);
	return r;
}

static enum gw_places_how want_pack(void *self, const uint8_t id[16], uint64_t size)
{
	struct making *m = self;
	const struct gw_listed *e = gw_survey_pack(m->s, id);
	char name[GW_OBJECT_NAME], text[200];

	gw_object_name(name, "packs", id);
	if (!e) {
		/* It may have been put after packs were listed: only its absence now tells. */
		uint8_t byte;

		snprintf(text, sizeof(text), "is missing, which %s lists", m->object);
		if (m->sink && gw_bucket_get(gw_repo_bucket(m->s->repo), name, 0, 1, &byte, NULL) == -ENOENT)
			m->sink->problem(m->sink->self, name, text);
		return GW_PLACES_SKIP;
	}
	if (e->size != size && m->sink) {
		snprintf(text, sizeof(text), "has %llu bytes instead of %llu, says %s", (unsigned long long)e->size, (unsigned long long)size,
			 m->object);
		m->sink->problem(m->sink->self, name, text);
	}
	return gw_pack_set_has(&m->s->marked, id) ? GW_PLACES_ADD : GW_PLACES_MOVE;
}

static int read_indexes(struct making *m, struct gw_upkeep *upkeep)
{
	struct gw_survey *s = m->s;
	const struct gw_places_sink sink = { .wanted = want_pack, .self = m, .has_digests = true };
	int r = 0;

	for (size_t i = 0; i < s->indexes.count && r == 0; i++) {
		struct gw_error one = GW_ERROR_INIT;
		uint8_t id[16];

		if (gw_object_parse_name(s->indexes.all[i].name, "index", id) < 0)
			continue;
		if (upkeep && atomic_load(&upkeep->stop))
			return gw_error_set(m->err, ECANCELED, "cancelled");
		m->object = s->indexes.all[i].name;
		r = gw_index_read(gw_repo_bucket(s->repo), s->crypt, m->object, &s->places, &sink, &one);
		if (r == -ENOENT) /* exchanged by prune: from the start */
			return gw_error_set(m->err, ENOENT, "%s", gw_error_text(&one));
		if (r < 0)
			r = problem(m, m->object, r, &one);
	}
	return r;
}

/* ---- manifests ---- */

static int grow_used(struct gw_survey *s, uint32_t segment, uint64_t end)
{
	uint32_t words = (uint32_t)((end + 63) / 64);
	uint64_t *more;

	if (words <= s->used_words[segment])
		return 0;
	words = GW_MAX(words, s->used_words[segment] * 2);
	more = realloc(s->used[segment], words * sizeof(*more));
	if (!more)
		return -ENOMEM;
	memset(more + s->used_words[segment], 0, (words - s->used_words[segment]) * sizeof(*more));
	s->used[segment] = more;
	s->used_words[segment] = words;
	return 0;
}

/* Segments of the manifest that are new here get their places in the arrays. */
static int grow_segments(struct gw_survey *s, uint32_t before)
{
	uint32_t n = s->places.nsegments;
	void *more;

	if (n == before)
		return 0;
	more = realloc(s->used, n * sizeof(*s->used));
	if (!more)
		return -ENOMEM;
	s->used = more;
	more = realloc(s->used_words, n * sizeof(*s->used_words));
	if (!more)
		return -ENOMEM;
	s->used_words = more;
	memset(s->used + before, 0, (n - before) * sizeof(*s->used));
	memset(s->used_words + before, 0, (n - before) * sizeof(*s->used_words));
	return 0;
}

/* A blob that no index knows lies where the manifest says. */
static int add_unindexed(struct making *m, const struct gw_manifest *mf, uint32_t segment, const struct gw_blob_place *theirs)
{
	const struct gw_pack_place *pack = &mf->places.packs[theirs->pack];
	struct gw_survey *s = m->s;
	struct gw_blob_place b = *theirs;
	const struct gw_listed *e = gw_survey_pack(s, pack->id);
	bool first = gw_places_find_pack(&s->places, pack->id) == GW_NO_PLACE;
	char name[GW_OBJECT_NAME], text[200];
	int r = gw_places_add_pack(&s->places, pack->id, pack->size, &b.pack);

	if (r == 0)
		r = gw_places_add_blob(&s->places, segment, &b, false);
	if (r < 0 || !m->sink || !first)
		return r;
	gw_object_name(name, "packs", pack->id);
	snprintf(text, sizeof(text), e ? "is in no index, though %s uses it: an index object is missing" : "is missing, which %s needs", m->object);
	m->sink->problem(m->sink->self, name, text);
	return 0;
}

static int use_manifest(struct making *m, const struct gw_manifest *mf)
{
	struct gw_survey *s = m->s;
	uint32_t before = s->places.nsegments;
	gw_autofree uint32_t *segments = calloc(mf->places.nsegments + 1, sizeof(*segments));
	int r = segments ? 0 : -ENOMEM;

	for (uint32_t i = 0; i < mf->places.nsegments && r == 0; i++) {
		const struct gw_segment *seg = &mf->places.segments[i];

		r = gw_places_add_segment(&s->places, seg->id, &segments[i]);
		for (uint32_t k = 0; k < seg->count && r == 0; k++) {
			const struct gw_blob_place *b = gw_places_at(&s->places, segments[i], seg->blobs[k].slot);

			if (!b)
				r = add_unindexed(m, mf, segments[i], &seg->blobs[k]);
			else if (!gw_places_same_blob(b, &seg->blobs[k]))
				r = -EBADMSG;
		}
	}
	if (r == 0)
		r = grow_segments(s, before);
	for (uint64_t i = 0; i < mf->nruns && r == 0; i++) {
		const struct gw_snap_run *run = &mf->runs[i];
		uint32_t segment = segments[run->segment];

		r = grow_used(s, segment, (uint64_t)run->slot + run->count);
		for (uint32_t k = 0; k < run->count && r == 0; k++) {
			uint64_t *word = &s->used[segment][(run->slot + k) / 64], bit = 1ull << (run->slot + k) % 64;

			s->used_pages += !(*word & bit);
			*word |= bit;
		}
	}
	s->snapshot_pages += mf->info.used;
	s->snapshots++;
	return r;
}

static int read_manifest(struct making *m, const char *object)
{
	struct gw_error one = GW_ERROR_INIT;
	struct gw_snap *snap;
	int r = gw_snap_open_object(m->s->repo, object, &snap, &one);

	if (r == -ENOENT) /* removed since it was listed */
		return 0;
	if (r == 0) {
		m->object = object;
		r = use_manifest(m, gw_snap_manifest(snap));
		gw_snap_free(snap);
		if (r == -EBADMSG)
			gw_error_set(&one, EBADMSG, "%s and the index contradict each other", object);
		else if (r < 0)
			gw_error_errno(&one, r, "cannot look at %s", object);
	}
	return r < 0 ? problem(m, object, r, &one) : 0;
}

static int read_manifests(struct making *m, struct gw_upkeep *upkeep)
{
	struct gw_survey *s = m->s;
	int r = 0;

	for (size_t i = 0; i < s->manifests.count && r == 0; i++) {
		uint64_t generation;

		if (upkeep && atomic_load(&upkeep->stop))
			return gw_error_set(m->err, ECANCELED, "cancelled");
		if (gw_manifest_parse_name(s->manifests.all[i].name, &generation) == 0)
			r = read_manifest(m, s->manifests.all[i].name);
	}
	return r;
}

/* What blobs in use are told against is in use too. A manifest names all that it needs, so that it is known here. */
static int use_bases(struct gw_survey *s)
{
	int r = 0;

	for (uint32_t i = 0; i < s->places.nsegments; i++) {
		for (uint32_t k = 0; k < s->places.segments[i].count && r == 0; k++) {
			const struct gw_blob_place *b = &s->places.segments[i].blobs[k], *base;
			uint32_t segment;

			if (!b->base.blobs || !gw_survey_uses(s, i, b) || !(base = gw_places_base(&s->places, &b->base, &segment)))
				continue;
			for (uint32_t n = 0; n < b->base.blobs && r == 0; n++) {
				r = grow_used(s, segment, (uint64_t)base[n].slot + 1);
				if (r == 0)
					s->used[segment][base[n].slot / 64] |= 1ull << base[n].slot % 64;
			}
		}
	}
	return r;
}

/* ---- all of it ---- */

static int count_use(struct gw_survey *s)
{
	s->pack_used = calloc(s->places.npacks + 1, sizeof(*s->pack_used));
	if (!s->pack_used)
		return -ENOMEM;
	for (uint32_t i = 0; i < s->places.nsegments; i++) {
		for (uint32_t k = 0; k < s->places.segments[i].count; k++) {
			const struct gw_blob_place *b = &s->places.segments[i].blobs[k];

			s->pages += b->pages;
			if (gw_survey_uses(s, i, b))
				s->pack_used[b->pack] += b->len;
		}
	}
	return 0;
}

static int make(struct making *m, struct gw_upkeep *upkeep)
{
	struct gw_survey *s = m->s;
	struct gw_bucket *bucket = gw_repo_bucket(s->repo);
	int r = gw_crypt_new(gw_repo_keys(s->repo), &s->crypt);

	if (r < 0)
		return gw_error_set(m->err, ENOMEM, "out of memory");
	r = gw_listing_read(bucket, "marks/", &s->marks, m->err);
	if (r == 0)
		r = read_marks(m);
	if (r == 0)
		r = gw_listing_read(bucket, "packs/", &s->packs, m->err);
	if (r == 0)
		r = gw_listing_read(bucket, "index/", &s->indexes, m->err);
	if (r == 0)
		r = read_indexes(m, upkeep);
	if (r == 0 && grow_segments(s, 0) < 0)
		r = gw_error_set(m->err, ENOMEM, "out of memory");
	if (r == 0)
		r = gw_listing_read(bucket, "snapshots/", &s->manifests, m->err);
	if (r == 0)
		r = read_manifests(m, upkeep);
	if (r == 0 && (use_bases(s) < 0 || count_use(s) < 0))
		r = gw_error_set(m->err, ENOMEM, "out of memory");
	return r;
}

#define TRIES 8 /* while prune exchanges indexes */

int gw_survey_make(struct gw_repo *repo, const struct gw_survey_sink *sink, struct gw_upkeep *upkeep, struct gw_survey *ret, struct gw_error *err)
{
	int r = -ENOENT;

	for (int i = 0; i < TRIES && r == -ENOENT; i++) {
		struct gw_survey s = { .repo = repo };
		struct making m = { .s = &s, .sink = sink, .err = err };

		r = make(&m, upkeep);
		if (r == 0)
			*ret = s;
		else
			gw_survey_release(&s);
	}
	return r;
}
