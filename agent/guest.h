// SPDX-License-Identifier: Apache-2.0
/* A VM as its agent knows it: durable record, last news of its VMM, and what is being done to it. */
#ifndef GW_AGENT_GUEST_H
#define GW_AGENT_GUEST_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/agent.h"
#include "lib/error.h"
#include "proto/agent.pb-c.h"

/* Its sharing of memory (share.h), as long as its VMM lives. */
struct gw_guest_share {
	bool attaching;       /* a thread gives it a session */
	unsigned session;     /* number of the daemon that it has one with; 0: none */
	uint64_t attached_ns;
	uint64_t retry_ns;    /* not to be attached before */
	uint64_t pause_ns;
	char reason[300];     /* why it shares nothing; "": nothing known */
	Godwit__ShareStatus *status; /* its VMM's last word; may be NULL */
};

struct gw_guest {
	struct gw_agent *agent; /* constant, like name */
	char name[64];
	struct gw_guest *next; /* under agent->lock, like refs */
	unsigned refs;

	pthread_mutex_t lock;    /* all below */
	pthread_cond_t changed;  /* broadcast whenever something below changed */
	bool gone;               /* no longer in the table */
	const char *op;          /* what is being done to it, a constant string; NULL: nothing */
	Godwit__VmRecord *record;
	Godwit__VmmStatus *status;   /* the last from its VMM; NULL without a VMM */
	Godwit__MoveProgress *move;  /* the running or last move; may be NULL */
	Godwit__SaveProgress *save;  /* the same of being saved, */
	Godwit__LoadProgress *load;  /* and loaded */
	bool watched;                /* a watcher thread follows its VMM */
	pid_t pid;                   /* of the VMM while `watched` */
	int pidfd;
	struct gw_guest_share share;
	bool admitted;               /* `start` has a promise of memory for it */
	bool starting;               /* `start` waits for the VMM's first word */
	bool stopping;               /* we ended it: however it goes is fine */
	bool departing;              /* a thread drives or follows a move away, or saving, and its end is not known */
	bool leaving;                /* operation "move" or "suspend" lasts only until what the VM left here is gone */
	bool cancel;                 /* asked of that thread */
	bool handed;                 /* the VMM has that move in hand: it is asked too */
	struct gw_error departed;    /* how the last move away ended; code 0: well */
	bool settling;               /* a thread asks the other side how a move ended */
	bool deciding;               /* the end of a doubt is being carried out */
	bool session;                /* incoming: its source's connection drives it */
	bool unconfirmed;            /* arrived, and the source has not said that it let go */
	bool attached;               /* incoming: its VMM has the channels */
	uint64_t attach_deadline_ns; /* incoming: until then it must have them */
};

/* Reads all records; the VMMs that live are adopted (watch.h). A record that cannot be read is an event, not a failure. */
int gw_guests_load(struct gw_agent *a, struct gw_error *err);
void gw_guests_free(struct gw_agent *a);

/* A reference, or NULL. */
struct gw_guest *gw_guest_find(struct gw_agent *a, const char *name);
struct gw_guest *gw_guest_ref(struct gw_guest *g);
void gw_guest_unref(struct gw_guest *g);
static inline void gw_guest_unrefp(struct gw_guest **g)
{
	if (*g)
		gw_guest_unref(*g);
}
#define gw_autoguest gw_cleanup(gw_guest_unrefp) struct gw_guest

/*
 * A new guest with `record` (takes it in every case), saved durably and in the table, with operation `op` begun if not
 * NULL. *ret is a reference. -EEXIST: the name is taken; a tombstone with a lower epoch is replaced when `over_tombstone`.
 */
int gw_guest_add(struct gw_agent *a, Godwit__VmRecord *record, const char *op, bool over_tombstone, struct gw_guest **ret,
		 struct gw_error *err);
/* Takes it out of the table and removes its files. Its VMM must be dead. */
void gw_guest_remove(struct gw_guest *g);
/* An array of references (free each, then the array). 0 or -ENOMEM. */
int gw_guest_list(struct gw_agent *a, struct gw_guest ***ret, unsigned *n);

/*
 * With g->lock held: while `leaving`, waits for the end of that. The operator was told that the move is done; whatever is asked next comes after.
 */
void gw_guest_wait_left_locked(struct gw_guest *g);
/* Begins an operation, after gw_guest_wait_left_locked(): -EBUSY tells which one is under way, -ESRCH that it was removed, -EUCLEAN that its owner is in doubt. */
int gw_guest_begin(struct gw_guest *g, const char *op, struct gw_error *err);
void gw_guest_end(struct gw_guest *g);
/* With g->lock held. */
int gw_guest_begin_locked(struct gw_guest *g, const char *op, struct gw_error *err);
void gw_guest_end_locked(struct gw_guest *g);

/*
 * With g->lock held: notes the state, durably, and emits an event when it is another than before. The reason is kept for people.
 * A record that cannot be saved is logged; the journal and the lock are what safety rests on.
 */
void gw_guest_set_state_locked(struct gw_guest *g, Godwit__VmState state, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
int gw_guest_save_locked(struct gw_guest *g, struct gw_error *err);
/* With g->lock held; waits on g->changed. -ETIMEDOUT, or -ESHUTDOWN when the agent ends. */
int gw_guest_wait_locked(struct gw_guest *g, uint64_t deadline_ns);

/*
 * A failpoint (lib/failpoint.h) with g->lock held: drops it meanwhile, so that the VM can be looked at while a test waits there. What others
 * may decide in the window is the same, by the same durable records.
 */
void gw_guest_failpoint_locked(struct gw_guest *g, const char *name);

/* STATE/vms/NAME/FILE; `file` NULL: the folder. Owned, or NULL when out of memory. */
char *gw_guest_path(const struct gw_guest *g, const char *file);
/* The VMM's control socket. Owned. */
char *gw_guest_control(const struct gw_guest *g);
/* The tap of its net `net` that the agent makes: the same for the same host and VM, so that a crash leaks none. */
void gw_guest_tap_name(const struct gw_guest *g, const char *net, char name[16]);

/* Owned (godwit__vm_info__free_unpacked), or NULL when out of memory. */
Godwit__VmInfo *gw_guest_info(struct gw_guest *g);
/* "running", "stopped", ... */
const char *gw_vm_state_word(Godwit__VmState state);
/* Whether a state says that a VMM of it should live here. */
bool gw_vm_state_is_live(Godwit__VmState state);

#endif
