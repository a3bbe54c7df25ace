// SPDX-License-Identifier: Apache-2.0
/*
 * DOC: a VM that comes from a snapshot
 *
 *   open repository and manifest -> check the machine -> RAM empty, held by lazy.h -> device state -> journal OWNER -> run -> the rest of its pages
 *
 * The VM runs when its device state is here; its pages come when it touches them, and all others behind that. Where a page that it waits for
 * cannot be read, the VM is stopped, and runs on when it can: its clocks and what it has to do with others then know of it. That is one reason to stand
 * still, and to be paused (gw_load_pause()) another: it runs when there is neither. Until all is here the
 * repository is needed, and so is the snapshot: who removes it then has its grace period.
 *
 * Everything that can be wrong with the snapshot or this host is found out before OWNER is written; after it the VM is here, whatever happens.
 */
#ifndef GW_MIGRATE_LOAD_H
#define GW_MIGRATE_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"
#include "migrate/move.h"
#include "migrate/repo/crypt.h"
#include "migrate/repo/ticket.h"

enum gw_load_phase {
	GW_LOAD_OPEN,      /* manifest, RAM, device state */
	GW_LOAD_FETCH,     /* the VM is here, and runs unless it is to stay paused; pages come */
	GW_LOAD_STALL,     /* the same, and it stands still: a page that it waits for cannot be read; `message` says why */
	GW_LOAD_DONE,      /* all is here */
	GW_LOAD_FAILED,    /* before OWNER: the VM never was here */
	GW_LOAD_CANCELLED, /* the same, by request */
};
/* "open", "fetch", "stall", "done", "failed", "cancelled". */
const char *gw_load_phase_name(enum gw_load_phase phase);

struct gw_load_progress {
	enum gw_load_phase phase;
	uint64_t ram_bytes;
	uint64_t bytes;       /* that are to come: pages that are not zero */
	uint64_t bytes_here;
	uint64_t rate;        /* bytes/s, recent */
	uint64_t eta_ms;      /* 0: unknown */
	uint64_t faults;      /* pages that were waited for */
	uint64_t start_us;    /* from the beginning to OWNER, from when on it may run; 0: not yet */
	uint64_t elapsed_ms;
	char message[256];
};

/* All is copied but the lineage. */
struct gw_load_params {
	const char *url;
	uint8_t key[GW_REPO_KEY_LEN]; /* the repository's */
	struct gw_ticket ticket;      /* for one that another host keeps; else zero */
	const char *name;             /* of the snapshot */
	uint64_t generation;          /* 0: the latest */
	uint8_t id[16];               /* of the snapshot that is meant */
	uint64_t epoch;               /* that the VM is owned with from OWNER on */
	bool paused;                  /* it does not run before gw_load_pause() */
	bool exclusive;               /* nobody else goes on from it as this VM, so that its guest need not learn of it (`renew` of gw_move_vm_ops) */
	uint64_t start_ns;            /* so long it may wait for its working set (GW_SAVE_WORKING_SET) before it runs; 0: 500 ms */
	struct gw_lineage *lineage;   /* borrowed until gw_load_free(): memory is shared by it while it comes (ksm/lineage.h); NULL: it is not */
};

/* On the engine's thread, at least about five times a second. After DONE, FAILED or CANCELLED it is not called again. */
typedef void gw_load_progress_fn(void *arg, const struct gw_load_progress *p);

struct gw_load;

/* What `vm` points to and the journal (may be NULL) are borrowed until gw_load_free(). The VM is stopped, and nothing uses its RAM. */
int gw_load_start(const struct gw_load_params *params, const struct gw_move_vm *vm, struct gw_journal *journal, gw_load_progress_fn *fn, void *arg,
		  struct gw_load **ret, struct gw_error *err);
/* Any thread. 0: it will end as CANCELLED unless it fails first; -EBUSY: the VM is here. */
int gw_load_cancel(struct gw_load *l);
/*
 * Any thread, once the VM is here: it is not to run, or it may again. To stop a VM may take as long as a page does that it waits for, so this only asks; another
 * thread of the engine does it, and that is reported then. -ESHUTDOWN: all is here, and the VM the caller's to stop and to run.
 */
int gw_load_pause(struct gw_load *l, bool pause);
/*
 * That was asked for, and the VM stands still; or is being stopped, for it waits for what cannot be read, and does nothing else meanwhile. When all is here: it stands
 * still.
 */
bool gw_load_paused(struct gw_load *l);
/* Once DONE: the part GW_TOUCH_PART for the next time it is saved. 0 or -ENOMEM. */
int gw_load_touched(struct gw_load *l, struct gw_buf *out);
/*
 * The VM, which is here, is stopped for good as far as this engine is concerned; what is missing is zero from now on, and is not to be looked at: it begins
 * anew. Ends as DONE.
 */
void gw_load_forget(struct gw_load *l);
/*
 * After the end, or before the VM is here: cancels then, and waits. While pages are missing that somebody may touch there is no way to free it but the
 * process's end. Takes NULL.
 */
void gw_load_free(struct gw_load *l);

#endif
