// SPDX-License-Identifier: Apache-2.0
/* Kernels that can less: for the calling thread, and those that it makes, and for good. Sanitizers and the rest of the test go on as before. */
#ifndef GW_TESTS_UNIT_DENY_H
#define GW_TESTS_UNIT_DENY_H

/* userfaultfd by the system call and by /dev/userfaultfd fails with `error`. */
void deny_userfaultfd(int error);
/* As before Linux 6.7: PAGEMAP_SCAN is unknown. */
void deny_pagemap_scan(void);

#endif
