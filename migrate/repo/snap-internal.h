// SPDX-License-Identifier: Apache-2.0
/* What snap.c and snap-fetch.c share. */
#ifndef GW_MIGRATE_REPO_SNAP_INTERNAL_H
#define GW_MIGRATE_REPO_SNAP_INTERNAL_H

#include <pthread.h>

#include "migrate/repo/blob.h"
#include "migrate/repo/snap.h"

#define MAX_CODERS 64u

struct gw_snap {
	struct gw_repo *repo;
	char object[GW_SNAP_OBJECT];
	struct gw_manifest m;       /* places: under `moving`, the rest never changes */
	pthread_rwlock_t moving;
	pthread_mutex_t lock;       /* for coders */
	struct gw_blob_coder *coders[MAX_CODERS]; /* idle ones */
	unsigned ncoders;
};

#endif
