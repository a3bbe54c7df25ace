// SPDX-License-Identifier: Apache-2.0
/* What a store does when nobody asks it for anything: compaction, cleaning of the index; and digests for those who ask. See store.h. */
#include <errno.h>
#include <string.h>

#include <openssl/core_names.h>

#include "ksm/store-internal.h"
#include "lib/log.h"

#define DIGESTS_AT_ONCE 16u
/* To free the memory of a chunk takes 0.1 to 0.3 ms. */
#define BURIED_AT_ONCE 8u
/* A chunk may be compacted again when its holders have told anew and still map some of it. */
#define MAX_COMPACTED 3u
/* What a compaction must gain, in pages: it costs a descriptor, orders and page-table work at every holder. */
#define MIN_GAIN 256u
/* Or what a client that is gone left behind in chunks that others use: that is promised to come back, down to an eighth of a chunk. */
#define MIN_GAIN_LEFT 64u
#define MUCH_LEFT(slots) ((slots) / 8u)
/* A chunk of so few slots is compacted even when all are live: each is a descriptor, here and at its holders. 16 of them are worth it. */
#define SMALL_SLOTS 64u
#define SMALL_GAIN (MIN_GAIN / 16)
#define COPY_AT_ONCE 16u

/* ---- digests: their time and memory are spent when one is asked for ---- */

static int compute_digest(struct gw_store *s, const void *page, uint8_t ret[GW_CHUNK_DIGEST_LEN])
{
	size_t len = 0;

	/* The key stays in the context. */
	if (EVP_MAC_init(s->mac_ctx, NULL, 0, NULL) != 1 || EVP_MAC_update(s->mac_ctx, page, GW_PAGE_SIZE) != 1 ||
	    EVP_MAC_final(s->mac_ctx, ret, &len, GW_CHUNK_DIGEST_LEN) != 1 || len != GW_CHUNK_DIGEST_LEN)
		return -EIO;
	return 0;
}

/* Of up to n more slots. */
static int digest_more(struct gw_store *s, struct gw_chunk *k, unsigned n)
{
	int r;

	n = GW_MIN(n, (unsigned)(k->slots - k->digested));
	n = GW_MIN(n, DIGESTS_AT_ONCE);
	if (!k->digest)
		k->digest = calloc(k->slots, sizeof(*k->digest));
	if (!k->digest)
		return -ENOMEM;
	r = gw_chunk_read(k, k->digested, n, s->page);
	for (unsigned i = 0; r == 0 && i < n; i++) {
		r = compute_digest(s, s->page[i], k->digest[k->digested]);
		k->digested += r == 0;
	}
	return r;
}

int gw_store_digest(struct gw_store *s, uint32_t chunk, uint16_t slot, uint8_t ret[GW_CHUNK_DIGEST_LEN])
{
	struct gw_chunk *k = gw_store_chunk(s, chunk);

	if (!k || !k->sealed || slot >= k->slots)
		return -ENOENT;
	while (k->digested <= slot) {
		int r = digest_more(s, k, slot + 1u - k->digested);

		if (r < 0)
			return r;
	}
	memcpy(ret, k->digest[slot], GW_CHUNK_DIGEST_LEN);
	return 0;
}

/* ---- thin chunks ---- */

struct gw_chunk_told *gw_store_told(struct gw_chunk *k, uint32_t ref, bool make)
{
	struct gw_chunk_told *told;

	for (uint32_t i = 0; i < k->ntold; i++)
		if (k->told[i].client == ref)
			return &k->told[i];
	told = make ? realloc(k->told, (k->ntold + 1) * sizeof(*told)) : NULL;
	if (!told)
		return NULL;
	k->told = told;
	told += k->ntold++;
	*told = (struct gw_chunk_told){ .client = ref };
	return told;
}

void gw_store_untell(struct gw_chunk *k, uint32_t ref)
{
	struct gw_chunk_told *told = gw_store_told(k, ref, false);

	if (told) {
		k->nsaid -= told->said;
		*told = k->told[--k->ntold];
	}
	if (k->ntold == 0) {
		free(k->told);
		k->told = NULL;
	}
}

/* The slots that anybody maps; their number. */
static unsigned live_slots(const struct gw_chunk *k, uint64_t bits[GW_SHARE_CHUNK_PAGES / 64])
{
	unsigned n = 0;

	memset(bits, 0, GW_SHARE_CHUNK_PAGES / 8);
	for (uint32_t i = 0; i < k->ntold; i++)
		for (unsigned w = 0; w < GW_SHARE_CHUNK_PAGES / 64; w++)
			bits[w] |= k->told[i].bits[w];
	for (unsigned w = 0; w < GW_SHARE_CHUNK_PAGES / 64; w++)
		n += (unsigned)__builtin_popcountll(bits[w]);
	return n;
}

