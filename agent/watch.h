// SPDX-License-Identifier: Apache-2.0
/*
 * Follows a VMM: its events, its state and its death. Whatever it learns goes to the guest's record by one rule, whether
 * an operation waits for it or the agent has just been restarted.
 */
#ifndef GW_AGENT_WATCH_H
#define GW_AGENT_WATCH_H

#include <sys/types.h>

#include "agent/guest.h"

/* Begins to follow the VMM; takes pidfd. With g->lock held. 0 or negative errno (then pidfd is closed). */
int gw_watch_start_locked(struct gw_guest *g, pid_t pid, int pidfd, struct gw_error *err);

/* At the agent's start: finds the VMM again, or concludes how it ended. */
void gw_watch_adopt(struct gw_guest *g);

/*
 * SIGKILL, and waits until the watcher has drawn its conclusions. With g->lock held, which it drops while it waits. 0, or
 * -ETIMEDOUT.
 */
int gw_watch_kill_locked(struct gw_guest *g, uint64_t deadline_ns);

/*
 * With g->lock held, which it may drop meanwhile: notes that the VM has moved away if the journal says that its VMM let go of it, whether
 * that has ended or not. False: the journal says something else.
 */
bool gw_watch_released_locked(struct gw_guest *g);

/* Asks the VMM for its state and notes it. */
int gw_watch_refresh(struct gw_guest *g, struct gw_error *err);

/* What made the record say `busy` (moving, saving) is over: it says again what the VMM says. */
void gw_watch_back_from(struct gw_guest *g, Godwit__VmState busy);

#endif
