// SPDX-License-Identifier: Apache-2.0
/* The ownership journal; see journal.h. */
#include "migrate/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "lib/bytes.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"

/* Record on disk, little-endian: what is not listed is zero. */
enum {
	OFF_MAGIC = 0,    /* 8 bytes */
	OFF_VERSION = 8,  /* u32 */
	OFF_STATE = 12,   /* u32 */
	OFF_SEQ = 16,     /* u64 */
	OFF_EPOCH = 24,   /* u64 */
	OFF_MOVE_ID = 32, /* 16 bytes */
	OFF_BOOT_ID = 48, /* 16 bytes */
	OFF_PEER = 64,    /* 64 bytes, NUL-terminated */
	OFF_SUM = 128,    /* u64: XXH3-64 of all before */
	RECORD_LEN = 136,
};
#define RECORD_VERSION 1
#define SLOT_SIZE 4096 /* a slot in a page of its own: a torn write cannot reach the other */
#define EFFECT_OFFSET (2 * SLOT_SIZE)
#define FILE_SIZE (3 * SLOT_SIZE)
static const uint8_t magic[8] = { 'G', 'W', 'J', 'O', 'U', 'R', 'N', '\n' };

struct gw_journal {
	int fd;
	struct gw_journal_entry last;
	_Atomic(uint32_t) *effect; /* shared mapping of the third page */
	uint8_t boot_id[16];
};

const char *gw_journal_state_name(enum gw_journal_state state)
{
	static const char *const names[] = { "none", "owner", "incoming", "committing", "released", "aborted", "suspended" };

	return (unsigned)state < ARRAY_SIZE(names) ? names[state] : "unknown";
}

/* All zero when the kernel does not tell: then no two boots are told apart, and `effect` errs on the safe side. */
static void read_boot_id(uint8_t id[16])
{
	gw_autofree char *text = NULL;
	char hex[33];
	size_t len, n = 0;

	memset(id, 0, 16);
	if (gw_read_file("/proc/sys/kernel/random/boot_id", 64, &text, &len, NULL) < 0)
		return;
	for (size_t i = 0; i < len && n < 32; i++) {
		if (text[i] != '-' && text[i] != '\n')
			hex[n++] = text[i];
	}
	hex[n] = '\0';
	if (gw_parse_hex(hex, id, 16, NULL) < 0)
		memset(id, 0, 16);
}

static void encode(uint8_t rec[RECORD_LEN], const struct gw_journal_entry *e, const uint8_t boot_id[16])
{
	memset(rec, 0, RECORD_LEN);
	memcpy(rec + OFF_MAGIC, magic, sizeof(magic));
	gw_put_le32(rec + OFF_VERSION, RECORD_VERSION);
	gw_put_le32(rec + OFF_STATE, (uint32_t)e->state);
	gw_put_le64(rec + OFF_SEQ, e->seq);
	gw_put_le64(rec + OFF_EPOCH, e->epoch);
	memcpy(rec + OFF_MOVE_ID, e->move_id, GW_MOVE_ID_LEN);
	memcpy(rec + OFF_BOOT_ID, boot_id, 16);
	memcpy(rec + OFF_PEER, e->peer, strnlen(e->peer, sizeof(e->peer) - 1));
	gw_put_le64(rec + OFF_SUM, XXH3_64bits(rec, OFF_SUM));
}

static int decode(const uint8_t rec[RECORD_LEN], struct gw_journal_entry *e, uint8_t boot_id[16])
{
	if (memcmp(rec + OFF_MAGIC, magic, sizeof(magic)) || gw_get_le32(rec + OFF_VERSION) != RECORD_VERSION ||
	    gw_get_le64(rec + OFF_SUM) != XXH3_64bits(rec, OFF_SUM) || gw_get_le32(rec + OFF_STATE) > GW_JOURNAL_SUSPENDED)
		return -EPROTO;
	memset(e, 0, sizeof(*e));
	e->state = (enum gw_journal_state)gw_get_le32(rec + OFF_STATE);
	e->seq = gw_get_le64(rec + OFF_SEQ);
	e->epoch = gw_get_le64(rec + OFF_EPOCH);
	memcpy(e->move_id, rec + OFF_MOVE_ID, GW_MOVE_ID_LEN);
	memcpy(boot_id, rec + OFF_BOOT_ID, 16);
	memcpy(e->peer, rec + OFF_PEER, sizeof(e->peer) - 1);
	return 0;
}

/* The newest whole record. An empty file (made, and then its maker died) counts as a journal without one. */
static int load(int fd, struct gw_journal_entry *ret)
{
	struct gw_journal_entry best = { .state = GW_JOURNAL_NONE };
	uint8_t rec[RECORD_LEN], boot[16], here[16];
	uint32_t effect = 1;
	bool found = false, empty = true;

	read_boot_id(here);
	for (int slot = 0; slot < 2; slot++) {
		struct gw_journal_entry e;
		ssize_t n = pread(fd, rec, sizeof(rec), (off_t)slot * SLOT_SIZE);

		if (n < 0)
			return -errno;
		for (ssize_t i = 0; i < n; i++)
			empty &= rec[i] == 0;
		if (n != RECORD_LEN || decode(rec, &e, boot) < 0 || (found && e.seq < best.seq))
			continue;
		found = true;
		best = e;
		best.effect = memcmp(boot, here, 16) != 0;
	}
	if (!found && !empty)
		return -EPROTO;
	if (pread(fd, &effect, sizeof(effect), EFFECT_OFFSET) != sizeof(effect) || effect)
		best.effect = true;
	if (best.state == GW_JOURNAL_NONE)
		best.effect = false;
	*ret = best;
	return 0;
}

