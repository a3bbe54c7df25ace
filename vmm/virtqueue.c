// SPDX-License-Identifier: Apache-2.0
/* Split virtqueues; see virtqueue.h. Section numbers are those of virtio 1.2. */
#include "vmm/virtqueue.h"

#include <errno.h>
#include <linux/virtio_ring.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"

/* Sizes and offsets of the areas (§2.7.6, §2.7.8). */
#define AVAIL_FLAGS 0
#define AVAIL_IDX 2
#define AVAIL_RING 4
#define USED_FLAGS 0
#define USED_IDX 2
#define USED_RING 4
#define USED_ELEM 8

static uint64_t desc_bytes(const struct gw_vq *vq)
{
	return sizeof(struct vring_desc) * (uint64_t)vq->size;
}

static uint64_t avail_bytes(const struct gw_vq *vq)
{
	return AVAIL_RING + 2 * (uint64_t)vq->size + 2;
}

static uint64_t used_bytes(const struct gw_vq *vq)
{
	return USED_RING + USED_ELEM * (uint64_t)vq->size + 2;
}

void gw_vq_init(struct gw_vq *vq, struct gw_ram *ram, uint16_t max_size)
{
	memset(vq, 0, sizeof(*vq));
	vq->ram = ram;
	vq->max_size = max_size;
	vq->size = max_size;
}

void gw_vq_reset(struct gw_vq *vq)
{
	gw_vq_init(vq, vq->ram, vq->max_size);
}

bool gw_vq_size_valid(const struct gw_vq *vq, uint16_t size)
{
	return size > 0 && size <= vq->max_size && !(size & (size - 1));
}

static int violate(struct gw_vq *vq, const char *what)
{
	vq->violation = what;
	return -EPROTO;
}

int gw_vq_enable(struct gw_vq *vq)
{
	if (!gw_vq_size_valid(vq, vq->size)) {
		violate(vq, "queue size is no power of two or too large");
		return -EINVAL;
	}
	if (vq->desc & 15 || vq->avail & 1 || vq->used & 3) {
		violate(vq, "ring address is not aligned");
		return -EINVAL;
	}
	vq->desc_hva = gw_ram_ptr(vq->ram, vq->desc, desc_bytes(vq));
	vq->avail_hva = gw_ram_ptr(vq->ram, vq->avail, avail_bytes(vq));
	vq->used_hva = gw_ram_ptr(vq->ram, vq->used, used_bytes(vq));
	if (!vq->desc_hva || !vq->avail_hva || !vq->used_hva) {
		violate(vq, "ring lies outside of RAM");
		return -EINVAL;
	}
	vq->enabled = 1;
	vq->published = vq->used_idx;
	vq->signalled = false;
	return 0;
}

/* Takes descriptor `d`, a copy, into the chain. */
static int take(struct gw_vq *vq, struct gw_vq_chain *chain, const struct vring_desc *d)
{
	unsigned n = chain->nout + chain->nin;
	void *hva;

	if (n >= vq->max_size)
		return violate(vq, "descriptor chain is longer than the queue");
	hva = gw_ram_ptr(vq->ram, d->addr, d->len);
	if (!hva)
		return violate(vq, d->len ? "buffer lies outside of RAM" : "buffer of no length");
	chain->iov[n] = (struct iovec){ hva, d->len };
	chain->gpa[n] = d->addr;
	if (d->flags & VRING_DESC_F_WRITE) {
		chain->nin++;
		chain->in_len += d->len;
		return 0;
	}
	/* §2.7.4.2: what the device reads comes before what it writes. */
	if (chain->nin)
		return violate(vq, "readable buffer after a writable one");
	chain->nout++;
	chain->out_len += d->len;
	return 0;
}

static void copy_desc(struct vring_desc *to, const uint8_t *table, unsigned index)
{
	memcpy(to, table + sizeof(*to) * index, sizeof(*to));
	/* The copy must not be made twice by the compiler: the guest may change the original in between. */
	__asm__ volatile("" : : : "memory");
}

