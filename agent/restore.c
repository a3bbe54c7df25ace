// SPDX-License-Identifier: Apache-2.0
/* From a snapshot to a VM that runs; see restore.h. */
#include "agent/restore.h"

#include <errno.h>
#include <string.h>

#include "agent/bootfile.h"
#include "agent/intake.h"
#include "agent/net.h"
#include "agent/run.h"
#include "agent/share.h"
#include "agent/snapshot.h"
#include "agent/ticket.h"
#include "agent/vmconfig.h"
#include "agent/vmmctl.h"
#include "lib/clock.h"
#include "lib/util.h"

/* From the hand-over until the VM runs: manifest, device state, and the pages that loading it touches. */
#define RUN_TIMEOUT (120 * GW_NS_PER_SEC)

int gw_restore_open(struct gw_restore *s, struct gw_agent *a, const char *url, const char *passphrase, const ProtobufCBinaryData *fingerprint,
		    const char *snapshot, uint64_t generation, struct gw_error *err)
{
	int r;

	memset(s, 0, sizeof(*s));
	s->a = a;
	s->url = url;
	r = gw_snapshot_repo(a, url, passphrase, fingerprint, &s->repo, err) ?: gw_snap_open(s->repo, snapshot, generation, &s->snap, err);
	if (r < 0)
		return r;
	s->info = gw_snap_info(s->snap);
	return gw_snapshot_about(s->snap, &s->about, err);
}

void gw_restore_release(struct gw_restore *s)
{
	if (s->about)
		godwit__snapshot_about__free_unpacked(s->about, NULL);
	gw_snap_free(s->snap);
	gw_repo_free(s->repo);
	free(s->kernel);
	free(s->initrd);
}

/* *found is owned, NULL: as configured. */
static int find_boot(struct gw_restore *s, const Godwit__BootFile *file, const char *path, char **found, struct gw_error *err)
{
	gw_autofree char *at = NULL;
	int r;

	if (!*path || file->sha256.len == 0)
		return 0;
	r = gw_bootfile_locate(s->a, path, file->sha256.data, &at, err);
	if (r == 0 && !at)
		r = gw_error_set(err, ENOENT, "%s of VM %s is not on this host as the VM knows it; copy it here first", path,
				 s->about->vm->config->name);
	if (r == 0 && strcmp(at, path))
		*found = gw_steal_ptr(&at);
	return r;
}

int gw_restore_check_host(struct gw_restore *s, const Godwit__VmConfig *config, struct gw_error *err)
{
	const Godwit__PeerPrepare *vm = s->about->vm;
	int r = 0;

	if (access(s->a->conf->vmm, X_OK) < 0)
		r = gw_error_errno(err, errno, "the VMM %s", s->a->conf->vmm);
	r = r ?: gw_net_check(config, err);
	r = r ?: find_boot(s, vm->kernel, vm->config->kernel, &s->kernel, err);
	return r ?: find_boot(s, vm->initrd, vm->config->initrd, &s->initrd, err);
}

Godwit__VmRecord *gw_restore_record(const struct gw_restore *s, const Godwit__VmConfig *config, uint64_t epoch)
{
	Godwit__VmRecord *rec = malloc(sizeof(*rec));

	if (!rec)
		return NULL;
	godwit__vm_record__init(rec);
	rec->version = 1;
	rec->epoch = epoch;
	rec->state = GODWIT__VM_STATE__VM_SUSPENDED;
	rec->config = gw_vmconfig_copy(config);
	if (!rec->config || (s->kernel && gw_pb_set_string(&rec->kernel_file, s->kernel) < 0) ||
	    (s->initrd && gw_pb_set_string(&rec->initrd_file, s->initrd) < 0) || gw_restore_suspension(s, rec) < 0) {
		godwit__vm_record__free_unpacked(rec, NULL);
		return NULL;
	}
	rec->config->no_balloon |= !gw_intake_has_balloon(s->about->vm->features);
	return rec;
}

int gw_restore_suspension(const struct gw_restore *s, Godwit__VmRecord *rec)
{
	Godwit__Suspension to = GODWIT__SUSPENSION__INIT, *copy;

	to.url = (char *)s->url;
	to.name = (char *)s->info->name;
	to.generation = s->info->generation;
	to.id = (ProtobufCBinaryData){ sizeof(s->info->id), (uint8_t *)s->info->id };
	to.forced = s->forced;
	copy = (Godwit__Suspension *)gw_pb_copy(&to.base);
	if (!copy)
		return -ENOMEM;
	if (rec->suspension)
		godwit__suspension__free_unpacked(rec->suspension, NULL);
	rec->suspension = copy;
	return 0;
}

static int hand_over(const struct gw_restore *s, struct gw_guest *g, bool paused, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_control(g);
	Godwit__VmmRequest req = GODWIT__VMM_REQUEST__INIT;
	Godwit__Load load = GODWIT__LOAD__INIT;
	struct gw_vmm_ticket ticket;
	int r;

	if (!path)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_ticket_for_vmm(s->a, s->url, &ticket, &load.ticket, err);
	if (r < 0)
		return r;
	load.url = (char *)s->url;
	load.key = (ProtobufCBinaryData){ GW_REPO_KEY_LEN, (uint8_t *)gw_repo_key(s->repo) };
	load.name = (char *)s->info->name;
	load.generation = s->info->generation;
	load.id = (ProtobufCBinaryData){ sizeof(s->info->id), (uint8_t *)s->info->id };
	pthread_mutex_lock(&g->lock);
	load.epoch = g->record->epoch + 1;
	load.clone = g->record->cloning;
	pthread_mutex_unlock(&g->lock);
	load.exclusive = !s->forced;
	load.paused = paused || s->about->vm->paused;
	req.op_case = GODWIT__VMM_REQUEST__OP_LOAD;
	req.load = &load;
	r = gw_vmmctl_ask(path, &req, NULL, 0, NULL, NULL, err);
	explicit_bzero(&ticket, sizeof(ticket));
	return r;
}

/* Until the VMM says that the VM runs, or has died. */
static int wait_running(struct gw_guest *g, struct gw_error *err)
{
	uint64_t deadline = gw_now_ns() + RUN_TIMEOUT;
	int r = 0;

	pthread_mutex_lock(&g->lock);
	while (r == 0 && g->watched && g->record->state == GODWIT__VM_STATE__VM_SUSPENDED)
		r = gw_guest_wait_locked(g, deadline);
	if (gw_vm_state_is_live(g->record->state))
		r = 0;
	else if (r < 0)
		gw_error_errno(err, r, "VM %s did not run within %llu s", g->name, RUN_TIMEOUT / GW_NS_PER_SEC);
	else
		r = gw_error_set(err, EIO, "VM %s was not resumed: %.300s", g->name,
				 g->load && *g->load->message ? g->load->message : g->record->reason);
	pthread_mutex_unlock(&g->lock);
	return r;
}

int gw_restore_bring(const struct gw_restore *s, struct gw_guest *g, bool paused, struct gw_error *err)
{
	int r = gw_run_spawn(g, true, err);

	r = r ?: gw_intake_wait_vmm(g, err);
	r = r ?: gw_intake_check_features(g, s->about->vm->features, err);
	if (r == 0)
		gw_sharing_before_load(g);
	r = r ?: hand_over(s, g, paused, err);
	return r ?: wait_running(g, err);
}
