// SPDX-License-Identifier: Apache-2.0
/* The page store of a sharing domain: its life, its clients' and their packets. See store.h. */
#include "ksm/store.h"

#include <errno.h>
#include <malloc.h>
#include <string.h>
#include <sys/mman.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>

#include "ksm/store-internal.h"
#include "lib/clock.h"

#define SECRET_LABEL "godwit share hash secret"

int gw_store_grow(void *array_ptr, uint32_t *cap, uint32_t used, size_t size)
{
	void **array = array_ptr;
	uint32_t more;
	void *to;

	if (used < *cap)
		return 0;
	more = GW_MAX(used + used / 2, 16u);
	if (more < used)
		return -ENOMEM;
	to = realloc(*array, more * size);
	if (!to)
		return -ENOMEM;
	*array = to;
	*cap = more;
	return 0;
}

/* ---- life of a store ---- */

static bool keep_entry(void *ctx, uint64_t key, uint64_t where)
{
	const struct gw_store *s = ctx;

	return (where & WHERE_KIND) != WHERE_SEEN || still_seen(client_by_number(s, where_number(where)), where_page(where), key);
}

static void prefetch_entry(void *ctx, uint64_t where)
{
	const struct gw_store *s = ctx;
	const struct gw_store_client *c = (where & WHERE_KIND) == WHERE_SEEN ? client_by_number(s, where_number(where)) : NULL;

	if (c && where_page(where) < c->pages)
		__builtin_prefetch(&c->seen[where_page(where)]);
}

static bool keep_file(void *ctx, uint64_t key, uint64_t where)
{
	return true;
}

static void prefetch_file(void *ctx, uint64_t where)
{
}

/* The keyed function under the domain's key, and the hash secret from it: the same whenever the same key comes. */
static int init_keys(struct gw_store *s)
{
	OSSL_PARAM params[] = { OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)"SHA256", 0), OSSL_PARAM_construct_end() };

	s->mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	s->mac_ctx = s->mac ? EVP_MAC_CTX_new(s->mac) : NULL;
	if (!s->mac_ctx || EVP_MAC_init(s->mac_ctx, s->key, sizeof(s->key), params) != 1)
		return -EIO;
	for (uint8_t block = 0; block * GW_CHUNK_DIGEST_LEN < GW_SHARE_SECRET_LEN; block++) {
		size_t len;

		if (EVP_MAC_init(s->mac_ctx, NULL, 0, NULL) != 1 ||
		    EVP_MAC_update(s->mac_ctx, (const uint8_t *)SECRET_LABEL, sizeof(SECRET_LABEL)) != 1 ||
		    EVP_MAC_update(s->mac_ctx, &block, 1) != 1 ||
		    EVP_MAC_final(s->mac_ctx, s->secret + block * GW_CHUNK_DIGEST_LEN, &len, GW_CHUNK_DIGEST_LEN) != 1)
			return -EIO;
	}
	return 0;
}
static_assert(GW_SHARE_SECRET_LEN % GW_CHUNK_DIGEST_LEN == 0, "whole blocks");

int gw_store_new(const char *domain, const uint8_t key[GW_STORE_KEY_LEN], struct gw_store **ret, struct gw_error *err)
{
	struct gw_store *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return gw_error_set(err, ENOMEM, "out of memory");
	snprintf(s->domain, sizeof(s->domain), "%s", domain);
	memcpy(s->key, key, sizeof(s->key));
	s->free_pending = s->free_waiter = NONE;
	s->page = aligned_alloc(GW_PAGE_SIZE, 16 * GW_PAGE_SIZE);
	r = s->page ? 0 : -ENOMEM;
	r = r ?: gw_index_init(&s->index, &(struct gw_index_owner){ keep_entry, prefetch_entry, s });
	r = r ?: gw_index_init(&s->files, &(struct gw_index_owner){ keep_file, prefetch_file, s });
	r = r ?: gw_index_init(&s->names, &(struct gw_index_owner){ keep_file, prefetch_file, s });
	r = r ?: init_keys(s);
	if (r < 0) {
		gw_store_free(s);
		return gw_error_errno(err, r, "cannot make a store for domain %s", domain);
	}
	*ret = s;
	return 0;
}

