// SPDX-License-Identifier: Apache-2.0
/* How long to wait before what failed is tried again. */
#ifndef GW_MIGRATE_REPO_RETRY_H
#define GW_MIGRATE_REPO_RETRY_H

/* `failures` in a row before this one: doubles with each; between half and all of it, so that many who failed together do not come back together. */
unsigned gw_retry_pause_ms(unsigned failures);

#endif
