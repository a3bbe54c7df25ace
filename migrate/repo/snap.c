// SPDX-License-Identifier: Apache-2.0
/* Listing and opening snapshots; see snap.h. */
#include "migrate/repo/snap.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "lib/parse.h"
#include "lib/util.h"
#include "migrate/repo/listing.h"
#include "migrate/repo/snap-internal.h"

#define FIRST_READ 4096u            /* holds most heads */
#define MAX_OBJECT (800ull << 20)

/* ---- listing ---- */

/* Lists manifests: all, or those of `name`. */
static int list_objects(struct gw_repo *repo, struct gw_crypt *c, const char *name, struct gw_listing *ret, struct gw_error *err)
{
	char folder[GW_SNAP_OBJECT] = "snapshots/";

	if (name && gw_parse_name(name, "snapshot name", err) < 0)
		return -EINVAL;
	if (name && gw_manifest_folder(c, name, folder) < 0)
		return gw_error_set(err, EIO, "no name can be made");
	return gw_listing_read(gw_repo_bucket(repo), folder, ret, err);
}

static int read_head(struct gw_repo *repo, struct gw_crypt *c, const struct gw_listed *e, struct gw_snap_info *ret, struct gw_error *err)
{
	uint64_t len = GW_MIN(e->size, (uint64_t)FIRST_READ);
	gw_autofree uint8_t *data = malloc(len + 1);
	uint32_t head;
	int r;

	if (!data)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_bucket_get(gw_repo_bucket(repo), e->name, 0, len, data, err);
	if (r == 0)
		r = gw_manifest_head_len(e->name, data, len, &head, err);
	if (r < 0)
		return r;
	if (head > len) {
		uint8_t *more;

		if (head > e->size)
			return gw_object_damaged(e->name, err);
		more = realloc(data, head);
		if (!more)
			return gw_error_set(err, ENOMEM, "out of memory");
		data = more;
		len = head;
		r = gw_bucket_get(gw_repo_bucket(repo), e->name, 0, len, data, err);
		if (r < 0)
			return r;
	}
	return gw_manifest_open_head(c, e->name, data, len, ret, err);
}

