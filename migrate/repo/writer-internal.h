// SPDX-License-Identifier: Apache-2.0
/* What the files of a snapshot's writer share: the writer (writer.c), its workers and packs (writer-pack.c, writer-base.c), its end (writer-commit.c). */
#ifndef GW_MIGRATE_REPO_WRITER_INTERNAL_H
#define GW_MIGRATE_REPO_WRITER_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "lib/util.h"
#include "migrate/repo/base.h"
#include "migrate/repo/dedup.h"
#include "migrate/repo/listing.h"
#include "migrate/repo/similar.h"
#include "migrate/repo/writer.h"

#define BATCH_PAGES 256u       /* that a worker takes at a time */
#define DIGEST_PAGES 64u       /* of them that get their digests at a time */
#define MAX_PACK_PAGES 32768u  /* of one pack, however small they get */
#define MAX_WORKERS 64u
#define MAX_PUTS 64u

/* Pages on their way to a worker. */
struct batch {
	struct batch *next;
	unsigned count;
	uint64_t index[BATCH_PAGES];
	uint8_t *data; /* BATCH_PAGES * 4096 bytes */
};
struct batch_list {
	struct batch *first, **last;
};

/* A pack, being filled by a worker, put, and remembered until its index is written: then without `data`. */
struct pack {
	struct pack *next;
	uint8_t id[16];
	uint32_t segment;             /* number in the writer's places */
	struct gw_blob_key key;       /* its id is the segment's */
	uint8_t *data;                /* pack_bytes and room for a blob more */
	uint32_t len;
	uint32_t slots;               /* pages that have a place here: the staged ones too */
	struct gw_blob_place *blobs;
	uint32_t nblobs, blobs_cap;
	uint8_t *digests;             /* of all pages */
	uint32_t digests_cap;         /* pages */
	struct gw_buf hooks;          /* of all blobs */
};

struct worker {
	struct gw_snap_writer *w;
	pthread_t thread;
	struct gw_blob_coder *coder;
	struct pack *pack;            /* NULL: none is open */
	unsigned staged;              /* pages of the next blob */
	uint8_t *stage;               /* GW_BLOB_PAGES * 4096 bytes */
	struct gw_base_reader *bases; /* NULL: none was needed */
};

struct gw_snap_writer {
	struct gw_repo *repo;
	struct gw_bucket *bucket;
	struct gw_manifest manifest;  /* info and parts; the rest is made at commit */
	struct gw_snap *parent;
	uint64_t wanted_generation;
	uint64_t started_ns;          /* CLOCK_BOOTTIME */
	uint32_t pack_bytes;
	enum gw_snap_compression compression;
	struct gw_listing packs;      /* that were there at the beginning */

	struct gw_dedup *dedup;
	struct gw_similar *similar;   /* of blobs that were there at the beginning; never changes afterwards */
	_Atomic(uint64_t) *map;       /* a page: segment + 1 in the high half, slot in the low; 0: zero page */
	uint32_t *parent_segments;    /* parent's numbers to ours */
	_Atomic(uint64_t) pages, zero, known, stored, kept, blob_bytes, put_bytes;
	atomic_uint closed_packs;     /* waiting to be put, or on their way */
	unsigned puts;                /* of them on their way at a time */
	atomic_bool stop;             /* failed or cancelled: look at `error` */

	pthread_mutex_t lock;         /* for what follows */
	pthread_cond_t changed;       /* any of it; few threads, so one condition for all */
	struct gw_error error;        /* the first; code 0: none */
	bool ending;                  /* no batch will come any more */
	bool packs_ending;            /* no pack will come any more */
	struct batch_list idle, partial, full; /* batches: empty; begun by no one at the moment; for workers */
	unsigned filling, busy;       /* batches in callers' and in workers' hands */
	struct pack *to_put, **to_put_last;
	struct pack *done;            /* durable, not in an index yet */
	unsigned open_packs, max_packs; /* with `data` */
	uint8_t *spare[MAX_WORKERS + MAX_PUTS + 1]; /* `data` of packs that were put: to fault in new memory costs as much as to encrypt */
	unsigned nspare;
	struct gw_places places;      /* of the whole repository, and what we have put */

	struct worker *workers;
	pthread_t *putters;
	unsigned nworkers, nputters;  /* that run */
};

/* Keeps the first failure, wakes everybody. Returns -code of that. */
int gw_writer_fail(struct gw_snap_writer *w, int code, const struct gw_error *err);
/* Threads: start, and join after all batches and packs are through, or the writer has stopped. */
int gw_writer_start(struct gw_snap_writer *w, unsigned workers, unsigned puts, struct gw_error *err);
void gw_writer_join(struct gw_snap_writer *w);
void gw_writer_pack_free(struct pack *p);
/* Blobs that resemble the staged pages, whose hooks these are, with their pages, which live until the next call. False: none is known. */
bool gw_writer_find_base(struct worker *k, const uint8_t *hooks, unsigned count, struct gw_blob_base *ret);

void gw_batch_push(struct batch_list *l, struct batch *b);
struct batch *gw_batch_pop(struct batch_list *l);

#endif
