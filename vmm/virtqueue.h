// SPDX-License-Identifier: Apache-2.0
/*
 * Split virtqueues, the device's side (virtio 1.2 §2.7). All that the guest writes is hostile and may change while it is read:
 * rings are range-checked when the queue is enabled, a descriptor is copied once and checked before it is used, chains are
 * bounded, and buffers are handed out as iovecs straight into guest RAM.
 *
 * A queue belongs to the device thread while its device is active; it has no lock.
 */
#ifndef GW_VMM_VIRTQUEUE_H
#define GW_VMM_VIRTQUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "lib/ram/ram.h"

/* The largest queue that a device offers, and the longest chain that it takes (§2.7.5.3.1: not longer than the queue). */
#define GW_VQ_MAX_SIZE 256

struct gw_vq {
	struct gw_ram *ram;
	uint16_t max_size;   /* what the device offers; a power of two */
	uint16_t size;       /* what the driver chose */
	uint8_t enabled;     /* 0 or 1; no bool, as it comes out of loaded states */
	bool event_idx;      /* VIRTIO_F_EVENT_IDX was negotiated */
	bool indirect;       /* VIRTIO_F_INDIRECT_DESC was negotiated */
	uint64_t desc, avail, used; /* guest-physical addresses of the three areas */
	uint16_t last_avail; /* next available entry to take */
	uint16_t used_idx;   /* next used entry to write */
	uint16_t published;  /* used_idx as the guest was last told */
	bool signalled;      /* `published` may be compared with the driver's used_event */
	const char *violation; /* what the guest did wrong, or NULL */
	/* Host addresses of the areas while enabled. */
	const uint8_t *desc_hva;
	uint8_t *avail_hva, *used_hva;
};

/* A descriptor chain: `nout` buffers that the device reads, then `nin` that it writes. */
struct gw_vq_chain {
	uint16_t head;
	unsigned nout, nin;
	uint64_t out_len, in_len; /* bytes */
	struct iovec iov[GW_VQ_MAX_SIZE];
	uint64_t gpa[GW_VQ_MAX_SIZE]; /* of each iov */
};

void gw_vq_init(struct gw_vq *vq, struct gw_ram *ram, uint16_t max_size);
/* Back to the state after device reset. */
void gw_vq_reset(struct gw_vq *vq);
/* True when the driver may choose this size. */
bool gw_vq_size_valid(const struct gw_vq *vq, uint16_t size);
/* Checks size, alignment and place of the three areas and finds their host addresses. -EINVAL with vq->violation set. */
int gw_vq_enable(struct gw_vq *vq);

/*
 * Takes the next available chain: 1, 0 when there is none, -EPROTO on a violation: vq->violation says what, and the
 * queue must not be used until it is reset.
 */
int gw_vq_pop(struct gw_vq *vq, struct gw_vq_chain *chain);
/* Gives back the last `n` chains taken, none of which was pushed. */
void gw_vq_unpop(struct gw_vq *vq, unsigned n);
/* Reads the chain at `head` again, as of one taken before a move. -EPROTO on a violation. */
int gw_vq_read_chain(struct gw_vq *vq, uint16_t head, struct gw_vq_chain *chain);
/* How many chains were taken and not yet pushed. */
unsigned gw_vq_in_flight(const struct gw_vq *vq);
/* True when chains wait to be taken. */
bool gw_vq_pending(const struct gw_vq *vq);

/* Puts a finished chain, of which `written` bytes were filled, into the used ring; the guest sees it at gw_vq_publish(). */
void gw_vq_push(struct gw_vq *vq, uint16_t head, uint32_t written);
/* Shows the guest all that was pushed. True when it wants an interrupt for it. */
bool gw_vq_publish(struct gw_vq *vq);

/*
 * After a load: false when the driver is known to want no interrupt for anything that was published, as it has asked to be told of the next chain only
 * (§2.7.7.1: its used_event). One that it gets all the same does no harm.
 */
bool gw_vq_may_await_interrupt(const struct gw_vq *vq);
/* ORs the pages of the queue's three areas into `bitmap`, one bit a page index. */
void gw_vq_mark_areas(const struct gw_vq *vq, uint64_t *bitmap);

/* Tells the driver that kicks are not needed now. A hint. */
void gw_vq_disable_kicks(struct gw_vq *vq);
/* Asks for kicks again. True when chains came meanwhile, for which there may be no kick. */
bool gw_vq_enable_kicks(struct gw_vq *vq);

/* Marks the first `len` bytes of the chain's writable buffers dirty. */
void gw_vq_mark_dirty(const struct gw_vq *vq, const struct gw_vq_chain *chain, uint64_t len);

/* Copy from or to iovecs, starting `offset` bytes in; return how many bytes there were. */
size_t gw_iov_read(const struct iovec *iov, unsigned n, uint64_t offset, void *data, size_t len);
size_t gw_iov_write(const struct iovec *iov, unsigned n, uint64_t offset, const void *data, size_t len);

#endif
