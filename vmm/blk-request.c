// SPDX-License-Identifier: Apache-2.0
/* virtio-blk requests (virtio 1.2 §5.2.6): from a descriptor chain to the back end and back. Device thread only. */
#include <errno.h>
#include <linux/virtio_blk.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/blk-internal.h"

/* One buffer of a read, to be marked dirty. */
struct range {
	uint64_t gpa;
	uint64_t len;
};

struct request {
	struct gw_blk_io io;
	struct gw_blk *blk;
	uint16_t head;
	uint8_t *status;
	uint64_t status_gpa;
	uint32_t written;   /* bytes for the used ring when it succeeds */
	uint64_t writes;    /* completed when this was submitted: what a flush covers */
	unsigned nranges;
	struct range *ranges; /* of a read; in the same allocation as the iovec */
};

/* The device's own requests fit on the stack; guests' are allocated with room for `n` buffers. */
static struct request *new_request(struct gw_blk *blk, unsigned n)
{
	struct request *req = malloc(sizeof(*req) + n * (sizeof(struct iovec) + sizeof(struct range)));

	if (!req)
		return NULL;
	memset(req, 0, sizeof(*req));
	req->blk = blk;
	req->head = blk->chain.head;
	req->io.iov = (struct iovec *)(req + 1);
	req->ranges = (struct range *)(req->io.iov + n);
	return req;
}

/* Adds bytes [skip, skip + len) of the chain's buffers first .. first + n - 1 to the request. */
static void add_buffers(struct request *req, unsigned first, unsigned n, uint64_t skip, uint64_t len)
{
	const struct gw_vq_chain *c = &req->blk->chain;

	for (unsigned i = first; i < first + n && len > 0; i++) {
		uint64_t part;

		if (skip >= c->iov[i].iov_len) {
			skip -= c->iov[i].iov_len;
			continue;
		}
		part = GW_MIN(len, (uint64_t)c->iov[i].iov_len - skip);
		req->io.iov[req->io.niov++] = (struct iovec){ (uint8_t *)c->iov[i].iov_base + skip, (size_t)part };
		req->ranges[req->nranges++] = (struct range){ c->gpa[i] + skip, part };
		len -= part;
		skip = 0;
	}
}

/* The kernel writes a read's pages, perhaps after it has pinned them: from submit on, until it has ended. */
static void count_io(const struct request *req, bool begin)
{
	void (*count)(struct gw_ram *, uint64_t, uint64_t) = begin ? gw_ram_io_begin : gw_ram_io_end;

	for (unsigned i = 0; req->io.op == GW_BLK_READ && i < req->nranges; i++)
		count(req->blk->vd.host.ram, req->ranges[i].gpa, req->ranges[i].len);
}

static void finish(struct request *req, uint8_t status)
{
	struct gw_blk *blk = req->blk;
	struct gw_ram *ram = blk->vd.host.ram;

	/* A read that failed may have filled a part. */
	for (unsigned i = 0; req->io.op == GW_BLK_READ && i < req->nranges; i++) {
		gw_ram_mark_dirty(ram, req->ranges[i].gpa, req->ranges[i].len);
		if (status == VIRTIO_BLK_S_OK)
			blk->vd.host.ops->disk_read(&blk->vd.host, req->ranges[i].gpa, req->ranges[i].len);
	}
	__atomic_store_n(req->status, status, __ATOMIC_RELAXED);
	gw_ram_mark_dirty(ram, req->status_gpa, 1);
	gw_vq_push(&blk->vd.queues[0].vq, req->head, status == VIRTIO_BLK_S_OK ? req->written : 1);
	free(req);
}

static uint8_t status_of(int result)
{
	if (result == 0)
		return VIRTIO_BLK_S_OK;
	return result == -EOPNOTSUPP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
}

