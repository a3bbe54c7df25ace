// SPDX-License-Identifier: Apache-2.0
/*
 * State of a virtio device's common part: what its driver agreed to and where its queues stand. A loaded state is hostile: every
 * address and index is checked here as if the driver had just set it.
 */
#include <errno.h>
#include <linux/virtio_config.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/virtio-pci.h"
#include "vmm/virtio.h"

static const struct gw_state_field virtio_fields[] = {
	GW_STATE_UINT(struct gw_virtio, driver_features, 1),
	GW_STATE_UINT(struct gw_virtio, device_feature_select, 1),
	GW_STATE_UINT(struct gw_virtio, driver_feature_select, 1),
	GW_STATE_UINT(struct gw_virtio, queue_select, 1),
	GW_STATE_UINT(struct gw_virtio, status, 1),
	GW_STATE_UINT(struct gw_virtio, isr, 1),
	GW_STATE_UINT(struct gw_virtio, generation, 1),
	GW_STATE_UINT(struct gw_virtio, config_vector, 1),
	{ },
};
static const struct gw_state_desc virtio_state = { "virtio", 1, 1, virtio_fields };

#define QUEUE_FIELD(name, member) \
	{ name, GW_STATE_T_UINT, 1, offsetof(struct gw_virtio_queue, member), sizeof(((struct gw_virtio_queue *)0)->member) }
static const struct gw_state_field queue_fields[] = {
	QUEUE_FIELD("size", vq.size),
	QUEUE_FIELD("enabled", vq.enabled),
	QUEUE_FIELD("desc", vq.desc),
	QUEUE_FIELD("avail", vq.avail),
	QUEUE_FIELD("used", vq.used),
	QUEUE_FIELD("last_avail", vq.last_avail),
	QUEUE_FIELD("used_idx", vq.used_idx),
	QUEUE_FIELD("vector", vector),
	{ },
};
static const struct gw_state_desc queue_state = { "virtqueue", 1, 1, queue_fields };

/* Instances of queues: "vda.0". */
#define INSTANCE_MAX 96
static const char *queue_instance(const struct gw_virtio_queue *q, char buf[INSTANCE_MAX])
{
	snprintf(buf, INSTANCE_MAX, "%s.%u", q->vd->name, q->index);
	return buf;
}

int gw_virtio_save(struct gw_virtio *vd, struct gw_state_writer *w, struct gw_error *err)
{
	char instance[INSTANCE_MAX];
	int r;

	r = gw_state_put(w, &virtio_state, vd->name, vd);
	for (unsigned i = 0; r == 0 && i < vd->nqueues; i++)
		r = gw_state_put(w, &queue_state, queue_instance(&vd->queues[i], instance), &vd->queues[i]);
	if (r < 0)
		return gw_error_errno(err, r, "cannot save %s %s", vd->ops->kind, vd->name);
	if (vd->ops->save)
		r = vd->ops->save(vd, w, err);
	if (r == 0 && vd->pci)
		r = gw_virtio_pci_save(vd->pci, w, err);
	return r;
}

static int check_common(const struct gw_virtio *vd, const struct gw_virtio *in, struct gw_error *err)
{
	if (in->driver_features & ~vd->offered)
		return gw_error_set(err, EPROTO, "%s %s: the guest uses features %#llx, which are not offered here",
				    vd->ops->kind, vd->name, (unsigned long long)(in->driver_features & ~vd->offered));
	if ((in->status & VIRTIO_CONFIG_S_FEATURES_OK) && !(in->driver_features >> VIRTIO_F_VERSION_1 & 1))
		return gw_error_set(err, EPROTO, "state of %s %s: features without virtio 1", vd->ops->kind, vd->name);
	return 0;
}

static int take_queue(struct gw_virtio_queue *q, const struct gw_virtio_queue *in, struct gw_error *err)
{
	struct gw_vq *vq = &q->vq;

	gw_vq_reset(vq);
	vq->size = in->vq.size;
	vq->desc = in->vq.desc;
	vq->avail = in->vq.avail;
	vq->used = in->vq.used;
	vq->last_avail = in->vq.last_avail;
	vq->used_idx = in->vq.used_idx;
	vq->published = in->vq.used_idx;
	q->vector = in->vector;
	if (in->vq.enabled > 1)
		return gw_error_set(err, EPROTO, "state of %s: queue %u is neither enabled nor not", q->vd->name, q->index);
	if (!gw_vq_size_valid(vq, vq->size))
		return gw_error_set(err, EPROTO, "state of %s: queue %u has a size of %u", q->vd->name, q->index, vq->size);
	if (!in->vq.enabled && (vq->last_avail || vq->used_idx))
		return gw_error_set(err, EPROTO, "state of %s: queue %u was used but not enabled", q->vd->name, q->index);
	if (in->vq.enabled && gw_vq_enable(vq) < 0)
		return gw_error_set(err, EPROTO, "state of %s: queue %u: %s", q->vd->name, q->index, vq->violation);
	if (gw_vq_in_flight(vq) > vq->size)
		return gw_error_set(err, EPROTO, "state of %s: queue %u has more in flight than it holds", q->vd->name,
				    q->index);
	return 0;
}

static int load_common(struct gw_virtio *vd, struct gw_state_reader *r, struct gw_error *err)
{
	gw_autofree struct gw_virtio *in = calloc(1, sizeof(*in));
	char instance[INSTANCE_MAX];
	int ret;

	if (!in)
		return gw_error_set(err, ENOMEM, "out of memory");
	ret = gw_state_get(r, &virtio_state, vd->name, in, err);
	if (ret == 0)
		ret = check_common(vd, in, err);
	for (unsigned i = 0; ret == 0 && i < vd->nqueues; i++) {
		ret = gw_state_get(r, &queue_state, queue_instance(&vd->queues[i], instance), &in->queues[i], err);
		if (ret == 0)
			ret = take_queue(&vd->queues[i], &in->queues[i], err);
	}
	if (ret < 0)
		return ret;
	vd->driver_features = in->driver_features;
	vd->device_feature_select = in->device_feature_select;
	vd->driver_feature_select = in->driver_feature_select;
	vd->queue_select = in->queue_select;
	vd->status = in->status;
	vd->isr = in->isr;
	vd->generation = in->generation;
	vd->config_vector = in->config_vector;
	vd->loaded = true;
	return 0;
}

int gw_virtio_load(struct gw_virtio *vd, struct gw_state_reader *r, struct gw_error *err)
{
	int ret;

	pthread_mutex_lock(&vd->lock);
	ret = load_common(vd, r, err);
	if (ret == 0 && vd->ops->load)
		ret = vd->ops->load(vd, r, err);
	pthread_mutex_unlock(&vd->lock);
	if (ret == 0 && vd->pci)
		ret = gw_virtio_pci_load(vd->pci, r, err);
	return ret;
}
