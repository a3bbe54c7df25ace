// SPDX-License-Identifier: Apache-2.0
/*
 * Agents killed at each step of a move: the VM runs on, on exactly one host, both agents come to agree on which, nothing is left
 * behind on the other, and the VM can be moved again. Errors at each step: the same, without a restart.
 *
 * Two test programs, one for the failpoints of each side: together they would take too long where all is slow.
 */
#ifndef GW_TESTS_AGENT_KILL_H
#define GW_TESTS_AGENT_KILL_H

#include <stddef.h>

struct agent_kill_scenario {
	const char *point;
	unsigned host;    /* which agent has it: 0 source, 1 destination */
	const char *with; /* and these, as they are, on the same host */
	char where;       /* where the VM must end: 's', 'd', or '?' for either */
};

/* The program's main: a test a scenario and action; an argument picks one failpoint. */
int agent_kill_main(const char *group, const struct agent_kill_scenario *scenarios, size_t n, int argc, char **argv);

#endif