static void request_done(struct gw_blk_io *io, int result)
{
	struct request *req = gw_container_of(io, struct request, io);
	struct gw_blk *blk = req->blk;

	blk->in_flight--;
	count_io(req, false);
	if (result == -ECANCELED) {
		/* As many as the queue has at most; a lost one would hang the guest, so it fails instead. */
		if (gw_buf_append(&blk->parked, &req->head, sizeof(req->head)) == 0) {
			free(req);
			return;
		}
	}
	if (result == 0 && io->op == GW_BLK_FLUSH)
		blk->flushed = GW_MAX(blk->flushed, req->writes);
	else if (io->op != GW_BLK_READ && io->op != GW_BLK_FLUSH)
		blk->writes++; /* a failed one may have written a part */
	if (result < 0 && result != -EOPNOTSUPP)
		gw_warn_limited(&blk->vd.limit, "disk %s: %s of %llu bytes at %llu failed: %s", blk->vd.name,
				io->op == GW_BLK_READ ? "read" : io->op == GW_BLK_FLUSH ? "flush" : "write",
				(unsigned long long)io->len, (unsigned long long)io->offset, strerrordesc_np(-result));
	finish(req, status_of(result));
}

static bool within(const struct gw_blk *blk, uint64_t sector, uint64_t bytes)
{
	uint64_t sectors = blk->size / GW_BLK_SECTOR;

	return bytes % GW_BLK_SECTOR == 0 && sector <= sectors && bytes / GW_BLK_SECTOR <= sectors - sector;
}

static bool range_request(struct request *req, uint64_t data_len, bool zero, uint8_t *status)
{
	struct virtio_blk_discard_write_zeroes seg;
	struct gw_blk *blk = req->blk;

	*status = VIRTIO_BLK_S_UNSUPP;
	if (!(zero ? blk->be->can_zero : blk->be->can_discard))
		return false;
	*status = VIRTIO_BLK_S_IOERR;
	/* One segment, as max_discard_seg and max_write_zeroes_seg say. */
	if (data_len != sizeof(seg))
		return false;
	gw_iov_read(req->io.iov, req->io.niov, 0, &seg, sizeof(seg));
	if (seg.flags & ~(zero ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0u)) {
		*status = VIRTIO_BLK_S_UNSUPP;
		return false;
	}
	if (seg.num_sectors > GW_BLK_MAX_RANGE || !within(blk, seg.sector, (uint64_t)seg.num_sectors * GW_BLK_SECTOR))
		return false;
	req->io.op = zero ? GW_BLK_ZERO : GW_BLK_DISCARD;
	req->io.unmap = seg.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
	req->io.offset = seg.sector * GW_BLK_SECTOR;
	req->io.len = (uint64_t)seg.num_sectors * GW_BLK_SECTOR;
	req->io.niov = 0;
	*status = VIRTIO_BLK_S_OK;
	return req->io.len > 0;
}

/* §5.2.6: the disk's serial number, 20 bytes, here its name: stable over moves. */
static uint8_t get_id(struct request *req, uint64_t room)
{
	struct gw_vq_chain *chain = &req->blk->chain;
	char id[VIRTIO_BLK_ID_BYTES] = { 0 };
	size_t len;

	if (room < sizeof(id))
		return VIRTIO_BLK_S_IOERR;
	memcpy(id, req->blk->vd.name, strnlen(req->blk->vd.name, sizeof(id)));
	len = gw_iov_write(chain->iov + chain->nout, chain->nin, 0, id, sizeof(id));
	gw_vq_mark_dirty(&req->blk->vd.queues[0].vq, chain, len);
	req->written = (uint32_t)len + 1;
	return VIRTIO_BLK_S_OK;
}

