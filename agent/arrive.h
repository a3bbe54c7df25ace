// SPDX-License-Identifier: Apache-2.0
/*
 * The destination's part of a move. A session belongs to the connection of the source's agent and goes prepare, boot files, spawn,
 * attach; once the VMM has its channels the move runs without agents and the watcher (watch.c) sees its end.
 *
 * Who owns the VM is decided once and for ever, in a durable record of the move, by what is true at that moment:
 * the VMM runs the VM, or its journal says OWNER and the source has let go: this host; its death is certain and its journal says
 * less (and is made to say ABORTED): the source.
 */
#ifndef GW_AGENT_ARRIVE_H
#define GW_AGENT_ARRIVE_H

#include "agent/guest.h"
#include "agent/records.h"

/* How long the source has to connect the channels. */
#define GW_CHANNELS_TIMEOUT (10 * 1000000000ull)
/* How long a waiting VMM may be without channels; longer than the above. */
#define GW_ATTACH_TIMEOUT (30 * 1000000000ull)

struct gw_session; /* one move that the connected peer has prepared */

/* The steps, for requests of `peer`. *s is NULL before prepare; a failed step ends the session and undoes it. */
int gw_arrive_prepare(struct gw_agent *a, const char *peer, const Godwit__PeerPrepare *req, struct gw_session **s,
		      Godwit__PeerPrepared *reply, struct gw_error *err);
int gw_arrive_boot(struct gw_session **s, const Godwit__PeerBoot *req, struct gw_error *err);
int gw_arrive_spawn(struct gw_session **s, const Godwit__PeerMove *req, Godwit__PeerReady *reply, struct gw_error *err);
/* Afterwards the session is over, the move under way. */
int gw_arrive_attach(struct gw_session **s, const Godwit__PeerMove *req, struct gw_error *err);
/* The connection is gone: undoes what was not attached. Takes NULL. */
void gw_session_end(struct gw_session *s);

/* Later requests of a source, on any connection. All are the same again when asked again. */
int gw_arrive_abort(struct gw_agent *a, const char *peer, const uint8_t id[GW_ID_LEN], struct gw_error *err);
int gw_arrive_released(struct gw_agent *a, const char *peer, const uint8_t id[GW_ID_LEN], struct gw_error *err);
int gw_arrive_outcome(struct gw_agent *a, const char *peer, const uint8_t id[GW_ID_LEN], Godwit__MoveSide *side,
		      char **reason, struct gw_error *err);

/* For the watcher, with g->lock held: its VMM runs (or holds, paused) the VM that came. */
void gw_arrive_arrived_locked(struct gw_guest *g, Godwit__VmState state);
/*
 * With g->lock held: the VMM of an undecided arrival is dead (`how`). Decides; given back, the record's state becomes
 * VM_STATE_NONE and the caller removes the guest. A VMM that died as owner before any outside effect leaves it open: the source
 * may have let go, or be in doubt and able to go on. Only with `asked`, the source being in doubt, it is given back.
 */
void gw_arrive_ended_locked(struct gw_guest *g, const char *how, bool asked);
/* The operator's word on an arrival that was left open. */
int gw_arrive_resolve(struct gw_guest *g, bool here, struct gw_error *err);
/* The operator gives up an arrival. */
int gw_arrive_cancel(struct gw_guest *g, struct gw_error *err);

#endif
