// SPDX-License-Identifier: Apache-2.0
/*
 * A set of contents, by hash, of bounded size: when it is full old ones go. For the "image" policy: what was read from a disk is known, what a
 * guest's programs wrote is not. Hashes are seeded at random, so that a guest cannot make one content pass for another.
 */
#ifndef GW_KSM_KNOWN_H
#define GW_KSM_KNOWN_H

#include <stdbool.h>
#include <stdint.h>

struct gw_known;

/* Room for about `contents`. -ENOMEM. */
int gw_known_new(uint64_t contents, struct gw_known **ret);
void gw_known_free(struct gw_known *k);
/* `page` is 4096 bytes. Any thread may call either. */
void gw_known_add(struct gw_known *k, const void *page);
bool gw_known_has(const struct gw_known *k, const void *page);

#endif
