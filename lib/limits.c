// SPDX-License-Identifier: Apache-2.0
/* Limits of a process; see limits.h. */
#include "lib/limits.h"

#include <sys/resource.h>

#define WANT_FILES (1u << 20)

void gw_raise_open_files(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim) < 0)
		return;
	if (lim.rlim_max < WANT_FILES) {
		struct rlimit more = { WANT_FILES, WANT_FILES };

		/* Only with the privilege to. */
		if (setrlimit(RLIMIT_NOFILE, &more) == 0)
			return;
	}
	lim.rlim_cur = lim.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &lim);
}
