// SPDX-License-Identifier: Apache-2.0
/*
 * A field of 8 bytes of one of the kernel's tracepoints, each time that a thread passes it: by a perf event (perf_event_open(2), PERF_SAMPLE_RAW), whose records
 * have the layout that tracefs tells (events/SYSTEM/NAME/format).
 */
#ifndef GW_VMM_TRACEPOINT_H
#define GW_VMM_TRACEPOINT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct perf_event_mmap_page;
struct gw_trace;

struct gw_tracepoint {
	uint64_t id;
	size_t at; /* offset of the field in its record */
};

typedef void gw_trace_fn(void *self, uint64_t value);

/* `event`: SYSTEM/NAME. -ENOENT, -EACCES: no tracefs, or no such event; -ENOTSUP: the event has no such field. */
int gw_tracepoint_find(const char *event, const char *field, struct gw_tracepoint *ret);
/* Of a `format` of tracefs. -ENOTSUP: no such field of 8 bytes. */
int gw_tracepoint_field(const char *format, const char *field, size_t *at);

/* Watches a thread; not yet until gw_trace_enable(). `bytes` of records, a power of two of pages: what comes when it is full is lost. 0 or -errno. */
int gw_trace_new(const struct gw_tracepoint *point, pid_t tid, size_t bytes, struct gw_trace **ret);
int gw_trace_enable(struct gw_trace *t);
/* What came since the last time, in order. */
void gw_trace_read(struct gw_trace *t, gw_trace_fn *fn, void *self);
/* Takes NULL. */
void gw_trace_free(struct gw_trace *t);

/* The same of a ring of such records as the kernel shares it. */
void gw_trace_read_ring(const struct gw_tracepoint *point, struct perf_event_mmap_page *ring, gw_trace_fn *fn, void *self);

#endif
