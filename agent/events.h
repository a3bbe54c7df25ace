// SPDX-License-Identifier: Apache-2.0
/*
 * What happened on this host: a bounded journal of JSON lines (STATE/events.log, one older file kept) and a ring in memory that
 * any number of followers read at their own pace; who falls behind loses the oldest and sees a gap in `seq`.
 */
#ifndef GW_AGENT_EVENTS_H
#define GW_AGENT_EVENTS_H

#include <stdint.h>

#include "lib/error.h"
#include "proto/agent.pb-c.h"

#define GW_EVENTS_RING 1024
#define GW_EVENTS_FILE_MAX (4u << 20) /* bytes, then it is rotated */

struct gw_events;

/* `host` is this host's name, borrowed. Reads the newest of the journal back into the ring. */
int gw_events_open(const char *dir, const char *host, struct gw_events **ret, struct gw_error *err);
void gw_events_close(struct gw_events *e);

/* Any thread. Never fails: what cannot be written is logged. `vm` may be NULL. Also goes to the log. */
void gw_events_emit(struct gw_events *e, const char *kind, const char *vm, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/*
 * The first event with at least number `seq`; waits for it up to `wait_ms`. *ret is owned (godwit__agent_event__free_unpacked).
 * -ETIMEDOUT: none came.
 */
int gw_events_next(struct gw_events *e, uint64_t seq, int wait_ms, Godwit__AgentEvent **ret);
/* The number that comes `back` events before the next one, at least that of the oldest in the ring. */
uint64_t gw_events_seq(struct gw_events *e, uint32_t back);
/* Wakes all followers, which get -ESHUTDOWN from now on. */
void gw_events_stop(struct gw_events *e);

#endif
