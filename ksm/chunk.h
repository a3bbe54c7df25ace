// SPDX-License-Identifier: Apache-2.0
/*
 * A chunk: a memfd of up to GW_SHARE_CHUNK_PAGES pages. Who has made it fills it alone, mostly the daemon; once sealed it never changes again, for
 * anybody, and only then may its descriptor leave the process (invariant 5). So what a client brings must be sealed as well.
 */
#ifndef GW_KSM_CHUNK_H
#define GW_KSM_CHUNK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "lib/error.h"
#include "proto/share.h"

#define GW_CHUNK_DIGEST_LEN 32u

struct gw_chunk_slot {
	uint64_t key;    /* the index's, of its hash */
	uint64_t origin; /* the page that it was read from (the store's notation); 0: not known */
};

/* A page that waits for the chunk to be sealed. */
struct gw_chunk_waiter {
	uint32_t client, page;
	uint16_t slot;
};

/* Which slots a client that holds the chunk may map: by its own word, and what it was asked to map since. */
struct gw_chunk_told {
	uint32_t client;
	bool said; /* its own word, since it was last asked to map others instead */
	uint64_t bits[GW_SHARE_CHUNK_PAGES / 64];
};

struct gw_chunk {
	int fd;
	uint32_t refs;
	bool sealed;
	uint16_t slots; /* pages in it */
	uint16_t digested;
	dev_t dev;
	ino_t ino;
	struct gw_chunk_slot *slot;
	uint8_t (*digest)[GW_CHUNK_DIGEST_LEN]; /* NULL, or of the first `digested` slots */
	struct gw_share_named *name;            /* NULL, or of each slot */

	/* The store's. */
	uint32_t number;
	struct gw_chunk *next_dying;
	uint64_t owner; /* the client that brought it, by its serial */
	uint32_t holders, foreign; /* clients that hold it; those of them that did not bring it */
	uint64_t live;  /* pages mapped, over all holders */
	uint8_t compacted; /* times */
	bool thin_listed;
	bool moving; /* being compacted */
	bool left;   /* by a client that is gone: what only that mapped is to be given back */
	struct gw_chunk_waiter *waiter;
	uint32_t nwaiters, cap_waiters;
	struct gw_chunk_told *told; /* one for each holder, unless memory was short */
	uint32_t ntold, nsaid;
};

/* Open and empty; one reference. */
int gw_chunk_new(struct gw_chunk **ret);
/*
 * A sealed one from a descriptor that a client holds (takes it on success). Slots' hashes are the caller's to fill. -EINVAL for anything but a
 * sealed memfd of 1 to GW_SHARE_CHUNK_PAGES pages.
 */
int gw_chunk_adopt(int fd, struct gw_chunk **ret);
/* Appends whole pages; the caller has made sure that they fit, and fills slot[] for them. 0 or -errno: nothing was appended. */
int gw_chunk_append(struct gw_chunk *c, const struct iovec *pages, unsigned n);
/* From now on it never changes. -errno: it must be dropped. */
int gw_chunk_seal(struct gw_chunk *c);
/* Reads n pages from `slot` on. */
int gw_chunk_read(const struct gw_chunk *c, unsigned slot, unsigned n, void *to);
struct gw_chunk *gw_chunk_ref(struct gw_chunk *c);
void gw_chunk_unref(struct gw_chunk *c);
/* Of the daemon's tables for it. */
uint64_t gw_chunk_metadata(const struct gw_chunk *c);

#endif
