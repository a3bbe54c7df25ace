// SPDX-License-Identifier: Apache-2.0
/*
 * What a VM and others say to each other over its networks while it departs: since when somebody waits for its answer.
 *
 * A VM that shares its processors with the senders of a move may leave packets unanswered before it is stopped; for those who wait, the blackout
 * has begun. One VM a process, so one conversation a process.
 */
#ifndef GW_VMM_TALK_H
#define GW_VMM_TALK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

extern _Atomic(bool) gw_talk_noted; /* between begin and end */

void gw_talk_begin(void);
void gw_talk_end(void);
/*
 * When the first packet came that the VM has said nothing after (gw_now_ns()), 2 s ago at the most. 0 when there is none, or when the VM
 * has hardly answered anything since the beginning: then nobody expects that it does.
 */
uint64_t gw_talk_unanswered(void);

void gw_talk_count(bool said);
/* For each packet that was handed to the VM and that is for it alone, and for each that it sends. One load and one branch when not noted. */
static inline void gw_talk_heard(void)
{
	if (__builtin_expect(atomic_load_explicit(&gw_talk_noted, memory_order_relaxed), 0))
		gw_talk_count(false);
}

static inline void gw_talk_said(void)
{
	if (__builtin_expect(atomic_load_explicit(&gw_talk_noted, memory_order_relaxed), 0))
		gw_talk_count(true);
}

#endif
