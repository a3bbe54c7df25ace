// SPDX-License-Identifier: Apache-2.0
/* Figures of a repository, and removing a snapshot; see upkeep.h. */
#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/survey.h"

static uint64_t bytes_of(const struct gw_listing *l)
{
	uint64_t n = 0;

	for (size_t i = 0; i < l->count; i++)
		n += l->all[i].size;
	return n;
}

int gw_repo_stats(struct gw_repo *repo, struct gw_repo_stats *ret, struct gw_error *err)
{
	gw_cleanup(gw_survey_release) struct gw_survey s = { 0 };
	uint64_t used = 0;
	int r = gw_survey_make(repo, NULL, NULL, &s, err);

	if (r < 0)
		return r;
	for (uint32_t i = 0; i < s.places.npacks; i++)
		used += s.pack_used[i];
	*ret = (struct gw_repo_stats){
		.snapshots = s.snapshots,
		.snapshot_bytes = s.snapshot_pages * GW_PAGE_SIZE,
		.manifest_bytes = bytes_of(&s.manifests),
		.index_bytes = bytes_of(&s.indexes),
		.indexes = s.indexes.count,
		.pack_bytes = bytes_of(&s.packs),
		.packs = s.packs.count,
		.pages = s.pages,
		.used_pages = s.used_pages,
		.used_bytes = used,
	};
	ret->garbage_bytes = ret->pack_bytes - GW_MIN(ret->pack_bytes, used + ret->packs * GW_PACK_HEADER);
	return 0;
}

int gw_snap_remove(struct gw_repo *repo, const char *object, struct gw_error *err)
{
	uint64_t generation;
	uint8_t byte;
	int r;

	if (gw_manifest_parse_name(object, &generation) < 0)
		return gw_error_set(err, EINVAL, "%.80s is not the name of a snapshot's object", object);
	r = gw_bucket_get(gw_repo_bucket(repo), object, 0, 1, &byte, err);
	if (r < 0 && r != -EPROTO)
		return r;
	return gw_bucket_remove(gw_repo_bucket(repo), object, err);
}
