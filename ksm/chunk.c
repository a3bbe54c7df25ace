// SPDX-License-Identifier: Apache-2.0
/* Chunks; see chunk.h. */
#include "ksm/chunk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "lib/util.h"

/* Linux 6.3; older kernels say EINVAL, and headers may not have it. */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#define SEALS (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)
#define SEAL_TRIES 4u

static struct gw_chunk *chunk_alloc(unsigned slots)
{
	struct gw_chunk *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->slot = calloc(slots, sizeof(*c->slot));
	if (!c->slot) {
		free(c);
		return NULL;
	}
	c->fd = -1;
	c->refs = 1;
	return c;
}

static int identify(struct gw_chunk *c, int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	c->dev = st.st_dev;
	c->ino = st.st_ino;
	return 0;
}

int gw_chunk_new(struct gw_chunk **ret)
{
	struct gw_chunk *c = chunk_alloc(GW_SHARE_CHUNK_PAGES);
	int r;

	if (!c)
		return -ENOMEM;
	c->fd = memfd_create("godwit-chunk", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (c->fd < 0 && errno == EINVAL)
		c->fd = memfd_create("godwit-chunk", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	r = c->fd < 0 || fchmod(c->fd, 0400) < 0 ? -errno : identify(c, c->fd);
	if (r < 0) {
		gw_chunk_unref(c);
		return r;
	}
	*ret = c;
	return 0;
}

int gw_chunk_adopt(int fd, struct gw_chunk **ret)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct gw_chunk *c;
	struct statfs fs;
	struct stat st;

	if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0)
		return -EINVAL;
	/* Seals are there for hugetlbfs too, whose pages a client could not map one by one. */
	if (fs.f_type != TMPFS_MAGIC || !S_ISREG(st.st_mode) || st.st_size <= 0 || st.st_size % GW_PAGE_SIZE != 0 ||
	    (uint64_t)st.st_size > GW_SHARE_CHUNK_PAGES * GW_PAGE_SIZE)
		return -EINVAL;
	c = chunk_alloc((unsigned)((uint64_t)st.st_size / GW_PAGE_SIZE));
	if (!c)
		return -ENOMEM;
	c->slots = (uint16_t)((uint64_t)st.st_size / GW_PAGE_SIZE);
	c->dev = st.st_dev;
	c->ino = st.st_ino;
	c->sealed = true;
	c->fd = fd;
	*ret = c;
	return 0;
}

int gw_chunk_append(struct gw_chunk *c, const struct iovec *pages, unsigned n)
{
	size_t want = n * GW_PAGE_SIZE;
	ssize_t done = pwritev(c->fd, pages, (int)n, (off_t)(c->slots * GW_PAGE_SIZE));

	/* What a short write left behind the end is cut off when the chunk is sealed, or written over. */
	if (done < 0 || (size_t)done != want)
		return done < 0 ? -errno : -ENOSPC;
	c->slots = (uint16_t)(c->slots + n);
	return 0;
}

/*
 * The kernel refuses while anybody has a reference to a page of it, for which it waits 0.15 s by itself (memfd_wait_for_pins()). Nobody else has the
 * file yet: it is the kernel itself, moving pages about or having them in a list, and soon over.
 */
static int add_seals(int fd)
{
	unsigned tries = SEAL_TRIES;

	while (fcntl(fd, F_ADD_SEALS, SEALS) < 0)
		if (errno != EBUSY || --tries == 0)
			return -errno;
	return 0;
}

int gw_chunk_seal(struct gw_chunk *c)
{
	struct gw_chunk_slot *slot;
	int r = c->slots == 0 ? -EINVAL : ftruncate(c->fd, (off_t)(c->slots * GW_PAGE_SIZE)) < 0 ? -errno : add_seals(c->fd);

	if (r < 0)
		return r;
	c->sealed = true;
	slot = realloc(c->slot, c->slots * sizeof(*slot));
	if (slot)
		c->slot = slot;
	return 0;
}

int gw_chunk_read(const struct gw_chunk *c, unsigned slot, unsigned n, void *to)
{
	size_t len = n * GW_PAGE_SIZE;
	ssize_t done = pread(c->fd, to, len, (off_t)(slot * GW_PAGE_SIZE));

	return done < 0 ? -errno : (size_t)done != len ? -EIO : 0;
}

struct gw_chunk *gw_chunk_ref(struct gw_chunk *c)
{
	c->refs++;
	return c;
}

void gw_chunk_unref(struct gw_chunk *c)
{
	if (!c || --c->refs > 0)
		return;
	gw_closep(&c->fd);
	free(c->slot);
	free(c->digest);
	free(c->name);
	free(c->waiter);
	free(c->told);
	free(c);
}

uint64_t gw_chunk_metadata(const struct gw_chunk *c)
{
	unsigned slots = c->sealed ? c->slots : GW_SHARE_CHUNK_PAGES;

	return sizeof(*c) + slots * sizeof(*c->slot) + (c->digest ? (uint64_t)slots * sizeof(*c->digest) : 0) +
	       (c->name ? (uint64_t)slots * sizeof(*c->name) : 0) +
	       c->cap_waiters * sizeof(*c->waiter) + c->ntold * sizeof(*c->told);
}
