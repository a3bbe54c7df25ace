// SPDX-License-Identifier: Apache-2.0
/* What snap.c and snap-fetch.c share. */
#ifndef GW_MIGRATE_REPO_SNAP_INTERNAL_H
#define GW_MIGRATE_REPO_SNAP_INTERNAL_H

#include <pthread.h>

#include "migrate/repo/base.h"
#include "migrate/repo/snap.h"

#define MAX_READERS 64u

/* What one thread needs to fetch; kept, as fresh memory has to be zeroed by the kernel, page by page, for each fetch. */
struct gw_snap_reader {
	struct gw_blob_coder *coder;
	struct gw_blob_key key; /* of the last blob */
	bool keyed;
	uint8_t *data;  /* of a get */
	uint64_t room;  /* bytes of it */
	uint8_t *pages; /* of one blob */
	struct gw_base_reader *bases; /* NULL: none was needed */
};

struct gw_snap {
	struct gw_repo *repo;
	char object[GW_SNAP_OBJECT];
	struct gw_manifest m;       /* places: under `moving`, the rest never changes */
	pthread_rwlock_t moving;
	pthread_mutex_t lock;       /* for readers */
	struct gw_snap_reader readers[MAX_READERS]; /* idle ones */
	unsigned nreaders;
};

/* snap-fetch.c */
void gw_snap_reader_release(struct gw_snap_reader *r);

#endif
