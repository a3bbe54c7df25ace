// SPDX-License-Identifier: Apache-2.0
/*
 * Power management of the machine: ACPI's fixed registers (PM1a event and control, timer), its general-purpose events, the reset port, and the
 * keyboard controller's reset line.
 */
#ifndef GW_VMM_PM_H
#define GW_VMM_PM_H

#include <stdint.h>

#include "lib/error.h"

/* Ports, as the FADT tells them. */
#define GW_PM1_EVENT 0x600 /* status, then enable: 2 bytes each */
#define GW_PM1_CONTROL 0x604
#define GW_PM_TIMER 0x608
/* Own port: the customary 0xcf9 lies within PCI's configuration address register. */
#define GW_PM_RESET 0x60c
#define GW_PM_RESET_VALUE 0x06
#define GW_PM_GPE0 0x610   /* status, then enable: 2 bytes each */
#define GW_PM_GPE0_SIZE 4
#define GW_PM_PORTS 20     /* from GW_PM1_EVENT on */
#define GW_PM_SCI 9
#define GW_PM_S5_TYPE 5

/* General-purpose events, as bits. */
#define GW_PM_GPE_GENID (1u << 0) /* the generation ID has changed */

struct gw_pm;
struct gw_vm;

/* Registers its ports and itself with the VM, which frees it. */
int gw_pm_new(struct gw_vm *vm, struct gw_pm **ret, struct gw_error *err);
/* Any thread. */
void gw_pm_power_button(struct gw_pm *pm);
void gw_pm_raise(struct gw_pm *pm, uint16_t gpe);

#endif