/* True when the request goes to the back end; else *status is its result. */
static bool parse(struct request *req, const struct virtio_blk_outhdr *hdr, uint8_t *status)
{
	struct gw_blk *blk = req->blk;
	const struct gw_vq_chain *c = &blk->chain;
	uint64_t out = c->out_len - sizeof(*hdr), in = c->in_len - 1;
	bool writes = hdr->type == VIRTIO_BLK_T_OUT || hdr->type == VIRTIO_BLK_T_DISCARD ||
		      hdr->type == VIRTIO_BLK_T_WRITE_ZEROES;
	uint64_t len = writes ? out : in;

	req->written = 1;
	*status = VIRTIO_BLK_S_IOERR;
	if (blk->refused || (writes && blk->readonly))
		return false;
	if (writes)
		add_buffers(req, 0, c->nout, sizeof(*hdr), out);
	switch (hdr->type) {
	case VIRTIO_BLK_T_IN:
		add_buffers(req, c->nout, c->nin, 0, in);
		/* fall through */
	case VIRTIO_BLK_T_OUT:
		if (!within(blk, hdr->sector, len))
			return false;
		req->io.op = writes ? GW_BLK_WRITE : GW_BLK_READ;
		req->io.offset = hdr->sector * GW_BLK_SECTOR;
		req->io.len = len;
		req->written = writes ? 1 : (uint32_t)len + 1;
		*status = VIRTIO_BLK_S_OK;
		return len > 0;
	case VIRTIO_BLK_T_FLUSH:
		req->io.op = GW_BLK_FLUSH;
		/* Nothing is cached of a disk that we only read. */
		*status = VIRTIO_BLK_S_OK;
		return !blk->readonly;
	case VIRTIO_BLK_T_DISCARD:
		return range_request(req, len, false, status);
	case VIRTIO_BLK_T_WRITE_ZEROES:
		return range_request(req, len, true, status);
	case VIRTIO_BLK_T_GET_ID:
		*status = get_id(req, in);
		return false;
	}
	*status = VIRTIO_BLK_S_UNSUPP;
	return false;
}

/* Begins the request whose chain is in blk->chain. NULL, or why it cannot be one. */
static const char *begin(struct gw_blk *blk)
{
	const struct gw_vq_chain *c = &blk->chain;
	struct virtio_blk_outhdr hdr;
	struct request *req;
	uint64_t at = c->in_len - 1;
	uint8_t status;

	if (c->out_len < sizeof(hdr) || c->in_len < 1)
		return "disk request without header or status";
	req = new_request(blk, c->nout + c->nin);
	if (!req)
		return "out of memory";
	gw_iov_read(c->iov, c->nout, 0, &hdr, sizeof(hdr));
	for (unsigned i = c->nout; i < c->nout + c->nin; i++) {
		if (at < c->iov[i].iov_len) {
			req->status = (uint8_t *)c->iov[i].iov_base + at;
			req->status_gpa = c->gpa[i] + at;
			break;
		}
		at -= c->iov[i].iov_len;
	}
	req->io.done = request_done;
	if (!parse(req, &hdr, &status)) {
		finish(req, status);
		return NULL;
	}
	req->writes = blk->writes;
	blk->in_flight++;
	count_io(req, true);
	blk->be->ops->submit(blk->be, &req->io);
	return NULL;
}

void gw_blk_take_requests(struct gw_blk *blk)
{
	struct gw_vq *vq = &blk->vd.queues[0].vq;

	unsigned budget = 2 * GW_VQ_MAX_SIZE;

	do {
		gw_vq_disable_kicks(vq);
		while (budget > 0 && gw_virtio_pop(&blk->vd, 0, &blk->chain)) {
			const char *why = begin(blk);

			if (why)
				gw_virtio_refuse(&blk->vd, 0, why);
			budget--;
		}
	} while (budget > 0 && gw_virtio_wait_for_kick(&blk->vd, 0));
	if (budget == 0)
		gw_virtio_kick_again(&blk->vd, 0);
	blk->be->ops->commit(blk->be);
	gw_virtio_notify(&blk->vd, 0);
}

void gw_blk_resubmit_parked(struct gw_blk *blk)
{
	struct gw_vq *vq = &blk->vd.queues[0].vq;
	const char *why = NULL;
	uint16_t head;

	/* `done` is never called from within submit, so nothing is parked meanwhile. */
	while (!why && blk->parked.len > 0) {
		memcpy(&head, blk->parked.data, sizeof(head));
		why = gw_vq_read_chain(vq, head, &blk->chain) < 0 ? vq->violation : begin(blk);
		/* A chain that the guest spoilt meanwhile stays parked: it was taken and is not answered. */
		if (why)
			gw_virtio_broken(&blk->vd, why);
		else
			gw_buf_consume(&blk->parked, sizeof(head));
	}
	blk->be->ops->commit(blk->be);
}
