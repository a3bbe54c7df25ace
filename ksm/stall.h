// SPDX-License-Identifier: Apache-2.0
/* How long writers had to wait, as a histogram: quarter powers of two of a nanosecond, so that a quantile is told within 19 percent. */
#ifndef GW_KSM_STALL_H
#define GW_KSM_STALL_H

#include <stdint.h>

#define GW_STALL_BUCKETS 160u

struct gw_stall {
	uint64_t buckets[GW_STALL_BUCKETS];
	uint64_t count, max_ns;
};

void gw_stall_add(struct gw_stall *s, uint64_t ns);
/* The smallest bucket's upper bound that at least `permille` of the waits do not pass; 0 without any. */
uint64_t gw_stall_quantile(const struct gw_stall *s, unsigned permille);

#endif
