// SPDX-License-Identifier: Apache-2.0
/* A VM whose memory is still on its way from a repository: it cannot leave or be saved yet, which waits until all is here. */
#ifndef GW_AGENT_LOADING_H
#define GW_AGENT_LOADING_H

#include "agent/guest.h"

/* Whether this says so; may be NULL. */
bool gw_loading(const Godwit__LoadProgress *p);

/* All with g->lock held. */
bool gw_loading_locked(const struct gw_guest *g);
/* -EBUSY, with how far it is, while that is so; else 0. */
int gw_loading_refuse_locked(const struct gw_guest *g, struct gw_error *err);
/*
 * Until all is here: 0, or -ECANCELED when g->cancel asks for it, -EIO when its VMM has died, -EHOSTUNREACH when the agent ends. `tell` is called with the news meanwhile,
 * and "waiting for memory: 43 %".
 */
typedef void gw_loading_tell_fn(void *arg, const Godwit__LoadProgress *p, const char *text);
int gw_loading_wait_locked(struct gw_guest *g, gw_loading_tell_fn *tell, void *arg, struct gw_error *err);

#endif
