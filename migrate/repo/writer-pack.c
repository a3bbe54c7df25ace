// SPDX-License-Identifier: Apache-2.0
/* The threads of a snapshot's writer: workers, which make packs of batches, and putters, which put them. See writer-internal.h. */
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/thread.h"
#include "migrate/repo/object.h"
#include "migrate/repo/writer-internal.h"

void gw_writer_pack_free(struct pack *p)
{
	if (!p)
		return;
	OPENSSL_cleanse(&p->key, sizeof(p->key));
	free(p->data);
	free(p->blobs);
	free(p->digests);
	gw_buf_release(&p->hooks);
	free(p);
}

/* ---- packs ---- */

/* Waits until memory for one more is there. */
static int wait_for_room(struct gw_snap_writer *w)
{
	int r = 0;

	pthread_mutex_lock(&w->lock);
	while (w->open_packs == w->max_packs && !w->error.code)
		pthread_cond_wait(&w->changed, &w->lock);
	if (w->error.code)
		r = -w->error.code;
	else
		w->open_packs++;
	pthread_mutex_unlock(&w->lock);
	return r;
}

static void give_room(struct gw_snap_writer *w)
{
	pthread_mutex_lock(&w->lock);
	w->open_packs--;
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
}

static uint8_t *take_data(struct gw_snap_writer *w)
{
	const size_t huge = 2u << 20, len = GW_ALIGN_UP(w->pack_bytes + (size_t)GW_BLOB_MAX_LEN, huge);
	uint8_t *data = NULL;

	pthread_mutex_lock(&w->lock);
	if (w->nspare)
		data = w->spare[--w->nspare];
	pthread_mutex_unlock(&w->lock);
	if (data || posix_memalign((void **)&data, huge, len))
		return data;
	madvise(data, len, MADV_HUGEPAGE);
	return data;
}

/* Pack and segment have ids of their own: blobs can move to another pack, a segment's name is for ever. */
static int make_pack(struct worker *k, struct pack **ret)
{
	struct gw_snap_writer *w = k->w;
	struct pack *p = calloc(1, sizeof(*p));
	uint8_t segment[16];
	int r = p ? 0 : -ENOMEM;

	if (r == 0 && (RAND_bytes(p->id, sizeof(p->id)) != 1 || RAND_bytes(segment, sizeof(segment)) != 1))
		r = -EIO;
	if (r == 0)
		r = gw_blob_key_derive(k->coder, segment, &p->key);
	if (r == 0) {
		p->data = take_data(w);
		r = p->data ? 0 : -ENOMEM;
	}
	if (r == 0) {
		pthread_mutex_lock(&w->lock);
		r = gw_places_add_segment(&w->places, segment, &p->segment);
		pthread_mutex_unlock(&w->lock);
	}
	if (r < 0) {
		gw_writer_pack_free(p);
		return r;
	}
	gw_object_prefix(p->data, GW_OBJECT_PACK, 0);
	memcpy(p->data + GW_OBJECT_PREFIX, p->id, sizeof(p->id));
	p->len = GW_PACK_HEADER;
	*ret = p;
	return 0;
}

static int open_pack(struct worker *k)
{
	int r = wait_for_room(k->w);

	if (r < 0)
		return r;
	r = make_pack(k, &k->pack);
	if (r < 0)
		give_room(k->w);
	return r;
}

/* All putters are busy: the storage is what everybody waits for. */
static enum gw_blob_effort choose_effort(struct gw_snap_writer *w)
{
	if (w->compression != GW_SNAP_ADAPT)
		return w->compression == GW_SNAP_FAST ? GW_BLOB_FAST : GW_BLOB_SMALL;
	return atomic_load_explicit(&w->closed_packs, memory_order_relaxed) >= w->puts ? GW_BLOB_SMALL : GW_BLOB_FAST;
}

static int room_for_blob(struct pack *p)
{
	if (p->nblobs == p->blobs_cap) {
		uint32_t cap = GW_MAX(p->blobs_cap * 2, 256u);
		struct gw_blob_place *more = realloc(p->blobs, cap * sizeof(*more));

		if (!more)
			return -ENOMEM;
		p->blobs = more;
		p->blobs_cap = cap;
	}
	return gw_buf_reserve(&p->hooks, GW_BLOB_MAX_HOOKS * GW_HOOK_LEN) ? 0 : -ENOMEM;
}

/* What is told against others has no hooks: it can be nobody's base. */
static int seal_staged(struct worker *k, struct gw_blob_place *b)
{
	struct pack *p = k->pack;
	const size_t len = k->staged * GW_PAGE_SIZE;
	const bool random = gw_blob_looks_random(k->stage, len);
	uint8_t *out = p->data + p->len, *hooks = p->hooks.data + p->hooks.len;
	struct gw_blob_base base;
	bool found;
	int n;

	b->hooks = random ? 0 : gw_hooks_of(k->stage, len, hooks);
	found = b->hooks && k->w->compression != GW_SNAP_FAST && gw_writer_find_base(k, hooks, b->hooks, &base);
	n = gw_blob_seal(k->coder, &p->key, b->number, k->stage, k->staged, p->digests + (uint64_t)b->slot * GW_PAGE_DIGEST_LEN,
			 random ? GW_BLOB_PLAIN : choose_effort(k->w), found ? &base : NULL, out);
	if (n < 0)
		return n;
	if (gw_blob_has_base(out)) {
		b->base = base.ref;
		b->hooks = 0;
	}
	p->hooks.len += b->hooks * GW_HOOK_LEN;
	b->len = (uint32_t)n;
	return 0;
}

