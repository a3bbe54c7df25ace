// SPDX-License-Identifier: Apache-2.0
/* Saving a VM to a repository: its course, and who has the VM. See save.h. */
#include "migrate/save.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>

#include "lib/clock.h"
#include "lib/failpoint.h"
#include "lib/log.h"
#include "lib/thread.h"
#include "lib/util.h"
#include "migrate/failpoints.h"
#include "migrate/repo/touch.h"
#include "migrate/repo/upkeep.h"
#include "migrate/save-internal.h"

#define TICK_NS (150 * GW_NS_PER_MS)
#define WATCH_NS GW_NS_PER_SEC /* of the VM, for its working set, while the repository is opened */
#define SAVE_NICE 3 /* a third of a processor that the VM keeps busy: much less and it would never be done */

const char *gw_save_phase_name(enum gw_save_phase phase)
{
	static const char *const names[] = { "open", "copy", "stop", "commit", "done", "failed", "cancelled" };

	return (unsigned)phase < ARRAY_SIZE(names) ? names[phase] : "unknown";
}

int gw_save_check(struct gw_save *s, struct gw_error *err)
{
	bool cancelled;

	pthread_mutex_lock(&s->lock);
	cancelled = s->cancelled;
	pthread_mutex_unlock(&s->lock);
	return cancelled ? gw_error_set(err, ECANCELED, "cancelled") : 0;
}

int gw_save_step(struct gw_save *s, const char *name, struct gw_error *err)
{
	return gw_failpoint(name) < 0 ? gw_error_set(err, EIO, "failpoint %s", name) : gw_save_check(s, err);
}

/* ---- what it tells ---- */

/* With the lock held. */
static void meter(struct gw_save *s)
{
	struct gw_save_progress *p = &s->progress;
	uint64_t now = gw_now_ns();

	p->elapsed_ms = (now - s->started_ns) / GW_NS_PER_MS;
	if (now - s->base_ns >= 10 * GW_NS_PER_MS)
		p->rate = (uint64_t)((double)(p->bytes_done - s->base_bytes) * 1e9 / (double)(now - s->base_ns));
	if (now - s->base_ns > GW_NS_PER_SEC) {
		s->base_bytes = p->bytes_done;
		s->base_ns = now;
	}
	p->eta_ms = p->rate > p->dirty_rate ? p->bytes_left * 1000 / (p->rate - p->dirty_rate) : 0;
	if (s->writer) {
		struct gw_snap_progress w;

		gw_snap_writer_progress(s->writer, &w);
		p->zero_pages = w.zero;
		p->known_pages = w.known;
		p->stored_pages = w.stored;
		p->stored_bytes = w.blob_bytes;
		p->durable_bytes = w.put_bytes;
	}
}

/* Told by two threads, one at a time. */
static void tell_locked(struct gw_save *s)
{
	meter(s);
	s->fn(s->arg, &s->progress);
}

void gw_save_phase(struct gw_save *s, enum gw_save_phase phase)
{
	pthread_mutex_lock(&s->lock);
	s->progress.phase = phase;
	tell_locked(s);
	pthread_mutex_unlock(&s->lock);
}

