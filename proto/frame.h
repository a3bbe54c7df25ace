// SPDX-License-Identifier: Apache-2.0
/*
 * Framed protobuf messages on a stream socket: an 8-byte little-endian header {u32 length of the body, u16 type,
 * u16 format version}, then the body. Used on the VMM's control socket and between CLI and agent; agents among themselves speak
 * the same frames inside TLS.
 */
#ifndef GW_PROTO_FRAME_H
#define GW_PROTO_FRAME_H

#include <protobuf-c/protobuf-c.h>
#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"
#include "lib/io.h"

#define GW_FRAME_HEADER 8
#define GW_FRAME_MAX (16u << 20) /* bytes of body */
#define GW_FRAME_VERSION 1

struct gw_frame_header {
	uint32_t len;
	uint16_t type;
	uint16_t version;
};

/* Appends header and packed message to `out`. -ENOMEM, or -EMSGSIZE past GW_FRAME_MAX. */
int gw_frame_pack(struct gw_buf *out, uint16_t type, const ProtobufCMessage *msg);
/* Reads a header; -EPROTO when the length is past GW_FRAME_MAX or the version is not known. */
int gw_frame_parse_header(const uint8_t raw[GW_FRAME_HEADER], struct gw_frame_header *ret);

/* Sends one frame on a UNIX socket, with descriptors (nfds may be 0). 0 or negative errno. */
int gw_frame_send(int sock, uint16_t type, const ProtobufCMessage *msg, const int *fds, unsigned nfds,
		  uint64_t deadline_ns);
/*
 * Receives one frame of type `type` on a UNIX socket and unpacks it as `desc`; *ret is owned
 * (protobuf_c_message_free_unpacked). fds/nfds may be NULL: descriptors are then closed. -EPIPE at end of stream,
 * -EPROTO for anything malformed.
 */
int gw_frame_recv(int sock, uint16_t type, const ProtobufCMessageDescriptor *desc, ProtobufCMessage **ret,
		  int fds[GW_MAX_FDS], unsigned *nfds, uint64_t deadline_ns);

#endif
