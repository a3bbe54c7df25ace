// SPDX-License-Identifier: Apache-2.0
/* Small helpers that everything uses: array size, alignment, scope-bound clean-up. */
#ifndef GW_LIB_UTIL_H
#define GW_LIB_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "lib/banned.h"

#define GW_PAGE_SHIFT 12
#define GW_PAGE_SIZE 4096ull

/* Fails to compile for pointers: the types of an array and of the address of its first element differ. */
#define GW_MUST_BE_ARRAY(a) \
	(0 * sizeof(struct { int fail : 1 - 2 * !!__builtin_types_compatible_p(__typeof__(a), __typeof__(&(a)[0])); }))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]) + GW_MUST_BE_ARRAY(a))

#define GW_MIN(a, b) ({ __typeof__(a) gw_a = (a); __typeof__(b) gw_b = (b); gw_a < gw_b ? gw_a : gw_b; })
#define GW_MAX(a, b) ({ __typeof__(a) gw_a = (a); __typeof__(b) gw_b = (b); gw_a > gw_b ? gw_a : gw_b; })
/* `align` must be a power of two. */
#define GW_ALIGN_UP(x, align) (((x) + (__typeof__(x))(align) - 1) & ~((__typeof__(x))(align) - 1))
#define GW_ALIGN_DOWN(x, align) ((x) & ~((__typeof__(x))(align) - 1))

#define gw_container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))

#define gw_cleanup(fn) __attribute__((cleanup(fn)))

static inline void gw_closep(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}
static inline void gw_freep(void *p)
{
	free(*(void **)p);
}
static inline void gw_fclosep(FILE **f)
{
	if (*f)
		fclose(*f);
}
/* Closes `fd` when its variable leaves scope; gw_steal_fd() takes it out first. */
#define gw_autofd gw_cleanup(gw_closep) int
#define gw_autofree gw_cleanup(gw_freep)
#define gw_autofile gw_cleanup(gw_fclosep) FILE

static inline int gw_steal_fd(int *fd)
{
	int ret = *fd;

	*fd = -1;
	return ret;
}
#define gw_steal_ptr(pp) ({ __typeof__(*(pp)) gw_stolen = *(pp); *(pp) = NULL; gw_stolen; })

#endif
