// SPDX-License-Identifier: Apache-2.0
/* See virtio-guest.h. */
#include "tests/unit/virtio-guest.h"

#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <string.h>

#include "lib/util.h"

#define DEVICE 0x2000
#define NOTIFY 0x3000

void *guest_ptr(struct guest *g, uint64_t gpa, uint64_t len)
{
	void *p = gw_ram_ptr(g->fake->host.ram, gpa, len);

	if (!p)
		abort();
	return p;
}

void guest_common_write(struct guest *g, unsigned offset, uint32_t value, unsigned len)
{
	fake_write(g->fake, g->bar + offset, value, len);
}

uint32_t guest_common_read(struct guest *g, unsigned offset, unsigned len)
{
	return (uint32_t)fake_read(g->fake, g->bar + offset, len);
}

uint64_t guest_config_read(struct guest *g, unsigned offset, unsigned len)
{
	return fake_read(g->fake, g->bar + DEVICE + offset, len);
}

uint8_t guest_status(struct guest *g)
{
	return (uint8_t)guest_common_read(g, VIRTIO_PCI_COMMON_STATUS, 1);
}

void guest_reset(struct guest *g)
{
	guest_common_write(g, VIRTIO_PCI_COMMON_STATUS, 0, 1);
}

static uint64_t read_bar(struct guest *g, unsigned bar)
{
	unsigned reg = PCI_BASE_ADDRESS_0 + 4 * bar;

	return ((uint64_t)fake_config_read(g->fake, g->slot, reg + 4, 4) << 32 |
		fake_config_read(g->fake, g->slot, reg, 4)) & ~15ull;
}

static unsigned find_cap(struct guest *g, uint8_t id)
{
	unsigned at = fake_config_read(g->fake, g->slot, PCI_CAPABILITY_LIST, 1);

	while (at && fake_config_read(g->fake, g->slot, at, 1) != id)
		at = fake_config_read(g->fake, g->slot, at + 1, 1);
	return at;
}

