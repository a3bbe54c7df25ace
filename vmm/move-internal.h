// SPDX-License-Identifier: Apache-2.0
/* What the files that move this VMM's VM share. */
#ifndef GW_VMM_MOVE_INTERNAL_H
#define GW_VMM_MOVE_INTERNAL_H

#include <pthread.h>

#include "lib/buf.h"
#include "migrate/move.h"
#include "vmm/move.h"

struct gw_working_set;

/* What an engine has told. */
struct gw_vm_save_news {
	struct gw_save_progress p;
	bool news, ever;
};
struct gw_vm_load_news {
	struct gw_load_progress p;
	bool news, ever;
};

struct gw_vm_move {
	struct gw_vm *vm;
	struct gw_journal *journal; /* NULL for a VMM by hand */
	const struct gw_vm_move_hooks *hooks;
	void *arg;
	int event_fd;

	/* Main thread only. */
	struct gw_move *engine;
	struct gw_save *save;
	struct gw_load *load;
	enum gw_vm_move_state state;
	uint64_t epoch;
	struct gw_working_set *working_set; /* engine's thread: while it is watched */
	bool arriving;                 /* engine's thread: owned, and the source may not know yet */
	bool ever;                     /* main thread: `shown` holds a move */
	struct gw_move_progress shown; /* as last dispatched, like the next */
	struct gw_vm_save_news saved;
	struct gw_vm_load_news loaded;
	char *save_name, *save_url;    /* of what `saved` tells */
	bool save_keeps;
	uint8_t save_id[16];
	uint64_t load_epoch;           /* that the VM is owned with once it is here */
	bool load_clone;               /* set before the engine's thread begins: the VM is another than the one that was saved */
	struct gw_buf touched;         /* in which order the VM touched its memory after it was loaded */

	pthread_mutex_t lock;
	struct gw_move_progress latest; /* under lock: from the engine's thread */
	bool news;                      /* under lock */
	struct gw_vm_save_news latest_save; /* under lock */
	struct gw_vm_load_news latest_load; /* under lock */
};

/* Any thread: there is something to dispatch. */
void gw_vm_move_wake(struct gw_vm_move *mv);
void gw_vm_move_set_state(struct gw_vm_move *mv, enum gw_vm_move_state state, const char *why);
/* The VM as engines know it. */
struct gw_move_vm gw_vm_move_handle(struct gw_vm_move *mv);

/* move-repo.c */
void gw_vm_move_dispatch_repo(struct gw_vm_move *mv);
void gw_vm_move_release_repo(struct gw_vm_move *mv);

#endif
