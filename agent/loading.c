// SPDX-License-Identifier: Apache-2.0
/* Waiting for a VM's memory; see loading.h. */
#include "agent/loading.h"

#include <errno.h>
#include <string.h>

#include "lib/io.h"
#include "lib/util.h"

bool gw_loading(const Godwit__LoadProgress *p)
{
	return p && (!strcmp(p->phase, "fetch") || !strcmp(p->phase, "stall"));
}

bool gw_loading_locked(const struct gw_guest *g)
{
	return g->watched && gw_loading(g->load);
}

static unsigned percent(const Godwit__LoadProgress *p)
{
	return p->bytes ? (unsigned)((double)GW_MIN(p->bytes_here, p->bytes) * 100 / (double)p->bytes) : 100;
}

int gw_loading_refuse_locked(const struct gw_guest *g, struct gw_error *err)
{
	if (!gw_loading_locked(g))
		return 0;
	return gw_error_set(err, EBUSY, "the memory of VM %s is still on its way from a repository: %u %% of it is here%s%.200s", g->name, percent(g->load),
			    *g->load->message ? "; " : "", g->load->message);
}

int gw_loading_wait_locked(struct gw_guest *g, gw_loading_tell_fn *tell, void *arg, struct gw_error *err)
{
	char text[300];
	int r = 0;

	while (gw_loading_locked(g)) {
		if (g->cancel)
			return gw_error_set(err, ECANCELED, "cancelled; VM %s goes on, and its memory still comes", g->name);
		if (r == -ESHUTDOWN)
			return gw_error_set(err, EHOSTUNREACH, "the agent ends");
		snprintf(text, sizeof(text), "waiting for memory: %u %%%s%.200s", percent(g->load), *g->load->message ? ", " : "", g->load->message);
		tell(arg, g->load, text);
		r = gw_guest_wait_locked(g, GW_NO_DEADLINE);
	}
	return g->watched ? 0 : gw_error_set(err, EIO, "VM %s %s: %s", g->name, gw_vm_state_word(g->record->state), g->record->reason);
}
