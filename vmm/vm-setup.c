// SPDX-License-Identifier: Apache-2.0
/* Building of the machine: KVM's objects first, in the order that KVM demands, then devices in the order that states are saved in. */
#include <errno.h>
#include <linux/kvm.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/log.h"
#include "lib/util.h"
#include "vmm/acpi.h"
#include "vmm/boot.h"
#include "vmm/bus.h"
#include "vmm/hostmem.h"
#include "vmm/iothread.h"
#include "vmm/kvm-dirty.h"
#include "vmm/memmap.h"
#include "vmm/memslots.h"
#include "vmm/pci.h"
#include "vmm/pm.h"
#include "vmm/quota.h"
#include "vmm/rtc.h"
#include "vmm/serial.h"
#include "vmm/virtio-devices.h"
#include "vmm/vm-internal.h"

#define MEMORY_MIN (16ull << 20)
#define MEMORY_MAX (64ull << 40)

#define APIC_LVT0 0x350
#define APIC_LVT1 0x360
#define LVT_EXTINT 0x700u
#define LVT_NMI 0x400u
#define MSR_MISC_ENABLE 0x1a0
#define MISC_ENABLE_FAST_STRING 1ull
#define MSR_MTRR_DEF_TYPE 0x2ff
#define MTRR_ENABLED_WRITE_BACK 0x806ull

static int check_config(const struct gw_vm *vm, struct gw_error *err)
{
	const struct gw_vm_config *config = vm->config;

	if (config->cpus < 1 || config->cpus > GW_MAX_CPUS)
		return gw_error_set(err, EINVAL, "%u CPUs: a VM has 1 to %u", config->cpus, GW_MAX_CPUS);
	if (config->memory < MEMORY_MIN || config->memory > MEMORY_MAX || config->memory % GW_PAGE_SIZE)
		return gw_error_set(err, EINVAL, "memory of %llu KiB: a VM has 16 MiB to 64 TiB, in whole pages of 4 KiB",
				    (unsigned long long)(config->memory >> 10));
	return config->overcommit ? 0 : gw_hostmem_check(config->memory, err);
}

static int create_chips(struct gw_vm *vm, struct gw_error *err)
{
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	uint64_t identity = GW_GPA_IDENTITY;
	int r;

	/* Old Intel processors run real mode with the help of these pages. */
	r = gw_kvm_ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
	if (r == 0)
		r = gw_kvm_ioctl_value(vm->fd, KVM_SET_TSS_ADDR, GW_GPA_IDENTITY + GW_PAGE_SIZE);
	if (r < 0)
		return gw_error_errno(err, r, "cannot place KVM's own pages");
	r = gw_kvm_ioctl_value(vm->fd, KVM_CREATE_IRQCHIP, 0);
	if (r == 0)
		r = gw_kvm_ioctl(vm->fd, KVM_CREATE_PIT2, &pit);
	return r < 0 ? gw_error_errno(err, r, "cannot create interrupt controllers and timer") : 0;
}

static int create_dirty_source(struct gw_vm *vm, struct gw_error *err)
{
	struct gw_error ring_err = GW_ERROR_INIT;

	if (!vm->config->dirty_bitmap) {
		if (gw_dirty_ring_new(&vm->kvm, vm->fd, vm->ram, &vm->ring, &ring_err) == 0)
			return 0;
		gw_info("%s: written pages are found by its bitmap", gw_error_text(&ring_err));
	}
	return gw_dirty_bitmap_new(&vm->kvm, vm->fd, vm->ram, &vm->bitmap, err);
}

static int create_memory(struct gw_vm *vm, struct gw_error *err)
{
	int r = gw_ram_new(vm->config->memory, GW_GPA_HOLE_START, GW_GPA_HOLE_END, &vm->ram, err);

	if (r == 0)
		r = create_dirty_source(vm, err);
	if (r == 0)
		r = gw_memslots_set(vm->fd, vm->ram, false, err);
	return r;
}

