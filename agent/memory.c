// SPDX-License-Identifier: Apache-2.0
/* The host's memory policy; see memory.h. */
#include "agent/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>

#include "agent/agent.h"
#include "agent/guest.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"

/* What a VMM needs besides its guest's RAM. */
#define VMM_OVERHEAD (32ull << 20)
#define LOOK_MS 5000
#define LOOK_LOW_MS 1000
#define SQUEEZE_NS (10 * GW_NS_PER_SEC)
/* Some task waited for memory for 0.1 s within 2 s. */
#define PRESSURE "some 100000 2000000"
#define NAMED 3 /* VMs in an event */

static unsigned long long mib(uint64_t bytes)
{
	return bytes >> 20;
}

void gw_memory_init(struct gw_memory *m)
{
	memset(m, 0, sizeof(*m));
	m->meminfo = "/proc/meminfo";
	m->pressure = "/proc/pressure/memory";
	pthread_mutex_init(&m->admit, NULL);
}

void gw_memory_release(struct gw_memory *m)
{
	pthread_mutex_destroy(&m->admit);
}

static int field(const char *text, const char *key, uint64_t *ret)
{
	const char *p = strstr(text, key);

	if (!p)
		return -EPROTO;
	*ret = strtoull(p + strlen(key), NULL, 10) << 10;
	return 0;
}

int gw_memory_read(const struct gw_memory *m, uint64_t *total, uint64_t *available, struct gw_error *err)
{
	gw_autofree char *text = NULL;
	uint64_t t, v;
	size_t len;
	int r = gw_read_file(m->meminfo, 65536, &text, &len, err);

	if (r < 0)
		return r;
	if (field(text, "MemTotal:", &t) < 0 || field(text, "MemAvailable:", &v) < 0)
		return gw_error_set(err, EPROTO, "%s does not tell the host's memory", m->meminfo);
	*total = t;
	*available = v;
	return 0;
}

uint64_t gw_memory_reserve(const struct gw_conf *conf, uint64_t total)
{
	return conf->reserve ?: total / 100 * conf->reserve_percent;
}

/* What the guest's own pages take already. With g->lock held. */
static uint64_t own_locked(const struct gw_guest *g)
{
	uint64_t memory = g->record->config->memory;
	uint64_t resident = g->status ? GW_MIN(g->status->resident, memory) : 0;
	uint64_t pages = g->share.status ? GW_MIN(g->share.status->shared_pages, memory / GW_PAGE_SIZE) : 0;

	/* The store's pages are resident as well, and each may have to become a page of its own. */
	return resident - GW_MIN(resident, pages * GW_PAGE_SIZE);
}

struct demand {
	uint64_t memory;   /* of all VMs that live or are promised to */
	uint64_t promised; /* of it, what they have not taken yet */
};

static int count(struct gw_agent *a, const struct gw_guest *without, struct demand *d, struct gw_error *err)
{
	struct gw_guest **list;
	unsigned n;

	memset(d, 0, sizeof(*d));
	if (gw_guest_list(a, &list, &n) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < n; i++) {
		struct gw_guest *g = list[i];

		pthread_mutex_lock(&g->lock);
		if (g != without && (g->watched || g->admitted || g->record->state == GODWIT__VM_STATE__VM_INCOMING)) {
			d->memory += g->record->config->memory;
			d->promised += g->record->config->memory - own_locked(g);
		}
		pthread_mutex_unlock(&g->lock);
		gw_guest_unref(g);
	}
	free(list);
	return 0;
}

static int judge(struct gw_agent *a, const struct demand *d, uint64_t bytes, struct gw_error *err)
{
	const struct gw_conf *conf = a->conf;
	unsigned factor = GW_MAX(conf->overcommit, 100u);
	uint64_t total, available, reserve;
	int r = gw_memory_read(&a->memory, &total, &available, err);

	if (r < 0)
		return r;
	reserve = gw_memory_reserve(conf, total);
	if (a->memory.low || available < reserve)
		return gw_error_set(err, ENOMEM, "host %s is short of memory: %llu MiB are available, and %llu MiB are held in reserve",
				    conf->name, mib(available), mib(reserve));
	if (d->memory + bytes > total / 100 * conf->overcommit)
		return gw_error_set(err, ENOMEM,
				    "the VM needs %llu MiB; host %s has %llu MiB, VMs have %llu of the %llu MiB that overcommit = %u.%02u allows",
				    mib(bytes), conf->name, mib(total), mib(d->memory), mib(total / 100 * conf->overcommit),
				    conf->overcommit / 100, conf->overcommit % 100);
	if ((d->promised + bytes) / factor * 100 + VMM_OVERHEAD + reserve > available)
		return gw_error_set(err, ENOMEM,
				    "the VM needs %llu MiB and host %s has %llu of %llu MiB available, %llu of them promised to VMs and %llu in reserve",
				    mib(bytes), conf->name, mib(available), mib(total), mib(d->promised), mib(reserve));
	return 0;
}

