// SPDX-License-Identifier: Apache-2.0
/* Comparing both ends' machines; see move-machine.h. */
#include "vmm/move-machine.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/blk.h"
#include "vmm/cpuid.h"
#include "vmm/virtio-devices.h"
#include "vmm/vm-internal.h"

static int out_of_memory(struct gw_error *err)
{
	return gw_error_set(err, ENOMEM, "out of memory");
}

static int copy_bytes(ProtobufCBinaryData *to, const void *data, size_t len)
{
	to->data = malloc(len + 1);
	if (!to->data)
		return -ENOMEM;
	memcpy(to->data, data, len);
	to->len = len;
	return 0;
}

static int add_devices(const struct gw_vm *vm, Godwit__StreamMachine *m)
{
	m->devices = calloc(vm->ndevices + 1, sizeof(*m->devices));
	if (!m->devices)
		return -ENOMEM;
	for (unsigned i = 0; i < vm->ndevices; i++) {
		if (asprintf(&m->devices[i], "%s %s", vm->devices[i].kind, vm->devices[i].instance) < 0)
			return -ENOMEM;
		m->n_devices++;
	}
	return 0;
}

/* Bytes of disk `i`; 0 when there is no such device. */
static uint64_t disk_size(struct gw_vm *vm, unsigned i)
{
	struct gw_blk_identity id = { .size = 0 };
	struct gw_blk *blk = gw_vm_disk(vm, i);

	if (blk)
		gw_blk_identity(blk, &id);
	return id.size;
}

static int add_disks(struct gw_vm *vm, Godwit__StreamMachine *m)
{
	const struct gw_vm_config *c = gw_vm_config(vm);

	m->disks = calloc(c->ndisks + 1, sizeof(*m->disks));
	if (!m->disks)
		return -ENOMEM;
	for (unsigned i = 0; i < c->ndisks; i++) {
		Godwit__StreamDisk *d = malloc(sizeof(*d));

		if (!d)
			return -ENOMEM;
		godwit__stream_disk__init(d);
		m->disks[m->n_disks++] = d;
		d->name = strdup(c->disks[i].name);
		d->readonly = c->disks[i].readonly;
		d->size = disk_size(vm, i);
		if (!d->name)
			return -ENOMEM;
	}
	return 0;
}

static int add_nets(const struct gw_vm_config *c, Godwit__StreamMachine *m)
{
	m->nets = calloc(c->nnets + 1, sizeof(*m->nets));
	if (!m->nets)
		return -ENOMEM;
	for (unsigned i = 0; i < c->nnets; i++) {
		Godwit__StreamNet *n = malloc(sizeof(*n));

		if (!n)
			return -ENOMEM;
		godwit__stream_net__init(n);
		m->nets[m->n_nets++] = n;
		n->name = strdup(c->nets[i].name);
		if (!n->name || copy_bytes(&n->mac, c->nets[i].mac, sizeof(c->nets[i].mac)) < 0)
			return -ENOMEM;
	}
	return 0;
}

int gw_move_machine_describe(struct gw_vm *vm, Godwit__StreamMachine **ret, struct gw_error *err)
{
	const struct gw_vm_config *c = gw_vm_config(vm);
	Godwit__StreamMachine *m = malloc(sizeof(*m));
	gw_autobuf cpuid = GW_BUF_INIT;

	if (!m)
		return out_of_memory(err);
	godwit__stream_machine__init(m);
	m->name = strdup(c->name ?: "");
	m->cpus = c->cpus;
	m->state_version = GW_STATE_VERSION;
	m->tsc_khz = vm->tsc_khz;
	if (!m->name || gw_cpuid_serialize(&vm->cpuid, &cpuid) < 0 || copy_bytes(&m->cpuid, cpuid.data, cpuid.len) < 0 ||
	    add_devices(vm, m) < 0 || add_disks(vm, m) < 0 || add_nets(c, m) < 0) {
		godwit__stream_machine__free_unpacked(m, NULL);
		return out_of_memory(err);
	}
	*ret = m;
	return 0;
}

