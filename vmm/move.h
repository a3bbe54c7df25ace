// SPDX-License-Identifier: Apache-2.0
/*
 * Moves of this VMM's VM, away and in, to and from hosts and repositories: joins the migration engine (migrate/) with the VM, its journal and the
 * main loop.
 *
 * The engine works on threads of its own. What it has to tell is kept until the main loop, woken by gw_vm_move_fd(), calls
 * gw_vm_move_dispatch(), which calls the hooks: they always run on the main thread.
 *
 * While gw_vm_move_busy() the engine alone stops and runs the VM: the control socket refuses pause, resume and reset
 * with EBUSY, but for pause and resume while memory is on its way (gw_vm_move_pause()); power-off or reset by the guest first calls gw_vm_move_cancel_wait().
 */
#ifndef GW_VMM_MOVE_H
#define GW_VMM_MOVE_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "migrate/load.h"
#include "migrate/progress.h"
#include "migrate/save.h"
#include "proto/vmm.pb-c.h"

struct gw_vm;
struct gw_vm_move;

enum gw_vm_move_state {
	GW_VM_MOVE_NONE,     /* the VM is ours; no move is under way */
	GW_VM_MOVE_WAITING,  /* --incoming, nothing arrived yet: VMM_INCOMING */
	GW_VM_MOVE_IN,       /* arriving: VMM_INCOMING */
	GW_VM_MOVE_OUT,      /* leaving: VMM_MOVING */
	GW_VM_MOVE_IN_DOUBT, /* VMM_DOUBT: paused until gw_vm_move_resolve() */
	GW_VM_MOVE_SAVING,   /* to a repository: VMM_SAVING */
	GW_VM_MOVE_SUSPENDED, /* it is a snapshot's: the process ends (VMM_ENDED) */
	GW_VM_MOVE_GONE,     /* moved away, or the incoming move failed: the process ends (VMM_ENDED) */
};

struct gw_vm_move_hooks {
	/* At least five times a second while a move is under way, and once with its last phase (done, failed, ...). */
	void (*progress)(void *arg, const struct gw_move_progress *p);
	/*
	 * The state changed. NONE after OUT or DOUBT: the VM stayed (and runs, if it ran before); NONE after IN: the VM has arrived
	 * and runs here (or stays paused); GONE: free everything and exit, with 0 when `why` is empty ("moved away")
	 * and else with an error. NONE after SAVING: the VM goes on as before.
	 */
	void (*state)(void *arg, enum gw_vm_move_state state, const char *why);
	/* At least about five times a second, and once with the last phase. While its memory is fetched the VM is here already: the state is NONE. */
	void (*saved)(void *arg, const Godwit__SaveProgress *p);
	void (*loaded)(void *arg, const Godwit__LoadProgress *p);
};

/*
 * `journal` is the path of --journal, NULL for none (a VMM by hand: it can move, but an agent cannot settle a doubt). With `incoming`
 * the state is WAITING, else the journal says from now on that the VM with `epoch` (0 means 1) is owned here; -EBUSY when another
 * process holds the journal. hooks and arg are borrowed.
 */
int gw_vm_move_new(struct gw_vm *vm, const char *journal, bool incoming, uint64_t epoch,
		   const struct gw_vm_move_hooks *hooks, void *arg, struct gw_vm_move **ret, struct gw_error *err);
/* Cancels what is under way and waits for its threads. Takes NULL. */
void gw_vm_move_free(struct gw_vm_move *mv);

/* Readable (EPOLLIN) when there is something to dispatch. */
int gw_vm_move_fd(const struct gw_vm_move *mv);
void gw_vm_move_dispatch(struct gw_vm_move *mv);

/*
 * Begin a move and return; all later news come by the hooks. Take all descriptors (control channel first, then the data channels) in
 * every case. -EBUSY when one is under way, -EINVAL for a request that makes no sense, -EPERM for `clear` in a release build.
 */
int gw_vm_move_out(struct gw_vm_move *mv, const Godwit__MoveOut *req, const int *fds, unsigned nfds, struct gw_error *err);
int gw_vm_move_in(struct gw_vm_move *mv, const Godwit__MoveIn *req, const int *fds, unsigned nfds, struct gw_error *err);

/* Begin and return, as above. -EBUSY, -EINVAL. */
int gw_vm_move_save(struct gw_vm_move *mv, const Godwit__Save *req, struct gw_error *err);
int gw_vm_move_load(struct gw_vm_move *mv, const Godwit__Load *req, struct gw_error *err);
/* Memory is still on its way from a repository: threads may wait for it without end, and the VM can only go on or its process end at once. */
bool gw_vm_move_loading(const struct gw_vm_move *mv);
/* The VM is here and its memory on its way: asks for it to stand still, or to run (gw_load_pause()). -ESHUTDOWN: all is here, it is the caller's to stop and to run. */
int gw_vm_move_pause(struct gw_vm_move *mv, bool pause);
/* It stands still, and that by request where its memory is on its way: what it waits for then is another matter. */
bool gw_vm_move_paused(const struct gw_vm_move *mv);
/* The VM is stopped, and begins anew: what is still on its way is not wanted any more. */
void gw_vm_move_forget(struct gw_vm_move *mv);
/* The running or last ones; false when there was none. Strings and bytes point into mv, until the next dispatch. */
bool gw_vm_move_saved(const struct gw_vm_move *mv, Godwit__SaveProgress *ret);
bool gw_vm_move_loaded(const struct gw_vm_move *mv, Godwit__LoadProgress *ret);

/* Asks the move to end; the hooks tell when it has. -ENOENT: none is under way; -EBUSY: too late, COMMIT has left. */
int gw_vm_move_cancel(struct gw_vm_move *mv, struct gw_error *err);
/* The same, and waits: 0 when the VM is here and settled, -EBUSY when it is not ours any more or in doubt. */
int gw_vm_move_cancel_wait(struct gw_vm_move *mv);

/* Settles a doubt: here = it runs here again (with a new epoch), else it is given up. -ENOENT without doubt. */
int gw_vm_move_resolve(struct gw_vm_move *mv, bool here, struct gw_error *err);

/* The present state; after a dispatch it agrees with what the hooks were told. */
enum gw_vm_move_state gw_vm_move_state(const struct gw_vm_move *mv);
bool gw_vm_move_busy(const struct gw_vm_move *mv);
uint64_t gw_vm_move_epoch(const struct gw_vm_move *mv);
/* The running or last move; false when there was none. */
bool gw_vm_move_progress(const struct gw_vm_move *mv, struct gw_move_progress *ret);
/* As a message whose strings and bytes point into *p. */
void gw_vm_move_progress_msg(const struct gw_move_progress *p, Godwit__MoveProgress *msg);

#endif
