// SPDX-License-Identifier: Apache-2.0
/*
 * A bucket in a directory, which may be on NFS. Objects are files below it, mode 0600, '/' in their names is a folder.
 *
 * An object is written to a file of another name ('_' is in no object's name), which then gets its own (bucket-file-put.c). What a dead writer left is
 * removed when it is a day old and somebody lists the folder.
 *
 * No symbolic link is followed below the directory: each folder of a name is opened by itself.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"
#include "migrate/repo/bucket-file.h"

#define TEMP_AGE_S 86400

static struct gw_file_bucket *to_file(const struct gw_bucket *b)
{
	return gw_container_of(b, struct gw_file_bucket, base);
}

/* The errors that bucket.h knows. */
static int known(int code)
{
	switch (code) {
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return ENOSPC;
	case EACCES:
	case EPERM:
	case EROFS:
		return EACCES;
	case ENOENT:
	case EEXIST:
	case ENOMEM:
	case ECANCELED:
		return code;
	default:
		return EIO;
	}
}

int gw_file_failed(struct gw_error *err, const char *what, const char *name, int code)
{
	code = code < 0 ? -code : code;
	if (code == ECANCELED)
		return gw_error_set(err, ECANCELED, "cancelled");
	gw_error_set(err, code, "%s %s: %s", what, name, strerrordesc_np(code) ?: "unknown error");
	if (err)
		err->code = known(code);
	return -known(code);
}

