// SPDX-License-Identifier: Apache-2.0
/* The command line of a VMM. */
#ifndef GW_AGENT_VMMARGS_H
#define GW_AGENT_VMMARGS_H

#include <stdarg.h>
#include <stdbool.h>

#include "agent/guest.h"

#define GW_VMM_MAX_ARGS 96

struct gw_vmm_args {
	char *v[GW_VMM_MAX_ARGS + 1]; /* NULL-terminated, owned */
	unsigned n;
	bool failed; /* out of memory or too many */
};

/* g->lock held. -ENOMEM. Release in either case. */
int gw_vmm_args_build(struct gw_guest *g, bool incoming, struct gw_vmm_args *args);
void gw_vmm_args_release(struct gw_vmm_args *args);

#endif