/* The engine's thread waits for the writer's most of the time. */
static void *ticker_main(void *arg)
{
	struct gw_save *s = arg;

	pthread_mutex_lock(&s->lock);
	while (!s->ended) {
		uint64_t until = gw_now_ns() + TICK_NS;
		struct timespec ts = { (time_t)(until / GW_NS_PER_SEC), (long)(until % GW_NS_PER_SEC) };

		if (pthread_cond_timedwait(&s->change, &s->lock, &ts) == ETIMEDOUT && !s->ended)
			tell_locked(s);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

/* The last word: nothing is told after it. */
static void end(struct gw_save *s, enum gw_save_phase phase, const char *message)
{
	pthread_mutex_lock(&s->lock);
	s->ended = true;
	s->past_return = true;
	pthread_cond_broadcast(&s->change);
	pthread_mutex_unlock(&s->lock);
	if (s->ticking)
		pthread_join(s->ticker, NULL);
	s->ticking = false;
	snprintf(s->progress.message, sizeof(s->progress.message), "%.250s", message);
	s->progress.eta_ms = 0;
	gw_save_phase(s, phase);
}

/* ---- its course ---- */

static int open_repository(struct gw_save *s, struct gw_error *err)
{
	const struct gw_repo_secret secret = { .key = s->p.key, .ticket = &s->p.ticket };
	struct gw_repo *repo = NULL;
	int r = gw_repo_open(s->p.url, &secret, &repo, err);

	pthread_mutex_lock(&s->lock);
	s->repo = repo;
	if (r == 0 && s->cancelled)
		gw_repo_cancel(repo);
	pthread_mutex_unlock(&s->lock);
	return r;
}

static int new_writer(struct gw_save *s, const Godwit__StreamMachine *m, struct gw_error *err)
{
	struct gw_snap_region regions[GW_RAM_MAX_REGIONS];
	const char *disks[GW_SNAP_MAX_DISKS];
	struct gw_snap_writer_params p = { .name = s->p.name, .vm = s->p.vm, .host = s->p.host, .regions = regions, .disks = disks };
	const struct gw_ram_region *ram = gw_ram_regions(s->vm.ram, &p.nregions);
	struct gw_snap_writer *w = NULL;
	int r;

	for (unsigned i = 0; i < p.nregions; i++)
		regions[i] = (struct gw_snap_region){ ram[i].gpa, ram[i].size };
	for (; p.ndisks < m->n_disks && p.ndisks < GW_SNAP_MAX_DISKS; p.ndisks++)
		disks[p.ndisks] = m->disks[p.ndisks]->name;
	r = gw_snap_writer_new(s->repo, &p, &w, err);
	pthread_mutex_lock(&s->lock);
	s->writer = w;
	if (r == 0 && s->cancelled)
		gw_snap_writer_cancel(w);
	pthread_mutex_unlock(&s->lock);
	return r;
}

static int add_part(struct gw_save *s, const char *name, const void *data, size_t len, struct gw_error *err)
{
	int r = len ? gw_snap_writer_part(s->writer, name, data, len) : 0;

	return r < 0 ? gw_error_errno(err, r, "cannot save the part '%s'", name) : 0;
}

static int add_machine(struct gw_save *s, const Godwit__StreamMachine *m, struct gw_error *err)
{
	size_t len = godwit__stream_machine__get_packed_size(m);
	gw_autofree uint8_t *packed = malloc(len + 1);

	if (!packed)
		return gw_error_set(err, ENOMEM, "out of memory");
	godwit__stream_machine__pack(m, packed);
	return add_part(s, GW_SAVE_MACHINE, packed, len, err);
}

/* All that does not need the VM to stand still. */
static int begin(struct gw_save *s, struct gw_error *err)
{
	Godwit__StreamMachine *m = NULL;
	int r = open_repository(s, err);

	r = r ?: s->vm.ops->describe(s->vm.self, &m, err);
	if (r == 0) {
		r = new_writer(s, m, err) ?: add_machine(s, m, err);
		godwit__stream_machine__free_unpacked(m, NULL);
	}
	r = r ?: add_part(s, GW_SAVE_ABOUT, s->p.about, s->p.about_len, err);
	r = r ?: add_part(s, GW_TOUCH_PART, s->p.touch, s->p.touch_len, err);
	return r ?: gw_save_step(s, GW_FP_SAVE_OPENED, err);
}

static int stop(struct gw_save *s, struct gw_error *err)
{
	int r;

	s->stopped_ns = gw_now_ns();
	s->vm.ops->stop(s->vm.self);
	s->stopped = true;
	gw_save_phase(s, GW_SAVE_STOP);
	r = gw_save_step(s, GW_FP_SAVE_STOPPED, err);
	if (r == 0 && s->vm.ops->settled)
		r = s->vm.ops->settled(s->vm.self, err);
	return r;
}

static int save_state(struct gw_save *s, struct gw_error *err)
{
	gw_autobuf state = GW_BUF_INIT;
	int r = s->vm.ops->save(s->vm.self, &state, err);

	if (r < 0)
		return gw_error_wrap(err, "saving the state");
	r = add_part(s, GW_SAVE_STATE, state.data, state.len, err);
	return r ?: gw_save_step(s, GW_FP_SAVE_STATE, err);
}

static void run_again(struct gw_save *s)
{
	if (s->stopped && s->was_running)
		s->vm.ops->run(s->vm.self);
	if (s->stopped) {
		pthread_mutex_lock(&s->lock);
		s->progress.stopped_us = (gw_now_ns() - s->stopped_ns) / GW_NS_PER_US;
		pthread_mutex_unlock(&s->lock);
	}
	s->stopped = false;
}

/* ---- working set ---- */

static void watch(struct gw_save *s)
{
	if (s->was_running && s->vm.ops->working_set_begin && s->vm.ops->working_set_begin(s->vm.self) == 0)
		s->watched_ns = gw_now_ns();
}

/* Until the VM was watched for long enough, or this is cancelled. */
static void wait_watched(struct gw_save *s)
{
	uint64_t until = s->watched_ns + (s->p.watch_ns ?: WATCH_NS);
	struct timespec ts = { (time_t)(until / GW_NS_PER_SEC), (long)(until % GW_NS_PER_SEC) };
	int r = 0;

	pthread_mutex_lock(&s->lock);
	while (!s->cancelled && r != ETIMEDOUT)
		r = pthread_cond_timedwait(&s->change, &s->lock, &ts);
	pthread_mutex_unlock(&s->lock);
}

static int add_working_set(struct gw_save *s, struct gw_error *err)
{
	gw_autobuf part = GW_BUF_INIT;
	int r = gw_touch_encode_bitmap(s->working_set, gw_ram_pages(s->vm.ram), &part);

	return r < 0 ? gw_error_errno(err, r, "cannot list the working set") : add_part(s, GW_SAVE_WORKING_SET, part.data, part.len, err);
}

/* `keep`: it is of use. */
static int end_watch(struct gw_save *s, bool keep, struct gw_error *err)
{
	if (s->watched_ns == 0)
		return 0;
	s->watched_ns = 0;
	if (keep)
		s->working_set = calloc(gw_ram_bitmap_words(s->vm.ram), sizeof(uint64_t));
	s->vm.ops->working_set_end(s->vm.self, s->working_set);
	return s->working_set ? add_working_set(s, err) : 0;
}

/* Everything that the snapshot is made of is with the writer afterwards. */
static int copy(struct gw_save *s, struct gw_error *err)
{
	int r = 0;

	gw_save_phase(s, GW_SAVE_COPY);
	if (s->watched_ns)
		wait_watched(s);
	r = gw_save_check(s, err) ?: end_watch(s, true, err);
	if (r < 0)
		return r;
	/* What is not live stands still from here on. */
	if (!s->p.live || !s->was_running)
		r = stop(s, err);
	r = r ?: gw_save_rounds(s, err);
	if (r == 0 && !s->stopped)
		r = stop(s, err);
	r = r ?: gw_save_last_round(s, err);
	r = r ?: save_state(s, err);
	if (r == 0 && s->p.keep)
		run_again(s);
	gw_rounds_free(gw_steal_ptr(&s->rounds));
	return r;
}

/* The snapshot can be found, is the one that was written, and its state is. Its pages were verified as they went out. */
static int read_back(struct gw_save *s, const struct gw_snap_info *info, struct gw_error *err)
{
	struct gw_snap *snap = NULL;
	uint64_t len = 0;
	int r = gw_snap_open(s->repo, info->name, info->generation, &snap, err);

	if (r < 0)
		return gw_error_wrap(err, "reading the snapshot back");
	if (memcmp(gw_snap_info(snap)->id, info->id, sizeof(info->id)) || !gw_snap_part(snap, GW_SAVE_STATE, &len) || len == 0)
		r = gw_error_set(err, EBADMSG, "the repository gives back another snapshot than was written");
	gw_snap_free(snap);
	return r;
}

static int commit(struct gw_save *s, struct gw_snap_info *info, struct gw_error *err)
{
	int r;

	gw_save_phase(s, GW_SAVE_COMMIT);
	r = gw_snap_writer_commit(s->writer, info, err);
	r = r ?: read_back(s, info, err);
	r = r ?: gw_save_step(s, GW_FP_SAVE_COMMITTED, err);
	if (r < 0)
		return r;
	pthread_mutex_lock(&s->lock);
	if (s->cancelled)
		r = gw_error_set(err, ECANCELED, "cancelled");
	s->past_return = r == 0;
	pthread_mutex_unlock(&s->lock);
	return r;
}

/* From here on the VM is the snapshot's. */
static int suspend(struct gw_save *s, const struct gw_snap_info *info, struct gw_error *err)
{
	struct gw_journal_entry e = { .state = GW_JOURNAL_SUSPENDED, .epoch = s->p.epoch };
	int r = 0;

	memcpy(e.move_id, info->id, sizeof(e.move_id));
	if (s->journal)
		r = gw_journal_write(s->journal, &e, err);
	/* After a failure the record may be the new one: it has to say for sure that the VM runs here. */
	if (r < 0) {
		struct gw_error again = GW_ERROR_INIT;

		e = (struct gw_journal_entry){ .state = GW_JOURNAL_OWNER, .epoch = s->p.epoch };
		if (gw_journal_write(s->journal, &e, &again) < 0)
			gw_warn("saving: %s", gw_error_text(&again));
		return r;
	}
	if (gw_failpoint(GW_FP_SAVE_SUSPENDED) < 0)
		gw_warn("saving: failpoint");
	return 0;
}

static void drop_repository(struct gw_save *s)
{
	struct gw_snap_writer *w;
	struct gw_repo *repo;

	pthread_mutex_lock(&s->lock);
	meter(s); /* what the writer counted stays */
	w = gw_steal_ptr(&s->writer);
	repo = gw_steal_ptr(&s->repo);
	pthread_mutex_unlock(&s->lock);
	if (w)
		gw_snap_writer_cancel(w);
	if (repo)
		gw_repo_cancel(repo);
	gw_snap_writer_free(w);
	gw_repo_free(repo);
}

/* It exists and is not wanted any more. The repository's own handle may have been cancelled. */
static void remove_snapshot(struct gw_save *s, const struct gw_snap_info *info)
{
	const struct gw_repo_secret secret = { .key = s->p.key, .ticket = &s->p.ticket };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_repo *repo = NULL;
	struct gw_snap *snap = NULL;
	int r = gw_repo_open(s->p.url, &secret, &repo, &err);

	r = r ?: gw_snap_open(repo, info->name, info->generation, &snap, &err);
	if (r == 0 && memcmp(gw_snap_info(snap)->id, info->id, sizeof(info->id)) == 0)
		r = gw_snap_remove(repo, gw_snap_object(snap), &err);
	if (r < 0)
		gw_warn("the snapshot %s of a VM that runs on stays in %s: %s", info->name, s->p.url, gw_error_text(&err));
	gw_snap_free(snap);
	gw_repo_free(repo);
}

static void give_up(struct gw_save *s, const struct gw_snap_info *info, struct gw_error *err)
{
	bool cancelled;

	run_again(s); /* first of all */
	(void)end_watch(s, false, NULL);
	gw_rounds_free(gw_steal_ptr(&s->rounds));
	pthread_mutex_lock(&s->lock);
	cancelled = s->cancelled;
	s->past_return = true; /* nothing is left to be cancelled */
	pthread_mutex_unlock(&s->lock);
	drop_repository(s);
	if (info->generation)
		remove_snapshot(s, info);
	end(s, cancelled ? GW_SAVE_CANCELLED : GW_SAVE_FAILED, cancelled ? "cancelled" : gw_error_text(err));
}

static void note_done(struct gw_save *s, const struct gw_snap_info *info)
{
	pthread_mutex_lock(&s->lock);
	memcpy(s->progress.snapshot, info->id, sizeof(info->id));
	s->progress.generation = info->generation;
	s->progress.bytes_left = 0;
	if (s->stopped)
		s->progress.stopped_us = (gw_now_ns() - s->stopped_ns) / GW_NS_PER_US;
	pthread_mutex_unlock(&s->lock);
}

/*
 * Sealing is work for every processor there is, and a VM that goes on meanwhile needs one. The threads that the writer starts inherit it. Without the right to
 * do so it is none.
 */
static void step_back(struct gw_save *s)
{
	if (s->was_running && (s->p.live || s->p.keep))
		(void)setpriority(PRIO_PROCESS, (id_t)gettid(), SAVE_NICE);
}

static void *save_main(void *arg)
{
	struct gw_save *s = arg;
	gw_autofree struct gw_snap_info *info = calloc(1, sizeof(*info));
	struct gw_error err = GW_ERROR_INIT;
	int r = info ? 0 : gw_error_set(&err, ENOMEM, "out of memory");

	s->was_running = s->vm.ops->running(s->vm.self);
	step_back(s);
	gw_save_phase(s, GW_SAVE_OPEN);
	watch(s);
	r = r ?: begin(s, &err);
	r = r ?: copy(s, &err);
	r = r ?: commit(s, info, &err);
	if (r == 0 && !s->p.keep)
		r = suspend(s, info, &err);
	if (r < 0) {
		give_up(s, info ?: &(struct gw_snap_info){ .generation = 0 }, &err);
		return NULL;
	}
	note_done(s, info);
	drop_repository(s);
	end(s, GW_SAVE_DONE, "");
	return NULL;
}

/* ---- life ---- */

static void *copy_bytes(const void *data, size_t len)
{
	void *copy = malloc(len + 1);

	if (copy && len)
		memcpy(copy, data, len);
	return copy;
}

static int copy_params(struct gw_save *s, const struct gw_save_params *p, struct gw_error *err)
{
	s->p = *p;
	s->p.url = strdup(p->url);
	s->p.name = strdup(p->name);
	s->p.vm = strdup(p->vm ?: "");
	s->p.host = strdup(p->host ?: "");
	s->p.about = copy_bytes(p->about, p->about_len);
	s->p.touch = copy_bytes(p->touch, p->touch_len);
	if (!s->p.url || !s->p.name || !s->p.vm || !s->p.host || !s->p.about || !s->p.touch)
		return gw_error_set(err, ENOMEM, "out of memory");
	return 0;
}

static int start_threads(struct gw_save *s, struct gw_error *err)
{
	int r = gw_thread_create(&s->ticker, ticker_main, s);

	s->ticking = r == 0;
	if (r == 0)
		r = gw_thread_create(&s->thread, save_main, s);
	s->threaded = r == 0;
	return r < 0 ? gw_error_errno(err, r, "cannot start the thread that saves") : 0;
}

int gw_save_start(const struct gw_save_params *params, const struct gw_move_vm *vm, struct gw_journal *journal, gw_save_progress_fn *fn, void *arg,
		  struct gw_save **ret, struct gw_error *err)
{
	struct gw_save *s = params->url && params->name ? calloc(1, sizeof(*s)) : NULL;
	pthread_condattr_t attr;
	int r;

	if (!s)
		return params->url && params->name ? gw_error_set(err, ENOMEM, "out of memory") :
						     gw_error_set(err, EINVAL, "a snapshot needs a repository and a name");
	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->change, &attr);
	pthread_condattr_destroy(&attr);
	s->vm = *vm;
	s->journal = journal;
	s->fn = fn;
	s->arg = arg;
	s->started_ns = s->base_ns = gw_now_ns();
	s->progress.ram_bytes = s->progress.bytes_left = gw_ram_size(vm->ram);
	r = copy_params(s, params, err);
	if (r == 0)
		r = start_threads(s, err);
	if (r < 0) {
		gw_save_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

int gw_save_cancel(struct gw_save *s)
{
	int r = 0;

	pthread_mutex_lock(&s->lock);
	if (s->past_return) {
		r = -EBUSY;
	} else {
		s->cancelled = true;
		pthread_cond_broadcast(&s->change);
		if (s->writer)
			gw_snap_writer_cancel(s->writer);
		if (s->repo)
			gw_repo_cancel(s->repo);
	}
	pthread_mutex_unlock(&s->lock);
	return r;
}

void gw_save_free(struct gw_save *s)
{
	if (!s)
		return;
	if (s->threaded) {
		(void)gw_save_cancel(s);
		pthread_join(s->thread, NULL);
	} else if (s->ticking) {
		pthread_mutex_lock(&s->lock);
		s->ended = true;
		pthread_cond_broadcast(&s->change);
		pthread_mutex_unlock(&s->lock);
		pthread_join(s->ticker, NULL);
	}
	free((char *)s->p.url);
	free((char *)s->p.name);
	free((char *)s->p.vm);
	free((char *)s->p.host);
	free((void *)s->p.about);
	free((void *)s->p.touch);
	free(s->working_set);
	OPENSSL_cleanse(s->p.key, sizeof(s->p.key));
	OPENSSL_cleanse(&s->p.ticket, sizeof(s->p.ticket));
	pthread_cond_destroy(&s->change);
	pthread_mutex_destroy(&s->lock);
	free(s);
}
