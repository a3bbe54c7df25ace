// SPDX-License-Identifier: Apache-2.0
/*
 * Dirty quota: while a move does not converge, the vCPUs that write memory run for a part of the time only. Those that write nothing, and
 * all devices, go on as they were.
 */
#ifndef GW_VMM_QUOTA_H
#define GW_VMM_QUOTA_H

#include "lib/error.h"

struct gw_dirty_ring;
struct gw_quota;
struct gw_vcpus;

/* Both are borrowed. Without a ring nobody knows which vCPU writes: then all are taken for writers. */
int gw_quota_new(struct gw_vcpus *vcpus, struct gw_dirty_ring *ring, struct gw_quota **ret, struct gw_error *err);
/* Holds nobody any more. Takes NULL. */
void gw_quota_free(struct gw_quota *q);
/* The part of the time, in percent below 100, for which writers are held; 0: none. One thread at a time. */
void gw_quota_set(struct gw_quota *q, unsigned percent);

#endif