static int seal_blob(struct worker *k)
{
	struct pack *p = k->pack;
	struct gw_blob_place b = { .number = p->nblobs, .slot = p->slots - k->staged, .pages = k->staged, .offset = p->len };
	int r;

	if (k->staged == 0)
		return 0;
	r = room_for_blob(p);
	if (r == 0)
		r = seal_staged(k, &b);
	if (r < 0)
		return r;
	p->blobs[p->nblobs++] = b;
	p->len += b.len;
	k->staged = 0;
	atomic_fetch_add_explicit(&k->w->blob_bytes, b.len, memory_order_relaxed);
	return 0;
}

static int close_pack(struct worker *k)
{
	struct gw_snap_writer *w = k->w;
	int r;

	if (!k->pack)
		return 0;
	r = seal_blob(k);
	if (r < 0)
		return r;
	/* All pages that came were known. */
	if (k->pack->nblobs == 0) {
		gw_writer_pack_free(k->pack);
		k->pack = NULL;
		give_room(w);
		return 0;
	}
	atomic_fetch_add(&w->closed_packs, 1);
	pthread_mutex_lock(&w->lock);
	*w->to_put_last = k->pack;
	w->to_put_last = &k->pack->next;
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
	k->pack = NULL;
	return 0;
}

static int room_for_digest(struct pack *p)
{
	uint32_t cap = GW_MAX(p->digests_cap * 2, 1024u);
	uint8_t *more;

	if (p->slots < p->digests_cap)
		return 0;
	more = realloc(p->digests, (size_t)cap * GW_PAGE_DIGEST_LEN);
	if (!more)
		return -ENOMEM;
	p->digests = more;
	p->digests_cap = cap;
	return 0;
}

/* ---- pages ---- */

static int take_page(struct worker *k, uint64_t index, const uint8_t *data, const uint8_t *digest)
{
	struct gw_snap_writer *w = k->w;
	struct gw_page_place place;
	int r = k->pack ? 0 : open_pack(k);

	if (r == 0)
		r = room_for_digest(k->pack);
	if (r < 0)
		return r;
	place = (struct gw_page_place){ k->pack->segment, k->pack->slots };
	r = gw_dedup_claim(w->dedup, digest, &place);
	if (r < 0)
		return r;
	atomic_store_explicit(&w->map[index], ((uint64_t)place.segment + 1) << 32 | place.slot, memory_order_relaxed);
	if (r == 0) {
		atomic_fetch_add_explicit(&w->known, 1, memory_order_relaxed);
		return 0;
	}
	atomic_fetch_add_explicit(&w->stored, 1, memory_order_relaxed);
	memcpy(k->pack->digests + (uint64_t)k->pack->slots * GW_PAGE_DIGEST_LEN, digest, GW_PAGE_DIGEST_LEN);
	memcpy(k->stage + k->staged * GW_PAGE_SIZE, data, GW_PAGE_SIZE);
	k->staged++;
	k->pack->slots++;
	r = k->staged == GW_BLOB_PAGES ? seal_blob(k) : 0;
	if (r == 0 && (k->pack->len >= w->pack_bytes || k->pack->slots >= MAX_PACK_PAGES))
		r = close_pack(k);
	return r;
}

/* By so many pages as stay in the processor's cache until they are compressed. */
static int take_batch(struct worker *k, const struct batch *b)
{
	uint8_t digests[DIGEST_PAGES][GW_PAGE_DIGEST_LEN];
	int r = 0;

	for (unsigned i = 0; i < b->count && r == 0; i++) {
		const uint8_t *data = b->data + i * GW_PAGE_SIZE;

		if (i % DIGEST_PAGES == 0)
			r = gw_crypt_digests(gw_blob_coder_crypt(k->coder), data, GW_MIN(b->count - i, DIGEST_PAGES), digests);
		if (r == 0 && atomic_load_explicit(&k->w->stop, memory_order_relaxed))
			r = -ECANCELED;
		if (r == 0)
			r = take_page(k, b->index[i], data, digests[i % DIGEST_PAGES]);
	}
	return r;
}

static struct batch *next_batch(struct gw_snap_writer *w)
{
	struct batch *b;

	pthread_mutex_lock(&w->lock);
	while (!w->full.first && !w->ending && !w->error.code)
		pthread_cond_wait(&w->changed, &w->lock);
	b = w->error.code ? NULL : gw_batch_pop(&w->full);
	if (b)
		w->busy++;
	pthread_mutex_unlock(&w->lock);
	return b;
}

