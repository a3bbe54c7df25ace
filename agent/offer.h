// SPDX-License-Identifier: Apache-2.0
/* What the source's agent tells the destination's before a move: configuration, features, boot files, disks. */
#ifndef GW_AGENT_OFFER_H
#define GW_AGENT_OFFER_H

#include "agent/call.h"
#include "agent/guest.h"

struct gw_offer {
	Godwit__PeerPrepare *prepare; /* owned, all of it */
	char *kernel;                 /* paths of the files here, owned */
	char *initrd;
};

/* Fills in everything but move id, secret and epoch. Asks the VMM. Release in either case. */
int gw_offer_build(struct gw_guest *g, const Godwit__MoveRequest *req, struct gw_offer *offer, struct gw_error *err);
void gw_offer_release(struct gw_offer *offer);

/*
 * Makes the offer on the connection and sends the boot files that the destination lacks. `stop(arg)` is asked between
 * pieces; when it says true the offer is broken off with -ECANCELED.
 */
int gw_offer_make(struct gw_chan *c, const struct gw_offer *offer, bool (*stop)(void *), void *arg, uint64_t timeout_ns,
		  struct gw_error *err);

#endif
