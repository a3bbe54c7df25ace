// SPDX-License-Identifier: Apache-2.0
/* The disks of clones; see clone-disks.h. */
#include "agent/clone-disks.h"

#include <errno.h>
#include <string.h>

#include "agent/disks.h"
#include "agent/vmconfig.h"
#include "lib/buf.h"
#include "lib/util.h"

static const char *mapped(const Godwit__CloneRequest *req, const char *name)
{
	for (size_t i = 0; i < req->n_disks; i++) {
		if (!strcmp(req->disks[i]->name, name))
			return req->disks[i]->path;
	}
	return NULL;
}

/* `pattern` with the number for each "{}". Owned. */
static char *fill_in(const char *pattern, unsigned number)
{
	gw_autobuf out = GW_BUF_INIT;
	char digits[12];
	int n = snprintf(digits, sizeof(digits), "%u", number), r = 0;

	for (const char *p = pattern; *p && r == 0;) {
		bool hole = p[0] == '{' && p[1] == '}';

		r = hole ? gw_buf_append(&out, digits, (size_t)n) : gw_buf_append(&out, p, 1);
		p += hole ? 2 : 1;
	}
	return r == 0 && gw_buf_append(&out, "", 1) == 0 ? strdup((const char *)out.data) : NULL;
}

/* Each mapping is for a disk that there is, and for another one. */
static int check_mappings(const Godwit__CloneRequest *req, const Godwit__VmConfig *config, struct gw_error *err)
{
	for (size_t i = 0; i < req->n_disks; i++) {
		const char *name = req->disks[i]->name;
		bool known = false;

		if (strlen(req->disks[i]->path) > GW_VM_MAX_PATH)
			return gw_error_set(err, EINVAL, "disk %.64s: the path is longer than %d bytes", name, GW_VM_MAX_PATH);
		for (size_t j = 0; j < config->n_disks && !known; j++)
			known = !strcmp(config->disks[j]->name, name);
		if (!known)
			return gw_error_set(err, EINVAL, "the VM that was saved has no disk '%.64s'", name);
		for (size_t j = 0; j < i; j++) {
			if (!strcmp(req->disks[j]->name, name))
				return gw_error_set(err, EINVAL, "disk %s is mapped twice", name);
		}
	}
	return 0;
}

int gw_clone_map_disks(Godwit__VmConfig *config, const Godwit__CloneRequest *req, unsigned number, struct gw_error *err)
{
	int r = check_mappings(req, config, err);

	for (size_t i = 0; r == 0 && i < config->n_disks; i++) {
		Godwit__VmDisk *d = config->disks[i];
		const char *pattern = mapped(req, d->name);
		gw_autofree char *path = pattern ? fill_in(pattern, number) : NULL;

		if (!pattern && !d->readonly)
			r = gw_error_set(err, EINVAL, "[disk %s] %s is written by the VM, and clones that write one disk destroy it: give each a copy of its own, "
					 "as it was at the snapshot, with --disk %s=PATH and {} in PATH for the clone's number (a read-only disk they can share)",
					 d->name, d->path, d->name);
		else if (pattern && (!path || gw_pb_set_string(&d->path, path) < 0))
			r = gw_error_set(err, ENOMEM, "out of memory");
	}
	return r;
}

static const Godwit__DiskIdentity *identity_of(const Godwit__PeerPrepare *saved, const char *name)
{
	for (size_t i = 0; i < saved->n_disks; i++) {
		if (!strcmp(saved->disks[i]->name, name))
			return saved->disks[i];
	}
	return NULL;
}

/* Whether a disk of `config` is the one that `id` names. What cannot be looked at is none. */
static const char *find_same(struct gw_agent *a, const Godwit__VmConfig *config, const Godwit__DiskIdentity *id)
{
	const char *found = NULL;

	for (size_t i = 0; i < config->n_disks && !found; i++) {
		Godwit__DiskIdentity *other = NULL;

		if (gw_disk_identify(a, config->disks[i], false, &other, NULL) < 0)
			continue;
		if (!strcmp(other->identity, id->identity))
			found = config->disks[i]->name;
		godwit__disk_identity__free_unpacked(other, NULL);
	}
	return found;
}

/* `self` may be NULL. */
static int check_recorded(struct gw_agent *a, const struct gw_guest *self, const Godwit__VmDisk *d, const Godwit__DiskIdentity *id,
			  struct gw_error *err)
{
	struct gw_guest **list;
	unsigned n;
	int r = gw_guest_list(a, &list, &n);

	if (r < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < n; i++) {
		struct gw_guest *g = list[i];

		/* A record's configuration never changes. */
		if (r == 0 && g != self && find_same(a, g->record->config, id))
			r = gw_error_set(err, EBUSY, "[disk %s] %s is VM %s's already", d->name, d->path, g->name);
		gw_guest_unref(g);
	}
	free(list);
	return r;
}

/* Nobody else that we know of has the disk that clone `number` is to write: not the VM that was saved, no other VM here, no earlier clone. */
static int check_own(struct gw_agent *a, const Godwit__PeerPrepare *saved, Godwit__VmConfig *const *configs, unsigned number,
		     const Godwit__VmDisk *d, struct gw_error *err)
{
	Godwit__DiskIdentity *id = NULL;
	int r = gw_disk_identify(a, d, false, &id, err);

	if (r < 0)
		return r;
	for (size_t i = 0; r == 0 && i < saved->n_disks; i++) {
		if (!strcmp(saved->disks[i]->identity, id->identity))
			r = gw_error_set(err, EINVAL, "[disk %s] %s is the disk of the VM that was saved itself", d->name, d->path);
	}
	for (unsigned i = 0; r == 0 && i < number - 1; i++) {
		if (find_same(a, configs[i], id))
			r = gw_error_set(err, EINVAL, "[disk %s] %s would be written by clones %u and %u: put {} into its path, for the clone's number",
					 d->name, d->path, i + 1, number);
	}
	r = r ?: check_recorded(a, NULL, d, id, err);
	godwit__disk_identity__free_unpacked(id, NULL);
	return r;
}

int gw_clone_check_disks(struct gw_agent *a, const Godwit__CloneRequest *req, const Godwit__PeerPrepare *saved, Godwit__VmConfig *const *configs,
			 unsigned n, struct gw_error *err)
{
	int r = 0;

	for (unsigned number = 1; number <= n; number++) {
		const Godwit__VmConfig *c = configs[number - 1];

		for (size_t i = 0; r == 0 && i < c->n_disks; i++) {
			const Godwit__VmDisk *d = c->disks[i];
			const Godwit__DiskIdentity *theirs = identity_of(saved, d->name);

			if (!d->readonly)
				r = check_own(a, saved, configs, number, d, err);
			else if (!mapped(req, d->name) && number == 1)
				r = theirs ? gw_disk_compare(a, d, theirs, err) :
					     gw_error_set(err, EPROTO, "the snapshot does not say which disk [disk %s] is", d->name);
		}
	}
	return r;
}

int gw_clone_recheck_disks(struct gw_guest *self, struct gw_error *err)
{
	const Godwit__VmConfig *c = self->record->config;
	int r = 0;

	for (size_t i = 0; r == 0 && i < c->n_disks; i++) {
		Godwit__DiskIdentity *id = NULL;

		if (c->disks[i]->readonly)
			continue;
		r = gw_disk_identify(self->agent, c->disks[i], false, &id, err) ?: check_recorded(self->agent, self, c->disks[i], id, err);
		if (id)
			godwit__disk_identity__free_unpacked(id, NULL);
	}
	return r;
}
