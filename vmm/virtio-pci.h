// SPDX-License-Identifier: Apache-2.0
/* The PCI transport of virtio devices (virtio 1.2 §4.1), modern only: MSI-X with a vector for each queue and one for changes. */
#ifndef GW_VMM_VIRTIO_PCI_H
#define GW_VMM_VIRTIO_PCI_H

#include "lib/error.h"
#include "vmm/pci.h"
#include "vmm/state.h"

struct gw_virtio;
struct gw_virtio_pci;

/* Puts `vd` into `slot`; sets vd->pci and vd->msix. */
int gw_virtio_pci_attach(struct gw_virtio *vd, struct gw_pci_bus *bus, unsigned slot, struct gw_error *err);
/* The device in `slot`, or NULL. */
struct gw_virtio *gw_virtio_pci_at(struct gw_pci_bus *bus, unsigned slot);
void gw_virtio_pci_free(struct gw_virtio_pci *vp);
void gw_virtio_pci_reset(struct gw_virtio_pci *vp);
int gw_virtio_pci_save(struct gw_virtio_pci *vp, struct gw_state_writer *w, struct gw_error *err);
int gw_virtio_pci_load(struct gw_virtio_pci *vp, struct gw_state_reader *r, struct gw_error *err);

#endif
