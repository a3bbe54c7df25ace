// SPDX-License-Identifier: Apache-2.0
/*
 * Where written pages are learned from. The migration engine works on this alone: the VMM plugs in KVM's dirty ring or
 * bitmap, native benches and tests plug in userfaultfd write protection.
 */
#ifndef GW_LIB_RAM_DIRTY_H
#define GW_LIB_RAM_DIRTY_H

#include <stdint.h>

#include "lib/error.h"

struct gw_dirty_ops {
	const char *name; /* "kvm-ring", "kvm-bitmap", "uffd-wp" */
	/* Begins to track: every write that happens after it returns is told by a later sync. */
	int (*start)(void *self, struct gw_error *err);
	/*
	 * ORs into `bitmap` (one bit a page index) all pages written since start or the last sync, and re-arms tracking for
	 * them before it returns, so that a page read after sync and written after that read is told again.
	 * With all writers stopped, one call takes everything.
	 */
	int (*sync)(void *self, uint64_t *bitmap, struct gw_error *err);
	/*
	 * ORs the same pages into `bitmap` and re-arms nothing: they are told again by the next sync, and their writers are not stopped by new
	 * faults. -EOPNOTSUPP where that cannot be had; may be NULL.
	 */
	int (*peek)(void *self, uint64_t *bitmap, struct gw_error *err);
	/* Ends tracking; what was not synced is forgotten. Safe without start. */
	void (*stop)(void *self);
};

struct gw_dirty_source {
	const struct gw_dirty_ops *ops;
	void *self;
};

#endif
