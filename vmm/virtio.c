// SPDX-License-Identifier: Apache-2.0
/* The common part of all virtio devices; see virtio.h. */
#include "vmm/virtio.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "lib/util.h"
#include "vmm/iothread.h"
#include "vmm/msix.h"
#include "vmm/virtio-pci.h"

#define COMMON_FEATURES (1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX)
#define STATUS_ISR_QUEUE 1

static uint8_t get_status(const struct gw_virtio *vd)
{
	return __atomic_load_n(&vd->status, __ATOMIC_ACQUIRE);
}

static void raise_queue(struct gw_virtio *vd, unsigned index)
{
	__atomic_fetch_or(&vd->isr, STATUS_ISR_QUEUE, __ATOMIC_RELAXED);
	if (vd->msix)
		gw_msix_raise(vd->msix, __atomic_load_n(&vd->queues[index].vector, __ATOMIC_RELAXED));
}

void gw_virtio_notify(struct gw_virtio *vd, unsigned index)
{
	if (gw_vq_publish(&vd->queues[index].vq))
		raise_queue(vd, index);
}

void gw_virtio_config_changed(struct gw_virtio *vd)
{
	__atomic_fetch_add(&vd->generation, 1, __ATOMIC_RELEASE);
	__atomic_fetch_or(&vd->isr, VIRTIO_PCI_ISR_CONFIG, __ATOMIC_RELAXED);
	if (vd->msix)
		gw_msix_raise(vd->msix, __atomic_load_n(&vd->config_vector, __ATOMIC_RELAXED));
}

void gw_virtio_broken(struct gw_virtio *vd, const char *what)
{
	uint8_t old = __atomic_fetch_or(&vd->status, VIRTIO_CONFIG_S_NEEDS_RESET, __ATOMIC_ACQ_REL);

	vd->violations++;
	gw_warn_limited(&vd->limit, "%s %s: the guest broke the rules, device stopped: %s", vd->ops->kind, vd->name, what);
	/* virtio 1.2 §2.1.2: a driver that is up must be told. */
	if ((old & VIRTIO_CONFIG_S_DRIVER_OK) && !(old & VIRTIO_CONFIG_S_NEEDS_RESET))
		gw_virtio_config_changed(vd);
}

void gw_virtio_refuse(struct gw_virtio *vd, unsigned index, const char *what)
{
	/* Nothing is in flight that never ends: the device of a guest that broke it can still be moved. */
	gw_vq_unpop(&vd->queues[index].vq, 1);
	gw_virtio_broken(vd, what);
}

bool gw_virtio_pop(struct gw_virtio *vd, unsigned index, struct gw_vq_chain *chain)
{
	struct gw_vq *vq = &vd->queues[index].vq;
	int r;

	if (get_status(vd) & VIRTIO_CONFIG_S_NEEDS_RESET)
		return false;
	r = gw_vq_pop(vq, chain);
	if (r < 0)
		gw_virtio_broken(vd, vq->violation);
	return r > 0;
}

