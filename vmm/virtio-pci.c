// SPDX-License-Identifier: Apache-2.0
/*
 * virtio over PCI; see virtio-pci.h. BAR 0 holds the four structures, a page each; BAR 2 is MSI-X. Section numbers are those of
 * virtio 1.2.
 *
 * Kicks are ioeventfds, set where BAR 0 is from the start and moved when the guest moves it: an arriving VM then finds them
 * in place, as guests keep the addresses that they found. The BAR's own handler serves kicks where they cannot be had.
 */
#include "vmm/virtio-pci.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"
#include "vmm/msix.h"
#include "vmm/virtio.h"

#define BAR_VIRTIO 0
#define BAR_MSIX 2
#define COMMON_OFFSET 0x0000
#define ISR_OFFSET 0x1000
#define DEVICE_OFFSET 0x2000
#define NOTIFY_OFFSET 0x3000
#define REGION_SIZE 0x1000
#define BAR_SIZE 0x4000
#define NOTIFY_MULTIPLIER 4

#define VENDOR 0x1af4 /* §4.1.2 */
#define DEVICE_BASE 0x1040

struct gw_virtio_pci {
	struct gw_virtio *vd;
	struct gw_pci_dev *dev;
	struct gw_msix *msix;
	unsigned cfg_cap;   /* offset of the PCI configuration access capability */
	uint64_t kicks_at;  /* BAR address that the ioeventfds are for; 0: none */
};

static struct gw_virtio_queue *selected(struct gw_virtio *vd)
{
	return vd->queue_select < vd->nqueues ? &vd->queues[vd->queue_select] : NULL;
}

static uint32_t feature_word(uint64_t features, uint32_t select)
{
	return select < 2 ? (uint32_t)(features >> (32 * select)) : 0;
}

/* §4.1.4.3; under lock. */
static void common_read(struct gw_virtio *vd, uint64_t offset, void *data, unsigned len)
{
	const struct gw_virtio_queue *q = selected(vd);
	struct virtio_pci_common_cfg c = {
		.device_feature_select = vd->device_feature_select,
		.device_feature = feature_word(vd->offered, vd->device_feature_select),
		.guest_feature_select = vd->driver_feature_select,
		.guest_feature = feature_word(vd->driver_features, vd->driver_feature_select),
		.msix_config = __atomic_load_n(&vd->config_vector, __ATOMIC_RELAXED),
		.num_queues = (uint16_t)vd->nqueues,
		.device_status = __atomic_load_n(&vd->status, __ATOMIC_ACQUIRE),
		.config_generation = __atomic_load_n(&vd->generation, __ATOMIC_ACQUIRE),
		.queue_select = (uint16_t)vd->queue_select,
	};

	if (q) {
		c.queue_size = q->vq.size;
		c.queue_msix_vector = __atomic_load_n(&q->vector, __ATOMIC_RELAXED);
		c.queue_enable = q->vq.enabled;
		c.queue_notify_off = (uint16_t)q->index;
		c.queue_desc_lo = (uint32_t)q->vq.desc;
		c.queue_desc_hi = (uint32_t)(q->vq.desc >> 32);
		c.queue_avail_lo = (uint32_t)q->vq.avail;
		c.queue_avail_hi = (uint32_t)(q->vq.avail >> 32);
		c.queue_used_lo = (uint32_t)q->vq.used;
		c.queue_used_hi = (uint32_t)(q->vq.used >> 32);
	}
	gw_virtio_config_slice(&c, sizeof(c), offset, data, len);
}

static void set_low(uint64_t *field, uint32_t value)
{
	*field = (*field & ~(uint64_t)UINT32_MAX) | value;
}

static void set_high(uint64_t *field, uint32_t value)
{
	*field = (*field & UINT32_MAX) | (uint64_t)value << 32;
}

static void write_features(struct gw_virtio *vd, uint32_t value)
{
	/* §2.2.1: what was agreed upon stays. */
	if (__atomic_load_n(&vd->status, __ATOMIC_ACQUIRE) & VIRTIO_CONFIG_S_FEATURES_OK)
		return;
	if (vd->driver_feature_select == 0)
		set_low(&vd->driver_features, value);
	else if (vd->driver_feature_select == 1)
		set_high(&vd->driver_features, value);
}

