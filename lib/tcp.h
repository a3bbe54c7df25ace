// SPDX-License-Identifier: Apache-2.0
/* TCP connections with a deadline, and listeners. Descriptors do not block, and are close-on-exec. */
#ifndef GW_LIB_TCP_H
#define GW_LIB_TCP_H

#include <stdint.h>

#include "lib/error.h"

/* `host` is a name or an address, `port` a number. -EHOSTUNREACH: there is no such host; else what the system said, or -ETIMEDOUT. */
int gw_tcp_connect(const char *host, const char *port, uint64_t deadline_ns, int *ret, struct gw_error *err);
int gw_tcp_listen(const char *host, const char *port, int *ret, struct gw_error *err);

#endif