/* Somebody is gone that had much of it for himself. */
static bool much_left(const struct gw_chunk *k, unsigned live)
{
	return k->left && (unsigned)k->slots - live >= GW_MAX(MUCH_LEFT(k->slots), 1u);
}

/* Worth compacting: few slots are live by all that is known of its holders, or one is gone that had much of it, or it has few slots. */
static bool is_thin(const struct gw_chunk *k, uint64_t bits[GW_SHARE_CHUNK_PAGES / 64], unsigned *live)
{
	if (!k || !k->sealed || k->holders == 0 || k->compacted >= MAX_COMPACTED)
		return false;
	/* Its holders have been asked to map other chunks, and have not told yet what they still map of this one. */
	if (k->compacted > 0 && k->nsaid < k->holders)
		return false;
	if (k->ntold == k->holders) {
		*live = live_slots(k, bits);
	} else {
		memset(bits, 0xff, GW_SHARE_CHUNK_PAGES / 8);
		*live = k->slots;
	}
	return *live > 0 && (*live * 4 < k->slots || much_left(k, *live) || k->slots <= SMALL_SLOTS);
}

void gw_store_check_thin(struct gw_store *s, struct gw_chunk *k)
{
	uint64_t bits[GW_SHARE_CHUNK_PAGES / 64];
	unsigned live;

	/* One that is new has no holders yet: it is looked at when it has. */
	if (k->slots > SMALL_SLOTS && !k->left && !is_thin(k, bits, &live))
		return;
	if (!k->thin_listed && gw_store_grow(&s->thin, &s->cap_thin, s->nthin, sizeof(*s->thin)) == 0) {
		s->thin[s->nthin++] = k->number;
		k->thin_listed = true;
	}
	s->thin_new = true;
}

int gw_store_slots(struct gw_store_client *c, const struct gw_share_slots *e, unsigned n)
{
	struct gw_store *s = c->store;

	for (unsigned i = 0; i < n; i++) {
		bool held = e[i].chunk < c->nlive && c->live[e[i].chunk] != 0;
		struct gw_chunk *k = held ? s->chunk[e[i].chunk] : NULL;
		struct gw_chunk_told *told;

		/* It may have been let go of in the packet before. */
		if (!held)
			continue;
		for (unsigned w = 0; w < GW_SHARE_CHUNK_PAGES / 64; w++) {
			unsigned first = w * 64;
			uint64_t valid = k->slots >= first + 64 ? ~0ull : k->slots <= first ? 0 : (1ull << (k->slots - first)) - 1;

			if (e[i].live[w] & ~valid)
				return -EPROTO;
		}
		told = gw_store_told(k, c->ref, true);
		if (!told)
			continue;
		k->nsaid += !told->said;
		told->said = true;
		memcpy(told->bits, e[i].live, sizeof(told->bits));
		gw_store_check_thin(s, k);
	}
	return 0;
}

/* ---- compaction ---- */

/* Where the page of a slot goes. */
struct gone {
	uint32_t chunk;
	uint16_t slot;
};

struct compaction {
	struct gw_chunk *to;
	uint32_t from[GW_SHARE_CHUNK_PAGES]; /* chunks */
	unsigned nfrom;
	struct iovec iov[COPY_AT_ONCE];
	unsigned niov;
};

static int flush_copies(struct gw_store *s, struct compaction *m)
{
	int r = m->niov > 0 ? gw_chunk_append(m->to, m->iov, m->niov) : 0;

	m->niov = 0;
	return r;
}

/*
 * The live slots of k: copied, or found elsewhere in the store by now. plan[] gets where each goes.
 */
