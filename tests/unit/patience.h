// SPDX-License-Identifier: Apache-2.0
/* How long tests wait, and how much they do. */
#ifndef GW_TESTS_PATIENCE_H
#define GW_TESTS_PATIENCE_H

/*
 * Nanoseconds for which a test waits for what must come, longer than any busy machine takes: only one that fails waits so long. A program
 * has tests/run-unit's limit for all of its tests.
 */
#define TEST_PATIENCE 60000000000ull

/*
 * How often a test of one thread does what it does by the thousand: the thread sanitizer has nothing to find there, and takes ten times as long
 * over it.
 */
#ifdef __SANITIZE_THREAD__
#define TEST_TIMES(n) ((n) / 8)
#else
#define TEST_TIMES(n) (n)
#endif

#endif