/* §2.7.5.3: a table of descriptors elsewhere in RAM. */
static int walk_indirect(struct gw_vq *vq, struct gw_vq_chain *chain, const struct vring_desc *outer)
{
	unsigned count = outer->len / sizeof(struct vring_desc), index = 0;
	const uint8_t *table;
	struct vring_desc d;

	if (!vq->indirect)
		return violate(vq, "indirect descriptor without the feature");
	if (outer->flags & VRING_DESC_F_NEXT)
		return violate(vq, "indirect descriptor with a next one");
	if (outer->len % sizeof(struct vring_desc) || count == 0)
		return violate(vq, "indirect table has a wrong size");
	table = gw_ram_ptr(vq->ram, outer->addr, outer->len);
	if (!table)
		return violate(vq, "indirect table lies outside of RAM");
	/* Each step takes a descriptor into the chain, whose length is bounded: a cycle ends there. */
	for (;;) {
		int r;

		copy_desc(&d, table, index);
		if (d.flags & VRING_DESC_F_INDIRECT)
			return violate(vq, "indirect descriptor within an indirect table");
		r = take(vq, chain, &d);
		if (r < 0 || !(d.flags & VRING_DESC_F_NEXT))
			return r;
		if (d.next >= count)
			return violate(vq, "next descriptor is outside of the indirect table");
		index = d.next;
	}
}

int gw_vq_read_chain(struct gw_vq *vq, uint16_t head, struct gw_vq_chain *chain)
{
	struct vring_desc d;
	unsigned index = head;

	chain->head = head;
	chain->nout = chain->nin = 0;
	chain->out_len = chain->in_len = 0;
	if (head >= vq->size)
		return violate(vq, "available entry is outside of the descriptor table");
	for (;;) {
		int r;

		copy_desc(&d, vq->desc_hva, index);
		if (d.flags & VRING_DESC_F_INDIRECT)
			return walk_indirect(vq, chain, &d);
		r = take(vq, chain, &d);
		if (r < 0 || !(d.flags & VRING_DESC_F_NEXT))
			return r;
		if (d.next >= vq->size)
			return violate(vq, "next descriptor is outside of the table");
		index = d.next;
	}
}

static uint16_t load_avail_idx(const struct gw_vq *vq)
{
	/* Acquire pairs with the driver's barrier between its ring entry and its index (§2.7.13.3.1). */
	return __atomic_load_n((const uint16_t *)(vq->avail_hva + AVAIL_IDX), __ATOMIC_ACQUIRE);
}

bool gw_vq_pending(const struct gw_vq *vq)
{
	return load_avail_idx(vq) != vq->last_avail;
}

unsigned gw_vq_in_flight(const struct gw_vq *vq)
{
	return (uint16_t)(vq->last_avail - vq->used_idx);
}

int gw_vq_pop(struct gw_vq *vq, struct gw_vq_chain *chain)
{
	uint16_t waiting = (uint16_t)(load_avail_idx(vq) - vq->last_avail);
	uint16_t head;
	int r;

	if (waiting == 0)
		return 0;
	if (waiting > vq->size)
		return violate(vq, "available index is more than a queue ahead");
	/* A driver has no more chains than descriptors; one that claims to would have us queue without bound. */
	if (gw_vq_in_flight(vq) >= vq->size)
		return violate(vq, "more chains available than the queue has descriptors");
	head = __atomic_load_n((const uint16_t *)(vq->avail_hva + AVAIL_RING + 2 * (vq->last_avail & (vq->size - 1))),
			       __ATOMIC_RELAXED);
	r = gw_vq_read_chain(vq, head, chain);
	if (r < 0)
		return r;
	vq->last_avail++;
	return 1;
}

void gw_vq_unpop(struct gw_vq *vq, unsigned n)
{
	vq->last_avail = (uint16_t)(vq->last_avail - n);
}

void gw_vq_push(struct gw_vq *vq, uint16_t head, uint32_t written)
{
	uint64_t offset = USED_RING + USED_ELEM * (uint64_t)(vq->used_idx & (vq->size - 1));
	struct vring_used_elem elem = { .id = head, .len = written };

	memcpy(vq->used_hva + offset, &elem, sizeof(elem));
	gw_ram_mark_dirty(vq->ram, vq->used + offset, sizeof(elem));
	vq->used_idx++;
}

static uint16_t used_event(const struct gw_vq *vq)
{
	return __atomic_load_n((const uint16_t *)(vq->avail_hva + AVAIL_RING + 2 * vq->size), __ATOMIC_RELAXED);
}

