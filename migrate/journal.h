// SPDX-License-Identifier: Apache-2.0
/*
 * The ownership journal: what a VMM must have written down before it acts, and what its agent reads when the VMM is dead.
 *
 * A file of three pages: two record slots written alternately, each write followed by fdatasync, so that a torn write leaves
 * the older record; and a shared page with one word that says whether the VM may have had an outside effect, or RUNNING may have
 * left, since it arrived here (set by a plain store; it survives the process, not the host, hence the boot id in the record).
 *
 * A live VMM holds a lock (flock) on the file, which the kernel drops only when all its threads are gone: whoever can take the lock knows
 * that no vCPU of it runs any more.
 */
#ifndef GW_MIGRATE_JOURNAL_H
#define GW_MIGRATE_JOURNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"

#define GW_MOVE_ID_LEN 16

enum gw_journal_state {
	GW_JOURNAL_NONE = 0,
	GW_JOURNAL_OWNER,      /* the VM of `epoch` is ours */
	GW_JOURNAL_INCOMING,   /* a move is arriving; ours only once OWNER follows */
	GW_JOURNAL_COMMITTING, /* source: COMMIT of `move_id` may have left; must not run before the doubt is settled */
	GW_JOURNAL_RELEASED,   /* source: the destination runs it */
	GW_JOURNAL_ABORTED,    /* destination: it never ran here and never will by this move */
	GW_JOURNAL_SUSPENDED,  /* the VM of `epoch` stands still in a snapshot, whose id is in `move_id`; runs nowhere until that is resumed */
};

struct gw_journal_entry {
	enum gw_journal_state state;
	uint64_t epoch;  /* OWNER, SUSPENDED: owned; INCOMING, COMMITTING, RELEASED, ABORTED: what the move hands over */
	uint64_t seq;    /* rises by one a record */
	uint8_t move_id[GW_MOVE_ID_LEN]; /* zero before any move */
	char peer[64];   /* the other host's name */
	bool effect;     /* reading only: it may have acted on the outside world since OWNER was written */
};

const char *gw_journal_state_name(enum gw_journal_state state);

struct gw_journal;

/* Opens or creates and locks. -EBUSY: another process holds it. -EPROTO: the file is no journal. */
int gw_journal_open(const char *path, struct gw_journal **ret, struct gw_error *err);
/* Unlocks. Takes NULL. */
void gw_journal_close(struct gw_journal *j);
/* Durable when it returns 0; seq and effect of `e` are ignored. After a failure the newest record may be either. */
int gw_journal_write(struct gw_journal *j, const struct gw_journal_entry *e, struct gw_error *err);
/* The newest record. */
const struct gw_journal_entry *gw_journal_last(const struct gw_journal *j);
/* The shared word; 0 = no effect yet. Lives as long as the journal is open. */
_Atomic(uint32_t) *gw_journal_effect_word(struct gw_journal *j);

/* For agents, with or without a live VMM. -ENOENT: no file; -EPROTO: no record in it is whole. */
int gw_journal_read(const char *path, struct gw_journal_entry *ret, struct gw_error *err);
/* 1 when a live process holds it, 0 when none (or there is no file), or negative errno. */
int gw_journal_held(const char *path, struct gw_error *err);
/*
 * The agent of a destination settles the end of a move whose VMM is dead: writes ABORTED for `move_id` durably unless the VM
 * became owned here. With `undo`, an OWNER record of this move that had no outside effect is turned into ABORTED as well.
 * 0: aborted (now or before; also when there was no file); -EEXIST: owned here; -EBUSY: the VMM lives; -ESTALE: the
 * journal belongs to another ownership. `ret` (may be NULL) gets the record found before.
 */
int gw_journal_abort_if_not_owner(const char *path, const uint8_t move_id[GW_MOVE_ID_LEN], bool undo,
				  struct gw_journal_entry *ret, struct gw_error *err);

#endif
