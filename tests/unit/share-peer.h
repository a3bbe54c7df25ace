// SPDX-License-Identifier: Apache-2.0
/*
 * A client of the page store for tests: RAM is a list of content numbers, and a merge is checked against the bytes of the chunk like a real
 * client would. It talks to a store in the same process or, with `client` NULL, to a daemon over its socket.
 */
#ifndef GW_TESTS_UNIT_SHARE_PEER_H
#define GW_TESTS_UNIT_SHARE_PEER_H

#include <stdbool.h>
#include <stdint.h>

#include "ksm/store.h"

#define PEER_CHUNKS 4096u

struct share_peer {
	int sock, far; /* ours, and the store's when that is in this process */
	struct gw_store_client *client;
	int error;     /* what the store said of our last packet */

	uint64_t pages;
	uint64_t *content; /* of each page: a number */
	uint32_t *chunk;   /* mapped there, or GW_SHARE_NO_CHUNK */
	uint16_t *slot;
	uint8_t secret[GW_SHARE_SECRET_LEN];

	bool silent;   /* leaves FETCHes unanswered */
	bool lie;      /* answers with other bytes */
	bool omit;     /* answers without any page */
	int fd[PEER_CHUNKS];
	uint32_t slots[PEER_CHUNKS];
	uint32_t live[PEER_CHUNKS]; /* pages that we map of it */

	unsigned welcomed, dones, fetches, fetched, chunks, runs, merged, refused, remap_runs, remap_pages, remapped, synced, adopted;
	unsigned merged_at_sync;
	unsigned founds, nfound; /* FOUNDs, and entries of the last one */
	struct gw_share_found found[GW_SHARE_MAX_FIND];
	uint32_t last_sync, last_cookie, adopted_as;
	uint64_t fetched_page[4096]; /* in the order that they were asked for */
};

/* The bytes of a content number. */
void share_content(uint64_t number, uint8_t page[4096]);

/* In this process: joins and says HELLO. `pages` may be huge when `claim` is: only `pages` have content. */
void share_peer_join(struct share_peer *p, struct gw_store *s, uint64_t pages, uint64_t claim);
/* To a daemon: `sock` is taken; says HELLO. */
void share_peer_connect(struct share_peer *p, int sock, uint64_t pages);
/* Frees all, and leaves when still there. */
void share_peer_end(struct share_peer *p);

/* Sends any bytes, with a descriptor (-1: none; stays the caller's). The store's word is in p->error, too. */
int share_peer_send(struct share_peer *p, const void *data, size_t len, int fd);
int share_peer_say(struct share_peer *p, unsigned type, uint32_t cookie, const void *entries, unsigned count, size_t size, int fd);
/* Reports pages first..first+n-1 as they are, in packets of up to 1,024. */
void share_peer_report(struct share_peer *p, uint64_t first, unsigned n);
void share_peer_hash(const struct share_peer *p, uint64_t number, struct gw_share_hash *ret);
void share_peer_live(struct share_peer *p, uint32_t chunk, uint32_t pages);
/* What it maps of a chunk, as SLOTS. */
void share_peer_slots(struct share_peer *p, uint32_t chunk);
/* Offers a file of contents content.., n pages, called name.. with proofs of 16 times their name's low byte; and asks for n such names. */
void share_peer_offer(struct share_peer *p, uint32_t cookie, uint64_t content, uint64_t name, unsigned n);
void share_peer_find(struct share_peer *p, uint32_t cookie, uint64_t name, unsigned n);
void share_peer_sync(struct share_peer *p, uint32_t cookie);
/* Stops mapping pages; LIVE is told of each chunk that they were of. At 0 the descriptor is closed. */
void share_peer_drop(struct share_peer *p, uint64_t first, unsigned n);
void share_peer_drop_quietly(struct share_peer *p, uint64_t first, unsigned n);

/* Handles what came, for up to wait_ms until something does. False: nothing came. */
bool share_peer_step(struct share_peer *p, int wait_ms);
/* All of them until nothing comes any more. */
void share_peers_run(struct share_peer **p, unsigned n, int wait_ms);
/* True when the other side has closed; waits for it. */
bool share_peer_closed(struct share_peer *p, int wait_ms);

#endif
