// SPDX-License-Identifier: Apache-2.0
/* Boot files by content; see bootfile.h. */
#include "agent/bootfile.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/guest.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"

#define CACHE_MAX 64

/* A file is the same as before when all of these are. */
struct file_id {
	dev_t dev;
	ino_t ino;
	off_t size;
	struct timespec modified, changed;
};

struct gw_digest_cache {
	struct gw_digest_cache *next; /* newest first */
	struct file_id id;
	uint8_t digest[GW_SHA256_LEN];
};

struct gw_bootfile_in {
	struct gw_agent *agent;
	EVP_MD_CTX *sha;
	int fd;
	char *temp;
	uint8_t digest[GW_SHA256_LEN];
	uint64_t size, got;
};

static struct file_id id_of(const struct stat *st)
{
	struct file_id id;

	memset(&id, 0, sizeof(id)); /* it is compared as bytes */
	id.dev = st->st_dev;
	id.ino = st->st_ino;
	id.size = st->st_size;
	id.modified = st->st_mtim;
	id.changed = st->st_ctim;
	return id;
}

static bool cache_get(struct gw_agent *a, const struct file_id *id, uint8_t digest[GW_SHA256_LEN])
{
	bool found = false;

	pthread_mutex_lock(&a->digests_lock);
	for (struct gw_digest_cache *c = a->digests; c && !found; c = c->next) {
		found = !memcmp(&c->id, id, sizeof(*id));
		if (found)
			memcpy(digest, c->digest, GW_SHA256_LEN);
	}
	pthread_mutex_unlock(&a->digests_lock);
	return found;
}

static void cache_put(struct gw_agent *a, const struct file_id *id, const uint8_t digest[GW_SHA256_LEN])
{
	struct gw_digest_cache *c = calloc(1, sizeof(*c)), *last;
	unsigned n = 0;

	if (!c)
		return;
	c->id = *id;
	memcpy(c->digest, digest, GW_SHA256_LEN);
	pthread_mutex_lock(&a->digests_lock);
	c->next = a->digests;
	a->digests = c;
	for (last = c; last->next; last = last->next) {
		if (++n == CACHE_MAX) {
			free(last->next);
			last->next = NULL;
			break;
		}
	}
	pthread_mutex_unlock(&a->digests_lock);
}

void gw_bootfile_cache_free(struct gw_agent *a)
{
	while (a->digests) {
		struct gw_digest_cache *next = a->digests->next;

		free(a->digests);
		a->digests = next;
	}
}

static int hash_fd(int fd, uint8_t digest[GW_SHA256_LEN])
{
	EVP_MD_CTX *sha = EVP_MD_CTX_new();
	gw_autofree uint8_t *buf = malloc(1 << 20);
	ssize_t n = -1;

	if (sha && buf && EVP_DigestInit_ex(sha, EVP_sha256(), NULL) == 1) {
		while ((n = read(fd, buf, 1 << 20)) > 0)
			EVP_DigestUpdate(sha, buf, (size_t)n);
		EVP_DigestFinal_ex(sha, digest, NULL);
	}
	EVP_MD_CTX_free(sha);
	return n < 0 ? -EIO : 0;
}

int gw_bootfile_digest(struct gw_agent *a, const char *path, uint8_t digest[GW_SHA256_LEN], uint64_t *size,
		       struct gw_error *err)
{
	gw_autofd fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st, after;
	struct file_id id;

	if (fd < 0 || fstat(fd, &st) < 0)
		return gw_error_errno(err, errno, "%s", path);
	if (!S_ISREG(st.st_mode))
		return gw_error_set(err, EINVAL, "%s is not a regular file", path);
	if ((uint64_t)st.st_size > GW_BOOT_FILE_MAX)
		return gw_error_set(err, EFBIG, "%s is larger than 2G", path);
	*size = (uint64_t)st.st_size;
	id = id_of(&st);
	if (cache_get(a, &id, digest))
		return 0;
	if (hash_fd(fd, digest) < 0)
		return gw_error_set(err, EIO, "cannot read %s", path);
	if (fstat(fd, &after) < 0 || after.st_size != st.st_size || after.st_mtim.tv_sec != st.st_mtim.tv_sec ||
	    after.st_mtim.tv_nsec != st.st_mtim.tv_nsec)
		return gw_error_set(err, EBUSY, "%s changed while it was read", path);
	cache_put(a, &id, digest);
	return 0;
}

static char *store_path(struct gw_agent *a, const uint8_t digest[GW_SHA256_LEN])
{
	char hex[2 * GW_SHA256_LEN + 1];
	char *path;

	gw_format_hex(digest, GW_SHA256_LEN, hex);
	return asprintf(&path, "%s/boot/%s", a->conf->state, hex) < 0 ? NULL : path;
}

static bool has_digest(struct gw_agent *a, const char *path, const uint8_t digest[GW_SHA256_LEN])
{
	uint8_t have[GW_SHA256_LEN];
	uint64_t size;

	return gw_bootfile_digest(a, path, have, &size, NULL) == 0 && !memcmp(have, digest, GW_SHA256_LEN);
}

