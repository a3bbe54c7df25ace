// SPDX-License-Identifier: Apache-2.0
/* The keys of the sharing domains: random, one a domain, made at its first use and kept in the agent's state folder. */
#ifndef GW_AGENT_SHARE_KEY_H
#define GW_AGENT_SHARE_KEY_H

#include <stdint.h>

#include "lib/error.h"

#define GW_SHARE_KEY_LEN 32

/* STATE/share/DOMAIN. Callers take turns. A file that is not one of ours is an error: another key would part the domain in two. */
int gw_share_key(const char *state, const char *domain, uint8_t key[GW_SHARE_KEY_LEN], struct gw_error *err);

#endif
