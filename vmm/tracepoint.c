// SPDX-License-Identifier: Apache-2.0
/* The kernel's tracepoints by perf events; see tracepoint.h. */
#include "vmm/tracepoint.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lib/util.h"

#define MAX_FORMAT 8192
#define RAW_SIZE 4 /* before the tracepoint's own record its length */

struct gw_trace {
	struct gw_tracepoint point;
	int fd;
	struct perf_event_mmap_page *ring; /* a page, then the records */
	size_t mapped;
};

/* ---- tracefs ---- */

static int read_text(const char *directory, const char *event, const char *name, char *text, size_t room)
{
	char path[256];
	size_t len;
	FILE *f;

	snprintf(path, sizeof(path), "%s/events/%s/%s", directory, event, name);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	len = fread(text, 1, room - 1, f);
	text[len] = '\0';
	fclose(f);
	return len ? 0 : -EIO;
}

int gw_tracepoint_find(const char *event, const char *field, struct gw_tracepoint *ret)
{
	static const char *const places[] = { "/sys/kernel/tracing", "/sys/kernel/debug/tracing" };
	char text[MAX_FORMAT] = "";
	int r = -ENOENT;

	for (size_t i = 0; i < ARRAY_SIZE(places) && r < 0; i++) {
		r = read_text(places[i], event, "id", text, sizeof(text));
		if (r == 0)
			ret->id = strtoull(text, NULL, 10);
		r = r ?: read_text(places[i], event, "format", text, sizeof(text));
	}
	return r ?: gw_tracepoint_field(text, field, &ret->at);
}

/* A line of it: "	field:u64 fault_address;	offset:24;	size:8;	signed:0;" */
int gw_tracepoint_field(const char *format, const char *field, size_t *at)
{
	size_t len = strlen(field);

	for (const char *p = strstr(format, field); p; p = strstr(p + 1, field)) {
		unsigned offset, size;

		if (p == format || p[-1] != ' ' || sscanf(p + len, "; offset:%u; size:%u;", &offset, &size) != 2 || size != sizeof(uint64_t))
			continue;
		*at = offset;
		return 0;
	}
	return -ENOTSUP;
}

/* ---- records ---- */

static void copy_out(const struct perf_event_mmap_page *ring, uint64_t at, void *to, size_t len)
{
	const uint8_t *data = (const uint8_t *)ring + ring->data_offset;

	for (size_t i = 0; i < len; i++)
		((uint8_t *)to)[i] = data[(at + i) % ring->data_size];
}

void gw_trace_read_ring(const struct gw_tracepoint *point, struct perf_event_mmap_page *ring, gw_trace_fn *fn, void *self)
{
	/* Pairs with the kernel's barrier before it moves the head (linux/perf_event.h). */
	uint64_t head = __atomic_load_n(&ring->data_head, __ATOMIC_ACQUIRE);
	uint64_t at = ring->data_tail;
	struct perf_event_header h;

	for (; head - at >= sizeof(h); at += h.size) {
		uint64_t value, offset = sizeof(h) + RAW_SIZE + point->at;

		copy_out(ring, at, &h, sizeof(h));
		if (h.size < sizeof(h) || h.size > head - at)
			break;
		if (h.type != PERF_RECORD_SAMPLE || offset + sizeof(value) > h.size)
			continue;
		copy_out(ring, at + offset, &value, sizeof(value));
		fn(self, value);
	}
	__atomic_store_n(&ring->data_tail, at, __ATOMIC_RELEASE);
}

/* ---- life ---- */

int gw_trace_new(const struct gw_tracepoint *point, pid_t tid, size_t bytes, struct gw_trace **ret)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_TRACEPOINT, .size = sizeof(attr), .config = point->id, .sample_period = 1,
					.sample_type = PERF_SAMPLE_RAW, .disabled = 1 };
	struct gw_trace *t = malloc(sizeof(*t));
	int r;

	if (!t)
		return -ENOMEM;
	*t = (struct gw_trace){ .point = *point, .mapped = GW_PAGE_SIZE + bytes };
	t->fd = (int)syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
	t->ring = t->fd < 0 ? MAP_FAILED : mmap(NULL, t->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, 0);
	if (t->ring == MAP_FAILED) {
		r = -errno;
		gw_closep(&t->fd);
		free(t);
		return r;
	}
	*ret = t;
	return 0;
}

int gw_trace_enable(struct gw_trace *t)
{
	return ioctl(t->fd, PERF_EVENT_IOC_ENABLE, 0) < 0 ? -errno : 0;
}

void gw_trace_read(struct gw_trace *t, gw_trace_fn *fn, void *self)
{
	gw_trace_read_ring(&t->point, t->ring, fn, self);
}

void gw_trace_free(struct gw_trace *t)
{
	if (!t)
		return;
	munmap(t->ring, t->mapped);
	close(t->fd);
	free(t);
}
