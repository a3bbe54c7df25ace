// SPDX-License-Identifier: Apache-2.0
/* How long to wait before what failed is tried again; see retry.h. */
#include "migrate/repo/retry.h"

#include <sys/random.h>

#include "lib/clock.h"
#include "lib/util.h"

#define FIRST_PAUSE_MS 100u
#define LONGEST_PAUSE_MS 5000u

unsigned gw_retry_pause_ms(unsigned failures)
{
	unsigned ms = failures < 6 ? FIRST_PAUSE_MS << failures : LONGEST_PAUSE_MS;
	unsigned random = 0;

	ms = GW_MIN(ms, LONGEST_PAUSE_MS);
	if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != sizeof(random))
		random = (unsigned)gw_now_ns();
	return ms / 2 + random % (ms / 2 + 1);
}
