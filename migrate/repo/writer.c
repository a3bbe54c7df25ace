// SPDX-License-Identifier: Apache-2.0
/* A snapshot's writer as its users see it; see writer.h. */
#include "migrate/repo/writer.h"

#include <errno.h>
#include <openssl/rand.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/parse.h"
#include "migrate/repo/index.h"
#include "migrate/repo/marks.h"
#include "migrate/repo/object.h"
#include "migrate/repo/writer-internal.h"

#define DEFAULT_PACK (16u << 20)
#define MAX_PACK (64u << 20)
#define DEFAULT_PUTS 4u

int gw_writer_fail(struct gw_snap_writer *w, int code, const struct gw_error *err)
{
	code = code < 0 ? -code : code;
	pthread_mutex_lock(&w->lock);
	if (!w->error.code) {
		if (err && err->code)
			w->error = *err;
		else
			gw_error_errno(&w->error, code, "the snapshot cannot be written");
	}
	code = w->error.code;
	atomic_store(&w->stop, true);
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
	return -code;
}

static int failure(struct gw_snap_writer *w, struct gw_error *err)
{
	struct gw_error e;

	pthread_mutex_lock(&w->lock);
	e = w->error;
	pthread_mutex_unlock(&w->lock);
	if (e.code && err)
		*err = e;
	return -e.code;
}

/* ---- batches ---- */

void gw_batch_push(struct batch_list *l, struct batch *b)
{
	if (!l->first)
		l->last = &l->first;
	b->next = NULL;
	*l->last = b;
	l->last = &b->next;
}

struct batch *gw_batch_pop(struct batch_list *l)
{
	struct batch *b = l->first;

	if (b)
		l->first = b->next;
	return b;
}

static void free_batches(struct batch_list *l)
{
	struct batch *b;

	while ((b = gw_batch_pop(l))) {
		free(b->data);
		free(b);
	}
}

static int make_batches(struct gw_snap_writer *w, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		struct batch *b = calloc(1, sizeof(*b));

		if (!b)
			return -ENOMEM;
		b->data = malloc(BATCH_PAGES * GW_PAGE_SIZE);
		if (!b->data) {
			free(b);
			return -ENOMEM;
		}
		gw_batch_push(&w->idle, b);
	}
	return 0;
}

/* One that was begun goes first, so that neighbours stay together. */
static int get_batch(struct gw_snap_writer *w, struct batch **ret)
{
	int r = 0;

	pthread_mutex_lock(&w->lock);
	while (!w->partial.first && !w->idle.first && !w->error.code)
		pthread_cond_wait(&w->changed, &w->lock);
	if (w->error.code) {
		r = -w->error.code;
	} else {
		*ret = gw_batch_pop(&w->partial) ?: gw_batch_pop(&w->idle);
		w->filling++;
	}
	pthread_mutex_unlock(&w->lock);
	return r;
}

static void give_batch(struct gw_snap_writer *w, struct batch *b)
{
	pthread_mutex_lock(&w->lock);
	w->filling--;
	gw_batch_push(b->count == BATCH_PAGES ? &w->full : b->count ? &w->partial : &w->idle, b);
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
}

int gw_snap_writer_pages(struct gw_snap_writer *w, uint64_t first, uint64_t count, const void *data)
{
	struct batch *b = NULL;
	uint64_t zero = 0;

	if (first > w->manifest.info.pages || count > w->manifest.info.pages - first)
		return -ERANGE;
	for (uint64_t i = 0; i < count; i++) {
		const uint8_t *page = (const uint8_t *)data + i * GW_PAGE_SIZE;
		int r;

		if (gw_page_is_zero(page)) {
			atomic_store_explicit(&w->map[first + i], 0, memory_order_relaxed);
			zero++;
			continue;
		}
		if (!b) {
			r = get_batch(w, &b);
			if (r < 0)
				return r;
		}
		b->index[b->count] = first + i;
		memcpy(b->data + b->count * GW_PAGE_SIZE, page, GW_PAGE_SIZE);
		if (++b->count == BATCH_PAGES) {
			give_batch(w, b);
			b = NULL;
		}
	}
	if (b)
		give_batch(w, b);
	atomic_fetch_add(&w->pages, count);
	atomic_fetch_add(&w->zero, zero);
	return atomic_load(&w->stop) ? failure(w, NULL) : 0;
}