/* What firmware leaves behind on every processor. */
static int init_vcpu(struct gw_vm *vm, struct gw_vcpu *vcpu, struct gw_error *err)
{
	int fd = gw_vcpu_fd(vcpu), r;
	struct kvm_lapic_state lapic;
	uint64_t misc;

	r = gw_cpuid_apply(&vm->cpuid, fd, gw_vcpu_index(vcpu), err);
	if (r == 0 && vm->ring)
		r = gw_dirty_ring_add_vcpu(vm->ring, fd, err);
	if (r < 0)
		return r;
	/* "Virtual wire" mode (MultiProcessor Specification §3.6.2.2): 8259 and NMI reach the LAPIC's two pins. */
	r = gw_kvm_ioctl(fd, KVM_GET_LAPIC, &lapic);
	if (r == 0) {
		gw_put_le32(lapic.regs + APIC_LVT0, LVT_EXTINT);
		gw_put_le32(lapic.regs + APIC_LVT1, LVT_NMI);
		r = gw_kvm_ioctl(fd, KVM_SET_LAPIC, &lapic);
	}
	if (r < 0)
		return gw_error_errno(err, r, "cannot set up the LAPIC of vCPU %u", gw_vcpu_index(vcpu));
	/* Kernels take switched-off memory types for broken firmware. Either register may be missing. */
	(void)gw_msr_write(fd, MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK);
	if (gw_msr_read(fd, MSR_MISC_ENABLE, &misc) == 0)
		(void)gw_msr_write(fd, MSR_MISC_ENABLE, misc | MISC_ENABLE_FAST_STRING);
	return 0;
}

static int create_vcpus(struct gw_vm *vm, struct gw_error *err)
{
	int r, khz;

	if ((int)vm->config->cpus > vm->kvm.caps.max_vcpus)
		return gw_error_set(err, EINVAL, "%u CPUs: this host's KVM takes %d", vm->config->cpus, vm->kvm.caps.max_vcpus);
	r = gw_cpuid_host(&vm->kvm, &vm->host_cpuid, err);
	if (r < 0)
		return r;
	gw_cpuid_guest(&vm->host_cpuid, vm->config->cpus, &vm->cpuid);
	r = gw_vcpus_new(vm, vm->config->cpus, &vm->vcpus, err);
	for (unsigned i = 0; r == 0 && i < vm->config->cpus; i++)
		r = init_vcpu(vm, gw_vcpus_get(vm->vcpus, i), err);
	if (r < 0)
		return r;
	khz = gw_kvm_ioctl_value(gw_vcpu_fd(gw_vcpus_get(vm->vcpus, 0)), KVM_GET_TSC_KHZ, 0);
	if (khz <= 0)
		return gw_error_set(err, ENOTSUP, "this host's TSC has no stable rate");
	vm->host_tsc_khz = vm->tsc_khz = (uint32_t)khz;
	return gw_msr_list_init(vm->kvm.fd, gw_vcpu_fd(gw_vcpus_get(vm->vcpus, 0)), &vm->msr_list, err);
}

static int create_devices(struct gw_vm *vm, struct gw_error *err)
{
	int r = gw_genid_init(&vm->genid, err);

	if (r == 0)
		r = gw_pm_new(vm, &vm->pm, err);
	if (r == 0)
		r = gw_serial_new(vm, &vm->serial, err);
	if (r == 0)
		r = gw_rtc_new(vm, err);
	if (r == 0)
		r = gw_pci_bus_new(vm, &vm->pci, err);
	if (r == 0)
		r = gw_virtio_devices_create(vm, vm->config, err);
	return r;
}

static int take_initial_state(struct gw_vm *vm, struct gw_error *err)
{
	int r;

	vm->initial = calloc(1, sizeof(*vm->initial));
	if (!vm->initial)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_vm_state_get(vm, vm->initial, err);
	for (unsigned i = 0; r == 0 && i < vm->config->cpus; i++) {
		vm->initial_vcpu[i] = gw_vcpu_state_new();
		if (!vm->initial_vcpu[i])
			return gw_error_set(err, ENOMEM, "out of memory");
		r = gw_vcpu_state_get(gw_vcpus_get(vm->vcpus, i), NULL, vm->initial_vcpu[i], err);
	}
	return r;
}

