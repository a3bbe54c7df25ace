// SPDX-License-Identifier: Apache-2.0
/* Names of pages and proofs; see naming.h. */
#include "migrate/repo/naming.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <string.h>
#include <xxhash.h>

#include "lib/bytes.h"
#include "lib/util.h"
#include "migrate/repo/snap-internal.h"

struct gw_naming {
	struct gw_snap *snap;
	struct gw_crypt *crypt;
};

/* Segment, slot. */
struct place {
	uint8_t bytes[16 + 4];
};

int gw_naming_new(struct gw_snap *s, struct gw_naming **ret)
{
	struct gw_naming *n = calloc(1, sizeof(*n));

	if (!n || gw_crypt_new(gw_repo_keys(s->repo), &n->crypt) < 0) {
		free(n);
		return -ENOMEM;
	}
	n->snap = s;
	*ret = n;
	return 0;
}

void gw_naming_free(struct gw_naming *n)
{
	if (!n)
		return;
	gw_crypt_free(n->crypt);
	free(n);
}

static struct place place_of(struct gw_naming *n, uint64_t page)
{
	const struct gw_snap_run *run = gw_snap_run_at(n->snap, page);
	struct place p;

	pthread_rwlock_rdlock(&n->snap->moving);
	memcpy(p.bytes, n->snap->m.places.segments[run->segment].id, 16);
	pthread_rwlock_unlock(&n->snap->moving);
	gw_put_le32(p.bytes + 16, run->slot + (uint32_t)(page - run->page));
	return p;
}

uint64_t gw_naming_name(struct gw_naming *n, uint64_t page)
{
	struct place p = place_of(n, page);

	return XXH3_64bits(p.bytes, sizeof(p.bytes));
}

int gw_naming_prove(struct gw_naming *n, uint64_t page, const void *bytes, uint8_t proof[GW_PROOF_LEN])
{
	struct place p = place_of(n, page);
	const struct gw_span spans[] = { { p.bytes, sizeof(p.bytes) }, { bytes, GW_PAGE_SIZE } };
	uint8_t mac[32];
	int r = gw_crypt_mac(n->crypt, gw_crypt_keys(n->crypt)->proofs, spans, ARRAY_SIZE(spans), mac);

	if (r == 0)
		memcpy(proof, mac, GW_PROOF_LEN);
	return r;
}

int gw_naming_check(struct gw_naming *n, uint64_t page, const void *bytes, const uint8_t proof[GW_PROOF_LEN])
{
	uint8_t right[GW_PROOF_LEN];
	int r = gw_naming_prove(n, page, bytes, right);

	return r == 0 && CRYPTO_memcmp(right, proof, sizeof(right)) != 0 ? -EBADMSG : r;
}