int gw_memory_admit(struct gw_agent *a, struct gw_guest *g, uint64_t bytes, struct gw_error *err)
{
	struct demand d;
	int r;

	pthread_mutex_lock(&a->memory.admit);
	r = count(a, g, &d, err) ?: judge(a, &d, bytes, err);
	if (r == 0 && g) {
		pthread_mutex_lock(&g->lock);
		g->admitted = true;
		pthread_mutex_unlock(&g->lock);
	}
	pthread_mutex_unlock(&a->memory.admit);
	return r;
}

struct size {
	char name[64];
	uint64_t bytes;
};

static int by_size(const void *a, const void *b)
{
	uint64_t x = ((const struct size *)a)->bytes, y = ((const struct size *)b)->bytes;

	return x < y ? 1 : x > y ? -1 : 0;
}

/* "web (2048 MiB), db (1024 MiB)": the VMs with most resident memory; the first one's name to `first`. */
static void name_largest(struct gw_agent *a, char *text, size_t size, char first[64])
{
	gw_autofree struct size *sizes = NULL;
	struct gw_guest **list;
	unsigned n, found = 0;
	size_t used = 0;

	text[0] = first[0] = '\0';
	if (gw_guest_list(a, &list, &n) < 0)
		return;
	sizes = calloc((size_t)n + 1, sizeof(*sizes));
	for (unsigned i = 0; i < n; i++) {
		pthread_mutex_lock(&list[i]->lock);
		if (sizes && list[i]->watched && list[i]->status) {
			snprintf(sizes[found].name, sizeof(sizes[found].name), "%s", list[i]->name);
			sizes[found++].bytes = list[i]->status->resident;
		}
		pthread_mutex_unlock(&list[i]->lock);
		gw_guest_unref(list[i]);
	}
	free(list);
	if (!found)
		return;
	qsort(sizes, found, sizeof(*sizes), by_size);
	snprintf(first, 64, "%s", sizes[0].name);
	for (unsigned i = 0; i < GW_MIN(found, (unsigned)NAMED) && used < size; i++)
		used += (size_t)snprintf(text + used, size - used, "%s%s (%llu MiB)", i ? ", " : "", sizes[i].name, mib(sizes[i].bytes));
}

static void tell_low(struct gw_agent *a, uint64_t available, uint64_t reserve)
{
	char largest[300], first[64], advice[450] = "";

	name_largest(a, largest, sizeof(largest), first);
	if (*first)
		snprintf(advice, sizeof(advice), "; the largest VMs: %s; 'godwit move %s HOST' would make room", largest, first);
	gw_events_emit(a->events, "memory-low", NULL, "%llu MiB are available, below the reserve of %llu MiB%s", mib(available),
		       mib(reserve), advice);
}

void gw_memory_look(struct gw_agent *a)
{
	struct gw_memory *m = &a->memory;
	uint64_t total, available, reserve, enough;

	if (gw_memory_read(m, &total, &available, NULL) < 0)
		return;
	reserve = gw_memory_reserve(a->conf, total);
	enough = reserve + reserve / 2;
	if (!m->low && available < reserve) {
		m->low = true;
		m->next_squeeze_ns = 0;
		tell_low(a, available, reserve);
	} else if (m->low && available >= enough) {
		m->low = false;
		gw_events_emit(a->events, "memory-ok", NULL, "%llu MiB are available again", mib(available));
	}
	if (m->low && gw_now_ns() >= m->next_squeeze_ns) {
		m->next_squeeze_ns = gw_now_ns() + SQUEEZE_NS;
		gw_memory_squeeze(a, enough - available);
	} else if (!m->low && available > enough) {
		gw_memory_let_go(a, available - enough);
	}
}

/* -1 where the kernel tells no pressure, or not to us. */
static int open_pressure(const char *path)
{
	int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (fd >= 0 && write(fd, PRESSURE, sizeof(PRESSURE)) < 0)
		gw_closep(&fd);
	return fd;
}

static void watch(void *arg)
{
	struct gw_agent *a = arg;
	gw_autofd pressure = open_pressure(a->memory.pressure);

	do {
		struct pollfd p[2] = { { .fd = a->stop_fd, .events = POLLIN }, { .fd = pressure, .events = POLLPRI } };

		gw_memory_look(a);
		if (poll(p, 2, a->memory.low ? LOOK_LOW_MS : LOOK_MS) < 0 && errno != EINTR)
			return;
		/* The trigger is gone with its control group. */
		if (p[1].revents & POLLERR)
			gw_closep(&pressure);
	} while (!a->stopping);
}

int gw_memory_watch(struct gw_agent *a, struct gw_error *err)
{
	return gw_agent_thread(a, watch, a, err);
}