static int accept_cpu(const struct gw_vm *vm, const Godwit__StreamMachine *theirs, struct gw_error *err)
{
	struct gw_cpuid guest;
	int r;

	if (theirs->cpus != vm->config->cpus)
		return gw_error_set(err, ENOTSUP, "the VM has %u CPUs at the source and %u here", theirs->cpus,
				    vm->config->cpus);
	r = gw_cpuid_parse(theirs->cpuid.data, theirs->cpuid.len, &guest, err);
	if (r == 0)
		r = gw_cpuid_check(&guest, &vm->host_cpuid, err);
	return r < 0 ? gw_error_wrap(err, "CPU") : 0;
}

static int accept_devices(const struct gw_vm *vm, const Godwit__StreamMachine *theirs, struct gw_error *err)
{
	char ours[128];

	for (unsigned i = 0; i < vm->ndevices || i < theirs->n_devices; i++) {
		if (i < vm->ndevices)
			snprintf(ours, sizeof(ours), "%s %s", vm->devices[i].kind, vm->devices[i].instance);
		if (i >= theirs->n_devices)
			return gw_error_set(err, ENOTSUP, "device '%s' is not there at the source", ours);
		if (i >= vm->ndevices)
			return gw_error_set(err, ENOTSUP, "device '%.64s' of the source is not there here", theirs->devices[i]);
		if (strcmp(ours, theirs->devices[i]))
			return gw_error_set(err, ENOTSUP, "device %u is '%s' here and '%.64s' at the source", i, ours,
					    theirs->devices[i]);
	}
	return 0;
}

static int accept_disks(struct gw_vm *vm, const Godwit__StreamMachine *theirs, struct gw_error *err)
{
	const struct gw_vm_config *c = gw_vm_config(vm);

	if (theirs->n_disks != c->ndisks)
		return gw_error_set(err, ENOTSUP, "the VM has %zu disks at the source and %u here", theirs->n_disks, c->ndisks);
	for (unsigned i = 0; i < c->ndisks; i++) {
		const Godwit__StreamDisk *d = theirs->disks[i];

		if (strcmp(d->name, c->disks[i].name))
			return gw_error_set(err, ENOTSUP, "disk %u is '%s' here and '%.64s' at the source", i,
					    c->disks[i].name, d->name);
		if (!!d->readonly != c->disks[i].readonly)
			return gw_error_set(err, ENOTSUP, "disk %s is %s here and not at the source", c->disks[i].name,
					    c->disks[i].readonly ? "read-only" : "writable");
		if (d->size && d->size != disk_size(vm, i))
			return gw_error_set(err, ENOTSUP, "disk %s has %llu bytes here and %llu at the source: not the same disk",
					    c->disks[i].name, (unsigned long long)disk_size(vm, i), (unsigned long long)d->size);
	}
	return 0;
}

static int accept_nets(const struct gw_vm_config *c, const Godwit__StreamMachine *theirs, bool clone, struct gw_error *err)
{
	if (theirs->n_nets != c->nnets)
		return gw_error_set(err, ENOTSUP, "the VM has %zu network devices at the source and %u here", theirs->n_nets,
				    c->nnets);
	for (unsigned i = 0; i < c->nnets; i++) {
		const Godwit__StreamNet *n = theirs->nets[i];

		if (strcmp(n->name, c->nets[i].name) || n->mac.len != sizeof(c->nets[i].mac) ||
		    (!clone && memcmp(n->mac.data, c->nets[i].mac, n->mac.len)))
			return gw_error_set(err, ENOTSUP, "network device %u, '%s', has another name or address at the source",
					    i, c->nets[i].name);
	}
	return 0;
}

int gw_move_machine_accept(struct gw_vm *vm, const Godwit__StreamMachine *theirs, bool clone, struct gw_error *err)
{
	int r;

	if (theirs->state_version < 1 || theirs->state_version > GW_STATE_VERSION)
		return gw_error_set(err, ENOTSUP, "device state has version %u at the source, this host takes up to %u", theirs->state_version,
				    GW_STATE_VERSION);
	r = accept_cpu(vm, theirs, err);
	if (r == 0)
		r = accept_devices(vm, theirs, err);
	if (r == 0)
		r = accept_disks(vm, theirs, err);
	if (r == 0)
		r = accept_nets(gw_vm_config(vm), theirs, clone, err);
	return r;
}