int gw_snap_writer_flush(struct gw_snap_writer *w, struct gw_error *err)
{
	struct batch *b;

	pthread_mutex_lock(&w->lock);
	while (w->filling && !w->error.code)
		pthread_cond_wait(&w->changed, &w->lock);
	while ((b = gw_batch_pop(&w->partial)))
		gw_batch_push(&w->full, b);
	pthread_cond_broadcast(&w->changed);
	while ((w->full.first || w->busy) && !w->error.code)
		pthread_cond_wait(&w->changed, &w->lock);
	pthread_mutex_unlock(&w->lock);
	return failure(w, err);
}

int gw_snap_writer_keep(struct gw_snap_writer *w, uint64_t first, uint64_t count)
{
	const struct gw_snap_run *run;
	uint64_t end = first + count;

	if (!w->parent)
		return -EINVAL;
	if (first > w->manifest.info.pages || count > w->manifest.info.pages - first)
		return -ERANGE;
	for (uint64_t page = first; page < end; page++)
		atomic_store_explicit(&w->map[page], 0, memory_order_relaxed);
	for (run = gw_snap_run_at(w->parent, first); run && run->page < end; run = gw_snap_run_at(w->parent, run->page + run->count)) {
		uint64_t from = GW_MAX(run->page, first), to = GW_MIN(run->page + run->count, end);

		for (uint64_t page = from; page < to; page++)
			atomic_store_explicit(&w->map[page],
					      ((uint64_t)w->parent_segments[run->segment] + 1) << 32 | (run->slot + (page - run->page)),
					      memory_order_relaxed);
	}
	atomic_fetch_add(&w->kept, count);
	return atomic_load(&w->stop) ? failure(w, NULL) : 0;
}

int gw_snap_writer_part(struct gw_snap_writer *w, const char *name, const void *data, uint64_t len)
{
	return gw_manifest_set_part(&w->manifest, name, data, len);
}

void gw_snap_writer_cancel(struct gw_snap_writer *w)
{
	struct gw_error err;

	gw_error_set(&err, ECANCELED, "cancelled");
	gw_writer_fail(w, ECANCELED, &err);
}

void gw_snap_writer_progress(const struct gw_snap_writer *w, struct gw_snap_progress *ret)
{
	*ret = (struct gw_snap_progress){
		.pages = atomic_load(&w->pages),
		.zero = atomic_load(&w->zero),
		.known = atomic_load(&w->known),
		.stored = atomic_load(&w->stored),
		.kept = atomic_load(&w->kept),
		.blob_bytes = atomic_load(&w->blob_bytes),
		.put_bytes = atomic_load(&w->put_bytes),
	};
}

/* ---- the beginning ---- */

static int copy_name(char out[GW_SNAP_NAME], const char *name, const char *what, struct gw_error *err)
{
	int r = name ? gw_parse_name(name, what, err) : 0;

	if (r == 0)
		snprintf(out, GW_SNAP_NAME, "%s", name ?: "");
	return r;
}

static int fill_regions(struct gw_snap_info *info, const struct gw_snap_writer_params *p, struct gw_error *err)
{
	uint64_t end = 0;

	if (p->nregions == 0 || p->nregions > GW_RAM_MAX_REGIONS)
		return gw_error_set(err, EINVAL, "%u regions of RAM cannot be in a snapshot", p->nregions);
	for (unsigned i = 0; i < p->nregions; i++) {
		const struct gw_snap_region *r = &p->regions[i];

		if (r->gpa % GW_PAGE_SIZE || r->size % GW_PAGE_SIZE || r->size == 0 || r->size > GW_SNAP_MAX_PAGES * GW_PAGE_SIZE ||
		    r->gpa < end || __builtin_add_overflow(r->gpa, r->size, &end))
			return gw_error_set(err, EINVAL, "region %u of RAM cannot be in a snapshot", i);
		info->regions[i] = *r;
		info->pages += r->size / GW_PAGE_SIZE;
	}
	info->nregions = p->nregions;
	return info->pages <= GW_SNAP_MAX_PAGES ? 0 : gw_error_set(err, EINVAL, "so much RAM cannot be in a snapshot");
}

