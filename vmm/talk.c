// SPDX-License-Identifier: Apache-2.0
/* The conversation of a departing VM; see talk.h. */
#include "vmm/talk.h"

#include "lib/clock.h"
#include "lib/util.h"

#define OLDEST_NS (2 * GW_NS_PER_SEC)
/* It answers when it sends at least one packet for so many that it is sent: an answer may cover several. */
#define HEARD_PER_SAID 8

_Atomic(bool) gw_talk_noted;

/* Written by the device thread, read by the engine's. */
static struct {
	_Atomic(uint64_t) heard, said;
	_Atomic(uint64_t) unanswered_ns;
} talk;

void gw_talk_begin(void)
{
	atomic_store(&talk.heard, 0);
	atomic_store(&talk.said, 0);
	atomic_store(&talk.unanswered_ns, 0);
	atomic_store(&gw_talk_noted, true);
}

void gw_talk_end(void)
{
	atomic_store(&gw_talk_noted, false);
}

void gw_talk_count(bool said)
{
	atomic_fetch_add_explicit(said ? &talk.said : &talk.heard, 1, memory_order_relaxed);
	if (said)
		atomic_store(&talk.unanswered_ns, 0);
	else if (atomic_load(&talk.unanswered_ns) == 0)
		atomic_store(&talk.unanswered_ns, gw_now_ns());
}

uint64_t gw_talk_unanswered(void)
{
	uint64_t since = atomic_load(&talk.unanswered_ns);

	if (since == 0 || atomic_load(&talk.said) * HEARD_PER_SAID < atomic_load(&talk.heard))
		return 0;
	return GW_MAX(since, gw_now_ns() - OLDEST_NS);
}
