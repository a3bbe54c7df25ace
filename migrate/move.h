// SPDX-License-Identifier: Apache-2.0
/*
 * DOC: a move, as both of its ends see it
 *
 * The engine moves a VM that it knows only through struct gw_move_vm: RAM, a dirty source, and a few operations. Each end runs on a
 * thread of its own plus one a data channel, and tells all it has to tell through one callback.
 *
 * Source:      connect -> HELLO -> rounds (precopy.c) -> stop -> last pages + STATE -> READY -> journal COMMITTING -> COMMIT
 *              -> RUNNING -> journal RELEASED
 * Destination: connect -> HELLO -> journal INCOMING -> take pages -> STATE -> load -> READY -> COMMIT -> journal OWNER -> run -> RUNNING
 *              -> ANSWERED
 *
 * Who may run the VM (invariants 1 and 2 of the design; tests/model/handoff.pml checks them):
 * - the source, until it has written COMMITTING: every failure before makes it run on at once;
 * - nobody, while COMMIT or its answer travel;
 * - the destination, once it has written OWNER, which it does only after COMMIT;
 * - the source again, only when the destination said ABORTED (which it journals first), or when its agents or its operator settle
 *   the doubt by gw_move_resolve().
 * A destination whose connection breaks before COMMIT writes ABORTED and is done: a COMMIT that comes later finds nobody.
 *
 * A destination that dies as owner takes the VM with it once RUNNING may have left, or the VM may have acted on the outside; before that, the
 * source may go on with it. A word in the journal tells (journal.h); it is set right before RUNNING leaves, and what the VM does to the outside
 * is held back until then.
 *
 * What comes for the VM at the source while it stands still follows it to the destination, so that nobody has to ask again: TCP would do so
 * after 200 ms at the earliest (RFC 6298 with Linux' minimum), and twice as long after that.
 *
 * The blackout that is told is what those who wait for the VM see (vmm/talk.h). It begins with the stop, or earlier where somebody had waited
 * for an answer before, and ends when the guest answers again (ANSWERED), with RUNNING where nobody asks. When it was silent for longer at
 * another moment of the move, to somebody who went on asking, it is that time.
 */
#ifndef GW_MIGRATE_MOVE_H
#define GW_MIGRATE_MOVE_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/error.h"
#include "lib/ram/dirty.h"
#include "lib/ram/ram.h"
#include "migrate/journal.h"
#include "migrate/progress.h"
#include "migrate/stream.h"
#include "migrate/tls.h"
#include "proto/stream.pb-c.h"

#define GW_MOVE_TALKS 16

/* What those who ask the VM over its networks saw of it while it was copied. */
struct gw_move_talk {
	uint64_t since_ns;   /* since when somebody waits for an answer (gw_now_ns()), 0: nobody does */
	uint64_t longest_ns; /* for how long somebody had to go on asking in vain */
	uint64_t answered[GW_MOVE_TALKS]; /* names of conversations in which answers were given, which mean the same on all hosts */
	size_t nanswered;
};

/* A packet that came for the VM, as its device hands it to the guest. `device` is an index that means the same at both ends. */
typedef void gw_move_packet_fn(void *arg, unsigned device, const void *data, size_t len);

