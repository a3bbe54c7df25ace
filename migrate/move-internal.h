// SPDX-License-Identifier: Apache-2.0
/* What the files of the engine share: the state of one end of a move. */
#ifndef GW_MIGRATE_MOVE_INTERNAL_H
#define GW_MIGRATE_MOVE_INTERNAL_H

#include <pthread.h>

#include "lib/clock.h"
#include "migrate/channel.h"
#include "migrate/move.h"

struct gw_move {
	struct gw_move_params p;
	struct gw_move_vm vm;
	struct gw_journal *journal;
	gw_move_progress_fn fn;
	void *arg;
	bool source;
	pthread_t thread;
	bool started;           /* the thread exists */
	int wake_fd;            /* eventfd: readable = given up, or resolved */
	uint64_t started_ns;

	/* Engine's thread only, once the workers know them. */
	struct gw_channel *control;
	struct gw_channel *data[GW_STREAM_MAX_CHANNELS];
	struct gw_move_progress progress;
	bool digest, paused;    /* destination: as HELLO says */

	uint32_t version;       /* of the stream, as agreed on */
	pthread_mutex_t lock;
	struct gw_error error;  /* under lock: the first failure */
	bool failed;            /* under lock: error is set */
	bool cancelled;         /* under lock: by request */
	bool past_return;       /* under lock: cancelling is refused from now on */
	bool in_doubt;          /* under lock */
	int resolved;           /* under lock: 0 = not yet, 1 = here, 2 = there, 3 = the process ends */
	uint64_t epoch;         /* under lock */
};

/* Any thread: the move has failed; the first one counts. Wakes all waits. Returns -err->code. */
int gw_move_fail(struct gw_move *mv, const struct gw_error *err);
/* 0, or the failure or cancellation so far. */
int gw_move_check(struct gw_move *mv, struct gw_error *err);
/* From here on gw_move_cancel() is refused. Fails when the move failed or was cancelled before. */
int gw_move_pass_return(struct gw_move *mv, struct gw_error *err);
/* Visits a failpoint. */
int gw_move_step(struct gw_move *mv, const char *name, struct gw_error *err);
/* Fills what is the same in all phases and calls the hook. Engine's thread. */
void gw_move_report(struct gw_move *mv, enum gw_move_phase phase);
/* Shakes hands on all channels, control first; they are in mv->control and mv->data afterwards. */
int gw_move_connect(struct gw_move *mv, struct gw_error *err);
/* Closes all channels. */
void gw_move_disconnect(struct gw_move *mv);
/* Journals `state` for this move; 0 without a journal. */
int gw_move_journal(struct gw_move *mv, enum gw_journal_state state, uint64_t epoch, struct gw_error *err);

/*
 * The next control frame. Must be of `type`, else -EPROTO; an ABORT becomes an error with the peer's text and the code it
 * gave. *ret is owned.
 */
int gw_move_expect(struct gw_move *mv, enum gw_stream_type type, const ProtobufCMessageDescriptor *desc,
		   ProtobufCMessage **ret, uint64_t deadline_ns, struct gw_error *err);
/* Unpacks a received body as `desc`. */
int gw_move_unpack(const struct gw_frame_header *h, const uint8_t *body, const ProtobufCMessageDescriptor *desc,
		   ProtobufCMessage **ret, struct gw_error *err);
/* Turns a received ABORT into an error. */
int gw_move_aborted(struct gw_move *mv, const struct gw_frame_header *h, const uint8_t *body, struct gw_error *err);
/* Tells the peer, best effort, within a second. */
void gw_move_say_abort(struct gw_move *mv, const struct gw_error *err);


/* Threads' bodies. */
void *gw_move_source_main(void *arg);
void *gw_move_destination_main(void *arg);

#endif
