// SPDX-License-Identifier: Apache-2.0
/* A page store in a test; see share-store.h. */
#include "cmocka-all.h"

#include "share-store.h"

#include <dirent.h>
#include <string.h>

const uint8_t key_a[32] = "the key of a tenant of this host";
const uint8_t key_b[32] = "the key of another tenant here..";

struct gw_store *store_new(const uint8_t key[32])
{
	struct gw_store *s = NULL;
	struct gw_error err = GW_ERROR_INIT;

	assert_int_equal(gw_store_new("tenant", key, &s, &err), 0);
	return s;
}

void run2(struct share_peer *a, struct share_peer *b)
{
	struct share_peer *p[] = { a, b };

	share_peers_run(p, 2, 0);
}

void fill(struct share_peer *p, uint64_t first, unsigned n, uint64_t content)
{
	for (unsigned i = 0; i < n; i++)
		p->content[first + i] = content + i;
}

/* Descriptors of chunks that this process has open. */
unsigned memfds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *e;
	unsigned n = 0;

	while ((e = readdir(dir))) {
		char to[64] = "";

		if (readlinkat(dirfd(dir), e->d_name, to, sizeof(to) - 1) > 0 && strstr(to, "godwit-chunk"))
			n++;
	}
	closedir(dir);
	return n;
}

struct gw_store_stats stats(const struct gw_store *s)
{
	struct gw_store_stats st;

	gw_store_stats(s, &st);
	return st;
}

void upkeep(struct gw_store *s)
{
	while (gw_store_idle(s))
		;
}

/* The store's own figures agree with its tables. */
void check_store(const struct gw_store *s)
{
	uint64_t slots = 0, live = 0;
	uint32_t chunks = 0;

	for (uint32_t i = 0; i < s->cap_chunks; i++) {
		const struct gw_chunk *k = s->chunk[i];
		uint32_t holders = 0, foreign = 0;
		uint64_t mapped = 0;

		if (!k)
			continue;
		assert_int_equal(k->number, i);
		chunks++;
		slots += k->slots;
		for (uint32_t n = 0; n < s->cap_clients; n++) {
			const struct gw_store_client *c = s->client[n];

			if (!c || i >= c->nlive || c->live[i] == 0)
				continue;
			holders++;
			foreign += c->serial != k->owner;
			mapped += c->live[i] - 1;
		}
		assert_int_equal(holders, k->holders);
		assert_int_equal(foreign, k->foreign);
		assert_int_equal(mapped, k->live);
		assert_true(!k->sealed || holders > 0);
		live += mapped;
	}
	assert_int_equal(chunks, s->nchunks);
	assert_int_equal(slots, s->stored_pages);
	assert_int_equal(live, s->live_pages);
	for (uint32_t n = 0; n < s->cap_clients; n++) {
		const struct gw_store_client *c = s->client[n];
		uint64_t alone = 0, stored = 0, held = 0;

		if (!c)
			continue;
		for (uint32_t i = 0; i < s->cap_chunks; i++) {
			const struct gw_chunk *k = s->chunk[i];

			if (k && k->owner == c->serial) {
				stored += k->slots;
				alone += k->sealed && k->foreign == 0 ? k->slots : 0;
			}
			if (k && i < c->nlive && c->live[i])
				held += k->slots;
		}
		assert_int_equal(alone, c->alone);
		assert_int_equal(stored, c->stored);
		assert_int_equal(held, c->held_slots);
		assert_true(alone <= c->pages);
	}
	/* Every entry of the index is about something that is there. */
	for (unsigned i = 0; i < GW_INDEX_SHARDS; i++) {
		for (uint32_t p = 0; p < s->index.shard[i].total; p++) {
			uint64_t w = s->index.shard[i].at[p].where;
			const struct gw_chunk *k;

			if ((w & WHERE_KIND) == WHERE_STORED) {
				k = gw_store_chunk(s, where_chunk(w));
				assert_true(k && where_slot(w) < k->slots);
				assert_int_equal(k->slot[where_slot(w)].key, s->index.shard[i].at[p].key);
			} else if ((w & WHERE_KIND) == WHERE_PENDING) {
				assert_true((uint32_t)w < s->npending && s->pending[(uint32_t)w].tries > 0);
			}
		}
	}
}