/* §4.1.5.1.2: a vector that does not exist reads back as none. */
static uint16_t checked_vector(const struct gw_virtio *vd, uint32_t value)
{
	return value < gw_msix_vectors(vd->msix) ? (uint16_t)value : GW_VIRTIO_NO_VECTOR;
}

/* Registers of the selected queue; the vector may change any time, the others only until it is enabled. */
static void queue_write(struct gw_virtio *vd, unsigned offset, uint32_t value, unsigned len)
{
	struct gw_virtio_queue *q = selected(vd);

	if (!q)
		return;
	if (offset == VIRTIO_PCI_COMMON_Q_MSIX && len == 2)
		__atomic_store_n(&q->vector, checked_vector(vd, value), __ATOMIC_RELAXED);
	if (q->vq.enabled)
		return;
	if (len == 2) {
		if (offset == VIRTIO_PCI_COMMON_Q_SIZE && gw_vq_size_valid(&q->vq, (uint16_t)value))
			q->vq.size = (uint16_t)value;
		else if (offset == VIRTIO_PCI_COMMON_Q_ENABLE && value == 1)
			gw_virtio_enable_queue(vd, q->index);
		return;
	}
	if (len != 4)
		return;
	switch (offset) {
	case VIRTIO_PCI_COMMON_Q_DESCLO:
		set_low(&q->vq.desc, value);
		break;
	case VIRTIO_PCI_COMMON_Q_DESCHI:
		set_high(&q->vq.desc, value);
		break;
	case VIRTIO_PCI_COMMON_Q_AVAILLO:
		set_low(&q->vq.avail, value);
		break;
	case VIRTIO_PCI_COMMON_Q_AVAILHI:
		set_high(&q->vq.avail, value);
		break;
	case VIRTIO_PCI_COMMON_Q_USEDLO:
		set_low(&q->vq.used, value);
		break;
	case VIRTIO_PCI_COMMON_Q_USEDHI:
		set_high(&q->vq.used, value);
		break;
	}
}

static void common_write(struct gw_virtio *vd, unsigned offset, uint32_t value, unsigned len)
{
	if (offset == VIRTIO_PCI_COMMON_DFSELECT && len == 4)
		vd->device_feature_select = value;
	else if (offset == VIRTIO_PCI_COMMON_GFSELECT && len == 4)
		vd->driver_feature_select = value;
	else if (offset == VIRTIO_PCI_COMMON_GF && len == 4)
		write_features(vd, value);
	else if (offset == VIRTIO_PCI_COMMON_MSIX && len == 2)
		__atomic_store_n(&vd->config_vector, checked_vector(vd, value), __ATOMIC_RELAXED);
	else if (offset == VIRTIO_PCI_COMMON_STATUS && len == 1)
		gw_virtio_set_status(vd, (uint8_t)value);
	else if (offset == VIRTIO_PCI_COMMON_Q_SELECT && len == 2)
		vd->queue_select = value;
	else
		queue_write(vd, offset, value, len);
}

static void bar_read(void *self, uint64_t offset, void *data, unsigned len)
{
	struct gw_virtio_pci *vp = self;
	struct gw_virtio *vd = vp->vd;
	uint64_t at = offset % REGION_SIZE;

	memset(data, 0, len);
	pthread_mutex_lock(&vd->lock);
	switch (offset - at) {
	case COMMON_OFFSET:
		common_read(vd, at, data, len);
		break;
	case ISR_OFFSET:
		/* §4.1.4.5: reading clears. */
		if (at == 0)
			*(uint8_t *)data = __atomic_exchange_n(&vd->isr, 0, __ATOMIC_RELAXED);
		break;
	case DEVICE_OFFSET:
		if (vd->ops->config_read)
			vd->ops->config_read(vd, at, data, len);
		break;
	}
	pthread_mutex_unlock(&vd->lock);
}