int gw_bootfile_locate(struct gw_agent *a, const char *path, const uint8_t digest[GW_SHA256_LEN], char **ret,
		       struct gw_error *err)
{
	gw_autofree char *stored = store_path(a, digest);
	char *found = NULL;

	if (!stored)
		return gw_error_set(err, ENOMEM, "out of memory");
	if (has_digest(a, path, digest))
		found = strdup(path);
	else if (has_digest(a, stored, digest))
		found = strdup(stored);
	*ret = found;
	return 0;
}

int gw_bootfile_begin(struct gw_agent *a, const uint8_t digest[GW_SHA256_LEN], uint64_t size, struct gw_bootfile_in **ret,
		      struct gw_error *err)
{
	struct gw_bootfile_in *in;
	int r = 0;

	if (size == 0 || size > GW_BOOT_FILE_MAX)
		return gw_error_set(err, EFBIG, "a boot file of %llu bytes is refused", (unsigned long long)size);
	in = calloc(1, sizeof(*in));
	if (!in)
		return gw_error_set(err, ENOMEM, "out of memory");
	in->agent = a;
	in->fd = -1;
	in->size = size;
	memcpy(in->digest, digest, GW_SHA256_LEN);
	in->sha = EVP_MD_CTX_new();
	if (!in->sha || EVP_DigestInit_ex(in->sha, EVP_sha256(), NULL) != 1 ||
	    asprintf(&in->temp, "%s/boot/incoming-XXXXXX", a->conf->state) < 0)
		r = gw_error_set(err, ENOMEM, "out of memory");
	else if ((in->fd = mkostemp(in->temp, O_CLOEXEC)) < 0)
		r = gw_error_errno(err, errno, "cannot store a boot file in %s", in->temp);
	else if (posix_fallocate(in->fd, 0, (off_t)size) != 0)
		r = gw_error_set(err, ENOSPC, "no room for a boot file of %llu bytes in %s", (unsigned long long)size, a->conf->state);
	if (r < 0) {
		gw_bootfile_free(in);
		return r;
	}
	*ret = in;
	return 0;
}

int gw_bootfile_piece(struct gw_bootfile_in *in, uint64_t offset, const void *data, size_t len, struct gw_error *err)
{
	if (offset != in->got || len > in->size - in->got)
		return gw_error_set(err, EPROTO, "a piece of a boot file comes out of order");
	if (pwrite(in->fd, data, len, (off_t)offset) != (ssize_t)len)
		return gw_error_set(err, EIO, "cannot store a boot file");
	EVP_DigestUpdate(in->sha, data, len);
	in->got += len;
	return 0;
}

int gw_bootfile_finish(struct gw_bootfile_in *in, char **path, struct gw_error *err)
{
	uint8_t digest[GW_SHA256_LEN];
	char *final;

	EVP_DigestFinal_ex(in->sha, digest, NULL);
	if (in->got != in->size || memcmp(digest, in->digest, GW_SHA256_LEN) != 0)
		return gw_error_set(err, EPROTO, "a boot file arrived with another content than was announced");
	final = store_path(in->agent, digest);
	if (!final)
		return gw_error_set(err, ENOMEM, "out of memory");
	if (fchmod(in->fd, 0400) < 0 || fsync(in->fd) < 0 || rename(in->temp, final) < 0) {
		free(final);
		return gw_error_errno(err, errno, "cannot store a boot file");
	}
	free(in->temp);
	in->temp = NULL;
	*path = final;
	return 0;
}

void gw_bootfile_free(struct gw_bootfile_in *in)
{
	if (!in)
		return;
	if (in->temp && in->fd >= 0)
		unlink(in->temp);
	gw_closep(&in->fd);
	free(in->temp);
	EVP_MD_CTX_free(in->sha);
	free(in);
}

static bool in_use(struct gw_guest **list, unsigned n, const char *name)
{
	bool used = false;

	for (unsigned i = 0; i < n && !used; i++) {
		const Godwit__VmRecord *rec;

		pthread_mutex_lock(&list[i]->lock);
		rec = list[i]->record;
		/* A move that comes may be about to use any. */
		used = rec->state == GODWIT__VM_STATE__VM_INCOMING || strstr(rec->kernel_file, name) != NULL ||
		       strstr(rec->initrd_file, name) != NULL;
		pthread_mutex_unlock(&list[i]->lock);
	}
	return used;
}

void gw_bootfile_sweep(struct gw_agent *a)
{
	gw_autofree char *path = NULL;
	struct gw_guest **list;
	struct dirent *d;
	unsigned n;
	DIR *dir;

	if (asprintf(&path, "%s/boot", a->conf->state) < 0 || gw_guest_list(a, &list, &n) < 0)
		return;
	dir = opendir(path);
	while (dir && (d = readdir(dir))) {
		if (d->d_name[0] != '.' && !in_use(list, n, d->d_name))
			unlinkat(dirfd(dir), d->d_name, 0);
	}
	if (dir)
		closedir(dir);
	for (unsigned i = 0; i < n; i++)
		gw_guest_unref(list[i]);
	free(list);
}
