// SPDX-License-Identifier: Apache-2.0
/* A channel of a move, or a connection to a repository: an encrypted byte stream with whole reads and batched writes. One thread uses it at a time. */
#ifndef GW_MIGRATE_CHANNEL_H
#define GW_MIGRATE_CHANNEL_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/error.h"
#include "lib/io.h"
#include "proto/frame.h"

struct gw_channel;

struct gw_channel_config {
	int fd;         /* taken, in failure too */
	int wake_fd;    /* borrowed: readable = every wait ends with -ECANCELED; -1 for none */
	bool client;    /* the source is */
	bool clear;     /* no encryption: refused unless built with GW_BENCH_SWITCHES */
	unsigned number; /* 0 = control */
	const char *what; /* whose secret and id they are, in a word; NULL: "move". Borrowed as long as the channel is there */
	const uint8_t *secret;  /* 32 bytes, borrowed during the call */
	const uint8_t *move_id; /* 16 bytes, borrowed during the call */
	uint64_t deadline_ns;   /* of the handshake */
};

int gw_channel_new(const struct gw_channel_config *config, struct gw_channel **ret, struct gw_error *err);
/* Closes the connection without flushing. Takes NULL. */
void gw_channel_free(struct gw_channel *ch);

/* 0 or negative errno. What was written leaves at the latest with the flush. After a failure the channel is dead. */
int gw_channel_write(struct gw_channel *ch, const void *data, size_t len);
int gw_channel_flush(struct gw_channel *ch);
int gw_channel_read(struct gw_channel *ch, void *data, size_t len, uint64_t deadline_ns);

/* Waits until something can be read: 0, -ETIMEDOUT, -ECANCELED. The end of the stream can be read, too. */
int gw_channel_wait(struct gw_channel *ch, uint64_t deadline_ns);

/* From now on waits go on although the move was given up: to say why. */
void gw_channel_ignore_wake(struct gw_channel *ch);
/* Waits at most `ns` for each step of a write. */
void gw_channel_set_stall(struct gw_channel *ch, uint64_t ns);

/* Bytes on the wire so far. Any thread. */
uint64_t gw_channel_sent(const struct gw_channel *ch);
uint64_t gw_channel_received(const struct gw_channel *ch);
/* "TLS_AES_256_GCM_SHA384", or NULL in the clear. */
const char *gw_channel_cipher(const struct gw_channel *ch);

/* Control frames (migrate/stream.h): the message is sent at once. */
int gw_channel_send(struct gw_channel *ch, uint16_t type, const ProtobufCMessage *msg, struct gw_error *err);
/* Header and body of the next frame; *body is owned, and its length is in the header. */
int gw_channel_receive(struct gw_channel *ch, struct gw_frame_header *h, uint8_t **body, uint64_t deadline_ns,
		       struct gw_error *err);

#endif
