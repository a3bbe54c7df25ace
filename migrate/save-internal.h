// SPDX-License-Identifier: Apache-2.0
/* What the files of the saving engine share. */
#ifndef GW_MIGRATE_SAVE_INTERNAL_H
#define GW_MIGRATE_SAVE_INTERNAL_H

#include <pthread.h>

#include "migrate/repo/repo.h"
#include "migrate/repo/writer.h"
#include "migrate/rounds.h"
#include "migrate/save.h"

struct gw_save {
	struct gw_save_params p; /* its strings and bytes are owned */
	struct gw_move_vm vm;
	struct gw_journal *journal;
	gw_save_progress_fn *fn;
	void *arg;
	pthread_t thread, ticker;
	bool threaded, ticking;
	uint64_t started_ns;

	/* Engine's thread only. */
	struct gw_rounds *rounds;
	bool was_running, stopped;
	uint64_t stopped_ns;
	uint64_t *working_set; /* one bit a page: touched lately; NULL: not known */
	uint64_t watched_ns;   /* since when that is found out; 0: it is not */
	size_t word;         /* of the round's bitmap: all before it have been read */
	uint64_t counted_ns; /* when bytes_left was */

	pthread_mutex_t lock;
	pthread_cond_t change;
	struct gw_save_progress progress; /* under lock, but for what the writer counts */
	struct gw_repo *repo;             /* under lock: set and reset by the engine's thread, which reads it as it likes */
	struct gw_snap_writer *writer;    /* the same */
	bool cancelled;                   /* under lock: by request */
	bool past_return;                 /* under lock: cancelling is refused from now on */
	bool ended;                       /* under lock: the ticker is to end */
	uint64_t base_bytes, base_ns;     /* under lock: rate shown since then */
};

/* 0, or -ECANCELED. */
int gw_save_check(struct gw_save *s, struct gw_error *err);
int gw_save_step(struct gw_save *s, const char *name, struct gw_error *err);
void gw_save_phase(struct gw_save *s, enum gw_save_phase phase);

/* Rounds until it is time to stop the VM (live), and the last one after it. */
int gw_save_rounds(struct gw_save *s, struct gw_error *err);
int gw_save_last_round(struct gw_save *s, struct gw_error *err);

#endif
