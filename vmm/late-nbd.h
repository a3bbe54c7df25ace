// SPDX-License-Identifier: Apache-2.0
/* libnbd, which is loaded when it is needed (lib/late.h). */
#ifndef GW_VMM_LATE_NBD_H
#define GW_VMM_LATE_NBD_H

#include <libnbd.h>

#include "lib/error.h"

/* Before any of its functions is called. 0 or -ENOENT: it is not installed. */
int gw_late_nbd(struct gw_error *err);

#endif