/* The file's name must be durable as well before a record in it counts. */
static int sync_folder_of(const char *path)
{
	gw_autofree char *copy = strdup(path);
	gw_autofd fd = -1;

	if (!copy)
		return -ENOMEM;
	fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

static int open_locked(const char *path, struct gw_journal *j, struct gw_error *err)
{
	struct stat st;
	int r;

	j->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (j->fd < 0)
		return gw_error_errno(err, errno, "cannot open the journal %s", path);
	if (flock(j->fd, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK ?
			       gw_error_set(err, EBUSY, "the journal %s is in use by another process", path) :
			       gw_error_errno(err, errno, "cannot lock the journal %s", path);
	if (fstat(j->fd, &st) < 0)
		return gw_error_errno(err, errno, "cannot stat the journal %s", path);
	if (!S_ISREG(st.st_mode) || (st.st_size != 0 && st.st_size != FILE_SIZE))
		return gw_error_set(err, EPROTO, "%s is not a journal", path);
	/* Blocks are allocated now: a store to the mapped page must not find the disk full (SIGBUS). */
	if (st.st_size == 0) {
		r = posix_fallocate(j->fd, 0, FILE_SIZE);
		if (r == 0 && (fsync(j->fd) < 0 || sync_folder_of(path) < 0))
			r = errno;
		if (r)
			return gw_error_errno(err, r, "cannot write the journal %s", path);
	}
	r = load(j->fd, &j->last);
	if (r < 0)
		return gw_error_set(err, r, "the journal %s is damaged", path);
	return 0;
}

int gw_journal_open(const char *path, struct gw_journal **ret, struct gw_error *err)
{
	struct gw_journal *j = calloc(1, sizeof(*j));
	void *p;
	int r;

	if (!j)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = open_locked(path, j, err);
	if (r == 0) {
		p = mmap(NULL, SLOT_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, j->fd, EFFECT_OFFSET);
		if (p == MAP_FAILED)
			r = gw_error_errno(err, errno, "cannot map the journal %s", path);
		else
			j->effect = p;
	}
	if (r < 0) {
		gw_journal_close(j);
		return r;
	}
	read_boot_id(j->boot_id);
	*ret = j;
	return 0;
}

void gw_journal_close(struct gw_journal *j)
{
	if (!j)
		return;
	if (j->effect)
		munmap(j->effect, SLOT_SIZE);
	if (j->fd >= 0)
		close(j->fd);
	free(j);
}

int gw_journal_write(struct gw_journal *j, const struct gw_journal_entry *e, struct gw_error *err)
{
	struct gw_journal_entry next = *e;
	uint8_t rec[RECORD_LEN];
	ssize_t n;

	next.seq = j->last.seq + 1;
	encode(rec, &next, j->boot_id);
	n = pwrite(j->fd, rec, sizeof(rec), (off_t)(next.seq % 2) * SLOT_SIZE);
	if (n >= 0 && n != RECORD_LEN)
		errno = ENOSPC;
	if (n != RECORD_LEN || fdatasync(j->fd) < 0)
		return gw_error_errno(err, errno, "cannot write '%s' to the journal", gw_journal_state_name(e->state));
	next.effect = false;
	j->last = next;
	return 0;
}

const struct gw_journal_entry *gw_journal_last(const struct gw_journal *j)
{
	return &j->last;
}

_Atomic(uint32_t) *gw_journal_effect_word(struct gw_journal *j)
{
	return j->effect;
}

int gw_journal_read(const char *path, struct gw_journal_entry *ret, struct gw_error *err)
{
	gw_autofd fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	int r;

	if (fd < 0)
		return gw_error_errno(err, errno, "cannot open the journal %s", path);
	r = load(fd, ret);
	return r < 0 ? gw_error_set(err, r, "the journal %s is damaged", path) : 0;
}

int gw_journal_held(const char *path, struct gw_error *err)
{
	gw_autofd fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0)
		return errno == ENOENT ? 0 : gw_error_errno(err, errno, "cannot open the journal %s", path);
	if (flock(fd, LOCK_SH | LOCK_NB) == 0)
		return 0;
	return errno == EWOULDBLOCK ? 1 : gw_error_errno(err, errno, "cannot test the lock of %s", path);
}

int gw_journal_abort_if_not_owner(const char *path, const uint8_t move_id[GW_MOVE_ID_LEN], bool undo,
				  struct gw_journal_entry *ret, struct gw_error *err)
{
	struct gw_journal_entry next = { .state = GW_JOURNAL_ABORTED };
	const struct gw_journal_entry *last;
	struct gw_journal *j = NULL;
	bool ours;
	int r;

	r = gw_journal_open(path, &j, err);
	if (r < 0)
		return r;
	last = gw_journal_last(j);
	if (ret)
		*ret = *last;
	ours = !memcmp(last->move_id, move_id, GW_MOVE_ID_LEN);
	if (last->state == GW_JOURNAL_OWNER && ours && (!undo || last->effect))
		r = gw_error_set(err, EEXIST, "the VM became owned here");
	else if (last->state == GW_JOURNAL_COMMITTING || (!ours && last->state == GW_JOURNAL_OWNER) ||
		 (ours && last->state == GW_JOURNAL_RELEASED) || last->state == GW_JOURNAL_SUSPENDED)
		r = gw_error_set(err, ESTALE, "the journal %s says '%s' of another move", path,
				 gw_journal_state_name(last->state));
	else if (last->state == GW_JOURNAL_ABORTED && ours)
		r = 0;
	else {
		next.epoch = ours ? last->epoch : 0;
		memcpy(next.move_id, move_id, GW_MOVE_ID_LEN);
		memcpy(next.peer, last->peer, sizeof(next.peer));
		r = gw_journal_write(j, &next, err);
	}
	gw_journal_close(j);
	return r;
}
