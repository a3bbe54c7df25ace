// SPDX-License-Identifier: Apache-2.0
/*
 * The host's memory: which VMs it admits, and what is done when it runs short.
 *
 * Admission counts what VMs may come to need, never what sharing saves them just now: every shared page may be written tomorrow. The memory
 * of all VMs stays within `overcommit` times the host's; and what is available must cover, divided by that factor, all that they have
 * not yet taken for themselves, with a reserve left over.
 *
 * Below the reserve the host is short of memory: new VMs are refused, an event names the largest VMs, and those whose guests tell of memory to spare
 * are asked for a part of it by their balloons (memory-balloon.c). The state ends only when half the reserve more is
 * available; then the balloons are let go one by one, as far as that does not bring it back.
 */
#ifndef GW_AGENT_MEMORY_H
#define GW_AGENT_MEMORY_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"

struct gw_agent;
struct gw_conf;
struct gw_guest;

struct gw_memory {
	const char *meminfo;   /* path; constant once it runs, like the next */
	const char *pressure;  /* path of the kernel's pressure figures */
	_Atomic bool low;      /* the host is short of memory */
	uint64_t next_squeeze_ns; /* gw_memory_look() only */
	pthread_mutex_t admit; /* held over one admission: two must not count on the same memory */
};

void gw_memory_init(struct gw_memory *m);
void gw_memory_release(struct gw_memory *m);

/* Bytes of this host's memory: all, and what can be had without swapping. */
int gw_memory_read(const struct gw_memory *m, uint64_t *total, uint64_t *available, struct gw_error *err);
/* Bytes that are to stay available. */
uint64_t gw_memory_reserve(const struct gw_conf *conf, uint64_t total);

/*
 * Whether a VM with that much RAM may come; the refusal tells the figures. `g` (may be NULL) is the VM, which is counted from then on until the
 * end of its operation. No guest's lock held.
 */
int gw_memory_admit(struct gw_agent *a, struct gw_guest *g, uint64_t bytes, struct gw_error *err);

/* Looks once, and does what is to be done. Waits for VMMs. One thread at a time. */
void gw_memory_look(struct gw_agent *a);
/* Starts the thread that looks: by the kernel's notice of pressure where there is one, and every few seconds. */
int gw_memory_watch(struct gw_agent *a, struct gw_error *err);

/* Asks guests for `bytes` by their balloons, as far as they have them to spare. */
void gw_memory_squeeze(struct gw_agent *a, uint64_t bytes);
/* Gives back what they were asked for, up to `bytes` now. */
void gw_memory_let_go(struct gw_agent *a, uint64_t bytes);

#endif
