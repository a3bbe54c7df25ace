// SPDX-License-Identifier: Apache-2.0
/* Time in nanoseconds, and deadlines on the monotonic clock. */
#ifndef GW_LIB_CLOCK_H
#define GW_LIB_CLOCK_H

#include <stdint.h>
#include <time.h>

#define GW_NS_PER_SEC 1000000000ull
#define GW_NS_PER_MS 1000000ull
#define GW_NS_PER_US 1000ull

static inline uint64_t gw_clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * GW_NS_PER_SEC + (uint64_t)ts.tv_nsec;
}
/* CLOCK_MONOTONIC. */
static inline uint64_t gw_now_ns(void)
{
	return gw_clock_ns(CLOCK_MONOTONIC);
}
/* CLOCK_REALTIME, since the epoch. */
static inline uint64_t gw_realtime_ns(void)
{
	return gw_clock_ns(CLOCK_REALTIME);
}
/* Milliseconds left until monotonic `deadline_ns`, rounded up, for poll(); 0 when past, at most INT32_MAX. */
static inline int gw_ms_until(uint64_t deadline_ns)
{
	uint64_t now = gw_now_ns();
	uint64_t ms;

	if (deadline_ns <= now)
		return 0;
	ms = (deadline_ns - now + GW_NS_PER_MS - 1) / GW_NS_PER_MS;
	return ms > INT32_MAX ? INT32_MAX : (int)ms;
}

#endif
