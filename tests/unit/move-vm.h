// SPDX-License-Identifier: Apache-2.0
/* A VM without KVM for tests and benches of moves: RAM, a thread that writes it like a guest, and a few bytes of state. */
#ifndef GW_TESTS_MOVE_VM_H
#define GW_TESTS_MOVE_VM_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "migrate/move.h"

struct gw_uffd_source;

struct move_vm {
	struct gw_ram *ram;
	struct gw_uffd_source *uffd; /* NULL: the device write log is the dirty source */
	pthread_t thread;
	bool threaded;
	/* The writer: pages of [0, hot_pages) at random, write_rate a second (0: none). */
	uint64_t hot_pages, write_rate;
	bool keeps;                  /* it gives no memory back: what it finds there while memory is loaded is not certain (lazy.h) */
	uint64_t save_size;          /* bytes of padding in the saved state */
	uint8_t *saved_ram;          /* where RAM is copied to when state is saved; NULL: nowhere */
	uint32_t cpus;               /* as described to the other side */
	bool fail_load, fail_save;
	const uint64_t *working_set; /* one bit a page: what it is said to have touched while it was watched; NULL: it cannot be watched */
	unsigned watched;            /* 1: it is now */
	uint64_t mapped;             /* pages that were to be mapped before it ran */
	bool mapped_right;           /* it did not run yet */
	bool touches_to_run;         /* a device reads memory before it runs */
	uint64_t unanswered_ms;      /* before the stop; 0: nobody waits */
	unsigned answers_after_ms;   /* after the release; 0: it does not */
	uint64_t answered;           /* a conversation with answers; the destination's is what it was told */
	uint64_t silent_ms;          /* at another moment than around the stop */
	/* Packets that come while it is stopped: so many in each of so many calls, numbered from 1. As a destination: the bytes of those it got. */
	unsigned packets, packet_calls;
	uint8_t got[8];
	unsigned ngot;

	pthread_mutex_t lock;
	pthread_cond_t change;
	bool run, parked, quit;      /* under lock */
	unsigned runs, stops;        /* under lock: how often */
	uint64_t writes;             /* the guest's own counter: part of its state */
	uint64_t rng;
	uint64_t owned_epoch;
	bool released, announced;
	unsigned renewed;            /* how often it was told to come from a snapshot */
	unsigned slowed, slowest;    /* percent: now, and the most; a slowed guest writes that much less */
};

/* RAM of `size` bytes (a second region when `hole` > 0 and size is past it); stopped. Exits the process on failure. */
void move_vm_init(struct move_vm *vm, uint64_t size, uint64_t hole);
/* Uses userfaultfd write protection as dirty source; false (and a loud line) where the kernel has none. */
bool move_vm_use_uffd(struct move_vm *vm);
void move_vm_release(struct move_vm *vm);
/* Every `zero_every`-th page stays untouched, others get content made from `seed`. */
void move_vm_fill(struct move_vm *vm, uint64_t seed, unsigned zero_every);
void move_vm_run(struct move_vm *vm);
void move_vm_stop(struct move_vm *vm);
bool move_vm_running(struct move_vm *vm);
/* Stopped: writes as its guest until it has written all that `other`, which began with the same state, has. False: never. */
bool move_vm_catch_up(struct move_vm *vm, const struct move_vm *other);
/* Stopped, without userfaultfd: its memory is what move_vm_fill() with this and all that it wrote since, wherever it ran, make of it. */
bool move_vm_remembers(const struct move_vm *vm, uint64_t seed, unsigned zero_every);
/* Same bytes in RAM, same state. */
bool move_vm_equal(const struct move_vm *a, const struct move_vm *b);
struct gw_move_vm move_vm_handle(struct move_vm *vm);

#endif
