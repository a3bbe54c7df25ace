// SPDX-License-Identifier: Apache-2.0
/* What the files of the VM's core share about it. Devices use vm.h. */
#ifndef GW_VMM_VM_INTERNAL_H
#define GW_VMM_VM_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/cpuid.h"
#include "vmm/genid.h"
#include "vmm/kvm.h"
#include "vmm/msrs.h"
#include "vmm/vcpu-state.h"
#include "vmm/vcpu.h"
#include "vmm/vm-state.h"
#include "vmm/vm.h"

#define GW_MAX_DEVICES 64

struct gw_irq;
struct gw_dirty_ring;
struct gw_dirty_bitmap;
struct gw_quota;

/* Order of locks: life_lock, then a device's own, then event_lock. */
struct gw_vm {
	const struct gw_vm_config *config; /* borrowed */
	struct gw_kvm kvm;
	int fd;
	struct gw_ram *ram;
	struct gw_bus *mmio;
	struct gw_bus *pio;
	struct gw_pci_bus *pci;
	struct gw_iothread *iothread;
	struct gw_irq *irq;
	struct gw_vcpus *vcpus;
	struct gw_cpuid cpuid;      /* what the guest sees, but for what differs from vCPU to vCPU */
	struct gw_cpuid host_cpuid; /* what this host can offer */
	struct gw_msr_list msr_list;
	uint32_t host_tsc_khz;
	uint32_t tsc_khz;           /* of the guest */
	struct gw_dirty_ring *ring;     /* one of these two */
	struct gw_dirty_bitmap *bitmap;
	struct gw_sharer *sharer;       /* once pages are shared; set by the main thread alone, atomic */
	struct gw_quota *quota;         /* while vCPUs are slowed */
	struct gw_serial *serial;
	struct gw_pm *pm;
	struct gw_genid genid;

	struct gw_device devices[GW_MAX_DEVICES];
	unsigned ndevices;

	/* Power-on state, taken before anything ran: what a reset goes back to. */
	struct gw_vcpu_state *initial_vcpu[GW_MAX_CPUS];
	struct gw_vm_state *initial;

	pthread_mutex_t life_lock; /* gw_vm_stop, gw_vm_run and what may only be done in between */
	bool running;              /* changed under life_lock, atomic */
	bool held;                 /* under life_lock: devices with outside effects wait for gw_vm_release() */
	bool stopped_before;       /* under life_lock: vCPUs ran and were stopped; kvmclock must be told */

	pthread_mutex_t event_lock;
	int event_fd;
	bool event_pending;        /* these under event_lock */
	bool event_loaded;         /* came with a loaded state: to be posted when the VM runs */
	enum gw_vm_event event;
	char event_reason[128];
};

/* vm-setup.c: everything that KVM has of the VM, then its devices; gw_vm_teardown() takes half-built ones. */
int gw_vm_setup(struct gw_vm *vm, struct gw_error *err);
void gw_vm_teardown(struct gw_vm *vm);
/* Loads the kernel and puts the boot processor to its entry. */
int gw_vm_boot(struct gw_vm *vm, struct gw_error *err);

/* vm-event.c */
int gw_vm_events_init(struct gw_vm *vm, struct gw_error *err);
void gw_vm_events_release(struct gw_vm *vm);
bool gw_vm_event_pending(struct gw_vm *vm);

/* irq.c */
int gw_irq_new(struct gw_vm *vm, struct gw_irq **ret, struct gw_error *err);
void gw_irq_free(struct gw_irq *irq);

#endif