static int fill_info(struct gw_snap_info *info, const struct gw_snap_writer_params *p, struct gw_error *err)
{
	int r = p->name ? copy_name(info->name, p->name, "snapshot name", err) : gw_error_set(err, EINVAL, "a snapshot needs a name");

	if (r == 0)
		r = copy_name(info->vm, p->vm, "VM name", err);
	if (r == 0)
		r = copy_name(info->host, p->host, "host name", err);
	if (r == 0)
		r = fill_regions(info, p, err);
	if (r < 0)
		return r;
	if (p->vm_id)
		memcpy(info->vm_id, p->vm_id, 16);
	if (p->origin)
		memcpy(info->origin, p->origin, 16);
	if (p->ndisks > GW_SNAP_MAX_DISKS)
		return gw_error_set(err, EINVAL, "%u disks are too many for a snapshot", p->ndisks);
	for (unsigned i = 0; i < p->ndisks; i++) {
		if (strlen(p->disks[i]) >= GW_SNAP_DISK)
			return gw_error_set(err, EINVAL, "the name of disk %u is too long for a snapshot", i);
		snprintf(info->disks[i], GW_SNAP_DISK, "%s", p->disks[i]);
		for (const char *c = info->disks[i]; *c; c++) {
			if ((unsigned char)*c < 0x20 || *c == 0x7f)
				return gw_error_set(err, EINVAL, "the name of disk %u has control characters", i);
		}
	}
	info->ndisks = p->ndisks;
	info->created_ns = p->created_ns ?: gw_realtime_ns();
	if (p->parent) {
		const struct gw_snap_info *parent = gw_snap_info(p->parent);

		if (parent->pages != info->pages)
			return gw_error_set(err, EINVAL, "%s is of a VM with other RAM", parent->name);
		memcpy(info->parent, parent->id, 16);
	}
	return RAND_bytes(info->id, sizeof(info->id)) == 1 ? 0 : gw_error_set(err, EIO, "no random numbers");
}

struct loading {
	struct gw_snap_writer *w;
	struct gw_pack_set marked; /* read before packs are listed: what is not marked then stays for longer than we may take */
	/* Blobs with a base, and their digests: they count when that is there, which is known when all indexes were read. */
	struct gw_buf based, digests;
};

struct based_blob {
	struct gw_base_ref base;
	uint32_t segment, slot, pages;
};

/* A pack is referred to only when it is there, whole, and not going to be removed. */
static enum gw_places_how pack_usable(void *self, const uint8_t id[16], uint64_t size)
{
	struct loading *l = self;
	const struct gw_listed *e;
	char name[GW_OBJECT_NAME];

	gw_object_name(name, "packs", id);
	e = gw_listing_find(&l->w->packs, name);
	return e && e->size == size && !gw_pack_set_has(&l->marked, id) ? GW_PLACES_ADD : GW_PLACES_SKIP;
}

static int claim_pages(struct gw_snap_writer *w, uint32_t segment, uint32_t slot, uint32_t pages, const uint8_t *digests)
{
	for (uint32_t i = 0; i < pages; i++) {
		struct gw_page_place place = { segment, slot + i };

		if (gw_dedup_claim(w->dedup, digests + i * GW_PAGE_DIGEST_LEN, &place) < 0)
			return -ENOMEM;
	}
	return 0;
}

static int take_digests(void *self, uint32_t segment, const struct gw_blob_place *b, const uint8_t *digests, const uint8_t *hooks)
{
	const struct based_blob based = { b->base, segment, b->slot, b->pages };
	struct loading *l = self;
	int r;

	if (b->base.blobs) {
		r = gw_buf_append(&l->based, &based, sizeof(based));
		return r < 0 ? r : gw_buf_append(&l->digests, digests, (size_t)b->pages * GW_PAGE_DIGEST_LEN);
	}
	r = claim_pages(l->w, segment, b->slot, b->pages, digests);
	return r < 0 ? r : gw_similar_add(l->w->similar, segment, b->slot, b->pages, hooks, b->hooks);
}

static int take_based(struct loading *l)
{
	const struct based_blob *b = (const struct based_blob *)l->based.data, *end = b + l->based.len / sizeof(*b);
	const uint8_t *digests = l->digests.data;
	uint32_t segment;
	int r = 0;

	for (; b < end && r == 0; b++) {
		if (gw_places_base(&l->w->places, &b->base, &segment))
			r = claim_pages(l->w, b->segment, b->slot, b->pages, digests);
		digests += (size_t)b->pages * GW_PAGE_DIGEST_LEN;
	}
	return r;
}

