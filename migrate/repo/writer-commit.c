// SPDX-License-Identifier: Apache-2.0
/* The end of a snapshot's writer: index, page map, manifest. See writer.h. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "lib/clock.h"
#include "migrate/repo/index.h"
#include "migrate/repo/object.h"
#include "migrate/repo/writer-internal.h"

#define TRIES 16 /* of finding a generation that no other writer takes at the same time */

static int write_index(struct gw_snap_writer *w, struct gw_crypt *c, struct gw_error *err)
{
	struct gw_index_builder b;
	struct pack *p;
	int r = 0;

	gw_index_builder_init(&b);
	while (r == 0 && (p = w->done)) {
		const struct gw_extent x = { p->segment, 0, p->nblobs };

		gw_index_add_pack(&b, p->id, p->len, 1);
		gw_index_add_extent(&b, &w->places, &x, p->digests, p->hooks.data);
		w->done = p->next;
		gw_writer_pack_free(p);
		if (b.body.len >= GW_INDEX_TARGET)
			r = gw_index_write(&b, w->bucket, c, NULL, err);
	}
	if (r == 0)
		r = gw_index_write(&b, w->bucket, c, NULL, err);
	gw_index_builder_release(&b);
	return r;
}

/* ---- page map ---- */

static int add_run(struct gw_manifest *m, uint64_t *cap, const struct gw_snap_run *run)
{
	if (m->nruns == *cap) {
		struct gw_snap_run *more = realloc(m->runs, (*cap = GW_MAX(*cap * 2, (uint64_t)256)) * sizeof(*more));

		if (!more)
			return -ENOMEM;
		m->runs = more;
	}
	m->runs[m->nruns++] = *run;
	return 0;
}

/* Runs of the writer's segments. */
static int make_runs(struct gw_snap_writer *w)
{
	struct gw_manifest *m = &w->manifest;
	struct gw_snap_run run = { 0 };
	uint64_t cap = 0;
	int r = 0;

	for (uint64_t page = 0; page < m->info.pages && r == 0; page++) {
		uint64_t at = atomic_load_explicit(&w->map[page], memory_order_relaxed);
		uint32_t segment = (uint32_t)(at >> 32) - 1, slot = (uint32_t)at;

		if (at)
			m->info.used++;
		if (run.count && at && run.page + run.count == page && run.segment == segment && run.slot + run.count == slot) {
			run.count++;
			continue;
		}
		if (run.count)
			r = add_run(m, &cap, &run);
		run = (struct gw_snap_run){ page, at ? 1 : 0, segment, slot };
	}
	if (r == 0 && run.count)
		r = add_run(m, &cap, &run);
	return r;
}

/* Adds the blob to the manifest's places. */
static int add_blob(struct gw_snap_writer *w, uint32_t segment, const struct gw_blob_place *b)
{
	const struct gw_pack_place *pack = &w->places.packs[b->pack];
	struct gw_places *p = &w->manifest.places;
	struct gw_blob_place copy = *b;
	uint32_t number = GW_NO_PLACE;
	int r = gw_places_add_pack(p, pack->id, pack->size, &copy.pack);

	if (r == 0)
		r = gw_places_add_segment(p, w->places.segments[segment].id, &number);
	return r < 0 ? r : gw_places_add_blob(p, number, &copy, false);
}

/* And what it is told against. */
static int use_blob(struct gw_snap_writer *w, uint32_t segment, const struct gw_blob_place *b)
{
	const struct gw_blob_place *base;
	int r = add_blob(w, segment, b);

	if (r < 0 || !b->base.blobs)
		return r;
	base = gw_places_base(&w->places, &b->base, &segment);
	if (!base)
		return -EIO;
	for (uint32_t i = 0; i < b->base.blobs && r == 0; i++)
		r = add_blob(w, segment, &base[i]);
	return r;
}

/* The manifest holds places of the blobs that it uses, and runs count its own segments. */
static int use_blobs(struct gw_snap_writer *w)
{
	struct gw_manifest *m = &w->manifest;

	for (uint64_t i = 0; i < m->nruns; i++) {
		struct gw_snap_run *run = &m->runs[i];
		uint64_t slot = run->slot, end = slot + run->count;

		while (slot < end) {
			const struct gw_blob_place *b = gw_places_at(&w->places, run->segment, (uint32_t)slot);
			int r = b ? use_blob(w, run->segment, b) : -EIO;

			if (r < 0)
				return r;
			slot = (uint64_t)b->slot + b->pages;
		}
		run->segment = gw_places_find_segment(&m->places, w->places.segments[run->segment].id);
	}
	return 0;
}

