// SPDX-License-Identifier: Apache-2.0
/*
 * What pages of snapshots are called between the VMs of a host that load them, and how these prove to each other what such a page holds.
 *
 * A page of a repository is known by its segment and its slot there, and never changes. Its name is a hash of both: no secret, and not relied on. The
 * proof is HMAC-SHA256 of both and of the 4096 bytes under a subkey of the repository key, the first 16 bytes: only who may write the repository can
 * make one, or who has read the page from it.
 */
#ifndef GW_MIGRATE_REPO_NAMING_H
#define GW_MIGRATE_REPO_NAMING_H

#include <stdint.h>

#include "migrate/repo/snap.h"

#define GW_PROOF_LEN 16

/* One a thread. */
struct gw_naming;
/* Borrows the snapshot. 0 or -ENOMEM. */
int gw_naming_new(struct gw_snap *s, struct gw_naming **ret);
void gw_naming_free(struct gw_naming *n);

/* Of a page that is not zero. */
uint64_t gw_naming_name(struct gw_naming *n, uint64_t page);
/* That `bytes` are this page. 0 or -EIO. */
int gw_naming_prove(struct gw_naming *n, uint64_t page, const void *bytes, uint8_t proof[GW_PROOF_LEN]);
/* 0, -EBADMSG when they are not, or -EIO. */
int gw_naming_check(struct gw_naming *n, uint64_t page, const void *bytes, const uint8_t proof[GW_PROOF_LEN]);

#endif