static int load_index(struct loading *l, struct gw_error *err)
{
	struct gw_snap_writer *w = l->w;
	const struct gw_places_sink sink = { .wanted = pack_usable, .digests = take_digests, .self = l, .has_digests = true };
	struct gw_crypt *c = NULL;
	int r = gw_crypt_new(gw_repo_keys(w->repo), &c);

	if (r < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_marks_read_all(w->bucket, c, &l->marked, err);
	if (r == 0)
		r = gw_listing_read(w->bucket, "packs/", &w->packs, err);
	if (r == 0)
		r = gw_index_read_all(w->bucket, c, &w->places, &sink, err);
	if (r == 0 && take_based(l) < 0)
		r = gw_error_set(err, ENOMEM, "out of memory");
	gw_crypt_free(c);
	return r;
}

/*
 * Places that the index tells count, then those of the parent's manifest. -ESTALE: what the parent needs is going to be removed, so
 * it has been removed itself.
 */
static int load_parent(struct loading *l)
{
	struct gw_snap_writer *w = l->w;
	const struct gw_places *theirs = &gw_snap_manifest(w->parent)->places;
	int r = 0;

	w->parent_segments = calloc(theirs->nsegments + 1, sizeof(*w->parent_segments));
	if (!w->parent_segments)
		return -ENOMEM;
	for (uint32_t s = 0; s < theirs->nsegments && r == 0; s++) {
		r = gw_places_add_segment(&w->places, theirs->segments[s].id, &w->parent_segments[s]);
		for (uint32_t i = 0; i < theirs->segments[s].count && r == 0; i++) {
			struct gw_blob_place b = theirs->segments[s].blobs[i];

			if (gw_places_at(&w->places, w->parent_segments[s], b.slot))
				continue;
			if (gw_pack_set_has(&l->marked, theirs->packs[b.pack].id))
				return -ESTALE;
			r = gw_places_add_pack(&w->places, theirs->packs[b.pack].id, theirs->packs[b.pack].size, &b.pack);
			if (r == 0)
				r = gw_places_add_blob(&w->places, w->parent_segments[s], &b, false);
		}
	}
	return r;
}

static int load_repository(struct gw_snap_writer *w, struct gw_error *err)
{
	struct loading l = { .w = w };
	int r = load_index(&l, err);

	if (r == 0 && w->parent) {
		r = load_parent(&l);
		if (r < 0)
			gw_error_errno(err, r, "%s cannot be built upon", gw_snap_object(w->parent));
	}
	gw_pack_set_release(&l.marked);
	gw_buf_release(&l.based);
	gw_buf_release(&l.digests);
	return r;
}

static int begin(struct gw_snap_writer *w, const struct gw_snap_writer_params *p, struct gw_error *err)
{
	long cpus = GW_MIN(sysconf(_SC_NPROCESSORS_ONLN), 8L);
	unsigned workers = p->workers ?: (unsigned)GW_MAX(cpus, 1L), puts = p->puts ?: DEFAULT_PUTS;
	int r = fill_info(&w->manifest.info, p, err);

	if (r < 0)
		return r;
	w->pack_bytes = p->pack_bytes ?: DEFAULT_PACK;
	w->compression = p->compression;
	if (workers > MAX_WORKERS || puts > MAX_PUTS || w->pack_bytes > MAX_PACK)
		return gw_error_set(err, EINVAL, "a snapshot's writer cannot be as large");
	w->map = calloc(w->manifest.info.pages, sizeof(*w->map));
	if (!w->map || gw_dedup_new(&w->dedup) < 0 || gw_similar_new(&w->similar) < 0 || make_batches(w, workers * 2 + 4) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = load_repository(w, err);
	return r < 0 ? r : gw_writer_start(w, workers, puts, err);
}

int gw_snap_writer_new(struct gw_repo *repo, const struct gw_snap_writer_params *params, struct gw_snap_writer **ret, struct gw_error *err)
{
	struct gw_snap_writer *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return gw_error_set(err, ENOMEM, "out of memory");
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->changed, NULL);
	w->repo = repo;
	w->bucket = gw_repo_bucket(repo);
	w->parent = params->parent;
	w->wanted_generation = params->generation;
	w->started_ns = gw_clock_ns(CLOCK_BOOTTIME);
	w->to_put_last = &w->to_put;
	r = begin(w, params, err);
	if (r < 0) {
		gw_snap_writer_free(w);
		return r;
	}
	*ret = w;
	return 0;
}

void gw_snap_writer_free(struct gw_snap_writer *w)
{
	struct pack *p;

	if (!w)
		return;
	gw_snap_writer_cancel(w);
	gw_writer_join(w);
	while ((p = w->to_put)) {
		w->to_put = p->next;
		gw_writer_pack_free(p);
	}
	while ((p = w->done)) {
		w->done = p->next;
		gw_writer_pack_free(p);
	}
	free_batches(&w->idle);
	free_batches(&w->partial);
	free_batches(&w->full);
	free(w->workers);
	free(w->putters);
	free(w->map);
	free(w->parent_segments);
	gw_listing_release(&w->packs);
	gw_dedup_free(w->dedup);
	gw_similar_free(w->similar);
	gw_places_release(&w->places);
	gw_manifest_release(&w->manifest);
	pthread_cond_destroy(&w->changed);
	pthread_mutex_destroy(&w->lock);
	free(w);
}
