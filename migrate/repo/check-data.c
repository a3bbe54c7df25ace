// SPDX-License-Identifier: Apache-2.0
/* Checking what is in packs: each blob that an index lists is decrypted, and its pages are compared with their digests. See upkeep.h. */
#include <errno.h>
#include <string.h>

#include "lib/thread.h"
#include "lib/util.h"
#include "migrate/repo/base.h"
#include "migrate/repo/check-internal.h"
#include "migrate/repo/index.h"
#include "migrate/repo/object.h"

#define MAX_THREADS 8u

/* A blob of an index, in the order of its table: those of a pack lie in a row. */
struct job {
	struct gw_blob_place b;
	uint32_t segment;
	uint64_t digests; /* position of the first */
};

struct reading {
	struct checking *c;
	const struct gw_survey *s;
	struct gw_places places; /* of one index */
	struct job *jobs;
	uint64_t njobs, jobs_cap;
	struct gw_buf digests;
	pthread_mutex_t lock;    /* for next and error */
	uint64_t next;           /* job */
	struct gw_error error;
};

static int add_job(void *self, uint32_t segment, const struct gw_blob_place *b, const uint8_t *digests, const uint8_t *hooks)
{
	struct reading *rd = self;

	if (rd->njobs == rd->jobs_cap) {
		uint64_t cap = GW_MAX(rd->jobs_cap * 2, (uint64_t)1024);
		struct job *more = realloc(rd->jobs, cap * sizeof(*more));

		if (!more)
			return -ENOMEM;
		rd->jobs = more;
		rd->jobs_cap = cap;
	}
	rd->jobs[rd->njobs++] = (struct job){ *b, segment, rd->digests.len };
	return gw_buf_append(&rd->digests, digests, (size_t)b->pages * GW_PAGE_DIGEST_LEN);
}

/* The jobs of the next pack. False: none is left, or somebody failed. */
static bool next_pack(struct reading *rd, const struct job **first, uint64_t *count)
{
	uint64_t n = 0;
	bool more;

	pthread_mutex_lock(&rd->lock);
	*first = &rd->jobs[rd->next];
	while (rd->next + n < rd->njobs && (*first)[n].b.pack == (*first)->b.pack)
		n++;
	rd->next += n;
	*count = n;
	more = n > 0 && !rd->error.code;
	pthread_mutex_unlock(&rd->lock);
	return more;
}

/* What a thread needs. */
struct tools {
	struct gw_blob_coder *coder;
	struct gw_base_reader *bases;
	uint8_t *pages; /* of one blob */
};

static void tools_release(struct tools *t)
{
	gw_base_reader_free(t->bases);
	gw_blob_coder_free(t->coder);
	free(t->pages);
}

static int tools_init(struct tools *t, struct gw_repo *repo)
{
	int r;

	t->pages = malloc(GW_BLOB_MAX_PAGES * GW_PAGE_SIZE);
	r = t->pages ? gw_blob_coder_new(gw_repo_keys(repo), &t->coder) : -ENOMEM;
	return r < 0 ? r : gw_base_reader_new(gw_repo_bucket(repo), t->coder, &t->bases);
}

static bool blob_is_right(struct reading *rd, const struct tools *t, const struct job *j, const uint8_t *data)
{
	uint8_t digests[GW_BLOB_MAX_PAGES][GW_PAGE_DIGEST_LEN];
	struct gw_blob_coder *coder = t->coder;
	struct gw_base_place place;
	struct gw_blob_base base;
	struct gw_blob_key key;

	if (gw_blob_key_derive(coder, rd->places.segments[j->segment].id, &key) < 0)
		return false;
	/* What nobody uses may have lost its base to a prune. Is it in use, the survey has told that the base is missing. */
	if (j->b.base.blobs && !gw_base_find(&rd->s->places, &j->b.base, &place))
		return gw_blob_verify(coder, &key, j->b.number, j->b.pages, data, j->b.len, &j->b.base) == 0;
	if (j->b.base.blobs && gw_base_read(t->bases, &place, &base, NULL) < 0)
		return false;
	if (gw_blob_open(coder, &key, j->b.number, j->b.pages, data, j->b.len, j->b.base.blobs ? &base : NULL, t->pages) < 0)
		return false;
	return gw_crypt_digests(gw_blob_coder_crypt(coder), t->pages, j->b.pages, digests) == 0 &&
	       memcmp(digests, rd->digests.data + j->digests, j->b.pages * sizeof(digests[0])) == 0;
}

