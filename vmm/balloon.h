// SPDX-License-Identifier: Apache-2.0
/*
 * virtio-balloon (virtio 1.2 §5.5): memory that the guest gives back to the host. Of three kinds: pages that it puts into the balloon because a
 * target tells it to, free pages that it reports by itself and may use again without a word, and statistics that help to choose a target.
 */
#ifndef GW_VMM_BALLOON_H
#define GW_VMM_BALLOON_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "vmm/devhost.h"

struct gw_virtio;

/* No target leaves a VM less than this, or than half of its memory where that is less. */
#define GW_BALLOON_FLOOR (64ull << 20)
/* Kinds of statistics, numbered as in virtio 1.2 §5.5.6.4 (VIRTIO_BALLOON_S_*). */
#define GW_BALLOON_STATS 10

struct gw_balloon_info {
	uint64_t target;   /* bytes of memory that the guest is to have */
	uint64_t actual;   /* bytes that it says it has */
	uint64_t reported; /* bytes of free pages given back since the VMM began */
	bool driver;       /* the guest drives the device */
	bool has_stats;
	uint64_t stats_age_ms;
	uint64_t stats[GW_BALLOON_STATS]; /* as the guest told them; 0 where it did not */
};

int gw_balloon_new(const struct gw_devhost *host, struct gw_virtio **ret, struct gw_error *err);

/* The rest is for the main thread; `vd` is a balloon's. */
/* -ERANGE unless the floor <= bytes <= the VM's memory. The guest follows when it can. */
int gw_balloon_set_target(struct gw_virtio *vd, uint64_t bytes, struct gw_error *err);
/* Also asks the guest for statistics when those that there are have become old: a later call tells them. */
void gw_balloon_info(struct gw_virtio *vd, struct gw_balloon_info *ret);
/* Bytes that the guest says are in the balloon. */
uint64_t gw_balloon_size(struct gw_virtio *vd);

#endif