/* All are called from the engine's main thread; of a load (load.h) stop, run and announce from another, once it calls no others. */
struct gw_move_vm_ops {
	/* Source: lets what writes RAM run for so many percent of the time less; 0 as before. May be NULL. */
	void (*slow)(void *vm, unsigned percent);
	void (*stop)(void *vm);    /* after it nothing writes RAM */
	/* Source, stopped. May be NULL. */
	void (*awaited)(void *vm, struct gw_move_talk *ret);
	void (*run)(void *vm);     /* destination: after `owned`, and without effects on the outside before `released` */
	bool (*running)(void *vm);
	/* Of the stopped VM; changes nothing, its RAM included. */
	int (*save)(void *vm, struct gw_buf *out, struct gw_error *err);
	int (*load)(void *vm, const void *data, size_t len, struct gw_error *err);
	/* After `load`, from a snapshot: the guest is to learn that its past may be another's too. May be NULL. */
	int (*renew)(void *vm, struct gw_error *err);
	/* What a destination must offer; *ret is owned (godwit__stream_machine__free_unpacked). Regions are filled in by the engine. */
	int (*describe)(void *vm, Godwit__StreamMachine **ret, struct gw_error *err);
	/* Destination: an error when this VM cannot take over what `theirs` describes. The engine compares the regions. */
	int (*accept)(void *vm, const Godwit__StreamMachine *theirs, struct gw_error *err);
	/* Destination, once the first round is in place: makes the VM's first moments faster. May be NULL. */
	void (*warm)(void *vm);
	/*
	 * Source, while the VM runs: watches which pages it touches, until the second call ORs those into `bitmap` (one bit a page; NULL: forget it). Both may be
	 * NULL. -errno: that cannot be had here.
	 */
	int (*working_set_begin)(void *vm);
	void (*working_set_end)(void *vm, uint64_t *bitmap);
	/* Before it runs: these pages are here, and the VM is going to touch them first. May be NULL. */
	void (*map)(void *vm, uint64_t first, uint64_t count);
	/* Source, after stop: an error when the VM must not move now (the guest has just powered off). May be NULL. */
	int (*settled)(void *vm, struct gw_error *err);
	/* Destination: OWNER is durable, `run` comes next. `answered` as the source's `awaited` told. May be NULL. */
	void (*owned)(void *vm, uint64_t epoch, const uint64_t *answered, size_t nanswered);
	/* Destination, after RUNNING has left: they need not wait any more. May be NULL. */
	void (*released)(void *vm);
	/* Destination, after `released`; source, when it runs a VM again that may have been announced elsewhere. May be NULL. */
	void (*announce)(void *vm);
	/* Source, stopped: hands over what has come for the VM since the stop or the last call; it is gone here then. May be NULL. */
	void (*drain)(void *vm, gw_move_packet_fn *fn, void *arg);
	/* Destination, after `released`: such a packet, by a peer's word. May be NULL. */
	void (*deliver)(void *vm, unsigned device, const void *data, size_t len);
	/*
	 * Destination, after `released`: true when the VM, which runs since from_ns, answers steadily, GW_MOVE_ANSWER_NS later at the latest. Then: when it gave
	 * its first answers (gw_now_ns()), 0: none; and for how long somebody had to go on asking in vain. May be NULL.
	 */
	bool (*resumed)(void *vm, uint64_t from_ns, uint64_t *answered_ns, uint64_t *longest_ns);
};

/* How long both sides wait for answers of the VM before the move is told to be done. */
#define GW_MOVE_ANSWER_NS (2 * GW_NS_PER_SEC)

struct gw_move_vm {
	const struct gw_move_vm_ops *ops;
	void *self;
	struct gw_ram *ram;
	struct gw_dirty_source dirty; /* source only */
};

struct gw_move_params {
	uint8_t move_id[GW_MOVE_ID_LEN];
	uint8_t secret[GW_MOVE_SECRET_LEN];
	uint64_t epoch;       /* that the destination will own */
	uint64_t own_epoch;   /* source: that it owns now */
	unsigned channels;    /* data channels, 1 to GW_STREAM_MAX_CHANNELS */
	int fds[GW_STREAM_MAX_CHANNELS + 1]; /* control, then data; the rest -1 */
	uint64_t downtime_ms; /* target; 0: 50, and up to 300 once rounds gain nothing any more */
	bool default_downtime; /* set by the engine: downtime_ms was 0 */
	uint64_t timeout_ms;  /* of the copying; 0: none */
	bool timeout_stops;   /* past it stop the VM and finish; else fail */
	uint64_t bandwidth;   /* bytes/s, 0: no cap */
	bool digest;          /* source: both ends compare a digest over all RAM */
	bool clear;           /* bench builds only */
	bool paused;          /* destination: stay paused whatever the source says */
	bool ram_is_zero;     /* destination: the caller knows that RAM holds zeros only, touched or not; else it is emptied first */
	char peer[64];
};

/*
 * Called on the engine's thread at least five times a second and at each change of phase. After DONE, FAILED or CANCELLED it is not
 * called again, and all effects on the VM (run again, or given up) are over.
 */
typedef void (*gw_move_progress_fn)(void *arg, const struct gw_move_progress *p);

struct gw_move;

/*
 * Begin; take all descriptors in every case. The journal (may be NULL) and what `vm` points to are borrowed until gw_move_free().
 */
int gw_move_source_start(const struct gw_move_params *params, const struct gw_move_vm *vm, struct gw_journal *journal,
			 gw_move_progress_fn fn, void *arg, struct gw_move **ret, struct gw_error *err);
int gw_move_destination_start(const struct gw_move_params *params, const struct gw_move_vm *vm, struct gw_journal *journal,
			      gw_move_progress_fn fn, void *arg, struct gw_move **ret, struct gw_error *err);

/* Any thread. 0: it will end as CANCELLED unless it fails first; -EBUSY: ownership is passing or has passed. */
int gw_move_cancel(struct gw_move *mv);
/*
 * Source in DOUBT: here = journal OWNER of a newer epoch and run; else journal RELEASED. -ENOENT when there is no doubt. The end
 * comes by the callback.
 */
int gw_move_resolve(struct gw_move *mv, bool here);
/* Epoch owned by this end now: it changes when a move arrives or a doubt is resolved here. */
uint64_t gw_move_epoch(struct gw_move *mv);
/* Cancels if it still can, waits for the threads. In doubt, the VM stays stopped and the journal says so. Takes NULL. */
void gw_move_free(struct gw_move *mv);

#endif
