// SPDX-License-Identifier: Apache-2.0
/*
 * Writing an object of a bucket in a directory; see bucket-file.h. It is written to a file of another name, fsynced, and gets its name by link(2), which
 * fails when there is one, or rename(2); then its folder is fsynced. So it is there whole or not at all, after a power failure too.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "lib/io.h"
#include "lib/util.h"
#include "migrate/repo/bucket-file.h"

struct gw_file_writing {
	struct gw_file_bucket *f;
	enum gw_bucket_put how;
	int dir, fd;
	const char *leaf;   /* in `name` */
	char temp[32];      /* "": it is not there, or not any more */
	char name[GW_BUCKET_MAX_NAME + 1];
};

/* Nobody may take what is missing of the bucket itself for an object that is. */
static int failed(struct gw_error *err, const char *name, int r)
{
	return gw_file_failed(err, "cannot write", name, r == -ENOENT ? -EIO : r);
}

static int make_temp(struct gw_file_writing *w)
{
	for (int tries = 0; tries < 100; tries++) {
		uint64_t random;

		if (getrandom(&random, sizeof(random), 0) != sizeof(random))
			return -EIO;
		snprintf(w->temp, sizeof(w->temp), GW_FILE_TEMP "%016llx", (unsigned long long)random);
		w->fd = openat(w->dir, w->temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (w->fd >= 0)
			return 0;
		w->temp[0] = '\0';
		if (errno != EEXIST)
			return -errno;
	}
	return -EEXIST;
}

int gw_file_begin(struct gw_bucket *b, const char *name, enum gw_bucket_put how, struct gw_file_writing **ret, struct gw_error *err)
{
	struct gw_file_writing *w = calloc(1, sizeof(*w));
	struct stat st;
	int r;

	if (!w)
		return gw_error_set(err, ENOMEM, "out of memory");
	w->f = gw_container_of(b, struct gw_file_bucket, base);
	w->how = how;
	w->dir = w->fd = -1;
	snprintf(w->name, sizeof(w->name), "%s", name);
	r = gw_file_open_parent(w->f, w->name, true, &w->dir, &w->leaf);
	/* Spares the writing; link(2) decides. */
	if (r == 0 && how == GW_BUCKET_IF_ABSENT && fstatat(w->dir, w->leaf, &st, AT_SYMLINK_NOFOLLOW) == 0)
		r = -EEXIST;
	if (r == 0)
		r = make_temp(w);
	if (r < 0) {
		gw_file_end(w);
		return failed(err, name, r);
	}
	*ret = w;
	return 0;
}

static int write_all(struct gw_file_writing *w, const uint8_t *p, uint64_t left)
{
	while (left) {
		ssize_t n;

		if (atomic_load(&w->f->cancelled))
			return -ECANCELED;
		n = write(w->fd, p, GW_MIN(left, (uint64_t)GW_FILE_STEP));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		left -= (uint64_t)n;
	}
	return 0;
}

int gw_file_write(struct gw_file_writing *w, const void *data, uint64_t len, struct gw_error *err)
{
	int r = write_all(w, data, len);

	return r < 0 ? failed(err, w->name, r) : 0;
}

/*
 * Gives the object its name. NFS: an answer that was lost makes link(2) and rename(2) fail though they were done; the number of links tells, and
 * that the temporary name is gone while the file lives.
 */
static int give_name(const struct gw_file_writing *w)
{
	struct stat st;
	int r = 0;

	if (w->how == GW_BUCKET_REPLACE) {
		if (renameat(w->dir, w->temp, w->dir, w->leaf) == 0)
			return 0;
		r = -errno;
		return r == -ENOENT && fstat(w->fd, &st) == 0 && st.st_nlink == 1 ? 0 : r;
	}
	if (linkat(w->dir, w->temp, w->dir, w->leaf, 0) < 0) {
		r = -errno;
		if (fstat(w->fd, &st) == 0 && st.st_nlink == 2)
			r = 0;
	}
	if (r == 0 && unlinkat(w->dir, w->temp, 0) < 0)
		r = -errno;
	return r;
}

int gw_file_commit(struct gw_file_writing *w, struct gw_error *err)
{
	int r = fsync(w->fd) < 0 ? -errno : give_name(w);

	if (r == 0)
		w->temp[0] = '\0';
	if (r == 0 && fsync(w->dir) < 0)
		r = -errno;
	return r < 0 ? failed(err, w->name, r) : 0;
}

void gw_file_end(struct gw_file_writing *w)
{
	if (!w)
		return;
	if (w->temp[0])
		unlinkat(w->dir, w->temp, 0);
	gw_closep(&w->fd);
	gw_closep(&w->dir);
	free(w);
}

int gw_file_put(struct gw_bucket *b, const char *name, const struct gw_bucket_piece *pieces, unsigned count, enum gw_bucket_put how,
		struct gw_error *err)
{
	struct gw_file_writing *w = NULL;
	int r = gw_file_begin(b, name, how, &w, err);

	for (unsigned i = 0; i < count && r == 0; i++)
		r = gw_file_write(w, pieces[i].data, pieces[i].len, err);
	r = r ?: gw_file_commit(w, err);
	gw_file_end(w);
	return r;
}
