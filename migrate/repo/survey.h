// SPDX-License-Identifier: Apache-2.0
/*
 * All that is in a repository, and what of it is used: for figures, checking and pruning. Read in this order: marks, packs, indexes, manifests. So a
 * manifest that is put meanwhile refers to packs that are not in the list yet, or that a writer of this grace period found in the index.
 */
#ifndef GW_MIGRATE_REPO_SURVEY_H
#define GW_MIGRATE_REPO_SURVEY_H

#include "migrate/repo/listing.h"
#include "migrate/repo/marks.h"
#include "migrate/repo/places.h"
#include "migrate/repo/snap.h"
#include "migrate/repo/upkeep.h"

struct gw_survey {
	struct gw_repo *repo;
	struct gw_crypt *crypt;
	struct gw_listing marks, packs, indexes, manifests;
	struct gw_pack_set marked;  /* in any mark */
	/* Of each blob one place: in a pack that is there, and rather in one that is not marked; else where a manifest says. */
	struct gw_places places;
	/* By segment: a bit a slot, set when some snapshot has the page, and for the first of each blob that such a one is told against; NULL: none. */
	uint64_t **used;
	uint32_t *used_words;       /* of these */
	uint64_t *pack_used;        /* by pack of `places`: bytes of blobs in use that lie there */
	uint64_t pages, used_pages; /* different ones */
	uint64_t snapshot_pages, snapshots;
};
/* Whether some page of the blob is in use. */
bool gw_survey_uses(const struct gw_survey *s, uint32_t segment, const struct gw_blob_place *b);

/* What is wrong with one object; the survey goes on without it. NULL: the first problem ends the survey. */
struct gw_survey_sink {
	void (*problem)(void *self, const char *object, const char *text);
	void *self;
};
int gw_survey_make(struct gw_repo *repo, const struct gw_survey_sink *sink, struct gw_upkeep *upkeep, struct gw_survey *ret, struct gw_error *err);
void gw_survey_release(struct gw_survey *s);
/* Entry of the pack in the list; NULL: it is missing. */
const struct gw_listed *gw_survey_pack(const struct gw_survey *s, const uint8_t id[16]);

#endif
