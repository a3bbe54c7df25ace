// SPDX-License-Identifier: Apache-2.0
/*
 * DOC: memory that is loaded and shared from the first instant
 *
 * Who brings a VM's memory from somewhere knows each page by a *name* before he has it. While he does (migrate/lazy.h), the VM's session with the page
 * store serves him: he asks which names the store has, and maps those pages in place of memory that is missing; what he had to fetch he fills into a
 * chunk of his own, which is sealed, offered to the store with the names of its pages, and mapped as well. Whoever loads the same finds it there.
 *
 * Names are hints: another VM of the domain may have given them to anything. With each comes a proof that its giver made; the loader checks that
 * over the bytes, which cannot change any more, before anybody sees them. What names and proofs are made of is the loader's business alone.
 *
 * The store is never waited for: a daemon that is gone is not asked, one that does not answer within a second, or half of one when the VM waits, is not asked again for some
 * seconds, then for longer. When memory is here the sharer's passes begin, the first of which reports what was mapped, too, so that equal pages of other
 * origin are shared.
 */
#ifndef GW_KSM_LINEAGE_H
#define GW_KSM_LINEAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "ksm/overlays.h"
#include "ksm/session.h"
#include "lib/error.h"
#include "lib/ram/ram.h"
#include "proto/share.h"

struct gw_lineage;

struct gw_lineage_found {
	uint32_t index;       /* of the name that was asked for; ascending */
	uint32_t chunk, slot; /* in which the page is said to be */
	uint8_t proof[GW_SHARE_PROOF_LEN];
};

/* The loader's; any thread. */

/* Returns when it is known whether there is a session, or after half a second. */
void gw_lineage_await(struct gw_lineage *l);
/* The store can be asked now. */
bool gw_lineage_ready(struct gw_lineage *l);
/* Which of up to GW_SHARE_MAX_FIND names are there: how many, to `ret`, which has room for all. `urgent`: somebody waits for the page. */
unsigned gw_lineage_find(struct gw_lineage *l, const struct gw_share_find *names, unsigned count, bool urgent, struct gw_lineage_found *ret);
/* Slots of a chunk, read-only; NULL: no memory. To be given back. */
const uint8_t *gw_lineage_view(struct gw_lineage *l, uint32_t chunk, uint32_t slot, uint32_t count);
void gw_lineage_unview(const uint8_t *view, uint32_t count);
/*
 * Makes a chunk of up to GW_SHARE_CHUNK_PAGES pages and offers it. 0: *chunk is the store's. -EEXIST: it does not want it, most likely since it has
 * those names by now; -ETIMEDOUT, -EPIPE and others: there is no store to speak of. `chunk` NULL: nothing is to be mapped, and no answer waited for.
 */
int gw_lineage_offer(struct gw_lineage *l, const void *bytes, const struct gw_share_named *names, unsigned count, uint32_t *chunk);
/*
 * Maps slots in place of pages of guest RAM, all of one region, that nobody has or gets a copy of meanwhile. Who waits for them is the caller's to
 * wake. -ENOSPC: there are not enough mappings for it, or no store any more.
 */
int gw_lineage_map(struct gw_lineage *l, uint64_t page, uint32_t count, uint32_t chunk, uint32_t slot);

/* The sharer's. */

/* Borrows both. `mappings`: that overlays may take. -ENOMEM. */
int gw_lineage_new(struct gw_ram *ram, struct gw_overlays *overlays, uint32_t mappings, struct gw_lineage **ret);
void gw_lineage_free(struct gw_lineage *l);
/* From now on the loader is served, and `session` and the overlays are used by these functions alone. */
void gw_lineage_begin(struct gw_lineage *l, struct gw_session *session);
/* Until now; nobody waits any more. */
void gw_lineage_end(struct gw_lineage *l);
/* Handles what has come in. 0, or -errno when the session is over. */
int gw_lineage_handle(struct gw_lineage *l, struct gw_error *err);
/* How many pages were mapped by it and are still shared. */
uint64_t gw_lineage_pages(struct gw_lineage *l);
bool gw_lineage_has(const struct gw_lineage *l, uint64_t page); /* it was mapped by it */

/* The session's, from gw_lineage_handle(). */
void gw_lineage_found(struct gw_lineage *l, uint32_t cookie, const struct gw_share_found *found, unsigned count);
void gw_lineage_adopted(struct gw_lineage *l, uint32_t chunk, bool adopted);

#endif
