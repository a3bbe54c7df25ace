// SPDX-License-Identifier: Apache-2.0
/* Frames between a client of a repository and the agent that keeps it (proto/repository.proto, ticket.h): what both sides share. */
#ifndef GW_MIGRATE_REPO_REMOTE_H
#define GW_MIGRATE_REPO_REMOTE_H

#include <stdint.h>

#include "lib/buf.h"
#include "migrate/channel.h"
#include "proto/repository.pb-c.h"

#define GW_REMOTE_VERSION 1u /* N; with N - 1 (none yet) the other side is understood as well */
#define GW_REMOTE_MIN_VERSION 1u

#define GW_FRAME_REPO_REQUEST 32
#define GW_FRAME_REPO_REPLY 33
#define GW_FRAME_REPO_DATA 34

#define GW_REMOTE_PIECE (256u << 10)     /* bytes of an object in a frame, at most */
#define GW_REMOTE_MAX_REQUEST (4u << 10) /* bytes of a body */
#define GW_REMOTE_MAX_REPLY (2u << 20)
#define GW_REMOTE_PAGE 4096u             /* entries of a listing in a reply: with the longest names below that */

/* The slowest that either side puts up with: so much at once, and so many bytes of an object a second. */
#define GW_REMOTE_STALL (60 * GW_NS_PER_SEC)
#define GW_REMOTE_SLOWEST (64u << 10)
/* When that many bytes must be through. */
uint64_t gw_remote_deadline(uint64_t bytes);

/* 0 or negative errno, after which the connection is of no use any more. What is written leaves by gw_channel_flush(). */
int gw_remote_send(struct gw_channel *ch, uint16_t type, const ProtobufCMessage *msg);
int gw_remote_send_data(struct gw_channel *ch, const void *data, uint64_t len);
/* Reads a header. -EPROTO: malformed, or of more bytes than its type may have. */
int gw_remote_receive(struct gw_channel *ch, struct gw_frame_header *h, uint64_t deadline_ns);
/* The body of a message of that header; *ret is owned. -EPROTO. */
int gw_remote_message(struct gw_channel *ch, const struct gw_frame_header *h, const ProtobufCMessageDescriptor *desc, ProtobufCMessage **ret,
		      uint64_t deadline_ns);

/* The one way from a header to a type and length: -EPROTO. */
int gw_remote_check_header(const struct gw_frame_header *h);

#endif
