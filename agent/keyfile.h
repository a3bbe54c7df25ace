// SPDX-License-Identifier: Apache-2.0
/* Random keys that the agent makes at their first use and keeps in its state folder: one for each sharing domain, one for tickets. */
#ifndef GW_AGENT_KEYFILE_H
#define GW_AGENT_KEYFILE_H

#include <stdint.h>

#include "lib/error.h"

#define GW_KEYFILE_LEN 32

/* STATE/FOLDER/NAME. Callers take turns. A file that is not one of ours is an error: another key would part a sharing domain in two. */
int gw_keyfile(const char *state, const char *folder, const char *name, uint8_t key[GW_KEYFILE_LEN], struct gw_error *err);

#endif
