// SPDX-License-Identifier: Apache-2.0
/*
 * DOC: the stream of a move, version 2
 *
 * One control channel and 1 to GW_STREAM_MAX_CHANNELS data channels, each its own TCP connection, TLS 1.3 on each. S is the source, D the
 * destination.
 *
 * Control channel: frames of proto/frame.h (length, type, version) with messages of proto/stream.proto:
 *
 *	S HELLO       -> D HELLO_REPLY (or ABORT)
 *	S PING        -> D PONG              any number, at any time before STATE
 *	S STATE       -> D READY             pages of the last round travel at the same time
 *	S PACKETS                            at most once, right before COMMIT; and any number between RUNNING and ANSWERED
 *	S COMMIT      -> D RUNNING (or ABORT)
 *	              -> D ANSWERED          news that nobody's safety rests on: it may be lost
 *	either ABORT                         any time before COMMIT; D alone after it
 *
 * Data channels: frames of 16 bytes, little-endian, then their payload:
 *
 *	offset 0  u8 type
 *	       1  u8 flags    END: bit 0 = this was the last round; else 0
 *	       2  u16 0
 *	       4  u32 count   RAW, ZERO: pages, 1 to GW_STREAM_MAX_RUN; else 0
 *	       8  u64 index   RAW, ZERO: index of the first page (lib/ram/ram.h); END, ACK: number of the round, from 1
 *
 *	RAW   count * 4096 bytes of page content follow
 *	ZERO  the pages hold zeros
 *	END   S: this channel has sent all its pages of the round
 *	ACK   D: and they are in place. Not sent for the last round, whose end READY acknowledges.
 *
 * A page may travel on any channel. S begins a round when all channels acknowledged the one before, so a newer version of a page never
 * overtakes an older one. D's RAM is all zeros at the start: pages that are zero in round 1 need not be told.
 *
 * Version 1 has no PACKETS.
 */
#ifndef GW_MIGRATE_STREAM_H
#define GW_MIGRATE_STREAM_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"

#define GW_STREAM_VERSION 2u
#define GW_STREAM_VERSION_MIN 1u
#define GW_STREAM_MAX_CHANNELS 16u
#define GW_STREAM_MAX_RUN 512u /* pages in one frame: 2 MiB */
#define GW_STREAM_HEADER 16u
#define GW_STREAM_VERSION_PACKETS 2u
/* What one PACKETS may hold; the rest of what came is lost, as in any full queue. */
#define GW_STREAM_MAX_PACKETS 256u
#define GW_STREAM_MAX_PACKET_BYTES (512u << 10)

/* Control frames; apart from the types of other sockets, so that a mix-up is an error. */
enum gw_stream_type {
	GW_STREAM_HELLO = 0x101,
	GW_STREAM_HELLO_REPLY,
	GW_STREAM_PING,
	GW_STREAM_PONG,
	GW_STREAM_STATE,
	GW_STREAM_READY,
	GW_STREAM_COMMIT,
	GW_STREAM_RUNNING,
	GW_STREAM_ABORT,
	GW_STREAM_ANSWERED,
	GW_STREAM_PACKETS,
};

enum gw_page_type {
	GW_PAGE_RAW = 1,
	GW_PAGE_ZERO = 2,
	GW_PAGE_END = 3,
	GW_PAGE_ACK = 4,
};

struct gw_page_frame {
	enum gw_page_type type;
	bool last;      /* END only */
	uint32_t count; /* RAW, ZERO */
	uint64_t index; /* page index, or round */
};

void gw_page_frame_encode(const struct gw_page_frame *f, uint8_t raw[GW_STREAM_HEADER]);
/*
 * Strict: unknown types, non-zero reserved bits, and runs that are empty, too long or reach outside [0, pages) are -EPROTO.
 * *ret is untouched on failure.
 */
int gw_page_frame_decode(const uint8_t raw[GW_STREAM_HEADER], uint64_t pages, struct gw_page_frame *ret,
			 struct gw_error *err);

#endif
