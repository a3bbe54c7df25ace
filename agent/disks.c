// SPDX-License-Identifier: Apache-2.0
/* The identity of disks; see disks.h. */
#include "agent/disks.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "agent/bootfile.h"
#include "agent/vmconfig.h"
#include "lib/io.h"
#include "lib/util.h"

/* File systems whose inode numbers mean the same on every host that mounts them. */
static const struct {
	long magic;
	const char *name;
} shared[] = {
	{ NFS_SUPER_MAGIC, "nfs" },
	{ CEPH_SUPER_MAGIC, "ceph" },
	{ (long)SMB2_SUPER_MAGIC, "cifs" },
	{ V9FS_MAGIC, "9p" },
	{ 0x01161970, "gfs2" },
	{ 0x7461636f, "ocfs2" },
	{ 0x47504653, "gpfs" },
	{ 0x0bd00bd0, "lustre" },
};

static const char *shared_name(const struct statfs *fs)
{
	for (size_t i = 0; i < ARRAY_SIZE(shared); i++) {
		if ((uint32_t)fs->f_type == (uint32_t)shared[i].magic)
			return shared[i].name;
	}
	return NULL;
}

static bool world_wide_name(const struct stat *st, char *out, size_t size)
{
	static const char *const files[] = { "wwid", "device/wwid", "dm/uuid" };

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		gw_autofree char *text = NULL;
		char path[96];
		size_t len;

		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major(st->st_rdev), minor(st->st_rdev), files[i]);
		if (gw_read_file(path, 200, &text, &len, NULL) < 0 || len < 2)
			continue;
		text[strcspn(text, "\n")] = '\0';
		snprintf(out, size, "block:%s", text);
		return true;
	}
	return false;
}

static int identify_path(struct gw_agent *a, const char *path, char *out, size_t size, struct gw_error *err)
{
	struct statfs fs;
	struct stat st;
	const char *name;

	if (stat(path, &st) < 0 || statfs(path, &fs) < 0)
		return gw_error_errno(err, errno, "%s", path);
	if (S_ISBLK(st.st_mode)) {
		if (!world_wide_name(&st, out, size))
			snprintf(out, size, "local:%s:block:%u:%u", a->boot_id, major(st.st_rdev), minor(st.st_rdev));
		return 0;
	}
	if (!S_ISREG(st.st_mode))
		return gw_error_set(err, EINVAL, "%s is neither a file nor a block device", path);
	name = shared_name(&fs);
	if (name)
		snprintf(out, size, "%s:%llu:%llu", name, (unsigned long long)st.st_ino, (unsigned long long)st.st_size);
	else
		snprintf(out, size, "local:%s:%llu:%llu", a->boot_id, (unsigned long long)st.st_dev,
			 (unsigned long long)st.st_ino);
	return 0;
}

int gw_disk_identify(struct gw_agent *a, const Godwit__VmDisk *disk, bool with_digest, Godwit__DiskIdentity **ret,
		     struct gw_error *err)
{
	Godwit__DiskIdentity id = GODWIT__DISK_IDENTITY__INIT;
	uint8_t digest[GW_SHA256_LEN];
	char text[GW_VM_MAX_PATH + 80];
	uint64_t size;
	int r = 0;

	if (!strncmp(disk->path, "nbd+unix://", 11))
		snprintf(text, sizeof(text), "local:%s:%s", a->boot_id, disk->path);
	else if (disk->path[0] != '/')
		snprintf(text, sizeof(text), "%s", disk->path);
	else
		r = identify_path(a, disk->path, text, sizeof(text), err);
	if (r < 0)
		return gw_error_wrap(err, "[disk %s]", disk->name);
	id.name = disk->name;
	id.identity = text;
	if (with_digest && disk->readonly && !strncmp(text, "local:", 6) && disk->path[0] == '/' &&
	    gw_bootfile_digest(a, disk->path, digest, &size, NULL) == 0) {
		id.sha256.data = digest;
		id.sha256.len = sizeof(digest);
	}
	*ret = (Godwit__DiskIdentity *)gw_pb_copy(&id.base);
	return *ret ? 0 : gw_error_set(err, ENOMEM, "out of memory");
}

int gw_disk_compare(struct gw_agent *a, const Godwit__VmDisk *disk, const Godwit__DiskIdentity *theirs, struct gw_error *err)
{
	Godwit__DiskIdentity *ours = NULL;
	int r = gw_disk_identify(a, disk, theirs->sha256.len == GW_SHA256_LEN, &ours, err);

	if (r < 0)
		return r;
	if (!strcmp(ours->identity, theirs->identity))
		r = 0;
	else if (disk->readonly && ours->sha256.len == GW_SHA256_LEN && theirs->sha256.len == GW_SHA256_LEN &&
		 !memcmp(ours->sha256.data, theirs->sha256.data, GW_SHA256_LEN))
		r = 0;
	else if (!strncmp(ours->identity, "local:", 6))
		r = gw_error_set(err, EXDEV, "[disk %s] %s is on storage of one host only; a move needs it on storage that both hosts see",
				 disk->name, disk->path);
	else
		r = gw_error_set(err, EXDEV, "[disk %s] %s is another disk on this host than on the source", disk->name, disk->path);
	godwit__disk_identity__free_unpacked(ours, NULL);
	return r;
}
