// SPDX-License-Identifier: Apache-2.0
/* What the files of the store share; see store.h for how it works. */
#ifndef GW_KSM_STORE_INTERNAL_H
#define GW_KSM_STORE_INTERNAL_H

#include <openssl/evp.h>

#include "ksm/chunk.h"
#include "ksm/index.h"
#include "ksm/store.h"
#include "lib/clock.h"
#include "lib/util.h"

/*
 * Where the index says a key is. `seen` and origins: the client's number and page; a number may have been given to another client since, which
 * does not matter: what counts is that client's own `seen` of that page.
 */
#define WHERE_KIND (3ull << 62)
#define WHERE_SEEN (1ull << 62)    /* | number << 32 | page */
#define WHERE_STORED (2ull << 62)  /* | chunk << 16 | slot */
#define WHERE_PENDING (3ull << 62) /* | index of struct pending */

static inline uint64_t where_seen(uint32_t number, uint64_t page)
{
	return WHERE_SEEN | (uint64_t)number << 32 | page;
}
static inline uint64_t where_stored(uint32_t chunk, unsigned slot)
{
	return WHERE_STORED | (uint64_t)chunk << 16 | slot;
}
static inline uint64_t where_pending(uint32_t i)
{
	return WHERE_PENDING | i;
}
static inline uint32_t where_number(uint64_t w)
{
	return (uint32_t)(w >> 32) & 0xffffff;
}
static inline uint32_t where_page(uint64_t w)
{
	return (uint32_t)w;
}
static inline uint32_t where_chunk(uint64_t w)
{
	return (uint32_t)(w >> 16);
}
static inline uint16_t where_slot(uint64_t w)
{
	return (uint16_t)w;
}

#define NONE UINT32_MAX
#define MAX_CLIENTS (1u << 20)
#define MAX_FETCHES 4u         /* FETCHes that a client owes an answer for */
#define MAX_WANTED 4096u       /* pages still to be asked for: beyond it REPORTs wait for their DONE */
#define MAX_PENDING 32768u     /* pages under way by way of one client */
#define MAX_TRIES 16u          /* clients that are asked for the bytes of one page, each once */
#define MAX_SYNCS 16u
#define ANSWER_NS (30 * GW_NS_PER_SEC)
#define SEAL_NS GW_NS_PER_SEC        /* an open chunk to which nothing was added so long is sealed */
#define SEAL_AGE_NS (10 * GW_NS_PER_SEC) /* and one that was begun so long ago: others wait for what is in it */

/* A page that was sighted twice and whose bytes are to come. Clients are meant by their reference: number and life. */
struct pending {
	uint64_t low, high;
	uint32_t client, page; /* who is asked */
	uint32_t waiters;      /* head of a list; of free ones: the next */
	uint32_t tries;        /* 0: free */
};

struct waiter {
	uint32_t client, page, next;
};
/* In its page: the client was asked in vain. It still waits for what another may bring. */
#define WAITER_ASKED (1u << 31)
static_assert(GW_SHARE_MAX_CLIENT_PAGES <= WAITER_ASKED, "a page leaves the bit free");

struct order {
	uint32_t page, chunk;
	uint16_t slot;
};

struct fetch {
	uint64_t sent_ns; /* 0: not in use */
	uint32_t cookie;
	uint16_t n, next;
	uint32_t pending[GW_SHARE_MAX_FETCH];
};

struct gw_store_client {
	struct gw_store *store;
	void *owner;
	uint32_t number; /* place in store->client */
	uint32_t ref;    /* number and life, for what lasts seconds */
	uint64_t serial; /* never used again; its low 24 bits are the number */
	uint64_t pages, max_pages; /* pages: 0 before HELLO */
	uint32_t version;
	uint16_t *seen;  /* tag of what each page was last reported as, 0: never; memory comes as it is written to */
	struct gw_outbox out;

	/* Chunks by number: 0 not held, else pages mapped + 1. */
	uint32_t *live;
	uint32_t nlive;
	uint64_t chunks, held_slots, live_pages;

