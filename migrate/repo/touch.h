// SPDX-License-Identifier: Apache-2.0
/*
 * The order in which a VM first touched its pages after it was resumed: the part "touch" of a manifest. Whoever resumes it again brings pages in that order. A
 * hint: it may name pages that are zero or none at all.
 */
#ifndef GW_MIGRATE_REPO_TOUCH_H
#define GW_MIGRATE_REPO_TOUCH_H

#include <stddef.h>

#include "lib/buf.h"
#include "migrate/repo/snap.h"

#define GW_TOUCH_PART "touch"

/* Appends the part's content: varint ranges, and for each a signed varint from the last one's end, and varint pages. 0 or -ENOMEM. */
int gw_touch_encode(const struct gw_snap_range *ranges, size_t count, struct gw_buf *out);
/* The same of the pages whose bits are set, by number. */
int gw_touch_encode_bitmap(const uint64_t *bitmap, uint64_t pages, struct gw_buf *out);
/* Ranges of a VM with so many pages; *ret is owned (free). -EBADMSG, -ENOMEM. */
int gw_touch_decode(const void *data, uint64_t len, uint64_t pages, struct gw_snap_range **ret, size_t *count);

#endif
