// SPDX-License-Identifier: Apache-2.0
/*
 * Writing a snapshot. Pages are given in any order and from any number of threads; workers hash them, find those that the repository has already,
 * compress and encrypt the others in blobs of neighbours, and fill packs; further threads put these while the next are filled. Nothing is seen of the
 * snapshot before gw_snap_writer_commit() has succeeded; after that all of it is durable.
 */
#ifndef GW_MIGRATE_REPO_WRITER_H
#define GW_MIGRATE_REPO_WRITER_H

#include <stdint.h>

#include "lib/error.h"
#include "migrate/repo/manifest.h"
#include "migrate/repo/repo.h"
#include "migrate/repo/snap.h"

struct gw_snap_writer;

enum gw_snap_compression {
	GW_SNAP_ADAPT, /* LZ4 while packs are put as fast as they are made, else zstd */
	GW_SNAP_FAST,  /* LZ4 */
	GW_SNAP_SMALL, /* zstd */
};

struct gw_snap_writer_params {
	const char *name;       /* of the snapshot; as gw_parse_name() wants it */
	const char *vm, *host;  /* for listings; NULL: "" */
	const uint8_t *vm_id;   /* 16 bytes; NULL: zero */
	const struct gw_snap_region *regions;
	unsigned nregions;      /* 1 to GW_RAM_MAX_REGIONS: pages are numbered through them */
	const char *const *disks;
	unsigned ndisks;        /* up to GW_SNAP_MAX_DISKS */
	/* A snapshot of the same repository and as many pages, which gw_snap_writer_keep() takes from. Borrowed until commit; NULL: none. */
	struct gw_snap *parent;
	uint64_t created_ns;    /* CLOCK_REALTIME; 0: now */
	uint64_t generation;    /* wanted, if no equal or later one is there; 0: the next */
	const uint8_t *origin;  /* 16 bytes, of a copy; NULL: none */
	enum gw_snap_compression compression;
	unsigned workers;       /* that hash and encrypt; 0: one a processor, at most 8 */
	unsigned puts;          /* packs on their way at a time; 0: 4 */
	uint32_t pack_bytes;    /* 0: 16 MiB; up to 64 MiB. Memory is about (workers + puts + 1) times this */
};

/* Counters that only grow, in pages and bytes. */
struct gw_snap_progress {
	uint64_t pages;       /* given, zero ones included */
	uint64_t zero;        /* of them */
	uint64_t known;       /* of them found in the repository, or among the pages before */
	uint64_t stored;      /* of them written */
	uint64_t kept;        /* taken over from the parent */
	uint64_t blob_bytes;  /* what `stored` came to */
	uint64_t put_bytes;   /* of these durable */
};

/* Reads the repository's index. -EINVAL: parameters; -ESTALE: the parent was removed. */
int gw_snap_writer_new(struct gw_repo *repo, const struct gw_snap_writer_params *params, struct gw_snap_writer **ret, struct gw_error *err);
/* Without a commit: leaves nothing but garbage. Takes NULL. */
void gw_snap_writer_free(struct gw_snap_writer *w);

/*
 * Pages first..first+count-1, whose bytes are copied before it returns; a page that was never given is zero. Of a page that is given
 * twice the later counts only if gw_snap_writer_flush() was between. Blocks while workers are behind. -ERANGE, or the first failure of a worker.
 */
int gw_snap_writer_pages(struct gw_snap_writer *w, uint64_t first, uint64_t count, const void *data);
/* As in the parent, without their bytes. -EINVAL: there is none. Also a later one of the same page only after a flush. */
int gw_snap_writer_keep(struct gw_snap_writer *w, uint64_t first, uint64_t count);
/* Waits until all that was given is taken in. */
int gw_snap_writer_flush(struct gw_snap_writer *w, struct gw_error *err);
/* Device state and the like; gw_snap_part() finds it again. One thread at a time. -EINVAL, -ENOMEM. */
int gw_snap_writer_part(struct gw_snap_writer *w, const char *name, const void *data, uint64_t len);
/*
 * In this order, durable each: packs, index, manifest. Once, with no other call under way. `ret` may be NULL. -ETIMEDOUT: it took more than half of the
 * repository's grace period. On failure the snapshot is not there; only when the manifest's put itself failed without an answer it may be.
 */
int gw_snap_writer_commit(struct gw_snap_writer *w, struct gw_snap_info *ret, struct gw_error *err);
/* Makes all calls fail with -ECANCELED soon, commit too unless it has succeeded. Waits for nothing: what is being put goes on until the
 * writer is freed. Any thread. */
void gw_snap_writer_cancel(struct gw_snap_writer *w);
/* Any thread. */
void gw_snap_writer_progress(const struct gw_snap_writer *w, struct gw_snap_progress *ret);

#endif
