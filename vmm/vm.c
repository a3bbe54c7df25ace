// SPDX-License-Identifier: Apache-2.0
/* The virtual machine's life: running and stopping, reset, and the state of all its parts; see vm.h. */
#include "vmm/vm.h"

#include <errno.h>
#include <string.h>

#include "lib/log.h"
#include "lib/util.h"
#include "vmm/kvm-dirty.h"
#include "vmm/pm.h"
#include "vmm/quota.h"
#include "vmm/serial.h"
#include "vmm/vm-internal.h"

/* What is of the VM as a whole and of none of its parts. */
struct vm_section {
	uint32_t cpus;
	uint64_t memory;
	struct gw_buf cpuid;
	bool event_pending; /* the guest ended or reset itself, and nobody has acted on it */
	uint32_t event;
};
static const struct gw_state_field vm_fields[] = {
	GW_STATE_UINT(struct vm_section, cpus, 1),
	GW_STATE_UINT(struct vm_section, memory, 1),
	GW_STATE_BUF(struct vm_section, cpuid, GW_CPUID_MAX_BYTES, 1),
	GW_STATE_UINT(struct vm_section, event_pending, 1),
	GW_STATE_UINT(struct vm_section, event, 1),
	{ }
};
static const struct gw_state_desc vm_desc = { "vm", 1, 1, vm_fields };

int gw_vm_new(const struct gw_vm_config *config, struct gw_vm **ret, struct gw_error *err)
{
	struct gw_vm *vm = calloc(1, sizeof(*vm));
	int r;

	if (!vm)
		return gw_error_set(err, ENOMEM, "out of memory");
	vm->config = config;
	vm->fd = -1;
	vm->kvm.fd = -1;
	pthread_mutex_init(&vm->life_lock, NULL);
	r = gw_vm_events_init(vm, err);
	if (r == 0)
		r = gw_vm_setup(vm, err);
	if (r == 0 && !config->incoming)
		r = gw_vm_boot(vm, err);
	if (r < 0) {
		gw_vm_free(vm);
		return r;
	}
	*ret = vm;
	return 0;
}

void gw_vm_free(struct gw_vm *vm)
{
	if (!vm)
		return;
	if (vm->running)
		gw_vm_stop(vm);
	gw_vm_teardown(vm);
	gw_vm_events_release(vm);
	pthread_mutex_destroy(&vm->life_lock);
	free(vm);
}

const struct gw_vm_config *gw_vm_config(const struct gw_vm *vm)
{
	return vm->config;
}

struct gw_ram *gw_vm_ram(struct gw_vm *vm)
{
	return vm->ram;
}

struct gw_bus *gw_vm_mmio(struct gw_vm *vm)
{
	return vm->mmio;
}

struct gw_bus *gw_vm_pio(struct gw_vm *vm)
{
	return vm->pio;
}

struct gw_pci_bus *gw_vm_pci(struct gw_vm *vm)
{
	return vm->pci;
}

struct gw_iothread *gw_vm_iothread(struct gw_vm *vm)
{
	return vm->iothread;
}

int gw_vm_fd(const struct gw_vm *vm)
{
	return vm->fd;
}

struct gw_tty *gw_vm_console(struct gw_vm *vm)
{
	return gw_serial_tty(vm->serial);
}

int gw_vm_add_device(struct gw_vm *vm, const struct gw_device *dev, struct gw_error *err)
{
	if (vm->ndevices == GW_MAX_DEVICES)
		return gw_error_set(err, ENOSPC, "more than %d devices", GW_MAX_DEVICES);
	for (unsigned i = 0; i < vm->ndevices; i++) {
		if (!strcmp(vm->devices[i].kind, dev->kind) && !strcmp(vm->devices[i].instance, dev->instance))
			return gw_error_set(err, EEXIST, "two devices %s %s", dev->kind, dev->instance);
	}
	vm->devices[vm->ndevices++] = *dev;
	return 0;
}

void gw_vm_stop(struct gw_vm *vm)
{
	pthread_mutex_lock(&vm->life_lock);
	if (vm->running) {
		gw_vcpus_stop(vm->vcpus);
		for (unsigned i = 0; i < vm->ndevices; i++) {
			if (vm->devices[i].ops->quiesce)
				vm->devices[i].ops->quiesce(vm->devices[i].self);
		}
		__atomic_store_n(&vm->running, false, __ATOMIC_RELEASE);
		vm->stopped_before = true;
	}
	pthread_mutex_unlock(&vm->life_lock);
}

