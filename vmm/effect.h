// SPDX-License-Identifier: Apache-2.0
/*
 * What an arrived VM does to the world outside for the first time: a packet handed to a tap, a disk written or flushed.
 *
 * It is the sign of life by which the blackout is told (migrate/move.h). One VM a process, so one note a process. Any thread may call any of
 * these.
 */
#ifndef GW_VMM_EFFECT_H
#define GW_VMM_EFFECT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/devhost.h"

/* Set from an arrival on until the first effect, or the first packet that is waited for, has been noted. */
extern _Atomic(bool) gw_effect_armed;

/* The next effect is the first one. */
void gw_effect_arm(void);
/*
 * Waits for the first packet: its time (gw_now_ns()). When there was none until the deadline, the time of the first effect of another kind, 0
 * without any.
 */
uint64_t gw_effect_wait(uint64_t deadline_ns);

void gw_effect_first(enum gw_effect effect);
/* Devices call it at each effect. One load and one branch, but for the first ones. */
static inline void gw_effect_note(enum gw_effect effect)
{
	if (__builtin_expect(atomic_load_explicit(&gw_effect_armed, memory_order_acquire), 0))
		gw_effect_first(effect);
}

#endif
