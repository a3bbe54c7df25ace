// SPDX-License-Identifier: Apache-2.0
/* What a host short of memory asks of its guests' balloons, and gives back afterwards; see memory.h. */
#include <string.h>

#include "agent/agent.h"
#include "agent/guest.h"
#include "agent/memory.h"
#include "agent/run.h"
#include "lib/util.h"

/* A step that is worth its while, bytes. */
#define STEP_MIN (16ull << 20)
#define FRESH_MS 10000

static bool same_locked(const struct gw_guest *g, const Godwit__BalloonStatus *b)
{
	return g->record->balloon_before && b->target == g->record->balloon_asked;
}

/* Durable before the guest hears of it: who restarts us must know what to give back. */
static int note(struct gw_guest *g, uint64_t before, uint64_t asked)
{
	int r;

	pthread_mutex_lock(&g->lock);
	g->record->balloon_before = before;
	g->record->balloon_asked = asked;
	r = gw_guest_save_locked(g, NULL);
	pthread_mutex_unlock(&g->lock);
	return r;
}

static int set_target(struct gw_guest *g, uint64_t target)
{
	Godwit__BalloonStatus *b = NULL;
	int r = gw_run_balloon(g, target, &b, NULL);

	if (b)
		godwit__balloon_status__free_unpacked(b, NULL);
	return r;
}

/* How its balloon stands; NULL when it does not run, or has none. */
static Godwit__BalloonStatus *look(struct gw_guest *g)
{
	Godwit__BalloonStatus *b = NULL;
	bool runs;

	pthread_mutex_lock(&g->lock);
	runs = g->watched && g->record->state == GODWIT__VM_STATE__VM_RUNNING && !g->record->config->no_balloon;
	pthread_mutex_unlock(&g->lock);
	return runs && gw_run_balloon(g, 0, &b, NULL) == 0 ? b : NULL;
}

/*
 * Half of what the guest could do without, never more than half of its memory in all. One that has not yet followed the last target is not
 * asked again.
 */
static uint64_t can_spare(const struct gw_guest *g, const Godwit__BalloonStatus *b)
{
	uint64_t floor = g->record->config->memory / 2;

	if (!b->driver || !b->memory || b->memory->age_ms > FRESH_MS || b->actual > b->target + (1u << 20) || b->target <= floor)
		return 0;
	return GW_MIN(b->memory->available / 2, b->target - floor);
}

static uint64_t squeeze(struct gw_guest *g, uint64_t bytes)
{
	Godwit__BalloonStatus *b = look(g);
	uint64_t give = b ? GW_ALIGN_DOWN(GW_MIN(can_spare(g, b), GW_ALIGN_UP(bytes, STEP_MIN)), 1u << 20) : 0, before = 0, asked = 0;

	if (give >= STEP_MIN) {
		pthread_mutex_lock(&g->lock);
		before = same_locked(g, b) ? g->record->balloon_before : b->target;
		pthread_mutex_unlock(&g->lock);
		asked = b->target - give;
	}
	if (asked && note(g, before, asked) == 0 && set_target(g, asked) == 0)
		gw_events_emit(g->agent->events, "memory-balloon", g->name, "asked for %llu MiB", (unsigned long long)give >> 20);
	else
		give = 0;
	if (b)
		godwit__balloon_status__free_unpacked(b, NULL);
	return give;
}

void gw_memory_squeeze(struct gw_agent *a, uint64_t bytes)
{
	struct gw_guest **list;
	unsigned n;

	if (gw_guest_list(a, &list, &n) < 0)
		return;
	for (unsigned i = 0; i < n; i++) {
		if (bytes && !a->stopping)
			bytes -= GW_MIN(bytes, squeeze(list[i], bytes));
		gw_guest_unref(list[i]);
	}
	free(list);
}

static uint64_t let_go(struct gw_guest *g, uint64_t bytes)
{
	Godwit__BalloonStatus *b;
	uint64_t before, back;
	bool ours;

	pthread_mutex_lock(&g->lock);
	before = g->record->balloon_before;
	pthread_mutex_unlock(&g->lock);
	b = before ? look(g) : NULL;
	if (!b)
		return 0;
	pthread_mutex_lock(&g->lock);
	ours = same_locked(g, b) && before > b->target;
	pthread_mutex_unlock(&g->lock);
	back = ours ? before - b->target : 0;
	godwit__balloon_status__free_unpacked(b, NULL);
	if (back > bytes)
		return 0;
	/* Not ours: the operator, or a restart of the VM, has set another target since. */
	if (back && set_target(g, before) < 0)
		return 0;
	note(g, 0, 0);
	if (back)
		gw_events_emit(g->agent->events, "memory-balloon", g->name, "given back %llu MiB", (unsigned long long)back >> 20);
	return back;
}

void gw_memory_let_go(struct gw_agent *a, uint64_t bytes)
{
	struct gw_guest **list;
	unsigned n;

	if (gw_guest_list(a, &list, &n) < 0)
		return;
	for (unsigned i = 0; i < n; i++) {
		if (!a->stopping)
			bytes -= GW_MIN(bytes, let_go(list[i], bytes));
		gw_guest_unref(list[i]);
	}
	free(list);
}