static int copy_live(struct gw_store *s, struct compaction *m, const struct gw_chunk *k, const uint64_t *bits, struct gone *plan)
{
	for (unsigned i = 0; i < k->slots; i++) {
		uint64_t *where = gw_index_find(&s->index, k->slot[i].key);
		struct gw_chunk *other = where && (*where & WHERE_KIND) == WHERE_STORED ? s->chunk[where_chunk(*where)] : NULL;
		int r;

		plan[i].chunk = NONE;
		if (!(bits[i / 64] >> i % 64 & 1))
			continue;
		if (other && other != k && other->sealed && !other->moving && other->slot[where_slot(*where)].key == k->slot[i].key) {
			plan[i] = (struct gone){ other->number, where_slot(*where) };
			continue;
		}
		/* On its way into the store by another road: that copy will do, later. */
		if (where && ((*where & WHERE_KIND) == WHERE_PENDING || (other && other != k)))
			continue;
		if (m->to->slots + m->niov == GW_SHARE_CHUNK_PAGES)
			continue;
		r = gw_chunk_read(k, i, 1, s->page[m->niov]);
		if (r < 0)
			return r;
		plan[i] = (struct gone){ m->to->number, (uint16_t)(m->to->slots + m->niov) };
		m->to->slot[plan[i].slot] = k->slot[i];
		m->iov[m->niov] = (struct iovec){ s->page[m->niov], GW_PAGE_SIZE };
		if (++m->niov == COPY_AT_ONCE)
			r = flush_copies(s, m);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Tells one holder of k where its slots are now. */
static void send_remaps(struct gw_store *s, struct gw_store_client *c, const struct gw_chunk *k, const uint64_t *mapped, const struct gone *plan)
{
	struct gw_share_remap run[GW_SHARE_CHUNK_PAGES];
	unsigned n = 0;

	for (unsigned i = 0; i < k->slots; i++) {
		struct gw_share_remap *last = n > 0 ? &run[n - 1] : NULL;

		if (plan[i].chunk == NONE || !(mapped[i / 64] >> i % 64 & 1))
			continue;
		if (!gw_store_hold(c, s->chunk[plan[i].chunk], true))
			continue;
		gw_store_may_map(gw_store_told(s->chunk[plan[i].chunk], c->ref, false), plan[i].slot);
		if (last && last->to_chunk == plan[i].chunk && last->from_slot + last->count == (int)i &&
		    last->to_slot + last->count == plan[i].slot) {
			last->count++;
			continue;
		}
		run[n++] = (struct gw_share_remap){ .from_chunk = k->number, .to_chunk = plan[i].chunk, .from_slot = (uint16_t)i,
						    .to_slot = plan[i].slot, .count = 1 };
	}
	if (n > 0)
		gw_outbox_put(&c->out, GW_SHARE_REMAP, 0, run, n, sizeof(run[0]), NULL);
	gw_store_touch(c);
}

/* The index follows the copies; what was not copied is no longer offered from here. */
static void move_index(struct gw_store *s, struct gw_chunk *k, const struct gone *plan)
{
	for (unsigned i = 0; i < k->slots; i++) {
		uint64_t key = k->slot[i].key;
		uint64_t *where = gw_index_find(&s->index, key);

		if (plan[i].chunk == NONE)
			gw_store_unstore(s, k, i);
		else if (where && (*where == where_stored(k->number, i) || (*where & WHERE_KIND) == WHERE_SEEN))
			*where = where_stored(plan[i].chunk, plan[i].slot);
		else if (!where)
			(void)gw_index_put(&s->index, key, where_stored(plan[i].chunk, plan[i].slot));
	}
}

/* Small chunks of one client: in the order of its pages, so that runs form again. */
static int by_origin(const void *a, const void *b, void *arg)
{
	const struct gw_store *s = arg;
	uint64_t x = s->chunk[*(const uint32_t *)a]->slot[0].origin, y = s->chunk[*(const uint32_t *)b]->slot[0].origin;

	return x < y ? -1 : x > y;
}

enum kind { LEFT, THIN, SMALL };

static bool is_of(const struct gw_chunk *k, unsigned live, enum kind kind)
{
	bool small = k->slots <= SMALL_SLOTS;

	return kind == LEFT ? much_left(k, live) : kind == SMALL ? small : !small && live * 4 < k->slots;
}

/* Chunks from the list that go into one; what compacting them gains, in pages. */
static unsigned choose(struct gw_store *s, struct compaction *m, enum kind kind)
{
	unsigned total = 0, gain = 0;
	uint32_t kept = 0;

	m->nfrom = 0;

	for (uint32_t i = 0; i < s->nthin; i++) {
		struct gw_chunk *k = gw_store_chunk(s, s->thin[i]);
		uint64_t bits[GW_SHARE_CHUNK_PAGES / 64];
		unsigned live;

		/* Closed since; or twice in the list, when its number was a closed one's. */
		if (!k || !k->thin_listed)
			continue;
		k->thin_listed = false;
		if (!is_thin(k, bits, &live))
			continue;
		s->thin[kept++] = s->thin[i];
		if (m->nfrom == ARRAY_SIZE(m->from) || !is_of(k, live, kind) || total + live > GW_SHARE_CHUNK_PAGES)
			continue;
		m->from[m->nfrom++] = k->number;
		total += live;
		gain += k->slots - live + (kind == SMALL ? SMALL_GAIN : 0);
	}
	s->nthin = kept;
	for (uint32_t i = 0; i < kept; i++)
		s->chunk[s->thin[i]]->thin_listed = true;
	qsort_r(m->from, m->nfrom, sizeof(m->from[0]), by_origin, s);
	return gain;
}

static void compact_from(struct gw_store *s, struct gw_chunk *k, const struct gone *plan)
{
	move_index(s, k, plan);
	for (uint32_t i = 0; i < s->cap_clients; i++) {
		struct gw_store_client *c = s->client[i];
		uint64_t mapped[GW_SHARE_CHUNK_PAGES / 64];
		const struct gw_chunk_told *told;

		if (!c || k->number >= c->nlive || c->live[k->number] == 0)
			continue;
		memset(mapped, 0xff, sizeof(mapped));
		told = gw_store_told(k, c->ref, false);
		if (told)
			memcpy(mapped, told->bits, sizeof(mapped));
		send_remaps(s, c, k, mapped, plan);
	}
	/* To be told anew before it is looked at again. */
	for (uint32_t t = 0; t < k->ntold; t++)
		k->told[t].said = false;
	k->nsaid = 0;
	k->compacted++;
	s->compacted++;
}

static bool compact_step(struct gw_store *s)
{
	static struct gw_ratelimit limit;
	gw_autofree struct compaction *m = calloc(1, sizeof(*m));
	gw_autofree struct gone *plan = NULL;
	int r;

	s->thin_new = false;
	if (!m || (choose(s, m, LEFT) < MIN_GAIN_LEFT && choose(s, m, THIN) < MIN_GAIN && choose(s, m, SMALL) < MIN_GAIN))
		return false;
	plan = malloc(m->nfrom * GW_SHARE_CHUNK_PAGES * sizeof(*plan));
	r = plan ? gw_chunk_new(&m->to) : -ENOMEM;
	r = r ?: gw_store_enter(s, m->to);
	if (r < 0) {
		gw_chunk_unref(m->to);
		/* cppcheck-suppress memleak */
		return false;
	}
	/* Nobody's: what is in it was paid for by those who brought it. */
	m->to->owner = 0;
	for (unsigned i = 0; i < m->nfrom; i++)
		s->chunk[m->from[i]]->moving = true;
	for (unsigned i = 0; r == 0 && i < m->nfrom; i++) {
		struct gw_chunk *k = s->chunk[m->from[i]];
		uint64_t bits[GW_SHARE_CHUNK_PAGES / 64];
		unsigned live;

		(void)is_thin(k, bits, &live);
		r = copy_live(s, m, k, bits, plan + i * GW_SHARE_CHUNK_PAGES);
	}
	r = r ?: flush_copies(s, m);
	for (unsigned i = 0; i < m->nfrom; i++)
		s->chunk[m->from[i]]->moving = false;
	s->stored_pages += m->to->slots;
	/* Everything may have been found elsewhere. */
	if (r == 0 && m->to->slots > 0)
		r = gw_chunk_seal(m->to);
	if (r < 0) {
		gw_warn_limited(&limit, "domain %s: cannot compact: %s", s->domain, strerrordesc_np(-r));
		gw_store_close(s, m->to);
		return false;
	}
	if (m->to->sealed)
		gw_store_sealed(s, m->to);
	for (unsigned i = 0; i < m->nfrom; i++)
		compact_from(s, s->chunk[m->from[i]], plan + i * GW_SHARE_CHUNK_PAGES);
	if (!m->to->sealed)
		gw_store_close(s, m->to);
	s->thin_new = s->nthin > m->nfrom;
	return true;
}

bool gw_store_bury(struct gw_store *s, unsigned n)
{
	for (; s->dying && n > 0; n--) {
		struct gw_chunk *k = s->dying;

		s->dying = k->next_dying;
		gw_chunk_unref(k);
	}
	return s->dying;
}

bool gw_store_upkeep(struct gw_store *s)
{
	if (gw_store_bury(s, BURIED_AT_ONCE))
		return true;
	if (s->thin_new && compact_step(s))
		return true;
	if (s->stale * 4 > s->index.count && s->stale > GW_INDEX_SHARDS) {
		if (gw_index_sweep(&s->index))
			return true;
		s->stale = 0;
	}
	return false;
}
