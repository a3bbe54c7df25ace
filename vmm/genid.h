// SPDX-License-Identifier: Apache-2.0
/*
 * The VM's generation ID (Microsoft, "Virtual Machine Generation ID", 2012): 16 random bytes in a reserved page of guest RAM. They change when the
 * guest goes on from a snapshot, so when its past may be another's too, and an ACPI notification tells it: Linux (drivers/virt/vmgenid.c) then gives its
 * random number generator a new seed. A live move and a reboot keep them.
 *
 * A VM whose snapshot is older than this device has tables without it: it is not shown to that guest before it boots again.
 */
#ifndef GW_VMM_GENID_H
#define GW_VMM_GENID_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "lib/ram/ram.h"
#include "vmm/state.h"

struct gw_genid {
	uint8_t id[16];
	bool shown; /* the guest's ACPI tables tell of it */
};

/* A random one, not shown. */
int gw_genid_init(struct gw_genid *genid, struct gw_error *err);
/* The guest boots, with tables that tell of it. */
int gw_genid_show(struct gw_genid *genid, struct gw_ram *ram, struct gw_error *err);
/* The stopped guest goes on from a snapshot: another one, also in RAM if it is shown; then the guest is to be notified. */
int gw_genid_renew(struct gw_genid *genid, struct gw_ram *ram, struct gw_error *err);

int gw_genid_save(const struct gw_genid *genid, struct gw_state_writer *w, struct gw_error *err);
/* State without it is fine. RAM is as the guest knows it. */
int gw_genid_load(struct gw_genid *genid, struct gw_state_reader *r, struct gw_error *err);

#endif
