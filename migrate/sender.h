// SPDX-License-Identifier: Apache-2.0
/*
 * The source's sending threads, one a data channel. A round is one bitmap: the threads take it apart in pieces of 2 MiB of guest memory,
 * whoever is free takes the next, and each ends with END and waits for the destination's ACK.
 */
#ifndef GW_MIGRATE_SENDER_H
#define GW_MIGRATE_SENDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/error.h"

struct gw_move;
struct gw_senders;

/* One thread a channel of mv->data. */
int gw_senders_new(struct gw_move *mv, struct gw_senders **ret, struct gw_error *err);
/* Waits for the threads: the move has failed or the last round is over. Takes NULL. */
void gw_senders_free(struct gw_senders *s);

/*
 * Begins a round over `bitmap`, which stays unchanged until it is over. In round 1 zero pages are left out (the
 * destination's RAM is fresh). After the `last` one the threads end; it is not acknowledged and knows no bandwidth cap.
 */
void gw_senders_begin(struct gw_senders *s, uint32_t round, const uint64_t *bitmap, bool last);
/* True when the round is over: all sent and, unless it was the last, acknowledged. Waits at most until `deadline_ns`. */
bool gw_senders_wait(struct gw_senders *s, uint64_t deadline_ns);
/* All words of the bitmap below this one are taken by a thread already; those from it on are read later than now. */
size_t gw_senders_taken(const struct gw_senders *s);
/* No more is taken in this round; returns the first word that was not. */
size_t gw_senders_interrupt(struct gw_senders *s);
/* Between rounds: as if the next one, not begun yet, had taken nothing. */
void gw_senders_rewind(struct gw_senders *s);

/* Over the whole move so far. */
uint64_t gw_senders_pages(const struct gw_senders *s); /* with content */
uint64_t gw_senders_zeros(const struct gw_senders *s);

#endif
