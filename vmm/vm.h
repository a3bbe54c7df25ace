// SPDX-License-Identifier: Apache-2.0
/*
 * The virtual machine: RAM, vCPUs, buses, devices, and its run state. One process has one VM. Everything here is
 * called from the main thread unless it says otherwise.
 */
#ifndef GW_VMM_VM_H
#define GW_VMM_VM_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/buf.h"
#include "ksm/sharer.h"
#include "lib/error.h"
#include "lib/ram/dirty.h"
#include "lib/ram/ram.h"
#include "vmm/device.h"

struct gw_bus;
struct gw_iothread;
struct gw_pci_bus;
struct gw_tty;
struct gw_vm;

#define GW_MAX_CPUS 32
#define GW_MAX_DISKS 16
#define GW_MAX_NETS 8

/*
 * Guest-physical layout. RAM below 3 GiB stays below; the rest starts at 4 GiB. In the hole: PCI ECAM (256 MiB), 32-bit BAR window,
 * IOAPIC at 0xfec00000, LAPIC at 0xfee00000, KVM's TSS and identity page below 4 GiB. 64-bit BARs live above RAM.
 */
#define GW_GPA_HOLE_START 0xc0000000ull
#define GW_GPA_ECAM 0xc0000000ull
#define GW_GPA_ECAM_SIZE 0x10000000ull
#define GW_GPA_PCI32 0xd0000000ull
#define GW_GPA_PCI32_SIZE 0x2ec00000ull /* up to the IOAPIC */
#define GW_GPA_IDENTITY 0xfeffc000ull   /* 1 page, then 3 pages of TSS */
#define GW_GPA_HOLE_END 0x100000000ull
/* 64-bit BARs: 32 GiB from here on, or from the next multiple above RAM that ends later. Within 36 bits for small VMs. */
#define GW_GPA_PCI64 0x800000000ull
#define GW_GPA_PCI64_SIZE 0x800000000ull

struct gw_disk_config {
	char *name;   /* instance: "vda", ... or the name from the VM file */
	char *path;   /* file, block device, or nbd://, nbd+unix:// URI */
	bool readonly;
};

struct gw_net_config {
	char *name;
	char *tap;
	uint8_t mac[6];
};

struct gw_vm_config {
	char *name;
	uint64_t memory; /* bytes */
	unsigned cpus;
	char *kernel;
	char *initrd;  /* may be NULL */
	char *cmdline; /* may be NULL */
	struct gw_disk_config disks[GW_MAX_DISKS];
	unsigned ndisks;
	struct gw_net_config nets[GW_MAX_NETS];
	unsigned nnets;
	bool incoming;     /* do not boot: a move brings everything */
	bool dirty_bitmap; /* use the bitmap even where the dirty ring exists */
	bool overcommit;   /* more memory than the host has available is fine */
	bool no_balloon;   /* no virtio-balloon */
};

/* Builds the VM, its vCPUs and devices, all stopped. Without config->incoming the kernel is loaded. Borrows config. */
int gw_vm_new(const struct gw_vm_config *config, struct gw_vm **ret, struct gw_error *err);
void gw_vm_free(struct gw_vm *vm);

/* Parts, for devices. */
const struct gw_vm_config *gw_vm_config(const struct gw_vm *vm);
/*
 * Begins to share identical pages with other VMs through the page-store daemon at the other end of `fd` (taken), or goes on with another session.
 * `config` counts the first time. -EPERM or -ENOSYS when the host does not allow safe merging. Main thread only, as the next two.
 */
int gw_vm_share(struct gw_vm *vm, const struct gw_sharer_config *config, int fd, struct gw_error *err);
/* False when it never shared. */
bool gw_vm_share_stats(const struct gw_vm *vm, struct gw_sharer_stats *ret);
/* With config->loading: for what brings memory (ksm/lineage.h); NULL: it is not shared. And: memory is here. */
struct gw_lineage *gw_vm_lineage(struct gw_vm *vm);
void gw_vm_share_loaded(struct gw_vm *vm);
/* No page is exchanged between the two calls. */
void gw_vm_share_pause(struct gw_vm *vm);
void gw_vm_share_resume(struct gw_vm *vm);
/* A disk's content came into guest RAM. Any thread. */
void gw_vm_note_disk_read(struct gw_vm *vm, uint64_t gpa, uint64_t len);
struct gw_ram *gw_vm_ram(struct gw_vm *vm);
struct gw_bus *gw_vm_mmio(struct gw_vm *vm);
struct gw_bus *gw_vm_pio(struct gw_vm *vm);
struct gw_pci_bus *gw_vm_pci(struct gw_vm *vm);
struct gw_iothread *gw_vm_iothread(struct gw_vm *vm);
int gw_vm_fd(const struct gw_vm *vm); /* KVM's VM descriptor */
struct gw_tty *gw_vm_console(struct gw_vm *vm); /* where consoles attach to the serial line */
int gw_vm_add_device(struct gw_vm *vm, const struct gw_device *dev, struct gw_error *err);

