// SPDX-License-Identifier: Apache-2.0
/* A hash table of digests in shards with a lock each; see dedup.h. */
#include "migrate/repo/dedup.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"

#define SHARDS 64u

/* 24 bytes a page: this table is what a writer's memory goes to in a large repository. */
struct entry {
	uint8_t digest[GW_PAGE_DIGEST_LEN];
	struct gw_page_place place; /* slot + 1; 0: free */
};

struct shard {
	pthread_mutex_t lock;
	struct entry *entries;
	uint64_t used, slots; /* a power of two, or 0 */
} __attribute__((aligned(64)));

struct gw_dedup {
	struct shard shards[SHARDS];
};

int gw_dedup_new(struct gw_dedup **ret)
{
	struct gw_dedup *d;

	if (posix_memalign((void **)&d, 64, sizeof(*d)))
		return -ENOMEM;
	memset(d, 0, sizeof(*d));
	for (unsigned i = 0; i < SHARDS; i++)
		pthread_mutex_init(&d->shards[i].lock, NULL);
	*ret = d;
	return 0;
}

void gw_dedup_free(struct gw_dedup *d)
{
	if (!d)
		return;
	for (unsigned i = 0; i < SHARDS; i++) {
		pthread_mutex_destroy(&d->shards[i].lock);
		free(d->shards[i].entries);
	}
	free(d);
}

/* Digests are keyed: nobody without the key makes them collide, and any part of one is a hash. Its last byte names the shard. */
static struct entry *find(const struct shard *s, const uint8_t *digest)
{
	uint64_t at = gw_get_le64(digest) & (s->slots - 1);

	while (s->entries[at].place.slot && memcmp(s->entries[at].digest, digest, GW_PAGE_DIGEST_LEN))
		at = (at + 1) & (s->slots - 1);
	return &s->entries[at];
}

static int grow(struct shard *s)
{
	struct shard bigger = { .slots = s->slots ? s->slots * 2 : 256 };

	bigger.entries = calloc(bigger.slots, sizeof(*bigger.entries));
	if (!bigger.entries)
		return -ENOMEM;
	for (uint64_t i = 0; i < s->slots; i++) {
		if (s->entries[i].place.slot)
			*find(&bigger, s->entries[i].digest) = s->entries[i];
	}
	free(s->entries);
	s->entries = bigger.entries;
	s->slots = bigger.slots;
	return 0;
}

static int claim(struct shard *s, const uint8_t *digest, struct gw_page_place *place)
{
	struct entry *e;

	if ((s->used + 1) * 4 > s->slots * 3 && grow(s) < 0)
		return -ENOMEM;
	e = find(s, digest);
	if (e->place.slot) {
		*place = (struct gw_page_place){ e->place.segment, e->place.slot - 1 };
		return 0;
	}
	memcpy(e->digest, digest, GW_PAGE_DIGEST_LEN);
	e->place = (struct gw_page_place){ place->segment, place->slot + 1 };
	s->used++;
	return 1;
}

int gw_dedup_claim(struct gw_dedup *d, const uint8_t digest[GW_PAGE_DIGEST_LEN], struct gw_page_place *place)
{
	struct shard *s = &d->shards[digest[GW_PAGE_DIGEST_LEN - 1] % SHARDS];
	int r;

	pthread_mutex_lock(&s->lock);
	r = claim(s, digest, place);
	pthread_mutex_unlock(&s->lock);
	return r;
}

uint64_t gw_dedup_count(struct gw_dedup *d)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < SHARDS; i++) {
		pthread_mutex_lock(&d->shards[i].lock);
		n += d->shards[i].used;
		pthread_mutex_unlock(&d->shards[i].lock);
	}
	return n;
}
