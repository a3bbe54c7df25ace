// SPDX-License-Identifier: Apache-2.0
/*
 * Writers of every kind against the merger. Each writer makes its page equal to a store page, so that the merger takes it, writes a value
 * that is its alone, and looks whether the value is still there.
 */
#ifndef GW_TESTS_MERGE_RACE_H
#define GW_TESTS_MERGE_RACE_H

#include <stdbool.h>
#include <stdint.h>

enum race_kind { RACE_USER, RACE_READ, RACE_DIRECT, RACE_URING, RACE_KINDS };

struct race {
	unsigned writers[RACE_KINDS];
	uint64_t writes;    /* ends after that many in all, */
	uint64_t merges;    /* and that many pages merged, */
	uint64_t seconds;   /* or, if not 0, after that long */
	bool until_lost;    /* ends with the first lost write */
	int broken;         /* gw_window_break() */
};

struct race_result {
	uint64_t writes[RACE_KINDS];
	uint64_t lost[RACE_KINDS];
	char first_loss[240];   /* what was seen and what should have been */
	uint64_t merges, zeros, again;
	uint64_t stall_p50_ns, stall_p99_ns, stall_max_ns;
};

/* 0, or -errno with what could not be had in `why`. */
int race_run(const struct race *race, struct race_result *ret, char why[256]);

#endif
