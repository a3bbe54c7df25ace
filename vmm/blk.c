// SPDX-License-Identifier: Apache-2.0
/*
 * virtio-blk: the device's life and configuration; see blk.h. Requests are in blk-request.c.
 *
 * Life of a request: kick -> chain taken -> struct request -> back end -> done -> used ring. On quiesce the back end finishes
 * what is in flight; what it cannot finish (the server is away) is cancelled and parked: its chain's head goes into the
 * device's state and is submitted again at the next resume, here or at a move's destination.
 */
#include "vmm/blk.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>
#include <openssl/evp.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "vmm/blk-internal.h"
#include "vmm/vm.h"

/* How long quiesce waits for a server that does not answer, before it parks requests. */
#define SETTLE_NS (5 * GW_NS_PER_SEC)
/* How long resume waits for the disk's lock: its last owner may be just ending. */
#define ACQUIRE_NS (2 * GW_NS_PER_SEC)
#define ACQUIRE_POLL_NS (5 * GW_NS_PER_MS)

static const struct gw_blk_backend_ops *const backends[] = { &gw_blk_nbd_ops, &gw_blk_file_ops };

static const struct gw_state_field blk_fields[] = {
	GW_STATE_UINT(struct gw_blk, size, 1),
	GW_STATE_BUF(struct gw_blk, parked, GW_VQ_MAX_SIZE * sizeof(uint16_t), 1),
	{ },
};
static const struct gw_state_desc blk_state = { "virtio-blk", 1, 1, blk_fields };

static struct gw_blk *to_blk(struct gw_virtio *vd)
{
	return gw_container_of(vd, struct gw_blk, vd);
}

static void blk_start(struct gw_virtio *vd)
{
	gw_blk_resubmit_parked(to_blk(vd));
}

static void blk_stop(struct gw_virtio *vd)
{
	struct gw_blk *blk = to_blk(vd);

	if (!blk->be->ops->settle(blk->be, gw_now_ns() + SETTLE_NS)) {
		gw_warn("disk %s: %u requests wait for its server and go on later", vd->name, blk->in_flight);
		blk->be->ops->cancel(blk->be);
	}
}

static void blk_kick(struct gw_virtio *vd, unsigned index)
{
	gw_blk_take_requests(to_blk(vd));
}

static void blk_reset(struct gw_virtio *vd)
{
	to_blk(vd)->parked.len = 0;
}

static void blk_config_read(struct gw_virtio *vd, uint64_t offset, void *data, unsigned len)
{
	const struct gw_blk *blk = to_blk(vd);
	struct virtio_blk_config c = {
		.capacity = blk->size / GW_BLK_SECTOR,
		.seg_max = GW_VQ_MAX_SIZE - 2, /* the header and the status are two more */
		.blk_size = GW_BLK_SECTOR,
		.physical_block_exp = 3, /* 4096 bytes: what page caches and disks prefer */
		.num_queues = 1,
	};

	if (blk->be->can_discard) {
		c.max_discard_sectors = GW_BLK_MAX_RANGE;
		c.max_discard_seg = 1;
		c.discard_sector_alignment = 4096 / GW_BLK_SECTOR;
	}
	if (blk->be->can_zero) {
		c.max_write_zeroes_sectors = GW_BLK_MAX_RANGE;
		c.max_write_zeroes_seg = 1;
		c.write_zeroes_may_unmap = blk->be->can_discard;
	}
	gw_virtio_config_slice(&c, sizeof(c), offset, data, len);
}

static int acquire(struct gw_blk *blk, struct gw_error *err)
{
	uint64_t deadline = gw_now_ns() + ACQUIRE_NS;
	int r;

	if (blk->readonly)
		return 0;
	while ((r = blk->be->ops->acquire(blk->be, err)) == -EBUSY && gw_now_ns() < deadline) {
		struct timespec pause = { .tv_nsec = ACQUIRE_POLL_NS };

		nanosleep(&pause, NULL);
	}
	return r;
}

static void blk_resume(struct gw_virtio *vd)
{
	struct gw_blk *blk = to_blk(vd);
	struct gw_error err = GW_ERROR_INIT;

	blk->refused = acquire(blk, &err) < 0;
	if (blk->refused) {
		gw_error_log("disk %s: %s", vd->name, gw_error_text(&err));
		vd->host.ops->failed(&vd->host, gw_error_text(&err));
	}
}

/* An operation that is waited for on the device thread, next to the guest's. */
struct sync_io {
	struct gw_blk_io io;
	bool finished;
	int result;
	struct iovec iov;                 /* samples: where data goes */
	uint8_t data[GW_BLK_SAMPLE_SIZE];
};

static void sync_done(struct gw_blk_io *io, int result)
{
	struct sync_io *s = gw_container_of(io, struct sync_io, io);

	s->result = result;
	s->finished = true;
}

