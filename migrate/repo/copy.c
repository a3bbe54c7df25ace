// SPDX-License-Identifier: Apache-2.0
/* Copying a snapshot to another repository; see upkeep.h. Nothing is seen there before all of it is. */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "lib/thread.h"
#include "lib/util.h"
#include "migrate/repo/upkeep.h"
#include "migrate/repo/writer.h"

#define CHUNK 2048u /* pages that a thread fetches at a time */
#define THREADS 4u

struct copying {
	struct gw_snap *from;
	struct gw_snap_writer *w;
	struct gw_upkeep *upkeep; /* may be NULL */
	_Atomic(uint64_t) next;   /* page */
	pthread_mutex_t lock;     /* for error */
	struct gw_error error;
};

static int give_pages(void *self, uint64_t page, uint64_t count, const uint8_t *data)
{
	return gw_snap_writer_pages(((struct copying *)self)->w, page, count, data);
}

static void copy_failed(struct copying *c, int r, const struct gw_error *err)
{
	pthread_mutex_lock(&c->lock);
	if (!c->error.code && err->code)
		c->error = *err;
	else if (!c->error.code)
		gw_error_errno(&c->error, r, "cannot copy");
	pthread_mutex_unlock(&c->lock);
	gw_snap_writer_cancel(c->w);
}

static void *copy_pages(void *arg)
{
	struct copying *c = arg;
	const uint64_t pages = gw_snap_info(c->from)->pages;

	for (;;) {
		struct gw_snap_range range = { atomic_fetch_add(&c->next, CHUNK), CHUNK };
		struct gw_error err = GW_ERROR_INIT;
		int r;

		if (range.page >= pages)
			return NULL;
		range.count = GW_MIN(range.count, pages - range.page);
		r = c->upkeep && atomic_load(&c->upkeep->stop) ? gw_error_set(&err, ECANCELED, "cancelled") :
								  gw_snap_fetch(c->from, &range, 1, give_pages, c, &err);
		if (r < 0) {
			copy_failed(c, r, &err);
			return NULL;
		}
		if (c->upkeep)
			atomic_fetch_add(&c->upkeep->done, range.count * GW_PAGE_SIZE);
	}
}

static int copy_all(struct copying *c, struct gw_error *err)
{
	pthread_t threads[THREADS];
	unsigned n = 0;
	int r = 0;

	while (n < THREADS && r == 0) {
		r = gw_thread_create(&threads[n], copy_pages, c);
		n += r == 0;
	}
	if (r < 0)
		gw_snap_writer_cancel(c->w);
	for (unsigned i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	if (r < 0)
		return gw_error_errno(err, r, "cannot start the threads of a copy");
	if (!c->error.code)
		return 0;
	/* The writer's own failure tells more than that it is cancelled. */
	if (gw_snap_writer_flush(c->w, err) == -ECANCELED && err)
		*err = c->error;
	return err ? -err->code : -c->error.code;
}

static const uint8_t no_id[16];

/* Who was first: what is copied on is known there as well. */
static const uint8_t *origin_of(const struct gw_snap_info *info)
{
	return memcmp(info->origin, no_id, 16) ? info->origin : info->id;
}

struct looking {
	const uint8_t *origin;
	struct gw_snap_info *ret; /* may be NULL */
};

static int look_at(void *self, const char *object, uint64_t size, const struct gw_snap_info *info, const struct gw_error *error)
{
	struct looking *l = self;

	if (!info || memcmp(origin_of(info), l->origin, 16))
		return 0;
	if (l->ret)
		*l->ret = *info;
	return 1;
}

static int begin_copy(struct copying *c, struct gw_repo *to, struct gw_error *err)
{
	const struct gw_manifest *m = gw_snap_manifest(c->from);
	const char *disks[GW_SNAP_MAX_DISKS];
	const struct gw_snap_writer_params params = {
		.name = m->info.name,
		.vm = m->info.vm[0] ? m->info.vm : NULL,
		.host = m->info.host[0] ? m->info.host : NULL,
		.vm_id = m->info.vm_id,
		.regions = m->info.regions,
		.nregions = m->info.nregions,
		.disks = disks,
		.ndisks = m->info.ndisks,
		.created_ns = m->info.created_ns,
		.generation = m->info.generation,
		.origin = origin_of(&m->info),
	};
	int r;

	for (unsigned i = 0; i < m->info.ndisks; i++)
		disks[i] = m->info.disks[i];
	r = gw_snap_writer_new(to, &params, &c->w, err);
	for (unsigned i = 0; i < m->nparts && r == 0; i++) {
		r = gw_snap_writer_part(c->w, m->parts[i].name, m->parts[i].data, m->parts[i].len);
		if (r < 0)
			gw_error_errno(err, r, "cannot copy %s", m->parts[i].name);
	}
	return r;
}

int gw_repo_copy(struct gw_snap *from, struct gw_repo *to, struct gw_upkeep *upkeep, struct gw_snap_info *ret, struct gw_error *err)
{
	const struct gw_snap_info *info = gw_snap_info(from);
	struct looking l = { origin_of(info), ret };
	struct copying c = { .from = from, .upkeep = upkeep, .error = GW_ERROR_INIT };
	struct gw_error own = GW_ERROR_INIT;
	int r = gw_snap_list(to, info->name, look_at, &l, err);

	if (r)
		return r;
	if (upkeep)
		atomic_store(&upkeep->total, info->pages * GW_PAGE_SIZE);
	pthread_mutex_init(&c.lock, NULL);
	r = begin_copy(&c, to, &own);
	if (r == 0)
		r = copy_all(&c, &own);
	if (r == 0)
		r = gw_snap_writer_commit(c.w, ret, &own);
	gw_snap_writer_free(c.w);
	pthread_mutex_destroy(&c.lock);
	return r < 0 ? gw_error_set(err, r, "%s", gw_error_text(&own)) : 0;
}
