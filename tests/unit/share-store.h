// SPDX-License-Identifier: Apache-2.0
/* A page store in this process for tests, and what must be true of its tables at any time. */
#ifndef GW_TESTS_UNIT_SHARE_STORE_H
#define GW_TESTS_UNIT_SHARE_STORE_H

#include "ksm/store-internal.h"
#include "share-peer.h"

extern const uint8_t key_a[32], key_b[32];

struct gw_store *store_new(const uint8_t key[32]);
struct gw_store_stats stats(const struct gw_store *s);
/* Idle steps until there is nothing to do. */
void upkeep(struct gw_store *s);
/* The store's own figures agree with its tables. */
void check_store(const struct gw_store *s);
/* Descriptors of chunks that this process has open. */
unsigned memfds(void);

/* Pages first..first+n-1 get contents content..content+n-1. */
void fill(struct share_peer *p, uint64_t first, unsigned n, uint64_t content);
void run2(struct share_peer *a, struct share_peer *b);

#endif