	struct gw_chunk *open;
	uint64_t open_ns, opened_ns; /* of the last page in it, of its first */
	uint64_t stored;  /* pages brought that are still stored, of any chunk */
	uint64_t alone;   /* of those, in chunks that nobody else holds */

	struct order *order;
	uint32_t norders, cap_orders;
	uint32_t *want; /* pending pages to ask for, from first_want on */
	uint32_t first_want, nwants, cap_wants;
	bool wants_unsorted;
	struct fetch *fetch; /* MAX_FETCHES, from the first one on */
	uint32_t nfetches, next_cookie;
	uint64_t waiting;    /* waiters that are its */
	uint64_t pending;    /* pages that it is asked for */

	uint32_t dones_due;
	uint32_t sync[MAX_SYNCS];
	uint32_t nsyncs;
	uint64_t reported, lies;

	bool touched, ready;
	struct gw_store_client *next_touched, *next_ready;
};

struct gw_store {
	char domain[GW_STORE_NAME_MAX];
	uint8_t key[GW_STORE_KEY_LEN];
	uint8_t secret[GW_SHARE_SECRET_LEN];
	EVP_MAC *mac;
	EVP_MAC_CTX *mac_ctx;
	struct gw_index index;
	struct gw_index files; /* inode of a sealed chunk -> its number + 1 */
	struct gw_index names; /* of pages that clients have loaded -> where_stored() */

	struct gw_store_client **client; /* by number; [0] stays NULL */
	uint64_t joined;                 /* clients so far */
	uint32_t nclients, cap_clients;

	struct gw_chunk **chunk; /* by number */
	uint32_t nchunks, cap_chunks, free_chunk_from;
	uint64_t stored_pages, live_pages, compacted;
	uint32_t sealed_chunks;

	struct pending *pending;
	uint32_t npending, cap_pending, free_pending, used_pending;
	struct waiter *waiter;
	uint32_t nwaiters, cap_waiters, free_waiter, used_waiters;

	struct gw_store_client *touched, *ready;
	struct gw_chunk *dying; /* out of the tables, still to be closed: the kernel takes its time for that */
	uint32_t *fresh; /* chunks sealed and perhaps held by nobody */
	uint32_t nfresh, cap_fresh;
	uint32_t *thin;  /* chunks that may be worth compacting */
	uint32_t nthin, cap_thin;
	bool thin_new;
	uint64_t stale;  /* since the index was last swept */
	uint8_t (*page)[4096]; /* room for a packet's worth of pages, and for compaction */
};

/* Makes room for one more in an array. */
int gw_store_grow(void *array_ptr, uint32_t *cap, uint32_t used, size_t size);

static inline struct gw_store_client *client_by_number(const struct gw_store *s, uint32_t number)
{
	return number < s->cap_clients ? s->client[number] : NULL;
}
static inline struct gw_store_client *client_by_ref(const struct gw_store *s, uint32_t ref)
{
	struct gw_store_client *c = client_by_number(s, ref & 0xffffff);

	return c && c->ref == ref ? c : NULL;
}
static inline struct gw_store_client *chunk_owner(const struct gw_store *s, const struct gw_chunk *k)
{
	struct gw_store_client *c = client_by_number(s, k->owner & 0xffffff);

	return c && c->serial == k->owner ? c : NULL;
}
/*
 * Enough of the key to tell notes that became untrue: one in 65536 is believed, and costs a page that is asked for or an order that is left out.
 * There is one for each page of each client, so its size counts. Never 0.
 */
static inline uint16_t tag_of(uint64_t key)
{
	return (uint16_t)GW_MAX(key >> 48, 1u);
}
static inline bool still_seen(const struct gw_store_client *c, uint64_t page, uint64_t key)
{
	return c && page < c->pages && c->seen[page] == tag_of(key);
}
/*
 * Of both halves of a hash, folded in a way that clients cannot know: who reports half of a hash that another has, with another half of his own
 * making, does not get in the way of that one.
 */