/*
 * Stops all vCPUs, then quiesces all devices: after it nothing writes guest RAM, and state may be saved. Also callable
 * from a migration thread. No-op when stopped.
 */
void gw_vm_stop(struct gw_vm *vm);
/* Resumes devices and lets vCPUs run. No-op when running. */
void gw_vm_run(struct gw_vm *vm);
/*
 * An arrival: lets vCPUs run, and devices whose effects can be seen from outside only at gw_vm_release(). A stop in between, then
 * gw_vm_run(), resumes all.
 */
void gw_vm_run_held(struct gw_vm *vm);
void gw_vm_release(struct gw_vm *vm);
bool gw_vm_running(const struct gw_vm *vm);
/* Logs each vCPU's registers and the top of its stack, for a person; the VM stands still meanwhile. Main thread only. */
void gw_vm_tell_registers(struct gw_vm *vm);
/* Holds vCPUs that write memory for so many percent of the time (vmm/quota.h); 0 ends it. From the engine's thread. */
void gw_vm_slow(struct gw_vm *vm, unsigned percent);

/*
 * State of everything but RAM as a packed godwit.MachineState; the VM is stopped. Saving may be repeated and changes nothing.
 * Loading is for a VM built with `incoming` (or stopped) of the same config; on failure the VM must not be run.
 */
int gw_vm_save(struct gw_vm *vm, struct gw_buf *out, struct gw_error *err);
int gw_vm_load(struct gw_vm *vm, const void *data, size_t len, struct gw_error *err);
/*
 * The loaded VM, stopped, comes from a snapshot: what it remembers another may too. Its guest is told so, by another generation ID (vmm/genid.h); of a `clone`
 * devices become what they are configured to be where they are seen from outside.
 */
int gw_vm_renew(struct gw_vm *vm, bool clone, struct gw_error *err);

/*
 * What a host must offer to take the VM in: `cpuid` in the form of vmm/cpuid.h, `devices` as lines "kind instance". Both are appended
 * to. gw_vm_check_features() compares with a VM built here for the arrival: -ENOTSUP and what is missing.
 */
int gw_vm_features(struct gw_vm *vm, struct gw_buf *cpuid, struct gw_buf *devices, uint32_t *tsc_khz, struct gw_error *err);
int gw_vm_check_features(struct gw_vm *vm, const void *cpuid, size_t cpuid_len, const void *devices, size_t devices_len,
			 uint32_t tsc_khz, struct gw_error *err);
/* Network announcement after a move; the VM runs. */
void gw_vm_announce(struct gw_vm *vm);
/* Stopped: what has come for it in its devices' back ends, by index of the device; it is gone from there then. */
void gw_vm_drain(struct gw_vm *vm, void (*fn)(void *arg, unsigned device, const void *data, size_t len), void *arg);
/* Running: such a packet, which comes late. Dropped where there is no such device, or nobody to take it. */
void gw_vm_deliver(struct gw_vm *vm, unsigned device, const void *data, size_t len);

/* Pages written by vCPUs and by devices together (ring or bitmap, plus gw_ram's log), behind one source. */
struct gw_dirty_source gw_vm_dirty_source(struct gw_vm *vm);

/* From any thread: the guest asked for it, or failed. The main loop acts on it. */
enum gw_vm_event { GW_VM_POWEROFF, GW_VM_RESET, GW_VM_CRASHED };
void gw_vm_post_event(struct gw_vm *vm, enum gw_vm_event event, const char *reason);
/* eventfd that becomes readable on an event, and the event itself (-EAGAIN when none). */
int gw_vm_event_fd(const struct gw_vm *vm);
int gw_vm_next_event(struct gw_vm *vm, enum gw_vm_event *event, char reason[128]);

/* Puts RAM, vCPUs and devices back to power-on and loads the kernel again; the VM is stopped before and after. */
int gw_vm_reset(struct gw_vm *vm, struct gw_error *err);
/* Presses the ACPI power button. */
void gw_vm_power_button(struct gw_vm *vm);

#endif
