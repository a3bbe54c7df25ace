// SPDX-License-Identifier: Apache-2.0
/*
 * Saving a VM to a repository, on a thread of its own: opens the repository, gives the VMM its URL and key (a VMM never has a passphrase), follows it to
 * the end. A VM that is suspended ends its VMM with the journal saying SUSPENDED and the snapshot's id: that alone makes it so.
 *
 * A suspended VM belongs to the host that suspended it, and runs nowhere. It is resumed there (resume.h), or by another host that has asked for it
 * (gw_suspend_claim()), or for which somebody else has (gw_suspend_release()): then the journal here says RELEASED before that is answered, so that of two who ask one
 * gets it.
 */
#ifndef GW_AGENT_SUSPEND_H
#define GW_AGENT_SUSPEND_H

#include "agent/guest.h"
#include "lib/buf.h"

/* Begins operation "suspend" or "snapshot" and returns; g->departing until it is over, then g->departed tells how, and g->save. */
int gw_suspend_start(struct gw_guest *g, const Godwit__SaveRequest *req, struct gw_error *err);
/* With g->lock held, after a restart: the record says that saving was under way. */
void gw_suspend_resume_locked(struct gw_guest *g);
/* With g->lock held: whether the journal says that the VM is suspended; then so does the record. */
bool gw_suspend_seen_locked(struct gw_guest *g);
/* With g->lock held: state "suspended", with where as the reason. */
void gw_suspend_describe_locked(struct gw_guest *g);
/* Hands the suspended VM over to the host `peer`; *epoch is what that owns it with. The same answer again to the same host. */
int gw_suspend_claim(struct gw_agent *a, const char *peer, const Godwit__PeerClaim *req, uint64_t *epoch, struct gw_error *err);
/* The same for a host that cannot ask: the answer, signed (grant.h), is appended to `grant`. */
int gw_suspend_release(struct gw_agent *a, const Godwit__ReleaseRequest *req, uint64_t *epoch, struct gw_buf *grant, struct gw_error *err);

#endif
