// SPDX-License-Identifier: Apache-2.0
/* What the host lets a process have. */
#ifndef GW_LIB_LIMITS_H
#define GW_LIB_LIMITS_H

/* Raises the limit of open files to 1,048,576 where that is allowed, else to the hard limit: each chunk of shared pages is a descriptor. */
void gw_raise_open_files(void);

#endif
