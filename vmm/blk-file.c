// SPDX-License-Identifier: Apache-2.0
/*
 * Disks in raw files and block devices, by io_uring; see blk-backend.h.
 *
 * Data goes through the host's page cache. For two hosts to see the same disk: the device flushes before it lets go of the disk
 * (quiesce), and acquire drops whatever this host had cached from before. The write lock is an open-file-description lock
 * over the whole file, which goes away with the process, and on NFS holds between hosts.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "lib/log.h"
#include "lib/util.h"
#include "vmm/blk-backend.h"
#include "vmm/iothread.h"

#define RING_ENTRIES 128
#define SECTOR 512

struct file {
	struct gw_blk_backend be;
	char *name;
	int fd;
	bool device;  /* a block device */
	bool locked;
	bool ring_made;
	struct io_uring ring;
	int event;    /* signalled by the ring */
	struct gw_io_source *source;
	unsigned in_flight;
	void (*batch_done)(void *owner);
	void *owner;
	struct gw_ratelimit limit;
};

static struct file *to_file(struct gw_blk_backend *be)
{
	return gw_container_of(be, struct file, be);
}

static bool file_match(const char *path)
{
	/* Whatever has no "scheme:" in front of its first slash. */
	return path[0] && (path[0] == '/' || strcspn(path, ":") > strcspn(path, "/") || !strchr(path, ':'));
}

static void prepare(struct io_uring_sqe *sqe, const struct file *f, const struct gw_blk_io *io)
{
	switch (io->op) {
	case GW_BLK_READ:
		io_uring_prep_readv(sqe, f->fd, io->iov, io->niov, io->offset + io->progress);
		break;
	case GW_BLK_WRITE:
		io_uring_prep_writev(sqe, f->fd, io->iov, io->niov, io->offset + io->progress);
		break;
	case GW_BLK_FLUSH:
		io_uring_prep_fsync(sqe, f->fd, IORING_FSYNC_DATASYNC);
		break;
	case GW_BLK_DISCARD:
		io_uring_prep_fallocate(sqe, f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)io->offset,
					(off_t)io->len);
		break;
	case GW_BLK_ZERO:
		io_uring_prep_fallocate(sqe, f->fd,
					(io->unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE,
					(off_t)io->offset, (off_t)io->len);
		break;
	}
}

static void queue_io(struct file *f, struct gw_blk_io *io)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&f->ring);

	/* The submission ring is full: the kernel takes all of it at a submit, then there is room. */
	while (!sqe) {
		io_uring_submit(&f->ring);
		sqe = io_uring_get_sqe(&f->ring);
	}
	prepare(sqe, f, io);
	io_uring_sqe_set_data(sqe, io);
}

static void file_submit(struct gw_blk_backend *be, struct gw_blk_io *io)
{
	struct file *f = to_file(be);

	io->progress = 0;
	f->in_flight++;
	queue_io(f, io);
}

static void file_commit(struct gw_blk_backend *be)
{
	struct file *f = to_file(be);

	/* A refusal for lack of resources leaves the entries in the ring; the next completion submits them. */
	if (io_uring_sq_ready(&f->ring))
		io_uring_submit(&f->ring);
}

/* True when the operation is finished; else the rest of it was queued. */
static bool advance(struct file *f, struct gw_blk_io *io, int res, int *result)
{
	bool data = io->op == GW_BLK_READ || io->op == GW_BLK_WRITE;

	if (res == -EINTR || res == -EAGAIN) {
		queue_io(f, io);
		return false;
	}
	*result = res < 0 ? res : 0;
	if (res < 0 || !data)
		return true;
	io->progress += (uint64_t)res;
	if (io->progress >= io->len)
		return true;
	if (res == 0) {
		gw_warn_limited(&f->limit, "disk %s became shorter than it was", f->name);
		*result = -EIO;
		return true;
	}
	io->iov = gw_iov_advance(io->iov, &io->niov, (uint64_t)res);
	queue_io(f, io);
	return false;
}

static unsigned reap(struct file *f)
{
	struct io_uring_cqe *cqe;
	unsigned n = 0;

	while (io_uring_peek_cqe(&f->ring, &cqe) == 0) {
		struct gw_blk_io *io = io_uring_cqe_get_data(cqe);
		int res = cqe->res, result;

		io_uring_cqe_seen(&f->ring, cqe);
		if (!advance(f, io, res, &result))
			continue;
		f->in_flight--;
		io->done(io, result);
		n++;
	}
	file_commit(&f->be);
	return n;
}

