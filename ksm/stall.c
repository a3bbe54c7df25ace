// SPDX-License-Identifier: Apache-2.0
/* Histogram of waits; see stall.h. */
#include "ksm/stall.h"

#include "lib/util.h"

/* Octave and the two bits below the leading one. */
static unsigned bucket(uint64_t ns)
{
	unsigned octave = 63 - (unsigned)__builtin_clzll(ns | 4);
	unsigned b = octave * 4 + (unsigned)((ns | 4) >> (octave - 2) & 3);

	return GW_MIN(b, GW_STALL_BUCKETS - 1);
}

static uint64_t upper(unsigned b)
{
	return ((uint64_t)(b % 4) + 5) << (b / 4 - 2);
}

void gw_stall_add(struct gw_stall *s, uint64_t ns)
{
	s->buckets[bucket(ns)]++;
	s->count++;
	s->max_ns = GW_MAX(s->max_ns, ns);
}

uint64_t gw_stall_quantile(const struct gw_stall *s, unsigned permille)
{
	uint64_t wanted = (s->count * permille + 999) / 1000, seen = 0;

	for (unsigned b = 0; b < GW_STALL_BUCKETS && s->count > 0; b++) {
		seen += s->buckets[b];
		if (seen >= wanted && seen > 0)
			return GW_MIN(upper(b), s->max_ns);
	}
	return 0;
}
