// SPDX-License-Identifier: Apache-2.0
/*
 * What a VMM (client) and the page-store daemon say to each other about memory. The transport is a SOCK_SEQPACKET socket whose end the
 * daemon got from the agent, so that one packet is one message and a client's name and domain are the agent's word, never its own. Both
 * ends are on one host and of one release train: structures are in host order and little-endian like the only architecture served;
 * HELLO and WELCOME agree on a version.
 *
 *   client                               daemon
 *   HELLO        pages of RAM         -> WELCOME    version, the domain's hash secret
 *   REPORT       page, hash           -> DONE       one for each REPORT, in order: flow control
 *                                     <- FETCH      second sighting: the bytes of these pages, please
 *   PAGES        bytes                ->
 *                                     <- CHUNK      id, descriptor (sealed memfd); before any order that names it
 *                                     <- MERGE      page, count -> chunk, slot
 *                                     <- REMAP      chunk, slot, count -> other chunk, slot (the old one is to be emptied)
 *   LIVE         chunk, pages mapped  ->            0: mapped nowhere and its descriptor closed here
 *   SLOTS        chunk, its live slots->            when few are left; until then it may map whatever it was asked to
 *   SYNC         end of a pass        -> SYNCED     every order that follows from earlier REPORTs of this client alone was sent
 *   ADOPT        id, descriptor       -> ADOPTED    after the daemon's restart: chunks that this client still maps
 *   FIND         names                -> FOUND      which of them are here, after the CHUNKs that hold them (version 2, like the next)
 *   OFFER        names, descriptor    -> ADOPTED    pages that the client has loaded, in a file that it filled and sealed
 *
 * Orders are proposals. The client compares bytes under write protection before it maps anything (invariant 4), and may skip any.
 * Whatever a client says can only cost what it itself brings: hashes are recomputed from PAGES before a page is stored.
 *
 * A name is what a page is called by those who load it from somewhere (ksm/lineage.h), who know what it must hold before they have it. To the daemon
 * names and proofs are numbers: it may be told wrong ones, and who finds a page by its name checks the proof before he maps it.
 */
#ifndef GW_PROTO_SHARE_H
#define GW_PROTO_SHARE_H

#include <assert.h>
#include <stdint.h>

#define GW_SHARE_VERSION 2u
#define GW_SHARE_VERSION_MIN 1u                 /* also spoken, by either end */
#define GW_SHARE_CHUNK_PAGES 512u               /* slots of a chunk: 2 MiB, one entry of the page directory */
#define GW_SHARE_SECRET_LEN 192u                /* XXH3_128bits_withSecret: as long as its default secret */
#define GW_SHARE_MAX_REPORT 1024u               /* entries of a REPORT */
#define GW_SHARE_MAX_FETCH 256u                 /* entries of a FETCH */
#define GW_SHARE_MAX_PAGES 15u                  /* pages of a PAGES packet: below 64 KiB */
#define GW_SHARE_MAX_RUNS 1024u                 /* entries of MERGE, REMAP and LIVE */
#define GW_SHARE_MAX_SLOTS 512u                 /* entries of SLOTS */
#define GW_SHARE_MAX_FIND 1024u                 /* entries of FIND */
#define GW_SHARE_PROOF_LEN 16u
#define GW_SHARE_MAX_CLIENT_PAGES (1ull << 30)  /* 4 TiB of RAM */
#define GW_SHARE_REPORTS_AHEAD 16u              /* REPORTs that may wait for their DONE; one more ends the session */
#define GW_SHARE_MAX_PACKET 65536u
#define GW_SHARE_NO_CHUNK UINT32_MAX

enum gw_share_type {
	GW_SHARE_HELLO = 1,
	GW_SHARE_WELCOME = 2,
	GW_SHARE_REPORT = 3,
	GW_SHARE_DONE = 4,
	GW_SHARE_FETCH = 5,
	GW_SHARE_PAGES = 6,
	GW_SHARE_CHUNK = 7,
	GW_SHARE_MERGE = 8,
	GW_SHARE_REMAP = 9,
	GW_SHARE_LIVE = 10,
	GW_SHARE_SYNC = 11,
	GW_SHARE_SYNCED = 12,
	GW_SHARE_ADOPT = 13,
	GW_SHARE_ADOPTED = 14,
	GW_SHARE_SLOTS = 15,
	GW_SHARE_FIND = 16,
	GW_SHARE_FOUND = 17,
	GW_SHARE_OFFER = 18,
};

/* Before every message. `count` entries of the type's structure follow; their length and the packet's must agree exactly. */
struct gw_share_head {
	uint16_t type;
	uint16_t count;
	uint32_t cookie;  /* FETCH: its number, which its PAGES repeat; SYNC, FIND: repeated by SYNCED, FOUND; OFFER: as `chunk` of ADOPT; else 0 */
};

struct gw_share_hello {       /* HELLO, 1 */
	uint32_t version_min, version_max;
	uint64_t pages;       /* page indexes are below it */
};