int gw_snap_list(struct gw_repo *repo, const char *name, gw_snap_list_fn *fn, void *self, struct gw_error *err)
{
	gw_autofree struct gw_snap_info *info = malloc(sizeof(*info));
	gw_cleanup(gw_listing_release) struct gw_listing l = { 0 };
	struct gw_crypt *c = NULL;
	int r;

	if (!info || gw_crypt_new(gw_repo_keys(repo), &c) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = list_objects(repo, c, name, &l, err);
	for (size_t i = 0; i < l.count && r == 0; i++) {
		struct gw_error one = GW_ERROR_INIT;
		uint64_t generation;

		if (gw_manifest_parse_name(l.all[i].name, &generation) < 0)
			continue;
		r = read_head(repo, c, &l.all[i], info, &one);
		if (r == -EBADMSG || r == -EPROTONOSUPPORT || r == -EPROTO)
			r = fn(self, l.all[i].name, l.all[i].size, NULL, &one);
		else if (r == -ENOENT) /* removed since it was listed */
			r = 0;
		else if (r < 0)
			gw_error_set(err, r, "%s", gw_error_text(&one));
		else
			r = fn(self, l.all[i].name, l.all[i].size, info, NULL);
	}
	gw_crypt_free(c);
	return r;
}

/* ---- opening ---- */

int gw_snap_open_object(struct gw_repo *repo, const char *object, struct gw_snap **ret, struct gw_error *err)
{
	struct gw_snap *s = calloc(1, sizeof(*s));
	gw_autobuf data = GW_BUF_INIT;
	struct gw_crypt *c = NULL;
	uint64_t generation;
	int r;

	if (!s || gw_crypt_new(gw_repo_keys(repo), &c) < 0) {
		free(s);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	r = gw_manifest_parse_name(object, &generation);
	if (r < 0)
		gw_error_set(err, EINVAL, "%.80s is not the name of a snapshot's object", object);
	if (r == 0)
		r = gw_bucket_read(gw_repo_bucket(repo), object, MAX_OBJECT, &data, err);
	if (r == -EFBIG)
		r = gw_object_damaged(object, err);
	if (r == 0)
		r = gw_manifest_open(c, object, data.data, data.len, &s->m, err);
	gw_crypt_free(c);
	if (r < 0) {
		free(s);
		return r;
	}
	s->repo = repo;
	snprintf(s->object, sizeof(s->object), "%s", object);
	pthread_rwlock_init(&s->moving, NULL);
	pthread_mutex_init(&s->lock, NULL);
	*ret = s;
	return 0;
}

/* Names are in the order of generations: the last that fits. */
static const struct gw_listed *choose(const struct gw_listing *l, uint64_t generation)
{
	const struct gw_listed *found = NULL;

	for (size_t i = 0; i < l->count; i++) {
		uint64_t g;

		if (gw_manifest_parse_name(l->all[i].name, &g) == 0 && (generation == 0 || g == generation))
			found = &l->all[i];
	}
	return found;
}

int gw_snap_open(struct gw_repo *repo, const char *name, uint64_t generation, struct gw_snap **ret, struct gw_error *err)
{
	gw_cleanup(gw_listing_release) struct gw_listing l = { 0 };
	const struct gw_listed *found;
	struct gw_crypt *c = NULL;
	int r;

	if (gw_crypt_new(gw_repo_keys(repo), &c) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = list_objects(repo, c, name, &l, err);
	gw_crypt_free(c);
	if (r < 0)
		return r;
	found = choose(&l, generation);
	if (found)
		return gw_snap_open_object(repo, found->name, ret, err);
	if (generation)
		return gw_error_set(err, ENOENT, "there is no generation %" PRIu64 " of %s in %s", generation, name, gw_repo_url(repo));
	return gw_error_set(err, ENOENT, "there is no snapshot %s in %s", name, gw_repo_url(repo));
}

void gw_snap_free(struct gw_snap *s)
{
	if (!s)
		return;
	for (unsigned i = 0; i < s->nreaders; i++)
		gw_snap_reader_release(&s->readers[i]);
	pthread_rwlock_destroy(&s->moving);
	pthread_mutex_destroy(&s->lock);
	gw_manifest_release(&s->m);
	free(s);
}

/* ---- looking ---- */

const struct gw_snap_info *gw_snap_info(const struct gw_snap *s)
{
	return &s->m.info;
}

const char *gw_snap_object(const struct gw_snap *s)
{
	return s->object;
}

const struct gw_manifest *gw_snap_manifest(const struct gw_snap *s)
{
	return &s->m;
}

const void *gw_snap_part(const struct gw_snap *s, const char *name, uint64_t *len)
{
	for (unsigned i = 0; i < s->m.nparts; i++) {
		if (strcmp(s->m.parts[i].name, name) == 0) {
			*len = s->m.parts[i].len;
			return s->m.parts[i].data;
		}
	}
	return NULL;
}

const struct gw_snap_run *gw_snap_runs(const struct gw_snap *s, uint64_t *count)
{
	*count = s->m.nruns;
	return s->m.runs;
}

const struct gw_snap_run *gw_snap_run_at(const struct gw_snap *s, uint64_t page)
{
	uint64_t low = 0, high = s->m.nruns;

	while (low < high) { /* the first that ends after the page */
		uint64_t mid = low + (high - low) / 2;

		if (s->m.runs[mid].page + s->m.runs[mid].count <= page)
			low = mid + 1;
		else
			high = mid;
	}
	return low < s->m.nruns ? &s->m.runs[low] : NULL;
}

bool gw_snap_neighbours(const struct gw_snap *s, uint64_t page, uint64_t *first, uint64_t *count)
{
	const struct gw_snap_run *run = gw_snap_run_at(s, page);
	uint32_t slot, from, to;

	if (!run || run->page > page)
		return false;
	slot = run->slot + (uint32_t)(page - run->page);
	pthread_rwlock_rdlock((pthread_rwlock_t *)&s->moving);
	const struct gw_blob_place *b = gw_places_at(&s->m.places, run->segment, slot);
	from = GW_MAX(b->slot, run->slot);
	to = GW_MIN(b->slot + b->pages, run->slot + run->count);
	pthread_rwlock_unlock((pthread_rwlock_t *)&s->moving);
	*first = run->page + (from - run->slot);
	*count = to - from;
	return true;
}