/* A parent may tell of packs that somebody has taken away: no snapshot is built on these. Those that we have put need no look. */
static int check_packs(struct gw_snap_writer *w, struct gw_error *err)
{
	const struct gw_places *p = &w->manifest.places;

	if (!w->parent)
		return 0;
	for (uint32_t i = 0; i < p->npacks; i++) {
		const struct gw_listed *e;
		char name[GW_OBJECT_NAME];

		if (gw_places_find_pack(&gw_snap_manifest(w->parent)->places, p->packs[i].id) == GW_NO_PLACE)
			continue;
		gw_object_name(name, "packs", p->packs[i].id);
		e = gw_listing_find(&w->packs, name);
		if (!e)
			return gw_error_set(err, ENOENT, "%s is missing, which %s needs", name, gw_snap_object(w->parent));
		if (e->size != p->packs[i].size)
			return gw_object_damaged(name, err);
	}
	return 0;
}

/* ---- manifest ---- */

static int latest_generation(struct gw_snap_writer *w, struct gw_crypt *c, uint64_t *ret, struct gw_error *err)
{
	gw_cleanup(gw_listing_release) struct gw_listing l = { 0 };
	char folder[GW_SNAP_OBJECT];
	int r = gw_manifest_folder(c, w->manifest.info.name, folder);

	if (r < 0)
		return gw_error_set(err, r, "no name can be made");
	r = gw_listing_read(w->bucket, folder, &l, err);
	if (r < 0)
		return r;
	*ret = 0;
	for (size_t i = 0; i < l.count; i++) {
		uint64_t generation;

		if (gw_manifest_parse_name(l.all[i].name, &generation) == 0 && generation < UINT64_MAX)
			*ret = GW_MAX(*ret, generation);
	}
	return 0;
}

static int in_time(struct gw_snap_writer *w, struct gw_error *err)
{
	uint64_t limit = (uint64_t)gw_repo_grace_s(w->repo) * GW_NS_PER_SEC / 2;

	if (gw_clock_ns(CLOCK_BOOTTIME) - w->started_ns <= limit)
		return 0;
	return gw_error_set(err, ETIMEDOUT, "the snapshot took longer than the %u seconds for which pages are safe from prune",
			    gw_repo_grace_s(w->repo) / 2);
}

static int put_manifest(struct gw_snap_writer *w, struct gw_crypt *c, struct gw_error *err)
{
	struct gw_snap_info *info = &w->manifest.info;
	int r = -EEXIST;

	for (int i = 0; i < TRIES && r == -EEXIST; i++) {
		gw_autobuf object = GW_BUF_INIT;
		char name[GW_SNAP_OBJECT];
		uint64_t latest = 0;

		r = latest_generation(w, c, &latest, err);
		if (r < 0)
			return r;
		info->generation = w->wanted_generation > latest ? w->wanted_generation : latest + 1;
		if (gw_manifest_name(c, info, name) < 0)
			return gw_error_set(err, EIO, "no name can be made");
		r = gw_manifest_seal(c, &w->manifest, name, &object, err);
		if (r == 0)
			r = in_time(w, err);
		if (r == 0)
			r = gw_object_put(w->bucket, name, object.data, object.len, err);
		/* Put, but late: prune may have been faster. */
		if (r == 0 && in_time(w, err) < 0) {
			gw_bucket_remove(w->bucket, name, NULL);
			r = -ETIMEDOUT;
		}
	}
	return r;
}

static int commit(struct gw_snap_writer *w, struct gw_crypt *c, struct gw_error *err)
{
	int r = write_index(w, c, err);

	if (r < 0)
		return r;
	r = make_runs(w);
	if (r == 0)
		r = use_blobs(w);
	if (r < 0)
		return gw_error_errno(err, r, "the page map of %s cannot be made", w->manifest.info.name);
	r = check_packs(w, err);
	if (r < 0)
		return r;
	if (atomic_load(&w->stop))
		return gw_error_set(err, ECANCELED, "cancelled");
	w->manifest.info.new_pages = atomic_load(&w->stored);
	w->manifest.info.new_bytes = atomic_load(&w->put_bytes);
	return put_manifest(w, c, err);
}

int gw_snap_writer_commit(struct gw_snap_writer *w, struct gw_snap_info *ret, struct gw_error *err)
{
	struct gw_crypt *c = NULL;
	int r = gw_snap_writer_flush(w, err);

	if (r < 0)
		return r;
	gw_writer_join(w);
	/* What the threads met with after the flush. */
	r = gw_snap_writer_flush(w, err);
	if (r == 0 && gw_crypt_new(gw_repo_keys(w->repo), &c) < 0)
		r = gw_error_set(err, ENOMEM, "out of memory");
	if (r == 0)
		r = commit(w, c, err);
	gw_crypt_free(c);
	if (r == 0 && ret)
		*ret = w->manifest.info;
	return r;
}
