// SPDX-License-Identifier: Apache-2.0
/* The tables of index and mark objects, as they are after decryption: whoever has the repository's key may write them. */
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/index.h"
#include "migrate/repo/marks.h"
#include "migrate/repo/similar.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int look(void *self, uint32_t segment, const struct gw_blob_place *b, const uint8_t *digests, const uint8_t *hooks)
{
	uint8_t *sum = self;

	for (uint32_t i = 0; i < b->pages * GW_PAGE_DIGEST_LEN; i++)
		*sum += digests[i];
	for (uint32_t i = 0; i < b->hooks * GW_HOOK_LEN; i++)
		*sum += hooks[i];
	return 0;
}

static int copy(void *self, const uint8_t pack[16], const void *data, uint64_t len)
{
	uint8_t *sum = self;

	for (uint64_t i = 0; i < len; i++)
		*sum += ((const uint8_t *)data)[i];
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct gw_places p = GW_PLACES_INIT;
	struct gw_pack_set marks = { 0 };
	uint8_t sum = 0;
	const struct gw_places_sink sink = { .digests = look, .section = copy, .self = &sum, .has_digests = true };

	if (gw_index_decode(data, size, &p, &sink) == 0) {
		for (uint32_t s = 0; s < p.nsegments; s++) {
			for (uint32_t i = 0; i < p.segments[s].count; i++) {
				const struct gw_blob_place *b = &p.segments[s].blobs[i];

				/* Every page of every blob is found where it is. */
				if (gw_places_at(&p, s, b->slot) != b || gw_places_at(&p, s, b->slot + b->pages - 1) != b)
					__builtin_trap();
			}
		}
	}
	gw_places_release(&p);
	gw_mark_decode(data, size, &marks);
	gw_pack_set_release(&marks);
	return 0;
}
