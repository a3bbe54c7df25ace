// SPDX-License-Identifier: Apache-2.0
/*
 * Named failpoints: the steps of a move and of start-up at which a test can stop the world. A process takes its
 * list from the environment at start, GODWIT_FAILPOINTS="name=action[,name=action]...", and says loudly that it did.
 *
 * Actions: kill (SIGKILL to itself), stop (SIGSTOP to itself), exit, error (the step fails with -EIO),
 * delay:MS (sleeps), wait:PATH (makes the file PATH.hit, then waits until PATH exists, at most 60 s).
 */
#ifndef GW_LIB_FAILPOINT_H
#define GW_LIB_FAILPOINT_H

#include "lib/error.h"

/* Reads the environment; call once, before threads start. A malformed list is an error. */
int gw_failpoint_init(struct gw_error *err);
/* Visits the step `name`: 0, or -EIO when the list says that this step fails. A no-op without a list. */
int gw_failpoint(const char *name);

#endif
