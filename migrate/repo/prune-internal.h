// SPDX-License-Identifier: Apache-2.0
/* What the files of pruning share: which packs go (prune.c), packs of which little is used (prune-repack.c), indexes (prune-index.c). */
#ifndef GW_MIGRATE_REPO_PRUNE_INTERNAL_H
#define GW_MIGRATE_REPO_PRUNE_INTERNAL_H

#include "migrate/repo/survey.h"

/*
 * Copies what is used of these packs to new ones, and writes an index of them. Blobs stay as they are sealed; each is verified first, and a
 * pack with a bad one is an error: nobody may think later that what is left was all that was wrong. *written: bytes of the new packs.
 */
int gw_prune_repack(struct gw_survey *s, const struct gw_pack_set *packs, struct gw_upkeep *upkeep, uint64_t *written, struct gw_error *err);

/*
 * Writes new indexes without these packs and removes those that had them. Also joins indexes when there are many small ones. Between both, packs are
 * in two indexes, which means nothing.
 */
int gw_prune_indexes(struct gw_survey *s, const struct gw_pack_set *gone, struct gw_error *err);

#endif
