// SPDX-License-Identifier: Apache-2.0
/* Saving this VMM's VM to a repository, and loading it from one; see move.h. */
#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/util.h"
#include "vmm/move-internal.h"
#include "vmm/vm.h"

/* Engines' threads. What is not dispatched in time is overwritten; the last one stays. */
static void take_saved(void *arg, const struct gw_save_progress *p)
{
	struct gw_vm_move *mv = arg;

	pthread_mutex_lock(&mv->lock);
	mv->latest_save = (struct gw_vm_save_news){ *p, true, true };
	pthread_mutex_unlock(&mv->lock);
	gw_vm_move_wake(mv);
}

static void take_loaded(void *arg, const struct gw_load_progress *p)
{
	struct gw_vm_move *mv = arg;

	pthread_mutex_lock(&mv->lock);
	mv->latest_load = (struct gw_vm_load_news){ *p, true, true };
	pthread_mutex_unlock(&mv->lock);
	gw_vm_move_wake(mv);
}

static int check_key(ProtobufCBinaryData key, struct gw_error *err)
{
	return key.len == GW_REPO_KEY_LEN ? 0 : gw_error_set(err, EINVAL, "a repository key has %d bytes", GW_REPO_KEY_LEN);
}

/* A repository of another host comes with a ticket. */
static int take_ticket(const Godwit__RepositoryTicket *ticket, struct gw_ticket *ret, struct gw_error *err)
{
	return ticket ? gw_ticket_read(ticket, ret, err) : 0;
}

int gw_vm_move_save(struct gw_vm_move *mv, const Godwit__Save *req, struct gw_error *err)
{
	struct gw_move_vm vm = gw_vm_move_handle(mv);
	struct gw_save_params p = { .url = req->url, .name = req->name, .vm = gw_vm_config(mv->vm)->name, .host = req->host, .live = req->live,
				    .keep = req->keep, .epoch = mv->epoch, .downtime_ms = req->downtime_ms, .about = req->about.data,
				    .about_len = req->about.len, .touch = mv->touched.data, .touch_len = mv->touched.len };
	char *name, *url;
	int r = check_key(req->key, err) ?: take_ticket(req->ticket, &p.ticket, err);

	if (r == 0 && req->id.len != sizeof(mv->save_id))
		r = gw_error_set(err, EINVAL, "saving needs an id of %zu bytes", sizeof(mv->save_id));
	if (r == 0 && mv->load)
		r = gw_error_set(err, EBUSY, "the VM's memory is still on its way from a repository");
	if (r == 0 && mv->state != GW_VM_MOVE_NONE)
		r = gw_error_set(err, EBUSY, "a move is under way");
	if (r < 0)
		return r;
	name = strdup(req->name);
	url = strdup(req->url);
	memcpy(p.key, req->key.data, sizeof(p.key));
	vm.dirty = gw_vm_dirty_source(mv->vm);
	r = name && url ? gw_save_start(&p, &vm, mv->journal, take_saved, mv, &mv->save, err) : gw_error_set(err, ENOMEM, "out of memory");
	explicit_bzero(p.key, sizeof(p.key));
	explicit_bzero(&p.ticket, sizeof(p.ticket));
	if (r < 0) {
		free(name);
		free(url);
		return r;
	}
	free(mv->save_name);
	free(mv->save_url);
	mv->save_name = name;
	mv->save_url = url;
	mv->save_keeps = req->keep;
	memcpy(mv->save_id, req->id.data, sizeof(mv->save_id));
	mv->saved.ever = false; /* until this one tells of itself */
	gw_vm_move_set_state(mv, GW_VM_MOVE_SAVING, "");
	return 0;
}

int gw_vm_move_load(struct gw_vm_move *mv, const Godwit__Load *req, struct gw_error *err)
{
	struct gw_move_vm vm = gw_vm_move_handle(mv);
	struct gw_load_params p = { .url = req->url, .name = req->name, .generation = req->generation, .epoch = req->epoch,
				    .paused = req->paused, .exclusive = req->exclusive && !req->clone, .lineage = gw_vm_lineage(mv->vm) };
	int r = check_key(req->key, err) ?: take_ticket(req->ticket, &p.ticket, err);

	if (r == 0 && req->id.len != sizeof(p.id))
		r = gw_error_set(err, EINVAL, "a snapshot's id has %zu bytes", sizeof(p.id));
	if (r == 0 && (req->epoch == 0 || (mv->journal && req->epoch <= gw_journal_last(mv->journal)->epoch)))
		r = gw_error_set(err, EINVAL, "epoch %llu is not past the present one", (unsigned long long)req->epoch);
	if (r == 0 && mv->state != GW_VM_MOVE_WAITING)
		r = gw_error_set(err, EBUSY, "this VMM does not wait for a VM to arrive");
	if (r < 0)
		return r;
	memcpy(p.id, req->id.data, sizeof(p.id));
	memcpy(p.key, req->key.data, sizeof(p.key));
	mv->load_clone = req->clone;
	r = gw_load_start(&p, &vm, mv->journal, take_loaded, mv, &mv->load, err);
	explicit_bzero(p.key, sizeof(p.key));
	explicit_bzero(&p.ticket, sizeof(p.ticket));
	if (r == 0) {
		mv->load_epoch = req->epoch;
		gw_vm_move_set_state(mv, GW_VM_MOVE_IN, "");
	}
	return r;
}

/* The engine has ended. */
static void conclude_save(struct gw_vm_move *mv, const struct gw_save_progress *p)
{
	gw_save_free(gw_steal_ptr(&mv->save));
	if (p->phase == GW_SAVE_DONE && !mv->save_keeps)
		gw_vm_move_set_state(mv, GW_VM_MOVE_SUSPENDED, "suspended");
	else
		gw_vm_move_set_state(mv, GW_VM_MOVE_NONE, p->message);
}