int gw_vm_setup(struct gw_vm *vm, struct gw_error *err)
{
	int r = check_config(vm, err);

	if (r == 0)
		r = gw_kvm_open(&vm->kvm, err);
	if (r == 0)
		r = gw_kvm_create_vm(&vm->kvm, &vm->fd, err);
	if (r == 0)
		r = create_chips(vm, err);
	if (r == 0)
		r = create_memory(vm, err);
	if (r == 0)
		r = gw_irq_new(vm, &vm->irq, err);
	if (r < 0)
		return r;
	vm->mmio = gw_bus_new();
	vm->pio = gw_bus_new();
	if (!vm->mmio || !vm->pio)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_iothread_new("devices", &vm->iothread, err);
	if (r == 0)
		r = create_vcpus(vm, err);
	if (r == 0)
		r = create_devices(vm, err);
	if (r == 0)
		r = take_initial_state(vm, err);
	return r;
}

/* The window of 64-bit BARs: the same on every host, for it depends on the VM's size alone. */
static void place_pci64(const struct gw_vm *vm, struct gw_acpi_config *acpi)
{
	unsigned count;
	const struct gw_ram_region *regions = gw_ram_regions(vm->ram, &count);
	uint64_t end = regions[count - 1].gpa + regions[count - 1].size;
	uint64_t base = GW_MAX(GW_GPA_PCI64, GW_ALIGN_UP(end, GW_GPA_PCI64_SIZE));

	if (base + GW_GPA_PCI64_SIZE > 1ull << gw_cpuid_phys_bits(&vm->cpuid))
		return;
	acpi->pci64_base = base;
	acpi->pci64_size = GW_GPA_PCI64_SIZE;
}

int gw_vm_boot(struct gw_vm *vm, struct gw_error *err)
{
	const struct gw_vm_config *config = vm->config;
	struct gw_acpi_config acpi = { .cpus = config->cpus };
	struct gw_boot_entry entry;
	int r;

	place_pci64(vm, &acpi);
	r = gw_acpi_load(vm->ram, &acpi, err);
	if (r == 0)
		r = gw_genid_show(&vm->genid, vm->ram, err);
	if (r == 0)
		r = gw_boot_load_files(vm->ram, config->kernel, config->initrd, config->cmdline ? config->cmdline : "",
				       GW_GPA_ACPI, &entry, err);
	if (r == 0)
		r = gw_boot_set_registers(gw_vcpu_fd(gw_vcpus_get(vm->vcpus, 0)), vm->ram, &entry, err);
	return r;
}

void gw_vm_teardown(struct gw_vm *vm)
{
	gw_quota_free(vm->quota);
	if (vm->vcpus)
		gw_vcpus_stop(vm->vcpus);
	/* Backwards: the PCI bus outlives its devices. */
	while (vm->ndevices > 0) {
		const struct gw_device *dev = &vm->devices[--vm->ndevices];

		dev->ops->free(dev->self);
	}
	gw_sharer_free(vm->sharer);
	gw_vcpus_free(vm->vcpus);
	gw_dirty_ring_free(vm->ring);
	gw_dirty_bitmap_free(vm->bitmap);
	gw_iothread_free(vm->iothread);
	gw_bus_free(vm->pio);
	gw_bus_free(vm->mmio);
	gw_irq_free(vm->irq);
	for (unsigned i = 0; i < GW_MAX_CPUS; i++)
		gw_vcpu_state_free(vm->initial_vcpu[i]);
	free(vm->initial);
	gw_closep(&vm->fd);
	gw_kvm_close(&vm->kvm);
	gw_ram_free(vm->ram);
}
