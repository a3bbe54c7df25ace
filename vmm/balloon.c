// SPDX-License-Identifier: Apache-2.0
/*
 * virtio-balloon; see balloon.h. Section numbers are those of virtio 1.2.
 *
 * Pages go back to the host by gw_ram_discard(). Guest RAM is advised for huge pages: a single page out of one only leaves the mapping,
 * and its memory is free when the kernel splits the huge page or all of it has gone. So neighbours go in one call.
 *
 * What a guest names is its own loss: a page that it still uses, or for which it has I/O in flight, is zeros to it from then on. What it
 * names that is not RAM, or not whole pages, breaks the device.
 */
#include "vmm/balloon.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_ids.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/clock.h"
#include "lib/util.h"
#include "vmm/iothread.h"
#include "vmm/virtio.h"

#define FEATURES \
	(1ull << VIRTIO_BALLOON_F_STATS_VQ | 1ull << VIRTIO_BALLOON_F_DEFLATE_ON_OOM | 1ull << VIRTIO_BALLOON_F_REPORTING)
enum { INFLATE, DEFLATE, STATS, QUEUES = 5 };
/* Linux reports up to 32 ranges in a chain, and takes no smaller queue for it. */
#define QUEUE_SIZE 64
/* Pages of a chain that are looked at; drivers name up to 1,024. Those beyond stay with the guest, as a device is free to do. */
#define CHAIN_PAGES 4096
/* Bytes that one run gives back before others have their turn. */
#define BUDGET (64ull << 20)
/* Statistics of this age will do. */
#define STATS_FRESH_NS GW_NS_PER_SEC

static_assert(GW_BALLOON_STATS == VIRTIO_BALLOON_S_HTLB_PGFAIL + 1, "statistics are those of virtio 1.2");
static_assert(QUEUES <= GW_VIRTIO_MAX_QUEUES, "there is room for the queues");

/* What goes with a move. */
struct saved {
	uint32_t num_pages; /* that the balloon is to have; atomic */
	uint32_t actual;    /* that the guest says it has; atomic */
	bool asked;         /* the next buffer of statistics is news, not the one that waited before; device thread */
};

struct balloon {
	struct gw_virtio vd;
	struct saved s;
	/* Device thread. */
	bool held; /* the guest's buffer for statistics is kept until they are wanted (§5.5.6.3) */
	uint16_t held_head;
	uint64_t stats_ns; /* when they came; 0: there are none */
	uint64_t stats[GW_BALLOON_STATS];
	uint64_t reported; /* bytes */
	uint32_t pages[CHAIN_PAGES];
	struct gw_vq_chain chain;
};

static struct balloon *to_balloon(struct gw_virtio *vd)
{
	return gw_container_of(vd, struct balloon, vd);
}