void gw_store_free(struct gw_store *s)
{
	if (!s)
		return;
	for (uint32_t i = 0; i < s->cap_clients; i++)
		if (s->client[i])
			gw_store_leave(s->client[i]);
	for (uint32_t i = 0; i < s->cap_chunks; i++)
		gw_chunk_unref(s->chunk[i]);
	while (gw_store_bury(s, 64))
		;
	gw_index_release(&s->index);
	gw_index_release(&s->files);
	gw_index_release(&s->names);
	EVP_MAC_CTX_free(s->mac_ctx);
	EVP_MAC_free(s->mac);
	OPENSSL_cleanse(s->key, sizeof(s->key));
	OPENSSL_cleanse(s->secret, sizeof(s->secret));
	free(s->client);
	free(s->chunk);
	free(s->pending);
	free(s->waiter);
	free(s->fresh);
	free(s->thin);
	free(s->page);
	free(s);
	malloc_trim(0);
}

const char *gw_store_domain(const struct gw_store *s)
{
	return s->domain;
}

bool gw_store_has_key(const struct gw_store *s, const uint8_t key[GW_STORE_KEY_LEN])
{
	return CRYPTO_memcmp(s->key, key, GW_STORE_KEY_LEN) == 0;
}

uint32_t gw_store_clients(const struct gw_store *s)
{
	return s->nclients;
}

/* ---- the end of each step ---- */

void gw_store_touch(struct gw_store_client *c)
{
	if (c->touched || !client_by_ref(c->store, c->ref))
		return;
	c->touched = true;
	c->next_touched = c->store->touched;
	c->store->touched = c;
}

static void answer_syncs(struct gw_store_client *c)
{
	if (c->nsyncs == 0 || c->first_want < c->nwants || c->nfetches > 0)
		return;
	(void)gw_store_seal(c);
	gw_store_send_orders(c);
	for (uint32_t i = 0; i < c->nsyncs; i++)
		gw_outbox_put(&c->out, GW_SHARE_SYNCED, c->sync[i], NULL, 0, 0, NULL);
	c->nsyncs = 0;
}

/* Everything that a step has brought about is asked for, ordered or answered. */
static void settle(struct gw_store *s)
{
	while (s->touched) {
		struct gw_store_client *c = s->touched;

		s->touched = c->next_touched;
		c->touched = false;
		gw_store_ask(c);
		gw_store_send_orders(c);
		while (c->dones_due > 0 && c->nwants - c->first_want <= MAX_WANTED) {
			gw_outbox_put(&c->out, GW_SHARE_DONE, 0, NULL, 0, 0, NULL);
			c->dones_due--;
		}
		answer_syncs(c);
		if ((c->out.first || c->out.overflow) && !c->ready) {
			c->ready = true;
			c->next_ready = s->ready;
			s->ready = c;
		}
	}
	gw_store_close_unheld(s);
}

void *gw_store_next_ready(struct gw_store *s)
{
	struct gw_store_client *c = s->ready;

	if (!c)
		return NULL;
	s->ready = c->next_ready;
	c->ready = false;
	return c->owner;
}

/* ---- clients ---- */

int gw_store_join(struct gw_store *s, uint64_t max_pages, void *owner, struct gw_store_client **ret)
{
	struct gw_store_client *c;
	uint32_t i = 1;

	while (i < s->cap_clients && s->client[i])
		i++;
	if (i >= s->cap_clients) {
		uint32_t old = s->cap_clients;

		if (i >= MAX_CLIENTS || gw_store_grow(&s->client, &s->cap_clients, i, sizeof(struct gw_store_client *)) < 0)
			return -ENOMEM;
		memset(s->client + old, 0, (s->cap_clients - old) * sizeof(struct gw_store_client *));
	}
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->store = s;
	c->owner = owner;
	c->number = i;
	c->serial = ++s->joined << 24 | i;
	c->ref = (uint32_t)s->joined << 24 | i;
	c->max_pages = max_pages > 0 ? GW_MIN(max_pages, GW_SHARE_MAX_CLIENT_PAGES) : GW_SHARE_MAX_CLIENT_PAGES;
	gw_outbox_init(&c->out);
	s->client[i] = c;
	s->nclients++;
	*ret = c;
	return 0;
}

static void unlink_client(struct gw_store_client *c)
{
	for (struct gw_store_client **p = &c->store->touched; c->touched && *p; p = &(*p)->next_touched) {
		if (*p == c) {
			*p = c->next_touched;
			break;
		}
	}
	for (struct gw_store_client **p = &c->store->ready; c->ready && *p; p = &(*p)->next_ready) {
		if (*p == c) {
			*p = c->next_ready;
			break;
		}
	}
}