static void bar_write(void *self, uint64_t offset, const void *data, unsigned len)
{
	struct gw_virtio_pci *vp = self;
	struct gw_virtio *vd = vp->vd;
	uint64_t at = offset % REGION_SIZE;
	uint32_t value = 0;

	if (offset - at == NOTIFY_OFFSET) {
		if (at / NOTIFY_MULTIPLIER < vd->nqueues)
			gw_virtio_kick_again(vd, (unsigned)(at / NOTIFY_MULTIPLIER));
		return;
	}
	pthread_mutex_lock(&vd->lock);
	if (offset - at == COMMON_OFFSET) {
		memcpy(&value, data, GW_MIN(len, 4u));
		common_write(vd, (unsigned)at, value, GW_MIN(len, 4u));
		/* A 64-bit field written at once. */
		if (len == 8)
			common_write(vd, (unsigned)at + 4, gw_get_le32((const uint8_t *)data + 4), 4);
	} else if (offset - at == DEVICE_OFFSET && vd->ops->config_write) {
		vd->ops->config_write(vd, at, data, len);
	}
	pthread_mutex_unlock(&vd->lock);
}

static const struct gw_bus_ops bar_ops = { bar_read, bar_write };

static void set_kicks(struct gw_virtio_pci *vp, uint64_t bar, bool add)
{
	struct gw_virtio *vd = vp->vd;
	struct gw_error err = GW_ERROR_INIT;

	for (unsigned i = 0; i < vd->nqueues; i++) {
		if (vd->host.ops->ioeventfd(&vd->host, bar + NOTIFY_OFFSET + i * NOTIFY_MULTIPLIER, 0, vd->queues[i].kick, add,
					    &err) < 0 && add)
			gw_warn_limited(&vd->limit, "%s: kicks will be slow: %s", vd->name, gw_error_text(&err));
	}
	vp->kicks_at = add ? bar : 0;
}

static void bar_mapped(void *arg, unsigned bar, uint64_t addr)
{
	struct gw_virtio_pci *vp = arg;

	if (bar != BAR_VIRTIO || addr == vp->kicks_at)
		return;
	if (vp->kicks_at)
		set_kicks(vp, vp->kicks_at, false);
	set_kicks(vp, addr, true);
}

/* §4.1.4.9: a window to the BARs for those who cannot map them. True when [reg, reg + len) touches its data. */
static bool window(struct gw_virtio_pci *vp, unsigned reg, unsigned len, bool write)
{
	unsigned data = vp->cfg_cap + sizeof(struct virtio_pci_cap);
	uint8_t *c = gw_pci_config(vp->dev) + vp->cfg_cap;
	uint32_t offset = gw_get_le32(c + VIRTIO_PCI_CAP_OFFSET), length = gw_get_le32(c + VIRTIO_PCI_CAP_LENGTH);

	if (!vp->cfg_cap || reg >= data + 4 || reg + len <= data)
		return false;
	if ((length == 1 || length == 2 || length == 4) && offset % length == 0)
		gw_pci_bar_access(vp->dev, c[VIRTIO_PCI_CAP_BAR], offset, c + sizeof(struct virtio_pci_cap), length, write);
	return true;
}

static void config_read(void *arg, unsigned reg, unsigned len)
{
	window(arg, reg, len, false);
}

static void config_written(void *arg, unsigned reg, unsigned len)
{
	struct gw_virtio_pci *vp = arg;

	if (!window(vp, reg, len, true) && vp->msix)
		gw_msix_config_written(vp->msix, reg, len);
}

static const struct gw_pci_ops pci_ops = { config_read, config_written, bar_mapped };

static int add_cap(struct gw_virtio_pci *vp, uint8_t type, uint32_t offset, uint32_t length, unsigned size)
{
	uint8_t cap[24] = { 0 };

	cap[VIRTIO_PCI_CAP_LEN] = (uint8_t)size;
	cap[VIRTIO_PCI_CAP_CFG_TYPE] = type;
	cap[VIRTIO_PCI_CAP_BAR] = BAR_VIRTIO;
	gw_put_le32(cap + VIRTIO_PCI_CAP_OFFSET, offset);
	gw_put_le32(cap + VIRTIO_PCI_CAP_LENGTH, length);
	if (type == VIRTIO_PCI_CAP_NOTIFY_CFG)
		gw_put_le32(cap + VIRTIO_PCI_NOTIFY_CAP_MULT, NOTIFY_MULTIPLIER);
	return gw_pci_add_cap(vp->dev, PCI_CAP_ID_VNDR, cap, size);
}

