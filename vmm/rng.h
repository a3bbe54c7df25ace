// SPDX-License-Identifier: Apache-2.0
/* virtio-rng (virtio 1.2 §5.4): random bytes of the host's kernel. */
#ifndef GW_VMM_RNG_H
#define GW_VMM_RNG_H

#include "lib/error.h"
#include "vmm/devhost.h"

struct gw_virtio;

int gw_rng_new(const struct gw_devhost *host, struct gw_virtio **ret, struct gw_error *err);

#endif