/* Those with outside effects, or the others. */
static void resume_devices(struct gw_vm *vm, bool outside)
{
	for (unsigned i = 0; i < vm->ndevices; i++) {
		const struct gw_device *dev = &vm->devices[i];

		if (dev->ops->resume && dev->ops->outside == outside)
			dev->ops->resume(dev->self);
	}
}

static void run(struct gw_vm *vm, bool held)
{
	pthread_mutex_lock(&vm->life_lock);
	if (!vm->running) {
		resume_devices(vm, false);
		if (!held)
			resume_devices(vm, true);
		vm->held = held;
		for (unsigned i = 0; vm->stopped_before && i < vm->config->cpus; i++)
			gw_vcpu_note_pause(gw_vcpus_get(vm->vcpus, i));
		__atomic_store_n(&vm->running, true, __ATOMIC_RELEASE);
		if (vm->event_loaded)
			gw_vm_post_event(vm, vm->event, vm->event_reason);
		vm->event_loaded = false;
		/* A guest that has ended or reset itself does not run on until that is dealt with. */
		if (!gw_vm_event_pending(vm))
			gw_vcpus_run(vm->vcpus);
	}
	pthread_mutex_unlock(&vm->life_lock);
}

void gw_vm_run(struct gw_vm *vm)
{
	run(vm, false);
}

void gw_vm_run_held(struct gw_vm *vm)
{
	run(vm, true);
}

void gw_vm_release(struct gw_vm *vm)
{
	pthread_mutex_lock(&vm->life_lock);
	if (vm->running && vm->held)
		resume_devices(vm, true);
	vm->held = false;
	pthread_mutex_unlock(&vm->life_lock);
}

void gw_vm_slow(struct gw_vm *vm, unsigned percent)
{
	struct gw_error err = GW_ERROR_INIT;

	if (percent == 0)
		gw_quota_free(gw_steal_ptr(&vm->quota));
	else if (!vm->quota && gw_quota_new(vm->vcpus, vm->ring, &vm->quota, &err) < 0)
		gw_warn("the VM is not slowed down: %s", gw_error_text(&err));
	if (vm->quota)
		gw_quota_set(vm->quota, percent);
}

bool gw_vm_running(const struct gw_vm *vm)
{
	/* Without the lock: a stop may take as long as memory is on its way that the VM waits for, and the main thread asks this. */
	return __atomic_load_n(&vm->running, __ATOMIC_ACQUIRE);
}

static int save_section(struct gw_vm *vm, struct gw_state_writer *w, struct gw_error *err)
{
	struct vm_section s = { .cpus = vm->config->cpus, .memory = vm->config->memory, .cpuid = GW_BUF_INIT };
	int r = gw_cpuid_serialize(&vm->cpuid, &s.cpuid);

	pthread_mutex_lock(&vm->event_lock);
	s.event_pending = vm->event_pending || vm->event_loaded;
	s.event = vm->event;
	pthread_mutex_unlock(&vm->event_lock);
	if (r == 0)
		r = gw_state_put(w, &vm_desc, "0", &s);
	gw_buf_release(&s.cpuid);
	return r < 0 ? gw_error_errno(err, r, "cannot save the VM's description") : 0;
}

int gw_vm_save(struct gw_vm *vm, struct gw_buf *out, struct gw_error *err)
{
	struct gw_state_writer *w;
	struct gw_vm_state st;
	int r = gw_state_writer_new(&w);

	if (r < 0)
		return gw_error_errno(err, r, "cannot save the VM's state");
	r = save_section(vm, w, err);
	if (r == 0)
		r = gw_genid_save(&vm->genid, w, err);
	if (r == 0)
		r = gw_vm_state_save(vm, &st, w, err);
	for (unsigned i = 0; r == 0 && i < vm->config->cpus; i++)
		r = gw_vcpu_save(gw_vcpus_get(vm->vcpus, i), &st.clock, w, err);
	for (unsigned i = 0; r == 0 && i < vm->ndevices; i++)
		r = vm->devices[i].ops->save(vm->devices[i].self, w, err);
	if (r == 0) {
		r = gw_state_finish(w, out);
		if (r < 0)
			gw_error_errno(err, r, "cannot save the VM's state");
	}
	gw_state_writer_free(w);
	return r;
}

