// SPDX-License-Identifier: Apache-2.0
/* The first effects of an arrived VM on the outside; see effect.h. */
#include "vmm/effect.h"

#include <pthread.h>
#include <stddef.h>

#include "lib/clock.h"

_Atomic(bool) gw_effect_armed;

/* All under lock. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t change;
	bool waited;                 /* nobody is interested in the first packet any more */
	uint64_t first_ns, packet_ns;
} seen = { .lock = PTHREAD_MUTEX_INITIALIZER, .change = PTHREAD_COND_INITIALIZER };

void gw_effect_arm(void)
{
	pthread_mutex_lock(&seen.lock);
	seen.waited = false;
	seen.first_ns = seen.packet_ns = 0;
	atomic_store(&gw_effect_armed, true);
	pthread_mutex_unlock(&seen.lock);
}

/* With the lock held: there is more to note only while a packet is waited for. */
static void disarm_if_done(void)
{
	if (seen.packet_ns || (seen.waited && seen.first_ns))
		atomic_store(&gw_effect_armed, false);
}

void gw_effect_first(enum gw_effect effect)
{
	uint64_t now = gw_now_ns();

	pthread_mutex_lock(&seen.lock);
	if (atomic_load(&gw_effect_armed)) {
		seen.first_ns = seen.first_ns ?: now;
		if (effect == GW_EFFECT_PACKET)
			seen.packet_ns = now;
		disarm_if_done();
		pthread_cond_broadcast(&seen.change);
	}
	pthread_mutex_unlock(&seen.lock);
}

uint64_t gw_effect_wait(uint64_t deadline_ns)
{
	struct timespec ts = { .tv_sec = (time_t)(deadline_ns / GW_NS_PER_SEC), .tv_nsec = (long)(deadline_ns % GW_NS_PER_SEC) };
	uint64_t when_ns;
	int r = 0;

	pthread_mutex_lock(&seen.lock);
	while (atomic_load(&gw_effect_armed) && r == 0)
		r = pthread_cond_clockwait(&seen.change, &seen.lock, CLOCK_MONOTONIC, &ts);
	seen.waited = true;
	disarm_if_done();
	when_ns = seen.packet_ns ?: seen.first_ns;
	pthread_mutex_unlock(&seen.lock);
	return when_ns;
}