static int file_open(const char *url, const struct gw_ticket *ticket, bool create, struct gw_bucket **ret, struct gw_error *err)
{
	const char *path = url + strlen(gw_bucket_file.scheme);
	struct gw_file_bucket *f;
	int fd, r = 0;

	if (path[0] != '/')
		return gw_error_set(err, EINVAL, "'%s' names no directory: file:// and an absolute path is needed", url);
	if (create)
		r = gw_mkdir_p(path, 0700);
	if (r < 0)
		return gw_error_errno(err, r, "cannot make the directory %s", path);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return gw_error_errno(err, errno, "cannot open the directory %s", path);
	f = calloc(1, sizeof(*f));
	if (!f) {
		close(fd);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	f->dir = fd;
	*ret = &f->base;
	return 0;
}

static void file_free(struct gw_bucket *b)
{
	struct gw_file_bucket *f = to_file(b);

	close(f->dir);
	free(f);
}

static bool file_exclusive(const struct gw_bucket *b)
{
	return true;
}

/* ---- folders ---- */

static int open_folder(int at, const char *word, bool create)
{
	int fd = openat(at, word, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	if (fd >= 0)
		return fd;
	if (errno != ENOENT || !create)
		return -errno;
	if (mkdirat(at, word, 0700) < 0 && errno != EEXIST)
		return -errno;
	/* Also when another has just made it: it may not be durable yet. */
	if (fsync(at) < 0)
		return -errno;
	fd = openat(at, word, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int gw_file_open_parent(struct gw_file_bucket *f, const char *name, bool create, int *ret, const char **leaf)
{
	char copy[GW_BUCKET_MAX_NAME + 1];
	gw_autofd at = fcntl(f->dir, F_DUPFD_CLOEXEC, 0);
	char *word = copy, *slash;

	if (at < 0)
		return -errno;
	if (atomic_load(&f->cancelled))
		return -ECANCELED;
	snprintf(copy, sizeof(copy), "%s", name);
	while ((slash = strchr(word, '/'))) {
		int next;

		*slash = '\0';
		next = open_folder(at, word, create);
		if (next < 0)
			return next;
		close(at);
		at = next;
		word = slash + 1;
	}
	*leaf = name + (word - copy);
	*ret = gw_steal_fd(&at);
	return 0;
}

/* ---- get ---- */

int gw_file_open(struct gw_bucket *b, const char *name, int *ret, uint64_t *size, struct gw_error *err)
{
	gw_autofd dir = -1, fd = -1;
	const char *leaf;
	struct stat st;
	int r = gw_file_open_parent(to_file(b), name, false, &dir, &leaf);

	if (r < 0)
		return gw_file_failed(err, "cannot open", name, r);
	fd = openat(dir, leaf, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return gw_file_failed(err, "cannot open", name, errno);
	if (!S_ISREG(st.st_mode))
		return gw_error_set(err, EIO, "%s is not a file", name);
	*size = (uint64_t)st.st_size;
	*ret = gw_steal_fd(&fd);
	return 0;
}

static int read_range(struct gw_file_bucket *f, int fd, uint64_t offset, uint64_t len, uint8_t *data)
{
	while (len) {
		ssize_t n;

		if (atomic_load(&f->cancelled))
			return -ECANCELED;
		n = pread(fd, data, GW_MIN(len, (uint64_t)GW_FILE_STEP), (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EPROTO;
		data += n;
		offset += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

static int read_failed(struct gw_error *err, const char *name, int r)
{
	return r == -EPROTO ? gw_error_set(err, EPROTO, "%s is shorter than it must be", name) : gw_file_failed(err, "cannot read", name, r);
}

static int file_get(struct gw_bucket *b, const char *name, uint64_t offset, uint64_t len, void *data, struct gw_error *err)
{
	gw_autofd fd = -1;
	uint64_t size;
	int r = gw_file_open(b, name, &fd, &size, err);

	if (r < 0)
		return r;
	r = read_range(to_file(b), fd, offset, len, data);
	return r < 0 ? read_failed(err, name, r) : 0;
}

static int file_read(struct gw_bucket *b, const char *name, uint64_t limit, struct gw_buf *out, struct gw_error *err)
{
	gw_autofd fd = -1;
	uint64_t size;
	uint8_t *to;
	int r = gw_file_open(b, name, &fd, &size, err);

	if (r < 0)
		return r;
	if (size > limit)
		return gw_error_set(err, EFBIG, "%s is larger than it can be", name);
	if (size == 0)
		return 0;
	to = gw_buf_reserve(out, size);
	if (!to)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = read_range(to_file(b), fd, 0, size, to);
	if (r < 0)
		return read_failed(err, name, r);
	out->len += size;
	return 0;
}

static int file_remove(struct gw_bucket *b, const char *name, struct gw_error *err)
{
	gw_autofd dir = -1;
	const char *leaf;
	int r = gw_file_open_parent(to_file(b), name, false, &dir, &leaf);

	if (r == 0 && unlinkat(dir, leaf, 0) < 0)
		r = -errno;
	/* Durable in the order of the calls: what is removed after it may be needed by it. */
	if (r == 0 && fsync(dir) < 0)
		r = -errno;
	return r < 0 && r != -ENOENT ? gw_file_failed(err, "cannot remove", name, r) : 0;
}

/* ---- list ---- */

struct listing {
	struct gw_file_bucket *f;
	const char *prefix;
	gw_bucket_entry_fn *fn;
	void *self;
	int stopped; /* what fn returned */
};

/* Sorted as parts of names: a folder "a" holds names with "a/", which come after "a-b". */
struct folder {
	char **names;
	size_t count, cap;
};

static void folder_release(struct folder *d)
{
	for (size_t i = 0; i < d->count; i++)
		free(d->names[i]);
	free(d->names);
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void remove_stale(int dir, const char *name)
{
	struct stat st;

	if (strncmp(name, GW_FILE_TEMP, strlen(GW_FILE_TEMP)) == 0 && fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	    S_ISREG(st.st_mode) && (uint64_t)st.st_mtime + TEMP_AGE_S < gw_realtime_ns() / GW_NS_PER_SEC)
		unlinkat(dir, name, 0);
}

static int add_entry(struct folder *d, int dir, const char *name)
{
	struct stat st;
	char *copy;

	if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)))
		return 0;
	if (d->count == d->cap) {
		size_t cap = GW_MAX(d->cap * 2, (size_t)64);
		char **more = realloc(d->names, cap * sizeof(*more));

		if (!more)
			return -ENOMEM;
		d->names = more;
		d->cap = cap;
	}
	if (asprintf(&copy, "%s%s", name, S_ISDIR(st.st_mode) ? "/" : "") < 0)
		return -ENOMEM;
	d->names[d->count++] = copy;
	return 0;
}

static int read_folder(int fd, struct folder *d)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	DIR *dir = copy < 0 ? NULL : fdopendir(copy);
	struct dirent *e;
	int r = 0;

	if (!dir) {
		r = -errno;
		if (copy >= 0)
			close(copy);
		return r;
	}
	while (r == 0 && (errno = 0, e = readdir(dir))) {
		if (gw_bucket_name_ok(e->d_name))
			r = add_entry(d, fd, e->d_name);
		else
			remove_stale(fd, e->d_name);
	}
	if (r == 0 && errno)
		r = -errno;
	closedir(dir);
	if (r == 0 && d->count)
		qsort(d->names, d->count, sizeof(*d->names), compare_names);
	return r;
}

static int list_file(struct listing *l, int fd, const char *leaf, const char *path)
{
	struct gw_bucket_entry e = { .name = path };
	struct stat st;

	if (strncmp(path, l->prefix, strlen(l->prefix)) || fstatat(fd, leaf, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return 0;
	e.size = (uint64_t)st.st_size;
	e.modified_s = (uint64_t)st.st_mtime;
	l->stopped = l->fn(l->self, &e);
	return l->stopped;
}

/* `at` is the name of the folder with its '/'; "" the top. 0, -errno, or nonzero with l->stopped. */
static int list_folder(struct listing *l, int fd, const char *at)
{
	gw_cleanup(folder_release) struct folder d = { 0 };
	int r = read_folder(fd, &d);

	for (size_t i = 0; i < d.count && r == 0; i++) {
		char path[GW_BUCKET_MAX_NAME + 2];
		size_t len = (size_t)snprintf(path, sizeof(path), "%s%s", at, d.names[i]);
		gw_autofd sub = -1;

		if (len >= sizeof(path))
			continue;
		if (atomic_load(&l->f->cancelled))
			return -ECANCELED;
		if (path[len - 1] != '/') {
			r = list_file(l, fd, d.names[i], path);
			continue;
		}
		if (strncmp(path, l->prefix, GW_MIN(len, strlen(l->prefix))))
			continue;
		d.names[i][strlen(d.names[i]) - 1] = '\0';
		sub = openat(fd, d.names[i], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (sub < 0 && errno != ENOENT)
			return -errno;
		if (sub >= 0)
			r = list_folder(l, sub, path);
	}
	return r;
}

static int file_list(struct gw_bucket *b, const char *prefix, gw_bucket_entry_fn *fn, void *self, struct gw_error *err)
{
	struct listing l = { .f = to_file(b), .prefix = prefix, .fn = fn, .self = self };
	/* An open file description of its own: reading a folder moves its position. */
	gw_autofd top = openat(l.f->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r = top < 0 ? -errno : list_folder(&l, top, "");

	if (l.stopped)
		return l.stopped;
	return r < 0 ? gw_file_failed(err, "cannot list", b->url, r) : 0;
}

static void file_cancel(struct gw_bucket *b)
{
	atomic_store(&to_file(b)->cancelled, true);
}

const struct gw_bucket_ops gw_bucket_file = {
	.scheme = "file://",
	.open = file_open,
	.free = file_free,
	.exclusive = file_exclusive,
	.put = gw_file_put,
	.get = file_get,
	.read = file_read,
	.remove = file_remove,
	.list = file_list,
	.cancel = file_cancel,
};