/* Waits until all `n` are finished. Those that do not in time fail; the guest's, in flight beside them, are left alone. */
static int finish_sync(struct gw_blk *blk, struct sync_io *s, unsigned n)
{
	int r = 0;

	blk->be->ops->commit(blk->be);
	if (!blk->be->ops->settle(blk->be, gw_now_ns() + SETTLE_NS)) {
		/* Ours are among them, with buffers that are about to go. The guest's are parked and submitted anew. */
		blk->be->ops->cancel(blk->be);
		if (blk->vd.active)
			gw_blk_resubmit_parked(blk);
	}
	for (unsigned i = 0; i < n; i++)
		r = r ?: s[i].finished ? s[i].result : -ETIMEDOUT;
	if (blk->vd.active)
		gw_virtio_notify(&blk->vd, 0);
	return r == -ECANCELED ? -ETIMEDOUT : r;
}

struct flush_call {
	struct gw_blk *blk;
	int result;
};

static void flush_now(void *arg)
{
	struct flush_call *call = arg;
	struct gw_blk *blk = call->blk;
	struct sync_io s = { .io = { .op = GW_BLK_FLUSH, .done = sync_done } };

	uint64_t writes = blk->writes;

	if (writes == blk->flushed)
		return;
	blk->be->ops->submit(blk->be, &s.io);
	call->result = finish_sync(blk, &s, 1);
	if (call->result == 0)
		blk->flushed = writes;
}

int gw_blk_flush(struct gw_blk *blk, struct gw_error *err)
{
	struct flush_call call = { .blk = blk };

	if (blk->readonly)
		return 0;
	gw_iothread_call(blk->vd.host.io, flush_now, &call);
	if (call.result < 0)
		return gw_error_errno(err, call.result, "disk %s: cannot flush what was written", blk->vd.name);
	return 0;
}

static void blk_quiesce(struct gw_virtio *vd)
{
	struct gw_blk *blk = to_blk(vd);
	struct gw_error err = GW_ERROR_INIT;

	/* Whoever runs the VM next reads the disk, not our cache. A server's cache is the same for everyone. */
	blk->unflushed = !blk->be->shared && gw_blk_flush(blk, &err) < 0;
	if (blk->unflushed)
		gw_error_log("%s", gw_error_text(&err));
	if (!blk->readonly)
		blk->be->ops->release(blk->be);
}

static int blk_save(struct gw_virtio *vd, struct gw_state_writer *w, struct gw_error *err)
{
	struct gw_blk *blk = to_blk(vd);
	int r;

	if (blk->unflushed)
		return gw_error_set(err, EIO, "disk %s could not be flushed: its VM cannot leave", vd->name);
	r = gw_state_put(w, &blk_state, vd->name, blk);
	return r < 0 ? gw_error_errno(err, r, "cannot save disk %s", vd->name) : 0;
}

static int blk_load(struct gw_virtio *vd, struct gw_state_reader *r, struct gw_error *err)
{
	struct gw_blk *blk = to_blk(vd);
	uint64_t size = blk->size;
	int ret;

	ret = gw_state_get(r, &blk_state, vd->name, blk, err);
	if (ret == 0 && blk->size != size)
		ret = gw_error_set(err, EPROTO, "disk %s has %llu bytes here and %llu there", vd->name, (unsigned long long)size,
				   (unsigned long long)blk->size);
	blk->size = size;
	if (ret == 0 && blk->parked.len % sizeof(uint16_t))
		ret = gw_error_set(err, EPROTO, "state of disk %s: half a request is parked", vd->name);
	if (ret == 0)
		ret = gw_virtio_check_in_flight(vd, 0, (unsigned)(blk->parked.len / sizeof(uint16_t)), err);
	if (ret < 0)
		blk->parked.len = 0;
	return ret;
}

static void blk_free(struct gw_virtio *vd)
{
	struct gw_blk *blk = to_blk(vd);

	if (blk->be)
		blk->be->ops->close(blk->be);
	gw_virtio_release(&blk->vd);
	gw_buf_release(&blk->parked);
	free(blk->path);
	free(blk);
}

static const struct gw_virtio_ops blk_ops = {
	.kind = "virtio-blk",
	.id = VIRTIO_ID_BLOCK,
	.pci_class = 0x010000, /* mass storage, SCSI: what virtio disks have always said */
	.start = blk_start,
	.stop = blk_stop,
	.kick = blk_kick,
	.reset = blk_reset,
	.config_read = blk_config_read,
	.resume = blk_resume,
	.quiesce = blk_quiesce,
	.save = blk_save,
	.load = blk_load,
	.free = blk_free,
};

static void batch_done(void *owner)
{
	struct gw_blk *blk = owner;

	if (blk->vd.active)
		gw_virtio_notify(&blk->vd, 0);
}

static int open_backend(struct gw_blk *blk, struct gw_error *err)
{
	const struct gw_blk_open args = {
		.name = blk->vd.name,
		.path = blk->path,
		.readonly = blk->readonly,
		.io = blk->vd.host.io,
		.batch_done = batch_done,
		.owner = blk,
	};

	for (size_t i = 0; i < ARRAY_SIZE(backends); i++) {
		if (backends[i]->match(blk->path))
			return backends[i]->open(&args, &blk->be, err);
	}
	return gw_error_set(err, EINVAL, "'%s' is neither a path nor an nbd:// or nbd+unix:// URI", blk->path);
}

