// SPDX-License-Identifier: Apache-2.0
/* Pages that vCPUs touch, by KVM's tracepoint; see working-set.h. */
#include "vmm/working-set.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "lib/util.h"
#include "vmm/memslots.h"
#include "vmm/tracepoint.h"
#include "vmm/vm-internal.h"

/* Forgetting mappings holds the process's memory map for as long as its page tables are walked, some 20 ns a page that is not huge. */
#define MAX_PAGES (1ull << 24)
#define RING_BYTES (1u << 20) /* of each vCPU: some 18,000 faults, of which what comes later is lost */

struct gw_working_set {
	struct gw_vm *vm;
	unsigned count;
	struct gw_trace *traces[GW_MAX_CPUS];
};

/* KVM drops its mappings of all memory whose soft-dirty bits are cleared (Documentation/admin-guide/mm/soft-dirty.rst). */
static int forget_mappings(void)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC), r;

	if (fd < 0)
		return -errno;
	r = write(fd, "4", 1) == 1 ? 0 : -errno;
	close(fd);
	return r;
}

static int begin(struct gw_working_set *ws, struct gw_vm *vm)
{
	int r;

	ws->vm = vm;
	/* What is logged is mapped in small pages, also for reading. */
	r = gw_memslots_set(vm->fd, vm->ram, true, NULL);
	for (unsigned i = 0; i < ws->count && r == 0; i++)
		r = gw_trace_enable(ws->traces[i]);
	return r ?: forget_mappings();
}

int gw_working_set_new(struct gw_vm *vm, struct gw_working_set **ret)
{
	struct gw_working_set *ws = calloc(1, sizeof(*ws));
	unsigned count = gw_vcpus_count(vm->vcpus);
	struct gw_tracepoint point;
	int r = ws ? gw_tracepoint_find("kvm/kvm_page_fault", "fault_address", &point) : -ENOMEM;

	if (r == 0 && gw_ram_pages(vm->ram) > MAX_PAGES)
		r = -E2BIG;
	for (unsigned i = 0; i < count && r == 0; i++) {
		r = gw_trace_new(&point, gw_vcpu_tid(gw_vcpus_get(vm->vcpus, i)), RING_BYTES, &ws->traces[i]);
		ws->count += r == 0;
	}
	r = r ?: begin(ws, vm);
	if (r < 0) {
		gw_working_set_free(ws);
		return r;
	}
	*ret = ws;
	return 0;
}

struct marking {
	const struct gw_ram *ram;
	uint64_t *bitmap;
};

static void mark(void *self, uint64_t gpa)
{
	const struct marking *m = self;
	uint64_t page = gw_ram_index(m->ram, gpa);

	if (page != UINT64_MAX)
		m->bitmap[page / 64] |= 1ull << (page % 64);
}

void gw_working_set_read(struct gw_working_set *ws, uint64_t *bitmap)
{
	struct marking marking = { ws->vm->ram, bitmap };

	for (unsigned i = 0; i < ws->count; i++)
		gw_trace_read(ws->traces[i], mark, &marking);
	for (unsigned i = 0; i < ws->vm->ndevices; i++) {
		const struct gw_device *dev = &ws->vm->devices[i];

		if (dev->ops->mark)
			dev->ops->mark(dev->self, bitmap);
	}
}

void gw_working_set_free(struct gw_working_set *ws)
{
	if (!ws)
		return;
	if (ws->vm)
		(void)gw_memslots_set(ws->vm->fd, ws->vm->ram, false, NULL);
	for (unsigned i = 0; i < ws->count; i++)
		gw_trace_free(ws->traces[i]);
	free(ws);
}
