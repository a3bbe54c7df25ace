// SPDX-License-Identifier: Apache-2.0
/*
 * Which pages each round of a pre-copy is about: all that may hold something first, then what was written since they were read. Whoever
 * copies, to a host or to a repository, takes the pages of a round in the order of their numbers, and tells how far it has come: a page that
 * is found written while it is still ahead need not be copied again.
 */
#ifndef GW_MIGRATE_ROUNDS_H
#define GW_MIGRATE_ROUNDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/error.h"
#include "lib/ram/dirty.h"
#include "lib/ram/ram.h"

struct gw_rounds;

/* Starts the dirty source (NULL: nothing writes, and there is one round only). The first round is all pages but those never touched. */
int gw_rounds_new(const struct gw_ram *ram, const struct gw_dirty_source *dirty, struct gw_rounds **ret, struct gw_error *err);
/* Ends tracking. Takes NULL. */
void gw_rounds_free(struct gw_rounds *r);

/* The pages of this round, one bit each; unchanged until gw_rounds_copied(). Words of 64 pages. */
const uint64_t *gw_rounds_now(const struct gw_rounds *r);
size_t gw_rounds_words(const struct gw_rounds *r);
/* Pages that the first round leaves out. */
uint64_t gw_rounds_untouched(const struct gw_rounds *r);
/* Pages of this round from word `taken` on, and of the next one as far as it is known. */
uint64_t gw_rounds_left(const struct gw_rounds *r, size_t taken);

/*
 * Takes the log. `taken(arg)` tells after it below which word the pages of this round may have been read already: what is found written and
 * lies further on is dropped, for it will be read after this.
 */
int gw_rounds_sync(struct gw_rounds *r, size_t (*taken)(void *arg), void *arg, struct gw_error *err);
/* What is in this round from word `first` on is left to the next one. */
void gw_rounds_put_off(struct gw_rounds *r, size_t first);
/* All of this round but what was put off is copied. */
void gw_rounds_copied(struct gw_rounds *r);
/*
 * Then: how many pages the next round would have if the VM were stopped now. Nothing is re-armed where that can be had (*peeked): should
 * the VM be stopped, its last moments are not spent on faults for pages that it goes on to write. Else the log was taken.
 */
int gw_rounds_look(struct gw_rounds *r, bool *peeked, uint64_t *left, struct gw_error *err);
/* The next round becomes this one. */
void gw_rounds_next(struct gw_rounds *r);
/* All writers are stopped: this round, which was not begun, gets all that is left. Nothing is tracked any more. */
int gw_rounds_last(struct gw_rounds *r, struct gw_error *err);

/* Of the last look at the log: when it began, and how long it took; bytes a second written before it. */
uint64_t gw_rounds_synced_ns(const struct gw_rounds *r);
uint64_t gw_rounds_sync_cost_ns(const struct gw_rounds *r);
double gw_rounds_dirty_rate(const struct gw_rounds *r);

#endif
