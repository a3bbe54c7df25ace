// SPDX-License-Identifier: Apache-2.0
/* C library functions that may not be used: using one fails to compile. The bounded or re-entrant sibling exists for each. */
#ifndef GW_LIB_BANNED_H
#define GW_LIB_BANNED_H

/* The declarations must be seen before the names are poisoned. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef __cplusplus
#pragma GCC poison strcpy strcat strncpy strncat sprintf vsprintf gets atoi atol atoll strtok localtime gmtime ctime asctime
#endif

#endif
