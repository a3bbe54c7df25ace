// SPDX-License-Identifier: Apache-2.0
/* Pages that vCPUs touch, by perf events on KVM's tracepoint; see working-set.h. */
#include "vmm/working-set.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lib/util.h"
#include "vmm/memslots.h"
#include "vmm/vm-internal.h"

/* Forgetting mappings holds the process's memory map for as long as its page tables are walked, some 20 ns a page that is not huge. */
#define MAX_PAGES (1ull << 24)
#define RING_BYTES (1u << 20) /* of each vCPU: some 18,000 faults, of which what comes later is lost */

/* Where the kernel's tracepoint has what we need (tracefs, events/kvm/kvm_page_fault). */
struct tracepoint {
	uint64_t id;
	size_t address; /* offset of the guest-physical address, 8 bytes, in its record */
};

struct watch {
	int fd;
	struct perf_event_mmap_page *head; /* then RING_BYTES of records */
};

struct gw_working_set {
	struct gw_vm *vm;
	struct tracepoint point;
	unsigned count;
	struct watch watches[GW_MAX_CPUS];
};

/* ---- tracefs ---- */

static int read_text(const char *directory, const char *name, char *text, size_t room)
{
	char path[128];
	size_t len;
	FILE *f;

	snprintf(path, sizeof(path), "%s/events/kvm/kvm_page_fault/%s", directory, name);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	len = fread(text, 1, room - 1, f);
	text[len] = '\0';
	fclose(f);
	return len ? 0 : -EIO;
}

static int find_tracepoint(struct tracepoint *ret)
{
	static const char *const places[] = { "/sys/kernel/tracing", "/sys/kernel/debug/tracing" };
	char text[4096], *field;
	int r = -ENOENT;

	for (size_t i = 0; i < ARRAY_SIZE(places) && r < 0; i++) {
		r = read_text(places[i], "id", text, sizeof(text));
		if (r == 0)
			ret->id = strtoull(text, NULL, 10);
		r = r ?: read_text(places[i], "format", text, sizeof(text));
	}
	if (r < 0)
		return r;
	/* field:u64 fault_address;	offset:24;	size:8;	signed:0; */
	field = strstr(text, " fault_address;");
	field = field ? strstr(field, "offset:") : NULL;
	if (!field)
		return -ENOTSUP;
	ret->address = strtoull(field + strlen("offset:"), NULL, 10);
	return 0;
}

/* ---- one vCPU ---- */

static int open_watch(const struct tracepoint *point, pid_t tid, struct watch *ret)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_TRACEPOINT, .size = sizeof(attr), .config = point->id, .sample_period = 1,
					.sample_type = PERF_SAMPLE_RAW, .disabled = 1 };
	int fd = (int)syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
	void *p;

	if (fd < 0)
		return -errno;
	p = mmap(NULL, GW_PAGE_SIZE + RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) {
		int r = -errno;

		close(fd);
		return r;
	}
	*ret = (struct watch){ fd, p };
	return 0;
}

static void copy_record(const struct watch *w, uint64_t at, void *to, size_t len)
{
	const uint8_t *data = (const uint8_t *)w->head + w->head->data_offset;

	for (size_t i = 0; i < len; i++)
		((uint8_t *)to)[i] = data[(at + i) % RING_BYTES];
}

static void note(const struct gw_ram *ram, uint64_t gpa, uint64_t *bitmap)
{
	uint64_t page = gw_ram_index(ram, gpa);

	if (page != UINT64_MAX)
		bitmap[page / 64] |= 1ull << (page % 64);
}

static void read_watch(const struct gw_working_set *ws, const struct watch *w, uint64_t *bitmap)
{
	/* Pairs with the kernel's barrier before it moves the head (linux/perf_event.h). */
	uint64_t head = __atomic_load_n(&w->head->data_head, __ATOMIC_ACQUIRE);
	uint64_t at = w->head->data_tail;

	while (head - at >= sizeof(struct perf_event_header)) {
		struct perf_event_header h;
		uint64_t gpa;

		copy_record(w, at, &h, sizeof(h));
		if (h.size < sizeof(h) || h.size > head - at)
			break;
		/* PERF_SAMPLE_RAW: 4 bytes length, then the tracepoint's record. */
		if (h.type == PERF_RECORD_SAMPLE && sizeof(h) + 4 + ws->point.address + sizeof(gpa) <= h.size) {
			copy_record(w, at + sizeof(h) + 4 + ws->point.address, &gpa, sizeof(gpa));
			note(ws->vm->ram, gpa, bitmap);
		}
		at += h.size;
	}
	__atomic_store_n(&w->head->data_tail, at, __ATOMIC_RELEASE);
}

/* ---- all ---- */

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
		r = ioctl(ws->watches[i].fd, PERF_EVENT_IOC_ENABLE, 0) < 0 ? -errno : 0;
	return r ?: forget_mappings();
}

int gw_working_set_new(struct gw_vm *vm, struct gw_working_set **ret)
{
	struct gw_working_set *ws = calloc(1, sizeof(*ws));
	unsigned count = gw_vcpus_count(vm->vcpus);
	int r = ws ? find_tracepoint(&ws->point) : -ENOMEM;

	if (r == 0 && gw_ram_pages(vm->ram) > MAX_PAGES)
		r = -E2BIG;
	for (unsigned i = 0; i < count && r == 0; i++) {
		r = open_watch(&ws->point, gw_vcpu_tid(gw_vcpus_get(vm->vcpus, i)), &ws->watches[i]);
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

void gw_working_set_read(struct gw_working_set *ws, uint64_t *bitmap)
{
	for (unsigned i = 0; i < ws->count; i++)
		read_watch(ws, &ws->watches[i], bitmap);
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
	for (unsigned i = 0; i < ws->count; i++) {
		munmap(ws->watches[i].head, GW_PAGE_SIZE + RING_BYTES);
		close(ws->watches[i].fd);
	}
	free(ws);
}