bool gw_vq_publish(struct gw_vq *vq)
{
	uint16_t old = vq->published;
	bool signalled = vq->signalled;

	if (vq->used_idx == old)
		return false;
	/* Release pairs with the driver's barrier after it reads the index, before it reads entries and buffers (§2.7.14). */
	__atomic_store_n((uint16_t *)(vq->used_hva + USED_IDX), vq->used_idx, __ATOMIC_RELEASE);
	gw_ram_mark_dirty(vq->ram, vq->used + USED_IDX, 2);
	vq->published = vq->used_idx;
	vq->signalled = true;
	/*
	 * Our index must be out before the driver's wish is read; pairs with the barrier between the driver's used_event (or flags) and
	 * its last look at the index (§2.7.7.2). Without it both could miss the other's news.
	 */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!vq->event_idx)
		return !(__atomic_load_n((const uint16_t *)(vq->avail_hva + AVAIL_FLAGS), __ATOMIC_RELAXED) &
			 VRING_AVAIL_F_NO_INTERRUPT);
	return !signalled || vring_need_event(used_event(vq), vq->used_idx, old);
}

bool gw_vq_may_await_interrupt(const struct gw_vq *vq)
{
	return !vq->event_idx || used_event(vq) != vq->used_idx;
}

static void mark_area(const struct gw_vq *vq, uint64_t gpa, uint64_t len, uint64_t *bitmap)
{
	for (uint64_t page = gw_ram_index(vq->ram, gpa); page <= gw_ram_index(vq->ram, gpa + len - 1); page++)
		bitmap[page / 64] |= 1ull << (page % 64);
}

void gw_vq_mark_areas(const struct gw_vq *vq, uint64_t *bitmap)
{
	mark_area(vq, vq->desc, desc_bytes(vq), bitmap);
	mark_area(vq, vq->avail, avail_bytes(vq), bitmap);
	mark_area(vq, vq->used, used_bytes(vq), bitmap);
}

static void store_used16(struct gw_vq *vq, uint64_t offset, uint16_t value)
{
	__atomic_store_n((uint16_t *)(vq->used_hva + offset), value, __ATOMIC_RELAXED);
	gw_ram_mark_dirty(vq->ram, vq->used + offset, 2);
}

void gw_vq_disable_kicks(struct gw_vq *vq)
{
	/* With event indexes nothing is to be done: the driver kicks only when it passes the index of the last wish. */
	if (!vq->event_idx)
		store_used16(vq, USED_FLAGS, VRING_USED_F_NO_NOTIFY);
}

bool gw_vq_enable_kicks(struct gw_vq *vq)
{
	if (vq->event_idx)
		store_used16(vq, USED_RING + USED_ELEM * (uint64_t)vq->size, vq->last_avail);
	else
		store_used16(vq, USED_FLAGS, 0);
	/* Pairs with the driver's barrier between its available index and its look at our wish (§2.7.10). */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return gw_vq_pending(vq);
}

void gw_vq_mark_dirty(const struct gw_vq *vq, const struct gw_vq_chain *chain, uint64_t len)
{
	for (unsigned i = chain->nout; len > 0 && i < chain->nout + chain->nin; i++) {
		uint64_t part = GW_MIN(len, (uint64_t)chain->iov[i].iov_len);

		gw_ram_mark_dirty(vq->ram, chain->gpa[i], part);
		len -= part;
	}
}

static size_t iov_copy(const struct iovec *iov, unsigned n, uint64_t offset, uint8_t *data, size_t len, bool write)
{
	size_t done = 0;

	for (unsigned i = 0; i < n && done < len; i++) {
		size_t part;
		uint8_t *at;

		if (offset >= iov[i].iov_len) {
			offset -= iov[i].iov_len;
			continue;
		}
		at = (uint8_t *)iov[i].iov_base + offset;
		part = GW_MIN(len - done, iov[i].iov_len - (size_t)offset);
		if (write)
			memcpy(at, data + done, part);
		else
			memcpy(data + done, at, part);
		done += part;
		offset = 0;
	}
	return done;
}

size_t gw_iov_read(const struct iovec *iov, unsigned n, uint64_t offset, void *data, size_t len)
{
	return iov_copy(iov, n, offset, data, len, false);
}

size_t gw_iov_write(const struct iovec *iov, unsigned n, uint64_t offset, const void *data, size_t len)
{
	return iov_copy(iov, n, offset, (uint8_t *)data, len, true);
}
