// SPDX-License-Identifier: Apache-2.0
/* The destination's receiving threads, one a data channel: pages from the stream into RAM, rounds acknowledged. */
#ifndef GW_MIGRATE_RECEIVER_H
#define GW_MIGRATE_RECEIVER_H

#include <stdint.h>

#include "lib/error.h"
#include "lib/ram/ram.h"
#include "migrate/channel.h"

struct gw_move;
struct gw_receivers;

/* One thread a channel of mv->data. RAM must be all zeros. */
int gw_receivers_new(struct gw_move *mv, struct gw_receivers **ret, struct gw_error *err);
/* Waits for the threads, which end after the last round or when the move failed. Takes NULL. */
void gw_receivers_free(struct gw_receivers *rs);
/* Waits until all threads have taken their last round. The move's failure, or -ETIMEDOUT past `deadline_ns`. */
int gw_receivers_wait_last(struct gw_receivers *rs, uint64_t deadline_ns, struct gw_error *err);
/* Numbers for progress: the newest round seen, pages taken with content. */
uint32_t gw_receivers_round(const struct gw_receivers *rs);
uint64_t gw_receivers_pages(const struct gw_receivers *rs);

/* Where frames come from: a channel, or a fuzzer's bytes. */
struct gw_page_io {
	int (*read)(void *self, void *data, size_t len); /* exactly len bytes: 0 or negative errno */
	int (*write)(void *self, const void *data, size_t len); /* and flush */
	void *self;
};

/*
 * Takes one frame of a data channel into `ram`. *round (0 before the first) is the last round ended; returns 1 after the last
 * round's END, 0 otherwise, negative errno with `err` for whatever is wrong with the stream. For the threads and the fuzzer.
 */
int gw_receive_frame(const struct gw_page_io *io, struct gw_ram *ram, uint32_t *round, uint64_t *pages, struct gw_error *err);

#endif
