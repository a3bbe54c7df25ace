// SPDX-License-Identifier: Apache-2.0
/* Both ends of a move in one process, over socket pairs, for tests. */
#ifndef GW_TESTS_MOVE_PAIR_H
#define GW_TESTS_MOVE_PAIR_H

#include "move-vm.h"

/* What one end told. */
struct move_end {
	pthread_mutex_t lock;
	pthread_cond_t change;
	struct gw_move_progress latest; /* under lock */
	unsigned reports;               /* under lock */
	bool ended;                     /* under lock: done, failed or cancelled */
	bool doubted;                   /* under lock: doubt was told */
};

struct move_pair {
	struct move_vm s, d;
	struct move_end es, ed;
	struct gw_move_params ps, pd; /* may be changed before move_pair_start() */
	struct gw_move *ms, *md;
	struct gw_journal *js, *jd;
	char dir[64];                 /* of the journals */
	bool paused;                  /* the source's VM does not run */
};

/* Two VMs of `size` bytes, the source's filled. Descriptors are socket pairs. Journals in a fresh folder. */
void move_pair_init(struct move_pair *p, uint64_t size, uint64_t hole, unsigned channels);
/* Runs the source's VM unless it is paused, and starts both ends. */
void move_pair_start(struct move_pair *p);
/* Waits until both have ended, or the source is in doubt; fails the test after 60 s. */
void move_pair_wait(struct move_pair *p);
/* Waits until one end has ended. */
void move_end_wait(struct move_end *e);
/* Waits until the source's end tells `phase` or a later one. */
void move_end_wait_phase(struct move_end *e, enum gw_move_phase phase);
/* Waits until it tells that the VM is slowed by so much or more. */
void move_end_wait_slowed(struct move_end *e, unsigned percent);
/* Ends both engines. */
void move_pair_finish(struct move_pair *p);
/* Frees all. */
void move_pair_release(struct move_pair *p);
/* Begins again after a failed attempt: a fresh destination and new connections. */
void move_pair_again(struct move_pair *p);

void move_end_init(struct move_end *e);
void move_end_progress(void *arg, const struct gw_move_progress *p);
enum gw_move_phase move_end_phase(struct move_end *e);
/* Both RAMs hold the same, byte by byte; both VMs must be stopped. */
bool move_pair_equal(struct move_pair *p);
/* How many of the two run now. */
int move_pair_running(struct move_pair *p);

#endif