/* The guest keeps the processor that it was started with, whatever this host could offer beyond. */
static int take_cpuid(struct gw_vm *vm, const struct gw_buf *table, struct gw_error *err)
{
	struct gw_cpuid cpuid;
	int r = gw_cpuid_parse(table->data, table->len, &cpuid, err);

	if (r == 0)
		r = gw_cpuid_check(&cpuid, &vm->host_cpuid, err);
	for (unsigned i = 0; r == 0 && i < vm->config->cpus; i++)
		r = gw_cpuid_apply(&cpuid, gw_vcpu_fd(gw_vcpus_get(vm->vcpus, i)), i, err);
	if (r == 0)
		vm->cpuid = cpuid;
	return r;
}

static int load_section(struct gw_vm *vm, struct gw_state_reader *reader, struct gw_error *err)
{
	struct vm_section s = { .cpuid = GW_BUF_INIT };
	int r = gw_state_get(reader, &vm_desc, "0", &s, err);

	if (r == 0 && s.cpus != vm->config->cpus)
		r = gw_error_set(err, EPROTO, "the state is of a VM with %u CPUs, this one has %u", s.cpus, vm->config->cpus);
	if (r == 0 && s.memory != vm->config->memory)
		r = gw_error_set(err, EPROTO, "the state is of a VM with %llu MiB of memory, this one has %llu MiB",
				 (unsigned long long)(s.memory >> 20), (unsigned long long)(vm->config->memory >> 20));
	if (r == 0 && s.event > GW_VM_CRASHED)
		r = gw_error_set(err, EPROTO, "the state tells of an unknown event");
	if (r == 0)
		r = take_cpuid(vm, &s.cpuid, err);
	if (r == 0 && s.event_pending) {
		vm->event_loaded = true;
		vm->event = s.event;
		snprintf(vm->event_reason, sizeof(vm->event_reason), "the guest asked for it before it moved");
	}
	gw_buf_release(&s.cpuid);
	return r;
}

static int load_parts(struct gw_vm *vm, struct gw_state_reader *reader, struct gw_error *err)
{
	struct gw_vm_clock now;
	struct gw_vm_state st;
	int r = load_section(vm, reader, err);

	if (r == 0)
		r = gw_genid_load(&vm->genid, reader, err);
	if (r == 0)
		r = gw_vm_state_load(vm, reader, &st, &now, err);
	for (unsigned i = 0; r == 0 && i < vm->config->cpus; i++)
		r = gw_vcpu_load(gw_vcpus_get(vm->vcpus, i), &st.clock, &now, reader, err);
	if (r == 0)
		r = gw_vm_state_set(vm, &st, err);
	for (unsigned i = 0; r == 0 && i < vm->ndevices; i++)
		r = vm->devices[i].ops->load(vm->devices[i].self, reader, err);
	if (r == 0)
		r = gw_state_reader_done(reader, err);
	return r;
}

int gw_vm_load(struct gw_vm *vm, const void *data, size_t len, struct gw_error *err)
{
	struct gw_state_reader *reader;
	int r = gw_state_reader_new(data, len, &reader, err);

	if (r < 0)
		return r;
	r = load_parts(vm, reader, err);
	gw_state_reader_free(reader);
	vm->stopped_before = true;
	return r;
}

int gw_vm_renew(struct gw_vm *vm, bool clone, struct gw_error *err)
{
	int r = gw_genid_renew(&vm->genid, vm->ram, err);

	for (unsigned i = 0; r == 0 && clone && i < vm->ndevices; i++) {
		if (vm->devices[i].ops->clone)
			vm->devices[i].ops->clone(vm->devices[i].self);
	}
	if (r == 0 && vm->genid.shown)
		gw_pm_raise(vm->pm, GW_PM_GPE_GENID);
	return r;
}

void gw_vm_announce(struct gw_vm *vm)
{
	for (unsigned i = 0; i < vm->ndevices; i++) {
		if (vm->devices[i].ops->announce)
			vm->devices[i].ops->announce(vm->devices[i].self);
	}
}

