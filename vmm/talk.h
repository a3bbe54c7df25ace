// SPDX-License-Identifier: Apache-2.0
/*
 * What a VM and others say to each other over its networks while it moves: since when somebody waits for its answer, and when it answers again.
 *
 * The blackout is told by this (migrate/move.h), as those who wait see it. A VM that shares its processors with the senders of a move may leave
 * packets unanswered before it is stopped, and one that has just arrived needs time for its first answer.
 *
 * Conversations are told apart by their ends' addresses (IPv4, IPv6, TCP and UDP ports). One in which the VM hardly ever answers, as a collector
 * of logs, expects nothing of it; neither do broadcasts, bare acknowledgements of TCP, or few packets that may be answers themselves. Where the VM
 * answers data by data only data is an answer.
 *
 * One VM a process, so one note a process. Any thread may call any of these.
 */
#ifndef GW_VMM_TALK_H
#define GW_VMM_TALK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of a frame that suffice: Ethernet, IPv4 with all options, TCP without. */
#define GW_TALK_HEAD 96
/* Conversations that are told apart; new ones take the place of those that were silent for longest. */
#define GW_TALK_FLOWS 16

extern _Atomic(bool) gw_talk_noted; /* between begin and end */

/* Who gets answers is yet to be shown, but for `n` conversations in which they were given before: gw_talk_answered() of a source. */
void gw_talk_begin(const uint64_t *answered, size_t n);
void gw_talk_end(void);
/* A frame that was handed to the VM, or that it sends (`said`); `len` may end at GW_TALK_HEAD. Noted between begin and end. */
void gw_talk_packet(const void *frame, size_t len, bool said);

/* A packet whose sender waits until it is acknowledged, and repeats it: TCP. */
bool gw_talk_repeats(const void *frame, size_t len);

/* When the first packet came that somebody waits for the answer of (gw_now_ns()), 2 s ago at the most; 0 when nobody waits. */
uint64_t gw_talk_unanswered(void);
/* The longest time for which somebody went on asking without an answer since the beginning, in ns. */
uint64_t gw_talk_longest(void);
/*
 * The conversations in which answers were given since the beginning: how many, and their names, which mean the same on all hosts; with whether
 * somebody waits in them now, and for data.
 */
size_t gw_talk_answered(uint64_t keys[GW_TALK_FLOWS]);
/* Somebody has waited for longer than a VM that gets its share of the processors takes. */
bool gw_talk_overdue(void);

/*
 * True when the arrived VM, which runs since `from_ns`, answers those who ask, and steadily so: *answered_ns is the time of its first answers
 * (gw_now_ns()). 0 when there are none: after 100 ms when nobody asks, 400 ms when somebody has, and 2 s when somebody insists.
 */
bool gw_talk_resumed(uint64_t from_ns, uint64_t *answered_ns);

#endif
