// SPDX-License-Identifier: Apache-2.0
/*
 * MSI-X (PCI 3.0 §6.8.2): capability, vector table and pending bits of one PCI function, with a message interrupt of
 * the VM behind each vector.
 */
#ifndef GW_VMM_MSIX_H
#define GW_VMM_MSIX_H

#include <stdint.h>

#include "lib/error.h"
#include "vmm/pci.h"
#include "vmm/state.h"

#define GW_MSIX_MAX_VECTORS 32

struct gw_msix;

/* Adds the capability and a BAR at index `bar` (64-bit: takes bar + 1 too) to `dev`, which is borrowed. */
int gw_msix_new(struct gw_pci_dev *dev, const struct gw_devhost *host, unsigned bar, unsigned vectors, const char *name,
		struct gw_msix **ret, struct gw_error *err);
void gw_msix_free(struct gw_msix *msix);
unsigned gw_msix_vectors(const struct gw_msix *msix);

/* Raises `vector`, or keeps it pending while it is masked. Nothing when out of range or MSI-X is off. Any thread. */
void gw_msix_raise(struct gw_msix *msix, unsigned vector);
/* To be called from the owner's gw_pci_ops.config_written. */
void gw_msix_config_written(struct gw_msix *msix, unsigned reg, unsigned len);

void gw_msix_reset(struct gw_msix *msix);
int gw_msix_save(struct gw_msix *msix, struct gw_state_writer *w, struct gw_error *err);
/* After the function's configuration space was loaded. Interrupt routes are made at gw_msix_resume(). */
int gw_msix_load(struct gw_msix *msix, struct gw_state_reader *r, struct gw_error *err);
/* Brings routes up to date; before vCPUs run. */
void gw_msix_resume(struct gw_msix *msix);

#endif