struct gw_share_welcome {     /* WELCOME, 1 */
	uint32_t version;
	uint32_t reserved;    /* 0 */
	uint8_t secret[GW_SHARE_SECRET_LEN];
};

struct gw_share_hash {        /* REPORT, 1 to GW_SHARE_MAX_REPORT */
	uint64_t page;
	uint64_t low, high;   /* XXH3-128 of the 4096 bytes under the secret */
};

struct gw_share_wanted {      /* FETCH, 1 to GW_SHARE_MAX_FETCH */
	uint64_t page;
};

/*
 * PAGES, 0 to GW_SHARE_MAX_PAGES. A FETCH is answered by one or more PAGES of its cookie; the one with fewer than GW_SHARE_MAX_PAGES
 * is the last (0 is possible). Pages in the order of the FETCH; one that is left out has changed or is not to be had.
 */
struct gw_share_page {
	uint64_t page;
	uint8_t bytes[4096];
};

struct gw_share_chunk {       /* CHUNK, 1, with one descriptor */
	uint32_t chunk;       /* id, unique in the session; small numbers, used again only after LIVE 0 */
	uint32_t slots;       /* pages that it holds, 1 to GW_SHARE_CHUNK_PAGES; the file is as long */
};

struct gw_share_merge {       /* MERGE, 1 to GW_SHARE_MAX_RUNS: pages page..page+count-1 equal slots slot..slot+count-1 */
	uint64_t page;
	uint32_t chunk;
	uint16_t slot;
	uint16_t count;
};

struct gw_share_remap {       /* REMAP, 1 to GW_SHARE_MAX_RUNS */
	uint32_t from_chunk, to_chunk;
	uint16_t from_slot, to_slot;
	uint16_t count;
	uint16_t reserved;    /* 0 */
};

struct gw_share_live {        /* LIVE, 1 to GW_SHARE_MAX_RUNS */
	uint32_t chunk;
	uint32_t pages;       /* mapped and not broken */
};

/*
 * SLOTS, 1 to GW_SHARE_MAX_SLOTS: bit n tells that slot n is mapped and not broken somewhere. Sent for a chunk of which less than a quarter is
 * mapped here, again when that has changed much; an order that came later makes no difference to what was told.
 */
struct gw_share_slots {
	uint32_t chunk;
	uint32_t reserved;    /* 0 */
	uint64_t live[GW_SHARE_CHUNK_PAGES / 64];
};

struct gw_share_adopt {       /* ADOPT, 1, with one descriptor */
	uint32_t chunk;       /* the client's own number for it, below 2^31; before the first REPORT only */
	uint32_t pages;       /* as in LIVE */
};

struct gw_share_adopted {     /* ADOPTED, 1 */
	uint32_t chunk;       /* as in ADOPT, or the cookie of OFFER */
	uint32_t now;         /* its id in this session; GW_SHARE_NO_CHUNK: refused, the client lets go of it */
};

struct gw_share_find {        /* FIND, 1 to GW_SHARE_MAX_FIND */
	uint64_t name;
};

struct gw_share_found {       /* FOUND, 0 to GW_SHARE_MAX_FIND: by index; what is left out is not here */
	uint32_t index;       /* of the name in FIND */
	uint32_t chunk;
	uint16_t slot;
	uint16_t reserved;    /* 0 */
	uint8_t proof[GW_SHARE_PROOF_LEN];
};

/*
 * OFFER, 1 to GW_SHARE_CHUNK_PAGES, with one descriptor: of each slot of the file. Not adopted when half of the names are here already: who loads the
 * same at the same time looks for them again.
 */
struct gw_share_named {
	uint64_t name;
	uint8_t proof[GW_SHARE_PROOF_LEN];
};

static_assert(sizeof(struct gw_share_head) == 8, "no padding on the wire");
static_assert(sizeof(struct gw_share_welcome) == 8 + GW_SHARE_SECRET_LEN, "no padding on the wire");
static_assert(sizeof(struct gw_share_hash) == 24, "no padding on the wire");
static_assert(sizeof(struct gw_share_page) == 4104, "no padding on the wire");
static_assert(sizeof(struct gw_share_slots) == 72, "no padding on the wire");
static_assert(sizeof(struct gw_share_merge) == 16, "no padding on the wire");
static_assert(sizeof(struct gw_share_remap) == 16, "no padding on the wire");
static_assert(sizeof(struct gw_share_found) == 28, "no padding on the wire");
static_assert(sizeof(struct gw_share_named) == 24, "no padding on the wire");
static_assert(sizeof(struct gw_share_head) + GW_SHARE_MAX_PAGES * sizeof(struct gw_share_page) <= GW_SHARE_MAX_PACKET, "PAGES fits");
static_assert(sizeof(struct gw_share_head) + GW_SHARE_MAX_REPORT * sizeof(struct gw_share_hash) <= GW_SHARE_MAX_PACKET, "REPORT fits");
static_assert(sizeof(struct gw_share_head) + GW_SHARE_MAX_SLOTS * sizeof(struct gw_share_slots) <= GW_SHARE_MAX_PACKET, "SLOTS fits");

#endif