static void check_blobs(struct reading *rd, const struct tools *t, const char *name, const struct gw_buf *pack, const struct job *jobs,
			uint64_t count)
{
	const uint8_t *id = rd->places.packs[jobs->b.pack].id;
	uint64_t bad = 0, good = 0, first_bad = 0;
	uint8_t variant;
	char text[200];

	if (gw_object_check_prefix(pack->data, pack->len, GW_OBJECT_PACK, &variant, name, NULL) < 0 || variant != 0 ||
	    pack->len < GW_PACK_HEADER || memcmp(pack->data + GW_OBJECT_PREFIX, id, 16)) {
		gw_check_problem(rd->c, name, "is damaged at its beginning, or not what belongs there");
		return;
	}
	for (uint64_t i = 0; i < count; i++) {
		const struct job *j = &jobs[i];

		if (j->b.offset + j->b.len <= pack->len && blob_is_right(rd, t, j, pack->data + j->b.offset)) {
			good += j->b.pages;
			continue;
		}
		if (bad++ == 0)
			first_bad = j->b.offset;
	}
	pthread_mutex_lock(&rd->c->lock);
	rd->c->result->read_pages += good;
	pthread_mutex_unlock(&rd->c->lock);
	if (bad == 0)
		return;
	snprintf(text, sizeof(text), "is damaged: %llu of %llu blobs, the first at byte %llu", (unsigned long long)bad, (unsigned long long)count,
		 (unsigned long long)first_bad);
	gw_check_problem(rd->c, name, text);
}

static int check_pack(struct reading *rd, const struct tools *t, const struct job *jobs, uint64_t count, struct gw_error *err)
{
	const struct gw_pack_place *pack = &rd->places.packs[jobs->b.pack];
	gw_autobuf data = GW_BUF_INIT;
	char name[GW_OBJECT_NAME];
	int r;

	gw_object_name(name, "packs", pack->id);
	/* Another length was told already; what is there is looked at all the same. */
	r = gw_bucket_read(gw_repo_bucket(rd->c->repo), name, GW_BUCKET_MAX_OBJECT, &data, err);
	if (r == -ENOENT) /* as was told, or prune has removed it */
		return 0;
	if (r < 0)
		return r;
	check_blobs(rd, t, name, &data, jobs, count);
	if (rd->c->params->upkeep)
		atomic_fetch_add(&rd->c->params->upkeep->done, pack->size);
	return 0;
}

static void *check_packs(void *arg)
{
	struct reading *rd = arg;
	struct gw_upkeep *upkeep = rd->c->params->upkeep;
	struct gw_error err = GW_ERROR_INIT;
	struct tools t = { 0 };
	const struct job *jobs;
	uint64_t count;
	int r = tools_init(&t, rd->c->repo);

	if (r < 0)
		gw_error_errno(&err, r, "cannot read packs");
	while (r == 0 && next_pack(rd, &jobs, &count)) {
		r = upkeep && atomic_load(&upkeep->stop) ? gw_error_set(&err, ECANCELED, "cancelled") :
							   check_pack(rd, &t, jobs, count, &err);
	}
	if (r < 0) {
		pthread_mutex_lock(&rd->lock);
		rd->error = err;
		pthread_mutex_unlock(&rd->lock);
	}
	tools_release(&t);
	return NULL;
}

static int check_jobs(struct reading *rd, struct gw_error *err)
{
	long cpus = GW_MIN(sysconf(_SC_NPROCESSORS_ONLN), (long)MAX_THREADS);
	unsigned wanted = rd->c->params->threads ? GW_MIN(rd->c->params->threads, MAX_THREADS) : (unsigned)GW_MAX(cpus, 1L), n = 0;
	pthread_t threads[MAX_THREADS];
	int r = 0;

	while (n < wanted && r == 0) {
		r = gw_thread_create(&threads[n], check_packs, rd);
		n += r == 0;
	}
	if (n == 0)
		return gw_error_errno(err, r, "cannot start threads");
	for (unsigned i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	if (rd->error.code && err)
		*err = rd->error;
	return -rd->error.code;
}

static int check_index(struct checking *c, const struct gw_survey *s, const char *name, struct gw_error *err)
{
	struct reading rd = { .c = c, .s = s, .places = GW_PLACES_INIT, .error = GW_ERROR_INIT };
	const struct gw_places_sink sink = { .digests = add_job, .self = &rd, .has_digests = true };
	int r = gw_index_read(gw_repo_bucket(c->repo), s->crypt, name, &rd.places, &sink, err);

	/* Damage was told by the survey; what is exchanged meanwhile is in another index. */
	if (r == -EBADMSG || r == -EPROTONOSUPPORT || r == -ENOENT)
		r = 0;
	else if (r == 0 && rd.njobs) {
		pthread_mutex_init(&rd.lock, NULL);
		r = check_jobs(&rd, err);
		pthread_mutex_destroy(&rd.lock);
	}
	gw_places_release(&rd.places);
	gw_buf_release(&rd.digests);
	free(rd.jobs);
	return r;
}

int gw_check_data(struct checking *c, const struct gw_survey *s, struct gw_error *err)
{
	uint64_t total = 0;
	int r = 0;

	for (size_t i = 0; i < s->packs.count; i++)
		total += s->packs.all[i].size;
	if (c->params->upkeep)
		atomic_store(&c->params->upkeep->total, total);
	for (size_t i = 0; i < s->indexes.count && r == 0; i++) {
		uint8_t id[16];

		if (gw_object_parse_name(s->indexes.all[i].name, "index", id) == 0)
			r = check_index(c, s, s->indexes.all[i].name, err);
	}
	return r;
}
