// SPDX-License-Identifier: Apache-2.0
/*
 * HMAC-SHA256 of many pages, side by side in the lanes of the processor's vector units: twice as fast as one after the other where it has instructions for
 * SHA, more where it has none. By libIPSec_MB (Intel's multi-buffer library), which is loaded when a process first asks; it may be missing.
 */
#ifndef GW_MIGRATE_REPO_LANES_H
#define GW_MIGRATE_REPO_LANES_H

#include "migrate/repo/crypt.h"

/* One a thread. */
struct gw_lanes;
/* 0, -ENOENT: no library, or a processor that does not gain by it; or -ENOMEM. The key is not kept. */
int gw_lanes_new(const uint8_t key[GW_REPO_KEY_LEN], struct gw_lanes **ret);
void gw_lanes_free(struct gw_lanes *l);
/* What gw_crypt_digests() tells. 0 or -EIO. */
int gw_lanes_digests(struct gw_lanes *l, const void *pages, unsigned count, uint8_t (*out)[GW_PAGE_DIGEST_LEN]);

#endif
