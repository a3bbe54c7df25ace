// SPDX-License-Identifier: Apache-2.0
/*
 * virtio-rng; see rng.h. A guest that reads without end must not keep the device thread busy: bytes come out of an allowance that
 * refills with time, and requests beyond it wait for a timer.
 */
#include "vmm/rng.h"

#include <errno.h>
#include <linux/virtio_ids.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/timerfd.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "vmm/iothread.h"
#include "vmm/virtio.h"

#define QUEUE_SIZE 16
/* One request gives at most this; a device may give less than was asked for. */
#define REQUEST_MAX 4096
/* The allowance, and how much of it comes back in 10 ms: 4 MiB/s. */
#define ALLOWANCE (256u << 10)
#define TICK_NS (10 * GW_NS_PER_MS)
#define TICK_BYTES (40u << 10)

struct rng {
	struct gw_virtio vd;
	int timer;
	struct gw_io_source *source;
	uint32_t allowance; /* bytes */
	uint64_t refilled_ns;
	struct gw_vq_chain chain;
};

static struct rng *to_rng(struct gw_virtio *vd)
{
	return gw_container_of(vd, struct rng, vd);
}

static void refill(struct rng *rng)
{
	uint64_t now = gw_now_ns();
	uint64_t ticks = (now - rng->refilled_ns) / TICK_NS, full;

	if (ticks == 0)
		return;
	rng->refilled_ns += ticks * TICK_NS;
	full = rng->allowance + GW_MIN(ticks, (uint64_t)ALLOWANCE) * TICK_BYTES;
	rng->allowance = (uint32_t)GW_MIN(full, (uint64_t)ALLOWANCE);
}

static uint32_t fill(const struct gw_vq_chain *c)
{
	uint32_t done = 0;

	for (unsigned i = c->nout; i < c->nout + c->nin && done < REQUEST_MAX; i++) {
		ssize_t n = getrandom(c->iov[i].iov_base, GW_MIN(c->iov[i].iov_len, (size_t)(REQUEST_MAX - done)), 0);

		if (n < 0)
			break;
		done += (uint32_t)n;
		if ((size_t)n < c->iov[i].iov_len)
			break;
	}
	return done;
}

static void wait_for_allowance(struct rng *rng)
{
	struct itimerspec when = { .it_value.tv_nsec = (long)TICK_NS };

	(void)timerfd_settime(rng->timer, 0, &when, NULL);
}

static void rng_kick(struct gw_virtio *vd, unsigned index)
{
	struct rng *rng = to_rng(vd);
	struct gw_vq *vq = &vd->queues[0].vq;

	refill(rng);
	do {
		while (rng->allowance > 0 && gw_virtio_pop(vd, 0, &rng->chain)) {
			uint32_t n = fill(&rng->chain);

			gw_vq_mark_dirty(vq, &rng->chain, n);
			gw_vq_push(vq, rng->chain.head, n);
			/* A request of no bytes costs, too. */
			rng->allowance -= GW_MIN(rng->allowance, n + 64);
		}
	} while (rng->allowance > 0 && gw_virtio_wait_for_kick(vd, 0));
	if (rng->allowance == 0)
		wait_for_allowance(rng);
	gw_virtio_notify(vd, 0);
}

static void on_timer(void *arg, uint32_t events)
{
	struct rng *rng = arg;
	uint64_t count;

	if (read(rng->timer, &count, sizeof(count)) == sizeof(count) && rng->vd.active && rng->vd.queues[0].vq.enabled)
		rng_kick(&rng->vd, 0);
}

static int rng_load(struct gw_virtio *vd, struct gw_state_reader *r, struct gw_error *err)
{
	return gw_virtio_check_in_flight(vd, 0, 0, err);
}

static void rng_free(struct gw_virtio *vd)
{
	struct rng *rng = to_rng(vd);

	gw_io_remove(rng->source);
	gw_virtio_release(vd);
	if (rng->timer >= 0)
		close(rng->timer);
	free(rng);
}

static const struct gw_virtio_ops rng_ops = {
	.kind = "virtio-rng",
	.id = VIRTIO_ID_RNG,
	.pci_class = 0x00ff00, /* unclassified */
	.kick = rng_kick,
	.load = rng_load,
	.free = rng_free,
};

int gw_rng_new(const struct gw_devhost *host, struct gw_virtio **ret, struct gw_error *err)
{
	struct rng *rng = calloc(1, sizeof(*rng));
	int r;

	if (!rng)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_virtio_init(&rng->vd, &rng_ops, "rng0", host, 1, QUEUE_SIZE, 0, err);
	rng->allowance = ALLOWANCE;
	rng->refilled_ns = gw_now_ns();
	rng->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (r == 0 && rng->timer < 0)
		r = gw_error_errno(err, errno, "cannot make a timer");
	if (r == 0) {
		r = gw_io_add(host->io, rng->timer, EPOLLIN, on_timer, rng, &rng->source);
		if (r < 0)
			gw_error_errno(err, r, "cannot watch a timer");
	}
	if (r < 0) {
		rng_free(&rng->vd);
		return r;
	}
	*ret = &rng->vd;
	return 0;
}