/* Null, or what the guest did wrong. Failures of the host leave the guest's memory where it is. */
static const char *discard(struct balloon *b, uint64_t gpa, uint64_t len)
{
	int r = gw_ram_discard(b->vd.host.ram, gpa, len);

	if (r == -EINVAL && (gpa | len) % GW_PAGE_SIZE)
		return "a range that is not of whole pages";
	if (r == -EFAULT)
		return "a page that is not RAM";
	if (r < 0)
		gw_warn_limited(&b->vd.limit, "%s: memory is not given back: %s", b->vd.name, strerror(-r));
	return NULL;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

/* §5.5.6: an array of page numbers, in any order. */
static const char *inflate(struct balloon *b, uint64_t *bytes)
{
	const struct gw_vq_chain *c = &b->chain;
	size_t n = gw_iov_read(c->iov, c->nout, 0, b->pages, sizeof(b->pages)) / sizeof(b->pages[0]);
	const char *wrong = NULL;

	for (size_t i = 0; i < n; i++)
		b->pages[i] = le32toh(b->pages[i]);
	qsort(b->pages, n, sizeof(b->pages[0]), compare);
	for (size_t first = 0, end; !wrong && first < n; first = end) {
		uint64_t len;

		for (end = first + 1; end < n && b->pages[end] - b->pages[end - 1] <= 1; end++)
			;
		len = b->pages[end - 1] - b->pages[first] + 1ull;
		wrong = discard(b, (uint64_t)b->pages[first] << VIRTIO_BALLOON_PFN_SHIFT, len << VIRTIO_BALLOON_PFN_SHIFT);
	}
	*bytes = n << VIRTIO_BALLOON_PFN_SHIFT;
	return wrong;
}

/* §5.5.6.7: the buffers themselves are the free pages. */
static const char *report(struct balloon *b, uint64_t *bytes)
{
	const struct gw_vq_chain *c = &b->chain;
	const char *wrong = NULL;

	/* Every free page is there once: what a chain costs is bounded by what there is. */
	if (c->in_len > gw_ram_size(b->vd.host.ram))
		return "more free memory than there is memory";
	for (unsigned i = c->nout; !wrong && i < c->nout + c->nin; i++)
		wrong = discard(b, c->gpa[i], c->iov[i].iov_len);
	*bytes = c->in_len;
	if (!wrong)
		b->reported += c->in_len;
	return wrong;
}

/* §5.5.6: the guest takes pages back. They come when it touches them. */
static const char *deflate(struct balloon *b, uint64_t *bytes)
{
	return NULL;
}

static void serve(struct balloon *b, unsigned index, const char *(*handle)(struct balloon *b, uint64_t *bytes))
{
	struct gw_vq *vq = &b->vd.queues[index].vq;
	uint64_t budget = BUDGET;

	do {
		while (budget > 0 && gw_virtio_pop(&b->vd, index, &b->chain)) {
			uint64_t bytes = 0;
			const char *wrong = handle(b, &bytes);

			if (wrong) {
				gw_virtio_refuse(&b->vd, index, wrong);
				break;
			}
			gw_vq_push(vq, b->chain.head, 0);
			budget -= GW_MIN(budget, bytes + GW_PAGE_SIZE);
		}
	} while (budget > 0 && gw_virtio_wait_for_kick(&b->vd, index));
	if (budget == 0)
		gw_virtio_kick_again(&b->vd, index);
	gw_virtio_notify(&b->vd, index);
}

static void read_stats(struct balloon *b)
{
	const struct gw_vq_chain *c = &b->chain;
	/* Room for kinds that newer drivers tell and we do not know. */
	struct virtio_balloon_stat stats[64];
	size_t n = gw_iov_read(c->iov, c->nout, 0, stats, sizeof(stats)) / sizeof(stats[0]);

	memset(b->stats, 0, sizeof(b->stats));
	for (size_t i = 0; i < n; i++) {
		uint16_t tag = le16toh(stats[i].tag);

		if (tag < ARRAY_SIZE(b->stats))
			b->stats[tag] = le64toh(stats[i].val);
	}
	b->stats_ns = gw_now_ns();
}

/* §5.5.6.3: the guest has one buffer, which is with us but for the time in which it fills it. */
static void take_stats(struct balloon *b)
{
	while (!b->held) {
		if (!gw_virtio_pop(&b->vd, STATS, &b->chain)) {
			if (!gw_virtio_wait_for_kick(&b->vd, STATS))
				break;
			continue;
		}
		b->held = true;
		b->held_head = b->chain.head;
		if (b->s.asked)
			read_stats(b);
		b->s.asked = false;
	}
}

/*
 * What a queue is for. By the specification (§5.5.2) reporting has queue 4 and hinting, which is not offered, queue 3; Linux numbers the queues
 * that it uses one after the other. The two agree on all that is served here, so that both kinds of drivers are right.
 */
static void balloon_kick(struct gw_virtio *vd, unsigned index)
{
	struct balloon *b = to_balloon(vd);

	if (index == INFLATE)
		serve(b, index, inflate);
	else if (index == DEFLATE)
		serve(b, index, deflate);
	else if (index == STATS && gw_virtio_has(vd, VIRTIO_BALLOON_F_STATS_VQ))
		take_stats(b);
	else if (gw_virtio_has(vd, VIRTIO_BALLOON_F_REPORTING))
		serve(b, index, report);
}

static uint64_t page_bytes(const struct balloon *b, uint32_t pages)
{
	return GW_MIN((uint64_t)pages << VIRTIO_BALLOON_PFN_SHIFT, gw_ram_size(b->vd.host.ram));
}

static void balloon_start(struct gw_virtio *vd)
{
	struct balloon *b = to_balloon(vd);

	/* The interrupt that told the driver may have been lost on the way. */
	if (vd->loaded && b->s.num_pages != b->s.actual)
		gw_virtio_config_changed(vd);
}

static void balloon_stop(struct gw_virtio *vd)
{
	struct balloon *b = to_balloon(vd);

	if (b->held)
		gw_vq_unpop(&vd->queues[STATS].vq, 1);
	b->held = false;
}

/* A new driver begins with an empty balloon; the target stays. */
static void balloon_reset(struct gw_virtio *vd)
{
	struct balloon *b = to_balloon(vd);

	__atomic_store_n(&b->s.actual, 0, __ATOMIC_RELAXED);
	b->s.asked = true;
	b->stats_ns = 0;
}

static void balloon_config_read(struct gw_virtio *vd, uint64_t offset, void *data, unsigned len)
{
	struct balloon *b = to_balloon(vd);
	struct virtio_balloon_config c = {
		.num_pages = htole32(__atomic_load_n(&b->s.num_pages, __ATOMIC_RELAXED)),
		.actual = htole32(__atomic_load_n(&b->s.actual, __ATOMIC_RELAXED)),
	};

	gw_virtio_config_slice(&c, sizeof(c), offset, data, len);
}

static void balloon_config_write(struct gw_virtio *vd, uint64_t offset, const void *data, unsigned len)
{
	struct balloon *b = to_balloon(vd);

	if (offset == offsetof(struct virtio_balloon_config, actual) && len == 4)
		__atomic_store_n(&b->s.actual, gw_get_le32(data), __ATOMIC_RELAXED);
}

static const struct gw_state_field balloon_fields[] = {
	GW_STATE_UINT(struct saved, num_pages, 1),
	GW_STATE_UINT(struct saved, actual, 1),
	GW_STATE_UINT(struct saved, asked, 1),
	{ }
};
static const struct gw_state_desc balloon_state = { "virtio-balloon", 1, 1, balloon_fields };

static int balloon_save(struct gw_virtio *vd, struct gw_state_writer *w, struct gw_error *err)
{
	int r = gw_state_put(w, &balloon_state, vd->name, &to_balloon(vd)->s);

	return r < 0 ? gw_error_errno(err, r, "cannot save virtio-balloon %s", vd->name) : 0;
}

static int balloon_load(struct gw_virtio *vd, struct gw_state_reader *r, struct gw_error *err)
{
	struct balloon *b = to_balloon(vd);
	struct saved in = { 0 };
	int ret = gw_state_get(r, &balloon_state, vd->name, &in, err);

	for (unsigned i = 0; ret == 0 && i < QUEUES; i++)
		ret = gw_virtio_check_in_flight(vd, i, 0, err);
	if (ret == 0 && in.num_pages > gw_ram_pages(vd->host.ram))
		ret = gw_error_set(err, EPROTO, "state of virtio-balloon %s: a balloon larger than the VM", vd->name);
	if (ret == 0)
		b->s = in;
	return ret;
}

static void balloon_free(struct gw_virtio *vd)
{
	gw_virtio_release(vd);
	free(to_balloon(vd));
}

static const struct gw_virtio_ops balloon_ops = {
	.kind = "virtio-balloon",
	.id = VIRTIO_ID_BALLOON,
	.pci_class = 0x00ff00, /* unclassified */
	.start = balloon_start,
	.stop = balloon_stop,
	.kick = balloon_kick,
	.reset = balloon_reset,
	.config_read = balloon_config_read,
	.config_write = balloon_config_write,
	.save = balloon_save,
	.load = balloon_load,
	.free = balloon_free,
};

int gw_balloon_new(const struct gw_devhost *host, struct gw_virtio **ret, struct gw_error *err)
{
	struct balloon *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return gw_error_set(err, ENOMEM, "out of memory");
	b->s.asked = true;
	r = gw_virtio_init(&b->vd, &balloon_ops, "balloon0", host, QUEUES, QUEUE_SIZE, FEATURES, err);
	if (r < 0) {
		balloon_free(&b->vd);
		return r;
	}
	*ret = &b->vd;
	return 0;
}

static bool has_driver(const struct gw_virtio *vd)
{
	return __atomic_load_n(&vd->status, __ATOMIC_ACQUIRE) & VIRTIO_CONFIG_S_DRIVER_OK;
}

int gw_balloon_set_target(struct gw_virtio *vd, uint64_t bytes, struct gw_error *err)
{
	struct balloon *b = to_balloon(vd);
	uint64_t all = gw_ram_size(vd->host.ram), least = GW_MIN(all / 2, GW_BALLOON_FLOOR);
	uint64_t pages = (all - bytes) >> VIRTIO_BALLOON_PFN_SHIFT;

	if (bytes < least || bytes > all)
		return gw_error_set(err, ERANGE, "a target of %llu MiB is not within %llu to %llu MiB", (unsigned long long)(bytes >> 20),
				    (unsigned long long)(least >> 20), (unsigned long long)(all >> 20));
	/* A page's number has 32 bits: there is no larger balloon than 16 TiB. */
	__atomic_store_n(&b->s.num_pages, (uint32_t)GW_MIN(pages, (uint64_t)UINT32_MAX), __ATOMIC_RELAXED);
	if (has_driver(vd))
		gw_virtio_config_changed(vd);
	return 0;
}

uint64_t gw_balloon_size(struct gw_virtio *vd)
{
	struct balloon *b = to_balloon(vd);

	return page_bytes(b, __atomic_load_n(&b->s.actual, __ATOMIC_RELAXED));
}

struct info_call {
	struct balloon *b;
	struct gw_balloon_info *info;
};

static void info_now(void *arg)
{
	struct info_call *call = arg;
	struct balloon *b = call->b;

	if (b->vd.active && b->held && (!b->stats_ns || gw_now_ns() - b->stats_ns > STATS_FRESH_NS)) {
		gw_vq_push(&b->vd.queues[STATS].vq, b->held_head, 0);
		b->held = false;
		b->s.asked = true;
		gw_virtio_notify(&b->vd, STATS);
		take_stats(b);
	}
	call->info->reported = b->reported;
	call->info->has_stats = b->stats_ns != 0;
	call->info->stats_age_ms = b->stats_ns ? (gw_now_ns() - b->stats_ns) / GW_NS_PER_MS : 0;
	memcpy(call->info->stats, b->stats, sizeof(b->stats));
}

void gw_balloon_info(struct gw_virtio *vd, struct gw_balloon_info *ret)
{
	struct balloon *b = to_balloon(vd);
	struct info_call call = { b, ret };
	uint64_t all = gw_ram_size(vd->host.ram);

	gw_iothread_call(vd->host.io, info_now, &call);
	ret->target = all - page_bytes(b, __atomic_load_n(&b->s.num_pages, __ATOMIC_RELAXED));
	ret->actual = all - gw_balloon_size(vd);
	ret->driver = has_driver(vd);
}
