// SPDX-License-Identifier: Apache-2.0
/* Known contents; see known.h. */
#include "ksm/known.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>
#include <xxhash.h>

#include "lib/util.h"

#define WAYS 8u

struct gw_known {
	uint64_t seed;
	uint64_t sets;     /* a power of two */
	uint64_t *hashes;  /* WAYS a set; 0: free; atomic */
};

int gw_known_new(uint64_t contents, struct gw_known **ret)
{
	struct gw_known *k = calloc(1, sizeof(*k));

	if (!k)
		return -ENOMEM;
	k->sets = 1;
	while (k->sets * WAYS < contents)
		k->sets *= 2;
	k->hashes = calloc(k->sets * WAYS, sizeof(*k->hashes));
	if (!k->hashes || getrandom(&k->seed, sizeof(k->seed), 0) != sizeof(k->seed)) {
		gw_known_free(k);
		return -ENOMEM;
	}
	*ret = k;
	return 0;
}

void gw_known_free(struct gw_known *k)
{
	if (!k)
		return;
	free(k->hashes);
	free(k);
}

static uint64_t *set_of(const struct gw_known *k, const void *page, uint64_t *hash)
{
	*hash = XXH3_64bits_withSeed(page, GW_PAGE_SIZE, k->seed) | 1;
	return &k->hashes[(*hash >> 8 & (k->sets - 1)) * WAYS];
}

bool gw_known_has(const struct gw_known *k, const void *page)
{
	uint64_t hash;
	const uint64_t *set = set_of(k, page, &hash);

	for (unsigned i = 0; i < WAYS; i++) {
		if (__atomic_load_n(&set[i], __ATOMIC_RELAXED) == hash)
			return true;
	}
	return false;
}

void gw_known_add(struct gw_known *k, const void *page)
{
	uint64_t hash;
	uint64_t *set = set_of(k, page, &hash);
	unsigned i = 0;

	while (i < WAYS && __atomic_load_n(&set[i], __ATOMIC_RELAXED) != hash && __atomic_load_n(&set[i], __ATOMIC_RELAXED) != 0)
		i++;
	/* A full set: some other one goes. */
	__atomic_store_n(&set[i < WAYS ? i : (hash >> 3) % WAYS], hash, __ATOMIC_RELAXED);
}
