// SPDX-License-Identifier: Apache-2.0
/* A guest's taps; see net.h. */
#include "agent/net.h"

#include <errno.h>

#include "agent/netdev.h"
#include "agent/vmconfig.h"
#include "lib/util.h"

int gw_net_check(const Godwit__VmConfig *config, struct gw_error *err)
{
	for (size_t i = 0; i < config->n_nets; i++) {
		const Godwit__VmNet *n = config->nets[i];
		int r = *n->bridge ? gw_bridge_check(n->bridge, err) : gw_tap_check(n->tap, err);

		if (r < 0) {
			gw_error_wrap(err, "[net %s]", n->name);
			return r;
		}
	}
	return 0;
}

/* One name for each net, "" where the net has a tap of its own. */
static int note_taps(struct gw_guest *g, struct gw_error *err)
{
	const Godwit__VmConfig *c = g->record->config;
	char **taps = calloc(c->n_nets + 1, sizeof(*taps));
	int r = taps ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < c->n_nets; i++) {
		char name[16] = "";

		if (*c->nets[i]->bridge)
			gw_guest_tap_name(g, c->nets[i]->name, name);
		taps[i] = (char *)protobuf_c_empty_string;
		r = gw_pb_set_string(&taps[i], name);
	}
	if (r < 0) {
		for (size_t i = 0; taps && i < c->n_nets; i++) {
			if (taps[i] != protobuf_c_empty_string)
				free(taps[i]);
		}
		free(taps);
		return gw_error_set(err, r, "out of memory");
	}
	pthread_mutex_lock(&g->lock);
	for (size_t i = 0; i < g->record->n_taps; i++) {
		if (g->record->taps[i] != protobuf_c_empty_string)
			free(g->record->taps[i]);
	}
	free(g->record->taps);
	g->record->taps = taps;
	g->record->n_taps = c->n_nets;
	r = gw_guest_save_locked(g, err);
	pthread_mutex_unlock(&g->lock);
	return r;
}

int gw_net_setup(struct gw_guest *g, struct gw_error *err)
{
	const Godwit__VmConfig *c = g->record->config;
	int r = gw_net_check(c, err) ?: note_taps(g, err);

	for (size_t i = 0; r == 0 && i < c->n_nets; i++) {
		if (!*c->nets[i]->bridge)
			continue;
		r = gw_tap_make(g->record->taps[i], c->nets[i]->bridge, err);
		if (r < 0)
			gw_error_wrap(err, "[net %s]", c->nets[i]->name);
	}
	if (r < 0)
		gw_net_teardown(g);
	return r;
}

void gw_net_teardown(struct gw_guest *g)
{
	const Godwit__VmConfig *c = g->record->config;

	for (size_t i = 0; i < c->n_nets; i++) {
		char name[16];

		if (!*c->nets[i]->bridge)
			continue;
		gw_guest_tap_name(g, c->nets[i]->name, name);
		gw_tap_remove(name);
	}
}
