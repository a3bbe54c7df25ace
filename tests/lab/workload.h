// SPDX-License-Identifier: Apache-2.0
/*
 * What the parts of the guest workload program share: time, content that can be checked, and the report that each running
 * workload gives to `workload check` over UDP.
 */
#ifndef GW_LAB_WORKLOAD_H
#define GW_LAB_WORKLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WORKLOAD_DIRTY_PORT 7002
#define WORKLOAD_DISK_PORT 7003

struct workload_report {
	const char *name;	/* "dirty", "disk" */
	const char *unit;	/* what is counted: "pages", "blocks" */
	uint64_t units;		/* how many there are */
	uint64_t checked;	/* how many checks were made */
	uint64_t written;
	uint64_t faults;
	int sock;
};

/* CLOCK_MONOTONIC in ns. */
int64_t workload_now(void);
void workload_sleep_until(int64_t ns);

/* Fills a block (len a multiple of 16) for its index and sequence; every word depends on both. */
void workload_fill(uint64_t *block, size_t len, uint64_t index, uint64_t sequence);

/* Whether the block holds exactly what workload_fill() wrote. */
bool workload_verify(const uint64_t *block, size_t len, uint64_t index, uint64_t sequence);

/* Opens the report's UDP port; ends the program on failure. */
void workload_report_open(struct workload_report *r, uint16_t port);

/* Answers the questions that wait; never blocks. */
void workload_report_answer(struct workload_report *r);

/* Counts a fault and says so on the console at once. */
void workload_report_fault(struct workload_report *r, uint64_t index, uint64_t expected, uint64_t found);

/* A decimal argument between min and max, or the program ends with a message. */
uint64_t workload_number(const char *text, uint64_t min, uint64_t max);

int workload_dirty(int argc, char **argv);
int workload_disk(int argc, char **argv);
int workload_heartbeat(int argc, char **argv);
int workload_tick(int argc, char **argv);
int workload_check(int argc, char **argv);

#endif