static void done_with_batch(struct gw_snap_writer *w, struct batch *b)
{
	b->count = 0;
	pthread_mutex_lock(&w->lock);
	gw_batch_push(&w->idle, b);
	w->busy--;
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
}

static void *run_worker(void *arg)
{
	struct worker *k = arg;
	struct batch *b;
	int r = 0;

	while (r == 0 && (b = next_batch(k->w))) {
		r = take_batch(k, b);
		done_with_batch(k->w, b);
	}
	if (r == 0 && !atomic_load(&k->w->stop))
		r = close_pack(k);
	if (r < 0)
		gw_writer_fail(k->w, r, NULL);
	return NULL;
}

/* ---- puts ---- */

static struct pack *next_pack(struct gw_snap_writer *w)
{
	struct pack *p = NULL;

	pthread_mutex_lock(&w->lock);
	while (!w->to_put && !w->packs_ending && !w->error.code)
		pthread_cond_wait(&w->changed, &w->lock);
	if (w->to_put && !w->error.code) {
		p = w->to_put;
		w->to_put = p->next;
		if (!w->to_put)
			w->to_put_last = &w->to_put;
		p->next = NULL;
	}
	pthread_mutex_unlock(&w->lock);
	return p;
}

/* It is durable: its blobs have places. Under lock. */
static int remember(struct gw_snap_writer *w, struct pack *p)
{
	uint32_t number;
	int r = gw_places_add_pack(&w->places, p->id, p->len, &number);

	for (uint32_t i = 0; i < p->nblobs && r == 0; i++) {
		p->blobs[i].pack = number;
		r = gw_places_add_blob(&w->places, p->segment, &p->blobs[i], false);
	}
	return r;
}

static int put_pack(struct gw_snap_writer *w, struct pack *p)
{
	struct gw_error err = GW_ERROR_INIT;
	char name[GW_OBJECT_NAME];
	int r;

	gw_object_name(name, "packs", p->id);
	r = gw_object_put(w->bucket, name, p->data, p->len, &err);
	atomic_fetch_sub(&w->closed_packs, 1);
	OPENSSL_cleanse(&p->key, sizeof(p->key));
	pthread_mutex_lock(&w->lock);
	w->spare[w->nspare++] = p->data;
	p->data = NULL;
	w->open_packs--;
	if (r == 0)
		r = remember(w, p);
	p->next = w->done;
	w->done = p;
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
	if (r < 0)
		gw_writer_fail(w, r, &err);
	else
		atomic_fetch_add(&w->put_bytes, p->len);
	return r;
}

static void *run_putter(void *arg)
{
	struct gw_snap_writer *w = arg;
	struct pack *p;

	while ((p = next_pack(w)) && put_pack(w, p) == 0)
		;
	return NULL;
}

/* ---- start and end ---- */

static int start_worker(struct gw_snap_writer *w, struct worker *k)
{
	int r;

	k->w = w;
	k->stage = malloc(GW_BLOB_PAGES * GW_PAGE_SIZE);
	r = k->stage ? gw_blob_coder_new(gw_repo_keys(w->repo), &k->coder) : -ENOMEM;
	return r < 0 ? r : gw_thread_create(&k->thread, run_worker, k);
}

int gw_writer_start(struct gw_snap_writer *w, unsigned workers, unsigned puts, struct gw_error *err)
{
	int r = 0;

	w->puts = puts;
	w->max_packs = workers + puts + 1;
	w->workers = calloc(workers, sizeof(*w->workers));
	w->putters = calloc(puts, sizeof(*w->putters));
	if (!w->workers || !w->putters)
		return gw_error_set(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < workers && r == 0; i++) {
		r = start_worker(w, &w->workers[i]);
		if (r == 0)
			w->nworkers++;
		else {
			gw_blob_coder_free(w->workers[i].coder);
			free(w->workers[i].stage);
		}
	}
	for (unsigned i = 0; i < puts && r == 0; i++) {
		r = gw_thread_create(&w->putters[i], run_putter, w);
		if (r == 0)
			w->nputters++;
	}
	return r < 0 ? gw_error_errno(err, r, "cannot start the threads that write a snapshot") : 0;
}

static void set_ending(struct gw_snap_writer *w, bool *what)
{
	pthread_mutex_lock(&w->lock);
	*what = true;
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
}

void gw_writer_join(struct gw_snap_writer *w)
{
	set_ending(w, &w->ending);
	for (unsigned i = 0; i < w->nworkers; i++) {
		struct worker *k = &w->workers[i];

		pthread_join(k->thread, NULL);
		gw_writer_pack_free(k->pack);
		gw_base_reader_free(k->bases);
		gw_blob_coder_free(k->coder);
		free(k->stage);
	}
	w->nworkers = 0;
	set_ending(w, &w->packs_ending);
	for (unsigned i = 0; i < w->nputters; i++)
		pthread_join(w->putters[i], NULL);
	w->nputters = 0;
	while (w->nspare)
		free(w->spare[--w->nspare]);
}
