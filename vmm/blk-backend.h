// SPDX-License-Identifier: Apache-2.0
/*
 * Where a disk's blocks are: raw files and block devices (blk-file.c), NBD servers (blk-nbd.c). All but open, close, acquire and
 * release runs on the device thread; those run on the main thread with nothing in flight.
 */
#ifndef GW_VMM_BLK_BACKEND_H
#define GW_VMM_BLK_BACKEND_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "lib/error.h"

struct gw_blk_backend;
struct gw_iothread;

enum gw_blk_op { GW_BLK_READ, GW_BLK_WRITE, GW_BLK_FLUSH, GW_BLK_DISCARD, GW_BLK_ZERO };

/* One operation; owned by who submits it, until `done`. */
struct gw_blk_io {
	enum gw_blk_op op;
	bool unmap;           /* GW_BLK_ZERO: space may be given back */
	uint64_t offset, len; /* bytes, multiples of 512, within the disk */
	struct iovec *iov;    /* reads and writes: `len` bytes; the back end may change the entries */
	unsigned niov;
	/*
	 * 0 or a negative errno; -ECANCELED: perhaps not done, by gw_blk_backend_ops.cancel. Not called from within submit. It must not
	 * call the back end.
	 */
	void (*done)(struct gw_blk_io *io, int result);

	/* The back end's. */
	uint64_t progress;    /* bytes done */
	uint64_t deadline_ns;
	struct gw_blk_io *next;
};

struct gw_blk_open {
	const char *name;     /* for messages */
	const char *path;
	bool readonly;
	struct gw_iothread *io;
	/* After each batch of `done` calls from the back end's own event handlers. */
	void (*batch_done)(void *owner);
	void *owner;
};

struct gw_blk_backend_ops {
	const char *kind;
	bool (*match)(const char *path);
	/* Finds the disk and its size; neither writes nor locks. */
	int (*open)(const struct gw_blk_open *args, struct gw_blk_backend **ret, struct gw_error *err);
	void (*close)(struct gw_blk_backend *be);
	/*
	 * Becomes the disk's one writer and forgets what it may have cached of it; -EBUSY when somebody else is. No-op when it is
	 * already. Writing is allowed only between acquire and release.
	 */
	int (*acquire)(struct gw_blk_backend *be, struct gw_error *err);
	void (*release)(struct gw_blk_backend *be);
	/* Queues an operation; it may start at the next commit only. */
	void (*submit)(struct gw_blk_backend *be, struct gw_blk_io *io);
	void (*commit)(struct gw_blk_backend *be);
	/* Completes what is in flight; false when monotonic `deadline_ns` came first. */
	bool (*settle)(struct gw_blk_backend *be, uint64_t deadline_ns);
	/* Ends all that is left with -ECANCELED; afterwards nothing touches its buffers. */
	void (*cancel)(struct gw_blk_backend *be);
};

/* What every back end's struct begins with. */
struct gw_blk_backend {
	const struct gw_blk_backend_ops *ops;
	uint64_t size; /* bytes, a multiple of 512 */
	bool can_discard, can_zero;
	bool shared; /* whoever opens the disk elsewhere sees our writes, and its flush covers them */
};

extern const struct gw_blk_backend_ops gw_blk_file_ops;
extern const struct gw_blk_backend_ops gw_blk_nbd_ops;

/* Cuts `bytes` off the front of the vector; returns what is left of it. */
struct iovec *gw_iov_advance(struct iovec *iov, unsigned *n, uint64_t bytes);

#endif