bool gw_virtio_wait_for_kick(struct gw_virtio *vd, unsigned index)
{
	/* What a broken device has available will never be taken. */
	return gw_vq_enable_kicks(&vd->queues[index].vq) && !(get_status(vd) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

static void signal_kick(struct gw_virtio_queue *q)
{
	uint64_t one = 1;

	/* Fails only when the counter is full: a kick is pending then. */
	if (write(q->kick, &one, sizeof(one)) < 0)
		return;
}

void gw_virtio_kick_again(struct gw_virtio *vd, unsigned index)
{
	signal_kick(&vd->queues[index]);
}

static void kick_queue(struct gw_virtio_queue *q)
{
	struct gw_virtio *vd = q->vd;

	if (vd->active && q->vq.enabled && !(get_status(vd) & VIRTIO_CONFIG_S_NEEDS_RESET))
		vd->ops->kick(vd, q->index);
}

static void on_kick(void *arg, uint32_t events)
{
	struct gw_virtio_queue *q = arg;
	uint64_t count;

	if (read(q->kick, &count, sizeof(count)) == sizeof(count))
		kick_queue(q);
}

void gw_virtio_call(struct gw_virtio *vd, void (*fn)(void *vd))
{
	gw_iothread_call(vd->host.io, fn, vd);
}

static void start(void *arg)
{
	struct gw_virtio *vd = arg;

	for (unsigned i = 0; i < vd->nqueues; i++) {
		vd->queues[i].vq.event_idx = gw_virtio_has(vd, VIRTIO_RING_F_EVENT_IDX);
		vd->queues[i].vq.indirect = gw_virtio_has(vd, VIRTIO_RING_F_INDIRECT_DESC);
	}
	vd->active = true;
	if (vd->ops->start)
		vd->ops->start(vd);
	for (unsigned i = 0; i < vd->nqueues; i++) {
		/*
		 * Work may have come while the device was stopped. And an interrupt that was on its way when the state was saved may be
		 * in neither vCPU state nor ours: after a load each queue gets one to spare, unless its driver does not wait for one.
		 */
		if (vd->loaded && vd->queues[i].vq.enabled && gw_vq_may_await_interrupt(&vd->queues[i].vq))
			raise_queue(vd, i);
		kick_queue(&vd->queues[i]);
	}
}

static void stop(void *arg)
{
	struct gw_virtio *vd = arg;

	if (vd->ops->stop)
		vd->ops->stop(vd);
	for (unsigned i = 0; i < vd->nqueues; i++) {
		if (vd->queues[i].vq.enabled)
			gw_virtio_notify(vd, i);
	}
	vd->active = false;
}

/* Makes the device active or not, as it should be; under lock. */
static void update_active(struct gw_virtio *vd, bool was)
{
	const uint8_t need = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
	bool want = vd->resumed && (get_status(vd) & need) == need;

	if (want && !was) {
		gw_virtio_call(vd, start);
		vd->loaded = false;
	} else if (!want && was) {
		gw_virtio_call(vd, stop);
	}
}

static bool is_active(const struct gw_virtio *vd)
{
	const uint8_t need = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

	return vd->resumed && (get_status(vd) & need) == need;
}

static void reset_queues(void *arg)
{
	struct gw_virtio *vd = arg;

	if (vd->ops->reset)
		vd->ops->reset(vd);
	for (unsigned i = 0; i < vd->nqueues; i++) {
		gw_vq_reset(&vd->queues[i].vq);
		__atomic_store_n(&vd->queues[i].vector, GW_VIRTIO_NO_VECTOR, __ATOMIC_RELAXED);
	}
}

/* virtio 1.2 §2.4; under lock. */
static void reset_device(struct gw_virtio *vd)
{
	bool was = is_active(vd);

	__atomic_store_n(&vd->status, 0, __ATOMIC_RELEASE);
	update_active(vd, was);
	gw_virtio_call(vd, reset_queues);
	/* Again: the device may have found itself broken while it was stopped. */
	__atomic_store_n(&vd->status, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&vd->isr, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&vd->config_vector, GW_VIRTIO_NO_VECTOR, __ATOMIC_RELAXED);
	vd->driver_features = 0;
	vd->device_feature_select = vd->driver_feature_select = vd->queue_select = 0;
}

/* virtio 1.2 §3.1.1: what the driver chose must be a part of what was offered, and no legacy driver is served. */
static bool features_fit(const struct gw_virtio *vd)
{
	return !(vd->driver_features & ~vd->offered) && gw_virtio_has(vd, VIRTIO_F_VERSION_1);
}

void gw_virtio_set_status(struct gw_virtio *vd, uint8_t status)
{
	const uint8_t known = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_DRIVER_OK |
			      VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_FAILED;
	bool was = is_active(vd);

	if (status == 0) {
		reset_device(vd);
		return;
	}
	status &= known;
	if ((status & VIRTIO_CONFIG_S_FEATURES_OK) && !features_fit(vd))
		status &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;
	/* §2.1.1: the driver cannot take bits back, only add some. */
	__atomic_fetch_or(&vd->status, status, __ATOMIC_ACQ_REL);
	update_active(vd, was);
}

static void enable_selected(void *arg)
{
	struct gw_virtio_queue *q = arg;

	if (gw_vq_enable(&q->vq) < 0)
		gw_virtio_broken(q->vd, q->vq.violation);
	else
		kick_queue(q);
}

void gw_virtio_enable_queue(struct gw_virtio *vd, unsigned index)
{
	struct gw_virtio_queue *q = &vd->queues[index];

	if (!q->vq.enabled)
		gw_iothread_call(vd->host.io, enable_selected, q);
}

int gw_virtio_check_in_flight(struct gw_virtio *vd, unsigned index, unsigned count, struct gw_error *err)
{
	if (gw_vq_in_flight(&vd->queues[index].vq) == count)
		return 0;
	return gw_error_set(err, EPROTO, "state of %s %s: queue %u has %u requests in flight, not %u", vd->ops->kind, vd->name,
			    index, gw_vq_in_flight(&vd->queues[index].vq), count);
}

void gw_virtio_config_slice(const void *config, size_t size, uint64_t offset, void *data, unsigned len)
{
	if (offset < size)
		memcpy(data, (const uint8_t *)config + offset, GW_MIN((size_t)len, size - (size_t)offset));
}

static void device_reset(void *self)
{
	struct gw_virtio *vd = self;

	pthread_mutex_lock(&vd->lock);
	reset_device(vd);
	pthread_mutex_unlock(&vd->lock);
	if (vd->pci)
		gw_virtio_pci_reset(vd->pci);
}

static void device_resume(void *self)
{
	struct gw_virtio *vd = self;

	if (vd->ops->resume)
		vd->ops->resume(vd);
	if (vd->msix)
		gw_msix_resume(vd->msix);
	pthread_mutex_lock(&vd->lock);
	if (!vd->resumed) {
		vd->resumed = true;
		update_active(vd, false);
	}
	pthread_mutex_unlock(&vd->lock);
}

static void device_quiesce(void *self)
{
	struct gw_virtio *vd = self;
	bool was;

	pthread_mutex_lock(&vd->lock);
	was = is_active(vd);
	vd->resumed = false;
	update_active(vd, was);
	pthread_mutex_unlock(&vd->lock);
	if (vd->ops->quiesce)
		vd->ops->quiesce(vd);
}

static int device_save(void *self, struct gw_state_writer *w, struct gw_error *err)
{
	return gw_virtio_save(self, w, err);
}

static int device_load(void *self, struct gw_state_reader *r, struct gw_error *err)
{
	return gw_virtio_load(self, r, err);
}

static void device_clone(void *self)
{
	struct gw_virtio *vd = self;

	if (vd->ops->clone)
		vd->ops->clone(vd);
}

static void device_announce(void *self)
{
	struct gw_virtio *vd = self;

	if (vd->ops->announce)
		vd->ops->announce(vd);
}

static void device_drain(void *self, const struct gw_packet_sink *sink)
{
	struct gw_virtio *vd = self;

	if (vd->ops->drain)
		vd->ops->drain(vd, sink);
}

static void device_deliver(void *self, const void *data, size_t len)
{
	struct gw_virtio *vd = self;

	if (vd->ops->deliver)
		vd->ops->deliver(vd, data, len);
}

struct marking {
	struct gw_virtio *vd;
	uint64_t *bitmap;
};

static void mark_queues(void *arg)
{
	struct marking *m = arg;

	for (unsigned i = 0; i < m->vd->nqueues; i++) {
		if (m->vd->queues[i].vq.enabled)
			gw_vq_mark_areas(&m->vd->queues[i].vq, m->bitmap);
	}
}

static void device_mark(void *self, uint64_t *bitmap)
{
	struct marking m = { self, bitmap };

	gw_iothread_call(m.vd->host.io, mark_queues, &m);
}

static void forget_msix(void *arg)
{
	struct gw_virtio *vd = arg;

	vd->msix = NULL;
}

static void device_free(void *self)
{
	struct gw_virtio *vd = self;

	device_quiesce(vd);
	/* The device thread may still tell of a change, until its sources are gone: from here on to nobody. */
	gw_virtio_call(vd, forget_msix);
	gw_virtio_pci_free(vd->pci);
	vd->ops->free(vd);
}

static const struct gw_device_ops device_ops = {
	.outside = true,
	.reset = device_reset,
	.resume = device_resume,
	.quiesce = device_quiesce,
	.save = device_save,
	.load = device_load,
	.clone = device_clone,
	.announce = device_announce,
	.drain = device_drain,
	.deliver = device_deliver,
	.mark = device_mark,
	.free = device_free,
};

struct gw_device gw_virtio_device(struct gw_virtio *vd)
{
	return (struct gw_device){ vd->ops->kind, vd->name, &device_ops, vd };
}

int gw_virtio_init(struct gw_virtio *vd, const struct gw_virtio_ops *ops, const char *name, const struct gw_devhost *host,
		   unsigned nqueues, uint16_t queue_size, uint64_t features, struct gw_error *err)
{
	int r;

	memset(vd, 0, sizeof(*vd));
	vd->ops = ops;
	vd->host = *host;
	vd->offered = features | COMMON_FEATURES;
	vd->config_vector = GW_VIRTIO_NO_VECTOR;
	pthread_mutex_init(&vd->lock, NULL);
	for (unsigned i = 0; i < GW_VIRTIO_MAX_QUEUES; i++)
		vd->queues[i].kick = -1;
	vd->name = strdup(name);
	if (!vd->name)
		return gw_error_set(err, ENOMEM, "out of memory");
	for (; vd->nqueues < nqueues; vd->nqueues++) {
		struct gw_virtio_queue *q = &vd->queues[vd->nqueues];

		gw_vq_init(&q->vq, host->ram, queue_size);
		q->vd = vd;
		q->index = vd->nqueues;
		q->vector = GW_VIRTIO_NO_VECTOR;
		q->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (q->kick < 0)
			return gw_error_errno(err, errno, "%s: cannot make an eventfd", name);
		r = gw_io_add(host->io, q->kick, EPOLLIN, on_kick, q, &q->source);
		if (r < 0)
			return gw_error_errno(err, r, "%s: cannot watch its queues", name);
	}
	return 0;
}

void gw_virtio_release(struct gw_virtio *vd)
{
	for (unsigned i = 0; i < GW_VIRTIO_MAX_QUEUES; i++) {
		gw_io_remove(vd->queues[i].source);
		if (vd->queues[i].kick >= 0)
			close(vd->queues[i].kick);
	}
	pthread_mutex_destroy(&vd->lock);
	free(vd->name);
}