void gw_store_leave(struct gw_store_client *c)
{
	struct gw_store *s;

	if (!c)
		return;
	s = c->store;
	/* From here on nobody finds it: its pages are where nothing was seen. */
	s->client[c->number] = NULL;
	s->nclients--;
	unlink_client(c);
	gw_store_forget_fetches(c);
	/* Nobody maps what only it would have. */
	if (c->open)
		c->open->left = true;
	(void)gw_store_seal(c);
	for (uint32_t i = 0; i < c->nlive; i++) {
		if (c->live[i] != 0) {
			s->chunk[i]->left = true;
			gw_store_release(c, s->chunk[i]);
		}
	}
	gw_index_stale_many(&s->index, GW_MIN(c->reported, c->pages));
	s->stale += GW_MIN(c->reported, c->pages);
	settle(s);
	if (c->seen)
		munmap(c->seen, c->pages * sizeof(*c->seen));
	gw_outbox_release(&c->out);
	free(c->live);
	free(c->order);
	free(c->want);
	free(c->fetch);
	free(c);
}

struct gw_outbox *gw_store_outbox(struct gw_store_client *c)
{
	return &c->out;
}

static int hello(struct gw_store_client *c, const struct gw_share_hello *e)
{
	struct gw_share_welcome m = { 0 };
	void *seen;

	if (e->version_min > GW_SHARE_VERSION || e->version_max < GW_SHARE_VERSION_MIN)
		return -EPROTONOSUPPORT;
	if (e->pages == 0 || e->pages > c->max_pages)
		return -EPROTO;
	m.version = GW_MIN(e->version_max, GW_SHARE_VERSION);
	/* Memory comes with the pages that are reported; huge pages would give a liar 512 times what he writes to. */
	seen = mmap(NULL, e->pages * sizeof(*c->seen), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (seen == MAP_FAILED)
		return -errno;
	(void)madvise(seen, e->pages * sizeof(*c->seen), MADV_NOHUGEPAGE);
	c->seen = seen;
	c->pages = e->pages;
	c->version = m.version;
	memcpy(m.secret, c->store->secret, sizeof(m.secret));
	gw_outbox_put(&c->out, GW_SHARE_WELCOME, 0, &m, 1, sizeof(m), NULL);
	gw_store_touch(c);
	return 0;
}

static int sync_asked(struct gw_store_client *c, uint32_t cookie)
{
	if (c->nsyncs == MAX_SYNCS)
		return -EPROTO;
	c->sync[c->nsyncs++] = cookie;
	gw_store_touch(c);
	return 0;
}

static const struct {
	uint16_t size, min, max;
	bool cookie;
} from_client[] = {
	[GW_SHARE_HELLO] = { sizeof(struct gw_share_hello), 1, 1, false },
	[GW_SHARE_REPORT] = { sizeof(struct gw_share_hash), 1, GW_SHARE_MAX_REPORT, false },
	[GW_SHARE_PAGES] = { sizeof(struct gw_share_page), 0, GW_SHARE_MAX_PAGES, true },
	[GW_SHARE_LIVE] = { sizeof(struct gw_share_live), 1, GW_SHARE_MAX_RUNS, false },
	[GW_SHARE_SYNC] = { 1, 0, 0, true },
	[GW_SHARE_ADOPT] = { sizeof(struct gw_share_adopt), 1, 1, false },
	[GW_SHARE_SLOTS] = { sizeof(struct gw_share_slots), 1, GW_SHARE_MAX_SLOTS, false },
	[GW_SHARE_FIND] = { sizeof(struct gw_share_find), 1, GW_SHARE_MAX_FIND, true },
	[GW_SHARE_OFFER] = { sizeof(struct gw_share_named), 1, GW_SHARE_CHUNK_PAGES, true },
};

int gw_store_packet(struct gw_store_client *c, const void *data, size_t len, int fd)
{
	gw_autofd file = fd;
	const struct gw_share_head *h = data;
	const void *e = h + 1;
	int r;

	if (len < sizeof(*h) || h->type >= ARRAY_SIZE(from_client) || from_client[h->type].size == 0 ||
	    h->count < from_client[h->type].min || h->count > from_client[h->type].max ||
	    len != sizeof(*h) + (size_t)h->count * from_client[h->type].size || (h->cookie != 0 && !from_client[h->type].cookie))
		return -EPROTO;
	if ((h->type == GW_SHARE_ADOPT || h->type == GW_SHARE_OFFER) != (file >= 0) || (h->type == GW_SHARE_HELLO) != (c->pages == 0) ||
	    (h->type >= GW_SHARE_FIND && c->version < 2))
		return -EPROTO;
	switch (h->type) {
	case GW_SHARE_HELLO:
		r = hello(c, e);
		break;
	case GW_SHARE_REPORT:
		r = gw_store_report(c, e, h->count);
		break;
	case GW_SHARE_PAGES:
		r = gw_store_pages(c, h->cookie, e, h->count);
		break;
	case GW_SHARE_LIVE:
		r = gw_store_live(c, e, h->count);
		break;
	case GW_SHARE_SYNC:
		r = sync_asked(c, h->cookie);
		break;
	case GW_SHARE_ADOPT:
		r = gw_store_adopt(c, e, gw_steal_fd(&file));
		break;
	case GW_SHARE_FIND:
		r = gw_store_find(c, h->cookie, e, h->count);
		break;
	case GW_SHARE_OFFER:
		r = gw_store_offer(c, h->cookie, e, h->count, gw_steal_fd(&file));
		break;
	default:
		r = gw_store_slots(c, e, h->count);
		break;
	}
	settle(c->store);
	return r;
}

/* ---- time ---- */

bool gw_store_needs_tick(const struct gw_store *s)
{
	for (uint32_t i = 0; i < s->cap_clients; i++)
		if (s->client[i] && (s->client[i]->open || s->client[i]->nfetches > 0))
			return true;
	return false;
}

bool gw_store_tick(struct gw_store *s, uint64_t now_ns)
{
	for (uint32_t i = 0; i < s->cap_clients; i++) {
		struct gw_store_client *c = s->client[i];

		if (c && c->open && now_ns > c->open_ns && (now_ns - c->open_ns >= SEAL_NS || now_ns - c->opened_ns >= SEAL_AGE_NS))
			(void)gw_store_seal(c);
		for (unsigned f = 0; c && c->fetch && f < MAX_FETCHES; f++) {
			if (c->fetch[f].sent_ns != 0 && now_ns > c->fetch[f].sent_ns && now_ns - c->fetch[f].sent_ns > ANSWER_NS) {
				c->out.overflow = true;
				gw_store_touch(c);
			}
		}
	}
	settle(s);
	if (gw_store_needs_tick(s))
		return true;
	/* Tables that grew piece by piece have left holes in the heap. */
	malloc_trim(0);
	return false;
}

bool gw_store_idle(struct gw_store *s)
{
	bool more = gw_store_upkeep(s);

	settle(s);
	return more;
}

/* ---- figures ---- */

/* Bytes of an array that have memory. */
static uint64_t resident(void *map, uint64_t len)
{
	uint64_t pages = 0, step = 1ull << 30;
	gw_autofree uint8_t *there = malloc(step / GW_PAGE_SIZE);

	for (uint64_t at = 0; there && map && at < len; at += step) {
		uint64_t n = GW_MIN(step, len - at);

		if (mincore((char *)map + at, n, there) < 0)
			break;
		for (uint64_t i = 0; i < (n + GW_PAGE_SIZE - 1) / GW_PAGE_SIZE; i++)
			pages += there[i] & 1;
	}
	return pages * GW_PAGE_SIZE;
}

void gw_store_client_stats(const struct gw_store_client *c, struct gw_store_client_stats *ret)
{
	*ret = (struct gw_store_client_stats){
		.pages = c->pages,
		.reported = c->reported,
		.chunks = c->chunks,
		.live_pages = c->live_pages,
		.stored_pages = c->stored,
		.lies = c->lies,
		.metadata_bytes = sizeof(*c) + resident(c->seen, c->pages * sizeof(*c->seen)) + c->nlive * sizeof(*c->live) +
				  c->cap_orders * sizeof(*c->order) + c->cap_wants * sizeof(*c->want) +
				  (c->fetch ? MAX_FETCHES * sizeof(*c->fetch) : 0) + c->out.bytes,
	};
}

void gw_store_stats(const struct gw_store *s, struct gw_store_stats *ret)
{
	uint64_t chunks = 0;

	for (uint32_t i = 0; i < s->cap_chunks; i++)
		chunks += s->chunk[i] ? gw_chunk_metadata(s->chunk[i]) : 0;
	*ret = (struct gw_store_stats){
		.clients = s->nclients,
		.chunks = s->nchunks,
		.stored_pages = s->stored_pages,
		.store_bytes = s->stored_pages * GW_PAGE_SIZE,
		.index_entries = s->index.count,
		.metadata_bytes = sizeof(*s) + s->index.bytes + s->files.bytes + s->names.bytes + chunks + s->cap_chunks * sizeof(*s->chunk) +
				  s->cap_clients * sizeof(*s->client) + s->cap_pending * sizeof(*s->pending) +
				  s->cap_waiters * sizeof(*s->waiter) + (s->cap_fresh + s->cap_thin) * sizeof(uint32_t) + 16 * GW_PAGE_SIZE,
		.live_pages = s->live_pages,
		.compacted_chunks = s->compacted,
	};
}