static inline uint64_t key_of(const struct gw_store *s, uint64_t low, uint64_t high)
{
	return gw_index_key(&s->index, low ^ high * s->index.secret[2]);
}
/* The client has something to be done at the end of this step. */
void gw_store_touch(struct gw_store_client *c);

/* store-sight.c: from the report to the stored page. */
int gw_store_report(struct gw_store_client *c, const struct gw_share_hash *e, unsigned n);
int gw_store_pages(struct gw_store_client *c, uint32_t cookie, const struct gw_share_page *e, unsigned n);
/* Sends FETCHes while it may. */
void gw_store_ask(struct gw_store_client *c);
/* The client is gone: others are asked for what it was asked for. */
void gw_store_forget_fetches(struct gw_store_client *c);
/* Adds to who waits for an open chunk. */
int gw_store_await_chunk(struct gw_chunk *k, struct gw_store_client *c, uint32_t page, unsigned slot);

/* store-chunks.c: chunks, who holds them, orders. */
struct gw_chunk *gw_store_chunk(const struct gw_store *s, uint32_t number);
/* Gives it a number and a place in the table. */
int gw_store_enter(struct gw_store *s, struct gw_chunk *k);
int gw_store_seal(struct gw_store_client *c);
/* Takes a chunk that nobody holds out of the store. */
void gw_store_close(struct gw_store *s, struct gw_chunk *k);
void gw_store_close_unheld(struct gw_store *s);
bool gw_store_hold(struct gw_store_client *c, struct gw_chunk *k, bool send);
void gw_store_release(struct gw_store_client *c, struct gw_chunk *k);
int gw_store_live(struct gw_store_client *c, const struct gw_share_live *e, unsigned n);
int gw_store_adopt(struct gw_store_client *c, const struct gw_share_adopt *e, int fd);
/* The chunk of a file that the client brings, new or known; taken from *fd, that is then -1, when it is new. NULL: refused. */
struct gw_chunk *gw_store_bring(struct gw_store_client *c, int *fd);
/* Says so, and that the client may map all of it (k NULL: refused). True when it holds it. */
bool gw_store_adopted(struct gw_store_client *c, uint32_t cookie, struct gw_chunk *k);
int gw_store_order(struct gw_store_client *c, uint32_t page, uint32_t chunk, unsigned slot);
/* A chunk that compaction filled counts from now on. */
void gw_store_sealed(struct gw_store *s, struct gw_chunk *k);
/* Sends the orders gathered for a client. */
void gw_store_send_orders(struct gw_store_client *c);
/* The index no longer points at slot n of k: back to where it was seen, when that is true. */
void gw_store_unstore(struct gw_store *s, struct gw_chunk *k, unsigned slot);

/* store-names.c: pages by the names that clients gave them. */
int gw_store_find(struct gw_store_client *c, uint32_t cookie, const struct gw_share_find *e, unsigned n);
int gw_store_offer(struct gw_store_client *c, uint32_t cookie, const struct gw_share_named *e, unsigned n, int fd);
/* They go with their chunk. */
void gw_store_unname(struct gw_store *s, const struct gw_chunk *k);

/* store-upkeep.c: compaction, sweeping. */
int gw_store_slots(struct gw_store_client *c, const struct gw_share_slots *e, unsigned n);
void gw_store_check_thin(struct gw_store *s, struct gw_chunk *k);
bool gw_store_upkeep(struct gw_store *s);
/* Closes up to n chunks that are out of the store already. True: there are more. */
bool gw_store_bury(struct gw_store *s, unsigned n);
/* What is known of a holder's slots; NULL: nothing, it may map any. `make`: begins with none. */
struct gw_chunk_told *gw_store_told(struct gw_chunk *k, uint32_t ref, bool make);
void gw_store_untell(struct gw_chunk *k, uint32_t ref);
static inline void gw_store_may_map(struct gw_chunk_told *told, unsigned slot)
{
	if (told)
		told->bits[slot / 64] |= 1ull << (slot % 64);
}

#endif