void gw_vm_drain(struct gw_vm *vm, void (*fn)(void *arg, unsigned device, const void *data, size_t len), void *arg)
{
	for (unsigned i = 0; i < vm->ndevices; i++) {
		struct gw_packet_sink sink = { fn, arg, i };

		if (vm->devices[i].ops->drain)
			vm->devices[i].ops->drain(vm->devices[i].self, &sink);
	}
}

void gw_vm_deliver(struct gw_vm *vm, unsigned device, const void *data, size_t len)
{
	if (device < vm->ndevices && vm->devices[device].ops->deliver)
		vm->devices[device].ops->deliver(vm->devices[device].self, data, len);
}

struct gw_dirty_source gw_vm_dirty_source(struct gw_vm *vm)
{
	if (vm->ring)
		return (struct gw_dirty_source){ &gw_dirty_ring_ops, vm->ring };
	return (struct gw_dirty_source){ &gw_dirty_bitmap_ops, vm->bitmap };
}

/* Fresh zeros; told to whoever tracks writes, as no write happened that KVM could have seen. */
static void clear_ram(struct gw_ram *ram)
{
	unsigned count;
	const struct gw_ram_region *regions = gw_ram_regions(ram, &count);

	for (unsigned i = 0; i < count; i++) {
		if (gw_ram_discard(ram, regions[i].gpa, regions[i].size) == 0)
			continue;
		memset(regions[i].hva, 0, regions[i].size);
		gw_ram_mark_dirty(ram, regions[i].gpa, regions[i].size);
	}
}

int gw_vm_reset(struct gw_vm *vm, struct gw_error *err)
{
	int r = 0;

	for (unsigned i = 0; i < vm->ndevices; i++)
		vm->devices[i].ops->reset(vm->devices[i].self);
	clear_ram(vm->ram);
	for (unsigned i = 0; r == 0 && i < vm->config->cpus; i++)
		r = gw_vcpu_state_set(gw_vcpus_get(vm->vcpus, i), vm->initial_vcpu[i], NULL, NULL, err);
	if (r == 0)
		r = gw_vm_state_set(vm, vm->initial, err);
	/* The guest's clock was part of what is gone: nobody needs to be told that it stood still. */
	vm->stopped_before = false;
	return r < 0 ? r : gw_vm_boot(vm, err);
}

void gw_vm_power_button(struct gw_vm *vm)
{
	gw_pm_power_button(vm->pm);
}

int gw_vm_features(struct gw_vm *vm, struct gw_buf *cpuid, struct gw_buf *devices, uint32_t *tsc_khz, struct gw_error *err)
{
	int r = gw_cpuid_serialize(&vm->cpuid, cpuid);

	for (unsigned i = 0; r == 0 && i < vm->ndevices; i++) {
		char line[160];
		int len = snprintf(line, sizeof(line), "%s %s\n", vm->devices[i].kind, vm->devices[i].instance);

		r = gw_buf_append(devices, line, GW_MIN((size_t)len, sizeof(line) - 1));
	}
	*tsc_khz = vm->tsc_khz;
	return r < 0 ? gw_error_errno(err, r, "cannot list the VM's features") : 0;
}

int gw_vm_check_features(struct gw_vm *vm, const void *cpuid, size_t cpuid_len, const void *devices, size_t devices_len,
			 uint32_t tsc_khz, struct gw_error *err)
{
	gw_autobuf ours = GW_BUF_INIT, our_cpuid = GW_BUF_INIT;
	struct gw_cpuid guest;
	uint32_t khz;
	int r = gw_cpuid_parse(cpuid, cpuid_len, &guest, err);

	if (r == 0)
		r = gw_cpuid_check(&guest, &vm->host_cpuid, err);
	if (r == 0)
		r = gw_vm_check_tsc(vm, tsc_khz, err);
	if (r == 0)
		r = gw_vm_features(vm, &our_cpuid, &ours, &khz, err);
	if (r == 0 && (ours.len != devices_len || memcmp(ours.data, devices, devices_len)))
		r = gw_error_set(err, ENOTSUP, "the VM has other devices than the one that was prepared for it here");
	return r;
}
