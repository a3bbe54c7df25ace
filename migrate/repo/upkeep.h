// SPDX-License-Identifier: Apache-2.0
/* What is done with a repository as a whole: figures, checking, pruning, removing and copying snapshots. */
#ifndef GW_MIGRATE_REPO_UPKEEP_H
#define GW_MIGRATE_REPO_UPKEEP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "migrate/repo/repo.h"
#include "migrate/repo/snap.h"

/* Ends of long work: the caller may look at `done` of `total` bytes, and set `stop` (-ECANCELED). Any thread. */
struct gw_upkeep {
	_Atomic(uint64_t) done, total;
	atomic_bool stop;
};

/* ---- figures ---- */

struct gw_repo_stats {
	uint64_t snapshots;
	uint64_t snapshot_bytes;  /* pages of all snapshots that are not zero */
	uint64_t manifest_bytes;
	uint64_t index_bytes, indexes;
	uint64_t pack_bytes, packs;
	uint64_t pages;           /* different ones that an index knows */
	uint64_t used_pages;      /* of them, in some snapshot */
	uint64_t used_bytes;      /* of packs: blobs of which some page is used */
	uint64_t garbage_bytes;   /* of packs: the rest, which prune gives back a grace period later, in part */
};
/* Reads index and all manifests. -EBADMSG when one is damaged. */
int gw_repo_stats(struct gw_repo *repo, struct gw_repo_stats *ret, struct gw_error *err);

/* ---- checking ---- */

struct gw_repo_check_params {
	bool read_data;    /* every blob is read, decrypted, and its pages compared with their digests */
	unsigned threads;  /* for that; 0: one a processor, at most 8 */
	/* Called for each thing that is wrong, one at a time. May be NULL. */
	void (*problem)(void *self, const char *object, const char *text);
	void *self;
	struct gw_upkeep *upkeep; /* may be NULL */
};
struct gw_repo_check_result {
	uint64_t problems;
	uint64_t snapshots, packs, indexes, keys;
	uint64_t read_pages; /* that were read and are right */
	uint64_t strays;     /* objects that are none of ours: no problem */
};
/* 0 when it went through: then *ret tells. Beside writers and prune it finds nothing that is not there. */
int gw_repo_check(struct gw_repo *repo, const struct gw_repo_check_params *params, struct gw_repo_check_result *ret, struct gw_error *err);

/* ---- removing ---- */

/* Takes the snapshot away; its pages are given back by prune, unless others use them. -ENOENT. */
int gw_snap_remove(struct gw_repo *repo, const char *object, struct gw_error *err);

struct gw_prune_params {
	/*
	 * The caller knows that nobody writes to the repository, and that no VM still fetches pages of a snapshot that was removed: what is unused goes at
	 * once. Else in two steps, a grace period apart.
	 */
	bool exclusive;
	/* Packs of which at least so much is unused are rewritten; 0: 50, above 100: none. */
	unsigned waste_percent;
	/*
	 * Only tells what would be done; repacked_bytes is then an estimate. The one object that is written, an empty mark, is removed again: the
	 * storage's time is known by it.
	 */
	bool dry_run;
	struct gw_upkeep *upkeep; /* may be NULL; its bytes are those of packs that are rewritten */
};
struct gw_prune_result {
	uint64_t removed_packs, removed_bytes;
	uint64_t marked_packs, marked_bytes;     /* that a later prune will remove: from before and now */
	uint64_t repacked_packs, repacked_bytes; /* read; and what was written again of them */
	uint64_t recent_packs;                   /* unused, and too young to tell whether they will be */
};
/* Does nothing when some index or manifest cannot be read: what it uses is not known. Several at a time do no harm. */
int gw_repo_prune(struct gw_repo *repo, const struct gw_prune_params *params, struct gw_prune_result *ret, struct gw_error *err);

/* ---- copying ---- */

/*
 * Writes a snapshot of one repository to another, as the same generation if that has no later one. 0; 1: `to` has it already. `ret` may be NULL; it tells
 * of the snapshot there.
 */
int gw_repo_copy(struct gw_snap *from, struct gw_repo *to, struct gw_upkeep *upkeep, struct gw_snap_info *ret, struct gw_error *err);

#endif