static void on_event(void *arg, uint32_t events)
{
	struct file *f = arg;
	uint64_t count;

	/* Cleared first: what completes after the reap signals again. */
	if (read(f->event, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return;
	if (reap(f))
		f->batch_done(f->owner);
}

/* The kernel may write into buffers until it says that it is done, so there is no deadline here. */
static bool file_settle(struct gw_blk_backend *be, uint64_t deadline_ns)
{
	struct file *f = to_file(be);

	while (f->in_flight > 0) {
		io_uring_submit_and_wait(&f->ring, 1);
		reap(f);
	}
	return true;
}

static void file_cancel(struct gw_blk_backend *be)
{
	file_settle(be, 0);
}

static int file_acquire(struct gw_blk_backend *be, struct gw_error *err)
{
	struct file *f = to_file(be);
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	if (f->locked)
		return 0;
	if (fcntl(f->fd, F_OFD_SETLK, &lock) < 0) {
		if (errno == EAGAIN || errno == EACCES)
			return gw_error_set(err, EBUSY, "another process uses it for writing");
		/* Some network file systems have no locks; the agents' ownership of the VM is what counts there. */
		gw_warn("disk %s: its file system has no locks (%s)", f->name, strerrordesc_np(errno));
	}
	f->locked = true;
	/* What we read earlier may be stale: another host wrote since. Clean pages go, and nothing here is dirty. */
	(void)posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED);
	return 0;
}

static void file_release(struct gw_blk_backend *be)
{
	struct file *f = to_file(be);
	struct flock lock = { .l_type = F_UNLCK, .l_whence = SEEK_SET };

	if (f->locked && fcntl(f->fd, F_OFD_SETLK, &lock) < 0)
		gw_warn("disk %s: cannot release its lock: %s", f->name, strerrordesc_np(errno));
	f->locked = false;
}

static int find_size(struct file *f, const char *path, struct gw_error *err)
{
	struct stat st;

	if (fstat(f->fd, &st) < 0)
		return gw_error_errno(err, errno, "cannot stat %s", path);
	f->device = S_ISBLK(st.st_mode);
	if (f->device) {
		if (ioctl(f->fd, BLKGETSIZE64, &f->be.size) < 0)
			return gw_error_errno(err, errno, "cannot tell the size of %s", path);
	} else if (S_ISREG(st.st_mode)) {
		f->be.size = (uint64_t)st.st_size;
	} else {
		return gw_error_set(err, EINVAL, "%s is neither a regular file nor a block device", path);
	}
	if (f->be.size == 0)
		return gw_error_set(err, EINVAL, "%s is empty", path);
	if (f->be.size % SECTOR)
		return gw_error_set(err, EINVAL, "%s has %llu bytes, which is no multiple of 512: not a raw disk image, or cut off",
				    path, (unsigned long long)f->be.size);
	return 0;
}

static int open_path(struct file *f, const struct gw_blk_open *args, struct gw_error *err)
{
	/* O_NONBLOCK: opening a FIFO by mistake must not hang. It means nothing for files and block devices. */
	f->fd = open(args->path, (args->readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK);
	if (f->fd < 0 && (errno == EROFS || errno == EACCES || errno == EPERM) && !args->readonly)
		return gw_error_errno(err, errno, "cannot open %s for writing (add 'ro' to use it read-only)", args->path);
	if (f->fd < 0)
		return gw_error_errno(err, errno, "cannot open %s", args->path);
	return find_size(f, args->path, err);
}

static int make_ring(struct file *f, const struct gw_blk_open *args, struct gw_error *err)
{
	int r = io_uring_queue_init(RING_ENTRIES, &f->ring, 0);

	if (r == -ENOSYS || r == -EPERM)
		return gw_error_errno(err, r, "io_uring is not available here (sysctl kernel.io_uring_disabled must be 0)");
	if (r < 0)
		return gw_error_errno(err, r, "cannot set up io_uring");
	f->ring_made = true;
	f->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (f->event < 0)
		return gw_error_errno(err, errno, "cannot make an eventfd");
	r = io_uring_register_eventfd(&f->ring, f->event);
	if (r == 0)
		r = gw_io_add(args->io, f->event, EPOLLIN, on_event, f, &f->source);
	return r < 0 ? gw_error_errno(err, r, "cannot watch io_uring") : 0;
}

static void file_close(struct gw_blk_backend *be)
{
	struct file *f = to_file(be);

	gw_io_remove(f->source);
	if (f->ring_made)
		io_uring_queue_exit(&f->ring);
	if (f->event >= 0)
		close(f->event);
	if (f->fd >= 0)
		close(f->fd);
	free(f->name);
	free(f);
}

static int file_open(const struct gw_blk_open *args, struct gw_blk_backend **ret, struct gw_error *err)
{
	struct file *f = calloc(1, sizeof(*f));
	int r = 0;

	if (!f)
		return gw_error_set(err, ENOMEM, "out of memory");
	f->be.ops = &gw_blk_file_ops;
	f->fd = f->event = -1;
	f->batch_done = args->batch_done;
	f->owner = args->owner;
	f->name = strdup(args->name);
	if (!f->name)
		r = gw_error_set(err, ENOMEM, "out of memory");
	if (r == 0)
		r = open_path(f, args, err);
	if (r == 0)
		r = make_ring(f, args, err);
	if (r < 0) {
		file_close(&f->be);
		return r;
	}
	/* Where the file system cannot, the guest is told with the first request (VIRTIO_BLK_S_UNSUPP) and does without. */
	f->be.can_discard = f->be.can_zero = true;
	*ret = &f->be;
	return 0;
}

const struct gw_blk_backend_ops gw_blk_file_ops = {
	.kind = "file",
	.match = file_match,
	.open = file_open,
	.close = file_close,
	.acquire = file_acquire,
	.release = file_release,
	.submit = file_submit,
	.commit = file_commit,
	.settle = file_settle,
	.cancel = file_cancel,
};
