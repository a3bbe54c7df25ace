// SPDX-License-Identifier: Apache-2.0
/*
 * The page store of one sharing domain, and the clients that share in it: what godwit-ksmd does, without its sockets. Packets of
 * proto/share.h go in by gw_store_packet(); what is to be sent gathers in each client's outbox.
 *
 * Theory of operation: the life of a page.
 *  1. A client reports (page, hash). The index has no such hash: it notes where it was seen. `seen` of the client has the key of what
 *     each page was last reported as; it tells whether a note of the index is still true, so that notes need no upkeep.
 *  2. The hash is reported again, of another page. A pending page is made, both places wait for it, and the second reporter, whose page is
 *     warm, is asked for the bytes: in batches and in the order of its own pages.
 *  3. The bytes come and hash to what was reported: they are appended to the open chunk of the client that sent them, so that runs of its pages
 *     become runs of slots. Everyone who waits for the page now waits for the chunk.
 *  4. The chunk is sealed: when full, idle for a second or ten seconds old, or when its client has said SYNC or is gone. Whoever waits gets it and his merge orders,
 *     sorted by page, in runs. From now on a report of that hash is answered by an order at once.
 *  5. Nobody holds the chunk any more: it is closed, and its memory is the kernel's again. Where it is true, its pages' hashes become
 *     notes again.
 *
 * Chunks with few live slots are compacted: those that any holder may still map, by his own word or by what he was asked to map, are copied into a
 * fresh chunk, the index follows, and holders are asked to map that one instead. Where a client is gone an eighth of a chunk is reason enough: what
 * only that one used is to come back.
 *
 * What bounds a hostile client: notes and places to wait in by its pages; pages under way by their flow control; chunks that nobody else
 * holds by its pages, what it holds by four times that; its outbox; its patience, for an unanswered FETCH ends its session.
 *
 * Single-threaded; a store shares nothing with another.
 */
#ifndef GW_KSM_STORE_H
#define GW_KSM_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ksm/outbox.h"
#include "lib/error.h"

#define GW_STORE_KEY_LEN 32u
#define GW_STORE_NAME_MAX 64u

struct gw_store;
struct gw_store_client;

struct gw_store_stats {
	uint32_t clients;
	uint64_t chunks, stored_pages, store_bytes, index_entries, metadata_bytes, live_pages, compacted_chunks;
};

struct gw_store_client_stats {
	uint64_t pages, reported, chunks, live_pages, stored_pages, lies, metadata_bytes;
};

int gw_store_new(const char *domain, const uint8_t key[GW_STORE_KEY_LEN], struct gw_store **ret, struct gw_error *err);
/* With all of its clients. */
void gw_store_free(struct gw_store *s);
const char *gw_store_domain(const struct gw_store *s);
/* In constant time. */
bool gw_store_has_key(const struct gw_store *s, const uint8_t key[GW_STORE_KEY_LEN]);
uint32_t gw_store_clients(const struct gw_store *s);

/* A client that may claim up to max_pages of RAM (0: what the protocol allows). `owner` is the caller's, for gw_store_next_ready(). */
int gw_store_join(struct gw_store *s, uint64_t max_pages, void *owner, struct gw_store_client **ret);
/* Ends it, whatever it was at, and frees it. */
void gw_store_leave(struct gw_store_client *c);
struct gw_outbox *gw_store_outbox(struct gw_store_client *c);

/*
 * Handles one packet; `fd` came with it (-1: none) and is taken. 0, or -errno: the session must end (-EPROTO: malformed; else
 * what the system refused).
 */
int gw_store_packet(struct gw_store_client *c, const void *data, size_t len, int fd);

/* The owner of a client whose outbox has got something, each once; NULL when there is none left. */
void *gw_store_next_ready(struct gw_store *s);

/*
 * To be called about once a second while it says true: seals chunks that nothing was added to lately and finds clients that
 * owe an answer for too long (their outboxes are marked as overflowed).
 */
bool gw_store_tick(struct gw_store *s, uint64_t now_ns);
/* Something has begun that needs ticks. */
bool gw_store_needs_tick(const struct gw_store *s);
/* One step of upkeep, some milliseconds at most, also when no client is left. False: there is nothing to do. */
bool gw_store_idle(struct gw_store *s);

/* The domain-keyed digest of a stored page (HMAC-SHA256 under the domain's key), computed now if it was not yet. -ENOENT: no such page. */
int gw_store_digest(struct gw_store *s, uint32_t chunk, uint16_t slot, uint8_t ret[GW_CHUNK_DIGEST_LEN]);

void gw_store_stats(const struct gw_store *s, struct gw_store_stats *ret);
void gw_store_client_stats(const struct gw_store_client *c, struct gw_store_client_stats *ret);

#endif
