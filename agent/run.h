// SPDX-License-Identifier: Apache-2.0
/* Starting, stopping and pausing a VM on this host. All wait for the outcome; all begin and end an operation of the guest. */
#ifndef GW_AGENT_RUN_H
#define GW_AGENT_RUN_H

#include "agent/guest.h"

/* Starts the VMM and a watcher for it, for a fresh boot or for a move that comes. Taps are made. Not an operation of its own. */
int gw_run_spawn(struct gw_guest *g, bool incoming, struct gw_error *err);

int gw_run_create(struct gw_agent *a, const Godwit__VmConfig *config, struct gw_error *err);
int gw_run_start(struct gw_guest *g, struct gw_error *err);
/* Presses the power button and waits up to `timeout_ms`, or pulls the plug. -ETIMEDOUT: the guest still runs. */
int gw_run_stop(struct gw_guest *g, bool force, uint64_t timeout_ms, struct gw_error *err);
int gw_run_pause(struct gw_guest *g, bool pause, struct gw_error *err);
/*
 * How the VM's balloon stands (*ret is owned), with what its guest tells of its memory if it tells it within a moment. A `target` of
 * 0 changes nothing.
 */
int gw_run_balloon(struct gw_guest *g, uint64_t target, Godwit__BalloonStatus **ret, struct gw_error *err);
/* Forgets a stopped VM, or a tombstone. */
int gw_run_remove(struct gw_guest *g, struct gw_error *err);
/* *fd: one end of a stream, the serial console. */
int gw_run_console(struct gw_guest *g, int *fd, struct gw_error *err);

#endif
