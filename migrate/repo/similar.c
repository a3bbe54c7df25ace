// SPDX-License-Identifier: Apache-2.0
/* Hooks, and the table of the blobs that have them; see similar.h. */
#include "migrate/repo/similar.h"

#include <errno.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "lib/bytes.h"
#include "lib/util.h"

/*
 * Measured with two VMs of one image (256 MiB, other addresses of the kernel): what the second stores is 0.059, 0.061 and 0.066 of the first with one
 * piece of 16, 32 and 64; 0.31 without bases.
 */
#define PIECE 64u
#define RATE 32u
#define MAX_ALIKE 16u            /* blobs with one hook in common: a hook of more tells little */
#define MAX_HOOKS (8u << 20)     /* in the table, which then has 128 MiB */
#define MIN_VOTES 2u

struct entry {
	uint32_t hook, blob; /* number + 1; 0: free */
};

struct blob {
	uint32_t segment, slot, pages;
};

struct gw_similar {
	struct entry *table;
	uint64_t used, slots; /* a power of two, or 0 */
	uint64_t secret;      /* what guests write decides about hooks, but not about where they are */
	struct blob *blobs;
	uint32_t count, cap;
};

unsigned gw_hooks_of(const void *pages, size_t len, uint8_t *out)
{
	static const uint8_t zero[PIECE];
	const uint8_t *at = pages;
	unsigned n = 0;

	for (size_t i = 0; i + PIECE <= len && n < GW_BLOB_MAX_HOOKS; i += PIECE) {
		const uint64_t hash = XXH3_64bits(at + i, PIECE);
		uint8_t hook[GW_HOOK_LEN];
		unsigned k = 0;

		if (hash % RATE || memcmp(at + i, zero, PIECE) == 0)
			continue;
		gw_put_le32(hook, (uint32_t)(hash >> 32));
		while (k < n && memcmp(out + k * GW_HOOK_LEN, hook, GW_HOOK_LEN))
			k++;
		if (k == n)
			memcpy(out + n++ * GW_HOOK_LEN, hook, GW_HOOK_LEN);
	}
	return n;
}

int gw_similar_new(struct gw_similar **ret)
{
	struct gw_similar *s = calloc(1, sizeof(*s));

	if (!s || RAND_bytes((unsigned char *)&s->secret, sizeof(s->secret)) != 1) {
		free(s);
		return -ENOMEM;
	}
	s->secret |= 1;
	*ret = s;
	return 0;
}

void gw_similar_free(struct gw_similar *s)
{
	if (!s)
		return;
	free(s->table);
	free(s->blobs);
	free(s);
}

static uint64_t first_slot(const struct gw_similar *s, uint32_t hook)
{
	return (hook * s->secret) >> 32 & (s->slots - 1);
}

static void insert(struct gw_similar *s, struct entry e)
{
	uint64_t at = first_slot(s, e.hook);
	unsigned alike = 0;

	for (; s->table[at].blob; at = (at + 1) & (s->slots - 1)) {
		if (s->table[at].hook == e.hook && ++alike == MAX_ALIKE)
			return;
	}
	s->table[at] = e;
	s->used++;
}

static int grow(struct gw_similar *s)
{
	struct gw_similar bigger = *s;

	bigger.used = 0;
	bigger.slots = s->slots ? s->slots * 2 : 4096;
	bigger.table = calloc(bigger.slots, sizeof(*bigger.table));
	if (!bigger.table)
		return -ENOMEM;
	for (uint64_t i = 0; i < s->slots; i++) {
		if (s->table[i].blob)
			insert(&bigger, s->table[i]);
	}
	free(s->table);
	*s = bigger;
	return 0;
}

int gw_similar_add(struct gw_similar *s, uint32_t segment, uint32_t slot, uint32_t pages, const uint8_t *hooks, unsigned count)
{
	if (count == 0 || s->used + count > MAX_HOOKS)
		return 0;
	if (s->count == s->cap) {
		const uint32_t cap = GW_MAX(s->cap * 2, 1024u);
		struct blob *more = realloc(s->blobs, cap * sizeof(*more));

		if (!more)
			return -ENOMEM;
		s->blobs = more;
		s->cap = cap;
	}
	s->blobs[s->count++] = (struct blob){ segment, slot, pages };
	if ((s->used + count) * 2 > s->slots && grow(s) < 0)
		return -ENOMEM;
	for (unsigned i = 0; i < count; i++)
		insert(s, (struct entry){ gw_get_le32(hooks + i * GW_HOOK_LEN), s->count });
	return 0;
}

/* ---- votes ---- */

struct votes {
	uint32_t blob[GW_BLOB_MAX_HOOKS * MAX_ALIKE]; /* sorted: one for each hook in common */
	unsigned count;
};

static int compare(const void *pa, const void *pb)
{
	const uint32_t *a = pa, *b = pb;

	return *a < *b ? -1 : *a > *b;
}

static void collect(const struct gw_similar *s, const uint8_t *hooks, unsigned count, struct votes *v)
{
	v->count = 0;
	for (unsigned i = 0; i < count; i++) {
		const uint32_t hook = gw_get_le32(hooks + i * GW_HOOK_LEN);

		for (uint64_t at = first_slot(s, hook); s->table[at].blob; at = (at + 1) & (s->slots - 1)) {
			if (s->table[at].hook == hook)
				v->blob[v->count++] = s->table[at].blob - 1;
		}
	}
	qsort(v->blob, v->count, sizeof(*v->blob), compare);
}

static unsigned run_from(const struct votes *v, unsigned i)
{
	unsigned n = 1;

	while (i + n < v->count && v->blob[i + n] == v->blob[i])
		n++;
	return n;
}

static unsigned votes_of(const struct votes *v, uint32_t blob)
{
	unsigned n = 0;

	for (unsigned i = 0; i < v->count; i++)
		n += v->blob[i] == blob;
	return n;
}

/* Votes of the blob after this one, 0 where that is not the next in the segment. */
static unsigned votes_after(const struct gw_similar *s, const struct votes *v, uint32_t blob)
{
	const struct blob *b = &s->blobs[blob];

	if (blob + 1 == s->count || b[1].segment != b->segment || b[1].slot != b->slot + b->pages)
		return 0;
	return votes_of(v, blob + 1);
}

bool gw_similar_find(const struct gw_similar *s, const uint8_t *hooks, unsigned count, struct gw_similar_blobs *ret)
{
	unsigned most = 0, before = 0, after;
	uint32_t best = 0;
	struct votes v;

	if (s->slots == 0)
		return false;
	collect(s, hooks, count, &v);
	for (unsigned i = 0, n; i < v.count; i += n) {
		n = run_from(&v, i);
		if (n > most) {
			most = n;
			best = v.blob[i];
		}
	}
	if (most == 0)
		return false;
	after = votes_after(s, &v, best);
	if (best && votes_after(s, &v, best - 1))
		before = votes_of(&v, best - 1);
	if (most + GW_MAX(before, after) < MIN_VOTES)
		return false;
	if (before > after)
		best--;
	*ret = (struct gw_similar_blobs){ s->blobs[best].segment, s->blobs[best].slot, before || after ? 2 : 1 };
	return true;
}