static int add_caps(struct gw_virtio_pci *vp, struct gw_error *err)
{
	const unsigned plain = sizeof(struct virtio_pci_cap);
	uint8_t *mask;
	int r;

	r = add_cap(vp, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, sizeof(struct virtio_pci_cfg_cap));
	if (r > 0) {
		vp->cfg_cap = (unsigned)r;
		mask = gw_pci_wmask(vp->dev) + r;
		mask[VIRTIO_PCI_CAP_BAR] = 0xff;
		memset(mask + VIRTIO_PCI_CAP_OFFSET, 0xff, 12); /* offset, length, data */
		r = add_cap(vp, VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE_OFFSET, REGION_SIZE, plain);
	}
	if (r > 0)
		r = add_cap(vp, VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY_OFFSET, REGION_SIZE, sizeof(struct virtio_pci_notify_cap));
	if (r > 0)
		r = add_cap(vp, VIRTIO_PCI_CAP_ISR_CFG, ISR_OFFSET, 4, plain);
	if (r > 0)
		r = add_cap(vp, VIRTIO_PCI_CAP_COMMON_CFG, COMMON_OFFSET, sizeof(struct virtio_pci_common_cfg), plain);
	return r < 0 ? gw_error_errno(err, r, "%s: no room for virtio capabilities", vp->vd->name) : 0;
}

int gw_virtio_pci_attach(struct gw_virtio *vd, struct gw_pci_bus *bus, unsigned slot, struct gw_error *err)
{
	const struct gw_pci_id id = {
		.vendor = VENDOR,
		.device = (uint16_t)(DEVICE_BASE + vd->ops->id),
		.subsystem_vendor = VENDOR,
		.subsystem = 0x1100,
		.revision = 1, /* §4.1.2.1: modern */
		.class = vd->ops->pci_class,
	};
	struct gw_virtio_pci *vp = calloc(1, sizeof(*vp));
	int r;

	if (!vp)
		return gw_error_set(err, ENOMEM, "out of memory");
	vp->vd = vd;
	r = gw_pci_dev_new(bus, slot, vd->name, &id, &pci_ops, vp, &vp->dev, err);
	if (r == 0)
		r = gw_pci_add_bar(vp->dev, BAR_VIRTIO, BAR_SIZE, true, &bar_ops, vp, err);
	if (r == 0)
		r = gw_msix_new(vp->dev, &vd->host, BAR_MSIX, vd->nqueues + 1, vd->name, &vp->msix, err);
	if (r == 0)
		r = add_caps(vp, err);
	vd->pci = vp;
	if (r < 0) {
		gw_virtio_pci_free(vp);
		vd->pci = NULL;
		return r;
	}
	vd->msix = vp->msix;
	set_kicks(vp, gw_pci_bar_home(vp->dev, BAR_VIRTIO), true);
	return 0;
}

struct gw_virtio *gw_virtio_pci_at(struct gw_pci_bus *bus, unsigned slot)
{
	struct gw_virtio_pci *vp = slot > 0 ? gw_pci_slot_arg(bus, slot) : NULL;

	return vp ? vp->vd : NULL;
}

void gw_virtio_pci_free(struct gw_virtio_pci *vp)
{
	if (!vp)
		return;
	if (vp->kicks_at)
		set_kicks(vp, vp->kicks_at, false);
	gw_pci_dev_free(vp->dev);
	gw_msix_free(vp->msix);
	free(vp);
}

void gw_virtio_pci_reset(struct gw_virtio_pci *vp)
{
	gw_pci_dev_reset(vp->dev);
	gw_msix_reset(vp->msix);
}

int gw_virtio_pci_save(struct gw_virtio_pci *vp, struct gw_state_writer *w, struct gw_error *err)
{
	int r = gw_pci_dev_save(vp->dev, w, err);

	return r < 0 ? r : gw_msix_save(vp->msix, w, err);
}

int gw_virtio_pci_load(struct gw_virtio_pci *vp, struct gw_state_reader *r, struct gw_error *err)
{
	int ret = gw_pci_dev_load(vp->dev, r, err);

	return ret < 0 ? ret : gw_msix_load(vp->msix, r, err);
}
