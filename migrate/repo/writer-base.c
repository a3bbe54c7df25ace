// SPDX-License-Identifier: Apache-2.0
/* What new pages are told against: blobs that were stored before this snapshot was begun, and resemble them. See writer-internal.h. */
#include <string.h>

#include "migrate/repo/writer-internal.h"

bool gw_writer_find_base(struct worker *k, const uint8_t *hooks, unsigned count, struct gw_blob_base *ret)
{
	struct gw_snap_writer *w = k->w;
	struct gw_similar_blobs alike;
	struct gw_base_ref ref = { { 0 }, 0, 0 };
	struct gw_base_place place;
	bool found;

	if (!gw_similar_find(w->similar, hooks, count, &alike))
		return false;
	ref.slot = alike.slot;
	ref.blobs = alike.blobs;
	pthread_mutex_lock(&w->lock);
	memcpy(ref.segment, w->places.segments[alike.segment].id, sizeof(ref.segment));
	found = gw_base_find(&w->places, &ref, &place);
	pthread_mutex_unlock(&w->lock);
	if (!found)
		return false;
	if (!k->bases && gw_base_reader_new(w->bucket, k->coder, &k->bases) < 0)
		return false;
	/* What cannot be read is no base: pages are stored as they are, and whoever needs those others will tell. */
	return gw_base_read(k->bases, &place, ret, NULL) == 0;
}