static uint64_t features_of(const struct gw_blk *blk)
{
	uint64_t f = 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE | 1ull << VIRTIO_BLK_F_TOPOLOGY |
		     1ull << VIRTIO_BLK_F_FLUSH;

	if (blk->readonly)
		return f | 1ull << VIRTIO_BLK_F_RO;
	if (blk->be->can_discard)
		f |= 1ull << VIRTIO_BLK_F_DISCARD;
	if (blk->be->can_zero)
		f |= 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
	return f;
}

int gw_blk_new(const struct gw_disk_config *config, bool incoming, const struct gw_devhost *host, struct gw_blk **ret,
	       struct gw_error *err)
{
	struct gw_blk *blk = calloc(1, sizeof(*blk));
	int r;

	if (!blk)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_virtio_init(&blk->vd, &blk_ops, config->name, host, 1, GW_VQ_MAX_SIZE, 0, err);
	if (r == 0 && !(blk->path = strdup(config->path)))
		r = gw_error_set(err, ENOMEM, "out of memory");
	blk->readonly = config->readonly;
	if (r == 0)
		r = open_backend(blk, err);
	if (r == 0) {
		blk->size = blk->be->size;
		blk->vd.offered |= features_of(blk);
	}
	if (r == 0 && !incoming)
		r = acquire(blk, err);
	if (r < 0) {
		blk_free(&blk->vd);
		return gw_error_wrap(err, "disk %s", config->name);
	}
	*ret = blk;
	return 0;
}

struct gw_virtio *gw_blk_virtio(struct gw_blk *blk)
{
	return &blk->vd;
}

struct gw_blk *gw_blk_from_virtio(struct gw_virtio *vd)
{
	return to_blk(vd);
}

void gw_blk_identity(const struct gw_blk *blk, struct gw_blk_identity *ret)
{
	*ret = (struct gw_blk_identity){ blk->vd.name, blk->be->ops->kind, blk->path, blk->size, blk->readonly };
}

struct iovec *gw_iov_advance(struct iovec *iov, unsigned *n, uint64_t bytes)
{
	while (*n > 0 && bytes >= iov->iov_len) {
		bytes -= iov->iov_len;
		iov++;
		(*n)--;
	}
	if (*n > 0) {
		iov->iov_base = (uint8_t *)iov->iov_base + bytes;
		iov->iov_len -= (size_t)bytes;
	}
	return iov;
}

struct sample_call {
	struct gw_blk *blk;
	struct sync_io *s;
	unsigned n;
	int result;
};

static void sample_now(void *arg)
{
	struct sample_call *call = arg;

	for (unsigned i = 0; i < call->n; i++)
		call->blk->be->ops->submit(call->blk->be, &call->s[i].io);
	call->result = finish_sync(call->blk, call->s, call->n);
}

/* A block that the disk's end cuts is digested with zeroes behind it. */
static int digest_samples(const struct sync_io *s, unsigned n, uint8_t digest[32], struct gw_error *err)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	int ok = ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL);

	for (unsigned i = 0; ok && i < n; i++)
		ok = EVP_DigestUpdate(ctx, s[i].data, sizeof(s[i].data));
	ok = ok && EVP_DigestFinal_ex(ctx, digest, NULL);
	EVP_MD_CTX_free(ctx);
	return ok ? 0 : gw_error_set(err, EIO, "cannot compute a SHA-256");
}

int gw_blk_sample(struct gw_blk *blk, const uint64_t *offsets, unsigned n, uint8_t digest[32], struct gw_error *err)
{
	gw_autofree struct sync_io *s = calloc((size_t)n + 1, sizeof(*s));
	struct sample_call call = { .blk = blk, .s = s, .n = n };

	if (!s)
		return gw_error_set(err, ENOMEM, "out of memory");
	if (n > GW_BLK_SAMPLE_MAX)
		return gw_error_set(err, EINVAL, "at most %d samples of a disk", GW_BLK_SAMPLE_MAX);
	for (unsigned i = 0; i < n; i++) {
		if (offsets[i] % GW_BLK_SECTOR || offsets[i] >= blk->size)
			return gw_error_set(err, EINVAL, "disk %s: sample at %llu", blk->vd.name,
					    (unsigned long long)offsets[i]);
		s[i].iov.iov_base = s[i].data;
		s[i].iov.iov_len = (size_t)GW_MIN(blk->size - offsets[i], (uint64_t)GW_BLK_SAMPLE_SIZE);
		s[i].io = (struct gw_blk_io){ .op = GW_BLK_READ, .offset = offsets[i], .len = s[i].iov.iov_len,
					      .iov = &s[i].iov, .niov = 1, .done = sync_done };
	}
	gw_iothread_call(blk->vd.host.io, sample_now, &call);
	if (call.result < 0)
		return gw_error_errno(err, call.result, "disk %s: cannot read samples", blk->vd.name);
	return digest_samples(s, n, digest, err);
}
