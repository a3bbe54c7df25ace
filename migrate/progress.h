// SPDX-License-Identifier: Apache-2.0
/* What a move tells of itself while it runs; the fields of godwit.MoveProgress (proto/vmm.proto). */
#ifndef GW_MIGRATE_PROGRESS_H
#define GW_MIGRATE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

enum gw_move_phase {
	GW_MOVE_CONNECT,   /* channels and HELLO */
	GW_MOVE_COPY,      /* rounds, the VM runs at the source */
	GW_MOVE_SWITCH,    /* stopped: last pages, state, READY; "stop" */
	GW_MOVE_COMMIT,    /* COMMIT left or arrived, RUNNING has not yet */
	GW_MOVE_DONE,      /* the VM belongs to the destination */
	GW_MOVE_FAILED,    /* the VM belongs to the source; destination: gone */
	GW_MOVE_CANCELLED, /* the same, by request */
	GW_MOVE_DOUBT,     /* COMMIT left and no answer came: the source waits, paused, to be told */
};

struct gw_move_progress {
	uint8_t move_id[16];
	enum gw_move_phase phase;
	uint64_t bytes_sent;   /* on the wire: payload of the sockets, both sides count the same direction */
	uint64_t bytes_left;   /* guest bytes known to be dirty or unsent */
	uint64_t ram_bytes;
	uint64_t rate;         /* bytes/s, recent */
	uint64_t dirty_rate;   /* bytes/s, recent */
	uint32_t round;        /* 1 = first pass */
	uint64_t predicted_blackout_us;
	uint64_t eta_ms;
	uint64_t blackout_us;  /* at the end: for how long those who asked had no answer; from stop to running when nobody did (migrate/move.h) */
	uint64_t elapsed_ms;
	uint64_t zero_pages;   /* not sent, or as a mark only */
	unsigned slowed;       /* percent of the time for which vCPUs that write are held, so that the move converges */
	char message[256];     /* why it failed */
	bool encrypted;
	char cipher[40];
};

/* The phase's word in MoveProgress.phase: "connect", "copy", "stop", "commit", "done", "failed", "cancelled", "doubt". */
const char *gw_move_phase_name(enum gw_move_phase phase);

#endif