void guest_probe(struct guest *g, struct fake_host *fake, unsigned slot)
{
	unsigned cap, vectors;

	memset(g, 0, sizeof(*g));
	g->fake = fake;
	g->slot = slot;
	g->bar = read_bar(g, 0);
	g->msix = read_bar(g, 2);
	fake_config_write(fake, slot, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
	cap = find_cap(g, PCI_CAP_ID_MSIX);
	vectors = (fake_config_read(fake, slot, cap + PCI_MSIX_FLAGS, 2) & PCI_MSIX_FLAGS_QSIZE) + 1;
	for (unsigned i = 0; i < vectors; i++) {
		fake_write(fake, g->msix + 16 * i, 0xfee00000, 4);
		fake_write(fake, g->msix + 16 * i + 4, 0, 4);
		fake_write(fake, g->msix + 16 * i + 8, GUEST_MESSAGE(slot, i), 4);
		fake_write(fake, g->msix + 16 * i + 12, 0, 4);
	}
	fake_config_write(fake, slot, cap + PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE, 2);
}

static void setup_queue(struct guest *g, unsigned i)
{
	struct guest_queue *q = &g->q[i];
	/* 64 KiB a queue, from 1 MiB on; odd ones above 4 GiB. */
	uint64_t base = (i & 1 ? FAKE_HIGH : 0) + (1ull << 20) + (g->slot * 4 + i) * 0x10000ull;

	guest_common_write(g, VIRTIO_PCI_COMMON_Q_SELECT, i, 2);
	q->size = (uint16_t)GW_MIN(guest_common_read(g, VIRTIO_PCI_COMMON_Q_SIZE, 2), (uint32_t)GUEST_QUEUE_SIZE);
	q->desc = base;
	q->avail = base + 0x4000;
	q->used = base + 0x8000;
	memset(guest_ptr(g, base, 0x10000), 0, 0x10000);
	guest_common_write(g, VIRTIO_PCI_COMMON_Q_SIZE, q->size, 2);
	guest_common_write(g, VIRTIO_PCI_COMMON_Q_MSIX, i + 1, 2);
	guest_common_write(g, VIRTIO_PCI_COMMON_Q_DESCLO, (uint32_t)q->desc, 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_Q_DESCHI, (uint32_t)(q->desc >> 32), 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_Q_AVAILLO, (uint32_t)q->avail, 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_Q_AVAILHI, (uint32_t)(q->avail >> 32), 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_Q_USEDLO, (uint32_t)q->used, 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_Q_USEDHI, (uint32_t)(q->used >> 32), 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
}

bool guest_start(struct guest *g, struct fake_host *fake, unsigned slot, uint64_t features)
{
	uint64_t offered;

	guest_probe(g, fake, slot);
	guest_reset(g);
	guest_common_write(g, VIRTIO_PCI_COMMON_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER, 1);
	guest_common_write(g, VIRTIO_PCI_COMMON_DFSELECT, 0, 4);
	offered = guest_common_read(g, VIRTIO_PCI_COMMON_DF, 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_DFSELECT, 1, 4);
	offered |= (uint64_t)guest_common_read(g, VIRTIO_PCI_COMMON_DF, 4) << 32;
	g->features = offered & features;
	guest_common_write(g, VIRTIO_PCI_COMMON_GFSELECT, 0, 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_GF, (uint32_t)g->features, 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_GFSELECT, 1, 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_GF, (uint32_t)(g->features >> 32), 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_STATUS, 11, 1);
	if (!(guest_status(g) & VIRTIO_CONFIG_S_FEATURES_OK))
		return false;
	guest_common_write(g, VIRTIO_PCI_COMMON_MSIX, 0, 2);
	g->nqueues = guest_common_read(g, VIRTIO_PCI_COMMON_NUMQ, 2);
	for (unsigned i = 0; i < g->nqueues; i++)
		setup_queue(g, i);
	guest_common_write(g, VIRTIO_PCI_COMMON_STATUS, 15, 1);
	return true;
}

void guest_desc(struct guest *g, unsigned queue, uint16_t index, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	struct vring_desc *d = guest_ptr(g, g->q[queue].desc, 16ull * g->q[queue].size);

	d[index % g->q[queue].size] = (struct vring_desc){ addr, len, flags, next };
}

void guest_avail(struct guest *g, unsigned queue, uint16_t head)
{
	struct guest_queue *q = &g->q[queue];
	uint16_t *avail = guest_ptr(g, q->avail, 4 + 2ull * q->size);

	avail[2 + q->avail_idx % q->size] = head;
	q->avail_idx++;
	__atomic_store_n(&avail[1], q->avail_idx, __ATOMIC_RELEASE);
}

uint16_t guest_add(struct guest *g, unsigned queue, const struct guest_buf *bufs, unsigned n)
{
	struct guest_queue *q = &g->q[queue];
	uint16_t head = q->next_desc % q->size;

	for (unsigned i = 0; i < n; i++) {
		uint16_t at = q->next_desc++ % q->size;

		guest_desc(g, queue, at, bufs[i].gpa, bufs[i].len,
			   (uint16_t)((bufs[i].write ? VRING_DESC_F_WRITE : 0) | (i + 1 < n ? VRING_DESC_F_NEXT : 0)),
			   q->next_desc % q->size);
	}
	guest_avail(g, queue, head);
	return head;
}

void guest_kick(struct guest *g, unsigned queue)
{
	fake_write(g->fake, g->bar + NOTIFY + 4 * queue, queue, 2);
}

bool guest_used_now(struct guest *g, unsigned queue, uint16_t *head, uint32_t *len)
{
	struct guest_queue *q = &g->q[queue];
	uint8_t *used = guest_ptr(g, q->used, 4 + 8ull * q->size);
	struct vring_used_elem elem;

	if (__atomic_load_n((uint16_t *)(used + 2), __ATOMIC_ACQUIRE) == q->last_used)
		return false;
	memcpy(&elem, used + 4 + 8 * (q->last_used % q->size), sizeof(elem));
	q->last_used++;
	if (head)
		*head = (uint16_t)elem.id;
	if (len)
		*len = elem.len;
	return true;
}

struct wait_used {
	struct guest *g;
	unsigned queue;
	uint16_t *head;
	uint32_t *len;
};

static bool check_used(void *arg)
{
	struct wait_used *w = arg;

	return guest_used_now(w->g, w->queue, w->head, w->len);
}

bool guest_used(struct guest *g, unsigned queue, uint16_t *head, uint32_t *len)
{
	struct wait_used w = { g, queue, head, len };

	return fake_wait(check_used, &w);
}

static bool check_broken(void *arg)
{
	return guest_status(arg) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

bool guest_broken(struct guest *g)
{
	return fake_wait(check_broken, g);
}
