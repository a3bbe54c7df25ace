// SPDX-License-Identifier: Apache-2.0
/* Which pages are stored already: from keyed digest to segment and slot. Any number of threads. */
#ifndef GW_MIGRATE_REPO_DEDUP_H
#define GW_MIGRATE_REPO_DEDUP_H

#include <stdbool.h>
#include <stdint.h>

#include "migrate/repo/crypt.h"

struct gw_dedup;
/* 0 or -ENOMEM. */
int gw_dedup_new(struct gw_dedup **ret);
void gw_dedup_free(struct gw_dedup *d);

struct gw_page_place {
	uint32_t segment, slot;
};
/*
 * Where the page is. When it was not known it is *place from now on, and 1 is returned: the caller stores it there. 0: *place was set to where it is
 * already, or is being stored by another thread. -ENOMEM.
 */
int gw_dedup_claim(struct gw_dedup *d, const uint8_t digest[GW_PAGE_DIGEST_LEN], struct gw_page_place *place);
uint64_t gw_dedup_count(struct gw_dedup *d);

#endif