static void follow_load(struct gw_vm_move *mv, const struct gw_load_progress *p)
{
	switch (p->phase) {
	case GW_LOAD_OPEN:
		break;
	case GW_LOAD_FETCH:
	case GW_LOAD_STALL:
		mv->epoch = mv->load_epoch;
		gw_vm_move_set_state(mv, GW_VM_MOVE_NONE, "");
		break;
	case GW_LOAD_DONE:
		mv->epoch = mv->load_epoch;
		mv->touched.len = 0;
		if (gw_load_touched(mv->load, &mv->touched) < 0)
			mv->touched.len = 0; /* a hint */
		gw_load_free(gw_steal_ptr(&mv->load));
		/* Index and manifest are some MiB, of which the allocator keeps all; on a host of many clones that is much of what each has of its own. */
		malloc_trim(0);
		gw_vm_share_loaded(mv->vm);
		gw_vm_move_set_state(mv, GW_VM_MOVE_NONE, "");
		break;
	case GW_LOAD_FAILED:
	case GW_LOAD_CANCELLED:
		gw_load_free(gw_steal_ptr(&mv->load));
		gw_vm_move_set_state(mv, GW_VM_MOVE_GONE, p->message);
		break;
	}
}

void gw_vm_move_dispatch_repo(struct gw_vm_move *mv)
{
	struct gw_vm_save_news save;
	struct gw_vm_load_news load;
	Godwit__SaveProgress saved;
	Godwit__LoadProgress loaded;

	pthread_mutex_lock(&mv->lock);
	save = mv->latest_save;
	load = mv->latest_load;
	mv->latest_save.news = mv->latest_load.news = false;
	pthread_mutex_unlock(&mv->lock);
	if (save.news && mv->save) {
		mv->saved = save;
		if (gw_vm_move_saved(mv, &saved))
			mv->hooks->saved(mv->arg, &saved);
		if (save.p.phase >= GW_SAVE_DONE)
			conclude_save(mv, &save.p);
	}
	if (load.news && mv->load) {
		mv->loaded = load;
		if (gw_vm_move_loaded(mv, &loaded))
			mv->hooks->loaded(mv->arg, &loaded);
		follow_load(mv, &load.p);
	}
}

bool gw_vm_move_loading(const struct gw_vm_move *mv)
{
	return mv->load != NULL;
}

int gw_vm_move_pause(struct gw_vm_move *mv, bool pause)
{
	return mv->load ? gw_load_pause(mv->load, pause) : -ESHUTDOWN;
}

bool gw_vm_move_paused(const struct gw_vm_move *mv)
{
	return mv->load ? gw_load_paused(mv->load) : !gw_vm_running(mv->vm);
}

void gw_vm_move_forget(struct gw_vm_move *mv)
{
	if (!mv->load)
		return;
	gw_load_forget(mv->load);
	while (mv->load) {
		gw_wait_fd(mv->event_fd, POLLIN, GW_NO_DEADLINE);
		gw_vm_move_dispatch(mv);
	}
}

void gw_vm_move_release_repo(struct gw_vm_move *mv)
{
	gw_save_free(gw_steal_ptr(&mv->save));
	gw_load_free(gw_steal_ptr(&mv->load));
	free(mv->save_name);
	free(mv->save_url);
	gw_buf_release(&mv->touched);
}

bool gw_vm_move_saved(const struct gw_vm_move *mv, Godwit__SaveProgress *ret)
{
	const struct gw_save_progress *p = &mv->saved.p;

	godwit__save_progress__init(ret);
	ret->phase = (char *)gw_save_phase_name(p->phase);
	ret->round = p->round;
	ret->ram_bytes = p->ram_bytes;
	ret->bytes_done = p->bytes_done;
	ret->bytes_left = p->bytes_left;
	ret->rate = p->rate;
	ret->dirty_rate = p->dirty_rate;
	ret->eta_ms = p->eta_ms;
	ret->zero_pages = p->zero_pages;
	ret->known_pages = p->known_pages;
	ret->stored_pages = p->stored_pages;
	ret->stored_bytes = p->stored_bytes;
	ret->durable_bytes = p->durable_bytes;
	ret->stopped_us = p->stopped_us;
	ret->elapsed_ms = p->elapsed_ms;
	if (p->phase == GW_SAVE_DONE) {
		ret->snapshot.data = (uint8_t *)p->snapshot;
		ret->snapshot.len = sizeof(p->snapshot);
	}
	ret->generation = p->generation;
	ret->message = (char *)p->message;
	ret->name = mv->save_name ?: ret->name;
	ret->url = mv->save_url ?: ret->url;
	ret->keep = mv->save_keeps;
	ret->id.data = (uint8_t *)mv->save_id;
	ret->id.len = sizeof(mv->save_id);
	return mv->saved.ever;
}

bool gw_vm_move_loaded(const struct gw_vm_move *mv, Godwit__LoadProgress *ret)
{
	const struct gw_load_progress *p = &mv->loaded.p;

	godwit__load_progress__init(ret);
	ret->phase = (char *)gw_load_phase_name(p->phase);
	ret->ram_bytes = p->ram_bytes;
	ret->bytes = p->bytes;
	ret->bytes_here = p->bytes_here;
	ret->rate = p->rate;
	ret->eta_ms = p->eta_ms;
	ret->faults = p->faults;
	ret->start_us = p->start_us;
	ret->elapsed_ms = p->elapsed_ms;
	ret->message = (char *)p->message;
	return mv->loaded.ever;
}
