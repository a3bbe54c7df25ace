// SPDX-License-Identifier: Apache-2.0
/* A VM that comes from a snapshot: its course, and who has the VM. See load.h. */
#include "migrate/load.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "ksm/lineage.h"
#include "lib/clock.h"
#include "lib/failpoint.h"
#include "lib/log.h"
#include "lib/thread.h"
#include "lib/util.h"
#include "migrate/failpoints.h"
#include "migrate/lazy.h"
#include "migrate/pages.h"
#include "migrate/repo/snap.h"
#include "migrate/repo/touch.h"
#include "migrate/save.h"

#define TICK_NS (150 * GW_NS_PER_MS)
#define START_NS (500 * GW_NS_PER_MS) /* for the working set, before the VM runs */
#define QUIET_NS (300 * GW_NS_PER_MS) /* in which the VM has processors and storage for itself */
#define START_PAGES (1ull << 16)      /* of it that are mapped before */

struct gw_load {
	struct gw_load_params p; /* its strings are owned */
	struct gw_move_vm vm;
	struct gw_journal *journal;
	gw_load_progress_fn *fn;
	void *arg;
	pthread_t thread, turner;
	bool threaded, turnered;
	uint64_t started_ns;

	/* Engine's thread only, once it runs. */
	struct gw_load_progress progress;
	struct gw_snap *snap;
	struct gw_snap_range *first; /* the VM's working set; owned */
	size_t nfirst;
	uint64_t base_bytes, base_ns; /* rate shown since then */

	pthread_mutex_t lock;
	struct gw_repo *repo;   /* under lock: set by the engine's thread */
	struct gw_lazy *lazy;   /* the same */
	bool cancelled;         /* under lock */
	bool past_return;       /* under lock: the VM is here */
	pthread_cond_t wish;    /* with lock: some of what follows changed */
	bool owned;             /* under lock, as all of these: it may run */
	bool paused, stalled;   /* why it is not to run; the second set by the engine's thread */
	bool runs;              /* by the turner's thread: it does, or is about to */
	bool turning;           /* the same: it is being stopped or run */
	bool ending, ended;     /* it is not to be stopped or run from here once it is as wished; it is not any more */
	pthread_mutex_t life;   /* held while the VM is stopped or run from here, which may wait for memory; not with the lock */
	bool forgotten;         /* under life: the VM is somebody else's to stop and to run */
	bool announced;         /* under life */
};

const char *gw_load_phase_name(enum gw_load_phase phase)
{
	static const char *const names[] = { "open", "fetch", "stall", "done", "failed", "cancelled" };

	return (unsigned)phase < ARRAY_SIZE(names) ? names[phase] : "unknown";
}

static int step(struct gw_load *l, const char *name, struct gw_error *err)
{
	bool cancelled;

	if (gw_failpoint(name) < 0)
		return gw_error_set(err, EIO, "failpoint %s", name);
	pthread_mutex_lock(&l->lock);
	cancelled = l->cancelled;
	pthread_mutex_unlock(&l->lock);
	return cancelled ? gw_error_set(err, ECANCELED, "cancelled") : 0;
}

static void report(struct gw_load *l, enum gw_load_phase phase)
{
	struct gw_load_progress *p = &l->progress;
	uint64_t now = gw_now_ns();

	p->phase = phase;
	p->elapsed_ms = (now - l->started_ns) / GW_NS_PER_MS;
	if (l->lazy) {
		struct gw_lazy_stats st;

		gw_lazy_stats(l->lazy, &st);
		p->bytes = st.pages << GW_PAGE_SHIFT;
		p->bytes_here = st.here << GW_PAGE_SHIFT;
		p->faults = st.faults;
		if (phase == GW_LOAD_FETCH || phase == GW_LOAD_STALL)
			snprintf(p->message, sizeof(p->message), "%.250s", st.stalled ? st.why : "");
	}
	if (now - l->base_ns >= 10 * GW_NS_PER_MS)
		p->rate = (uint64_t)((double)(p->bytes_here - l->base_bytes) * 1e9 / (double)(now - l->base_ns));
	if (now - l->base_ns > GW_NS_PER_SEC) {
		l->base_bytes = p->bytes_here;
		l->base_ns = now;
	}
	p->eta_ms = p->rate ? (p->bytes - p->bytes_here) * 1000 / p->rate : 0;
	l->fn(l->arg, p);
}

/* ---- before the VM is here ---- */

static int open_snapshot(struct gw_load *l, struct gw_error *err)
{
	const struct gw_repo_secret secret = { .key = l->p.key, .ticket = &l->p.ticket };
	struct gw_repo *repo = NULL;
	int r = gw_repo_open(l->p.url, &secret, &repo, err);

	pthread_mutex_lock(&l->lock);
	l->repo = repo;
	if (r == 0 && l->cancelled)
		gw_repo_cancel(repo);
	pthread_mutex_unlock(&l->lock);
	r = r ?: gw_snap_open(repo, l->p.name, l->p.generation, &l->snap, err);
	if (r == 0 && memcmp(gw_snap_info(l->snap)->id, l->p.id, sizeof(l->p.id)))
		r = gw_error_set(err, ESTALE, "the snapshot %s in %s is another one than was asked for", l->p.name, l->p.url);
	return r ?: step(l, GW_FP_LOAD_OPENED, err);
}

static int check_regions(struct gw_load *l, struct gw_error *err)
{
	const struct gw_snap_info *info = gw_snap_info(l->snap);
	unsigned count;
	const struct gw_ram_region *regions = gw_ram_regions(l->vm.ram, &count);
	bool same = info->nregions == count;

	for (unsigned i = 0; i < count && same; i++)
		same = info->regions[i].gpa == regions[i].gpa && info->regions[i].size == regions[i].size;
	if (same)
		return 0;
	return gw_error_set(err, EPROTO, "the VM has %llu MiB of memory in the snapshot and %llu MiB here",
			    (unsigned long long)(info->pages >> (20 - GW_PAGE_SHIFT)), (unsigned long long)(gw_ram_size(l->vm.ram) >> 20));
}

static int check_machine(struct gw_load *l, struct gw_error *err)
{
	uint64_t len = 0;
	const void *data = gw_snap_part(l->snap, GW_SAVE_MACHINE, &len);
	Godwit__StreamMachine *m = data ? godwit__stream_machine__unpack(NULL, len, data) : NULL;
	int r;

	if (!m)
		return gw_error_set(err, EPROTO, "the snapshot %s does not describe a VM", l->p.name);
	r = check_regions(l, err) ?: l->vm.ops->accept(l->vm.self, m, err);
	godwit__stream_machine__free_unpacked(m, NULL);
	return r;
}

static int hold_memory(struct gw_load *l, struct gw_error *err)
{
	struct gw_lazy *lazy = NULL;
	int r = gw_pages_empty(l->vm.ram, err) ?: gw_lazy_new(l->vm.ram, l->snap, l->p.lineage, &lazy, err);

	pthread_mutex_lock(&l->lock);
	l->lazy = lazy;
	if (r == 0 && l->cancelled)
		r = gw_error_set(err, ECANCELED, "cancelled");
	pthread_mutex_unlock(&l->lock);
	return r;
}

/* What it touched when it was saved it touches first; only a hint. */
static void begin_start(struct gw_load *l)
{
	uint64_t len = 0;
	const void *data = gw_snap_part(l->snap, GW_SAVE_WORKING_SET, &len);

	if (!data)
		return;
	if (gw_touch_decode(data, len, gw_ram_pages(l->vm.ram), &l->first, &l->nfirst) < 0)
		gw_warn("loading: the working set in %s is damaged", l->p.name);
	else
		(void)gw_lazy_start(l->lazy, l->first, l->nfirst);
}

static void map_start(struct gw_load *l)
{
	uint64_t mapped = 0;

	for (size_t i = 0; i < l->nfirst && l->vm.ops->map && mapped < START_PAGES; i++) {
		uint64_t n = gw_lazy_here(l->lazy, l->first[i].page, GW_MIN(l->first[i].count, START_PAGES - mapped));

		if (n > 0)
			l->vm.ops->map(l->vm.self, l->first[i].page, n);
		mapped += n;
	}
}

static int load_state(struct gw_load *l, struct gw_error *err)
{
	uint64_t len = 0;
	const void *state = gw_snap_part(l->snap, GW_SAVE_STATE, &len);
	int r;

	if (!state)
		return gw_error_set(err, EPROTO, "the snapshot %s has no device state", l->p.name);
	r = l->vm.ops->load(l->vm.self, state, len, err);
	if (r == 0 && l->vm.ops->renew && !l->p.exclusive)
		r = l->vm.ops->renew(l->vm.self, err);
	return r ?: step(l, GW_FP_LOAD_STATE, err);
}

/* From here on it is ours: durable before the first instruction. */
static int own(struct gw_load *l, struct gw_error *err)
{
	struct gw_journal_entry e = { .state = GW_JOURNAL_OWNER, .epoch = l->p.epoch };
	int r = 0;

	pthread_mutex_lock(&l->lock);
	if (l->cancelled)
		r = gw_error_set(err, ECANCELED, "cancelled");
	l->past_return = r == 0;
	pthread_mutex_unlock(&l->lock);
	if (r < 0 || !l->journal)
		return r;
	/* Should the write fail, the journal may say either; the VM has not run, and this process ends. */
	memcpy(e.move_id, l->p.id, sizeof(e.move_id));
	atomic_store(gw_journal_effect_word(l->journal), 1);
	return gw_journal_write(l->journal, &e, err);
}

static int arrive(struct gw_load *l, struct gw_error *err)
{
	int r = open_snapshot(l, err);

	r = r ?: check_machine(l, err);
	r = r ?: hold_memory(l, err);
	if (r < 0)
		return r;
	begin_start(l);
	/* A moment more until that is here costs less than to wait for each page of it, which loading device state would do already. */
	gw_lazy_await_start(l->lazy, gw_now_ns() + (l->p.start_ns ?: START_NS));
	r = load_state(l, err);
	if (r == 0)
		map_start(l);
	return r ?: own(l, err);
}

/* Nothing touches memory: the VM never ran, and device state is loaded by this thread. */
static void give_up(struct gw_load *l, const struct gw_error *err)
{
	bool cancelled;

	pthread_mutex_lock(&l->lock);
	cancelled = l->cancelled;
	l->past_return = true;
	if (l->repo)
		gw_repo_cancel(l->repo);
	pthread_mutex_unlock(&l->lock);
	snprintf(l->progress.message, sizeof(l->progress.message), "%.250s", cancelled ? "cancelled" : gw_error_text(err));
	report(l, cancelled ? GW_LOAD_CANCELLED : GW_LOAD_FAILED);
}

/* ---- the VM is here ---- */

static void begin_background(struct gw_load *l)
{
	uint64_t len = 0;
	const void *data = gw_snap_part(l->snap, GW_TOUCH_PART, &len);
	gw_autofree struct gw_snap_range *order = NULL;
	size_t count = 0;

	/* Only a hint. */
	if (data && gw_touch_decode(data, len, gw_ram_pages(l->vm.ram), &order, &count) < 0)
		gw_warn("loading: the order of first touches in %s is damaged", l->p.name);
	/* What is fetched before would be a copy. The VM runs already, and gets what it touches. */
	if (l->p.lineage)
		gw_lineage_await(l->p.lineage);
	while (gw_lazy_background(l->lazy, order, count) < 0)
		usleep(100000); /* until then what is touched comes all the same */
}

static void turn(struct gw_load *l, bool run)
{
	bool announce;

	pthread_mutex_lock(&l->life);
	if (!l->forgotten && run)
		l->vm.ops->run(l->vm.self);
	else if (!l->forgotten)
		l->vm.ops->stop(l->vm.self);
	announce = run && !l->forgotten && !l->announced && l->vm.ops->announce;
	l->announced |= announce;
	pthread_mutex_unlock(&l->life);
	if (announce)
		l->vm.ops->announce(l->vm.self);
}

/*
 * Stops the VM, or lets it run, as is wished: a thread of its own, since either can take as long as a page does that the VM or one of its devices waits for, and that
 * is to be told meanwhile.
 */
static void *turner_main(void *arg)
{
	struct gw_load *l = arg;

	pthread_mutex_lock(&l->lock);
	for (;;) {
		bool run = l->owned && !l->paused && !l->stalled;

		if (run == l->runs && l->ending)
			break;
		if (run == l->runs) {
			pthread_cond_wait(&l->wish, &l->lock);
			continue;
		}
		l->runs = run;
		l->turning = true;
		pthread_mutex_unlock(&l->lock);
		turn(l, run);
		gw_lazy_nudge(l->lazy);
		pthread_mutex_lock(&l->lock);
		l->turning = false;
	}
	l->ended = true;
	pthread_mutex_unlock(&l->lock);
	return NULL;
}

/* The VM is as was wished, and from now on can be stopped at once, by whoever has it. */
static void end_turner(struct gw_load *l)
{
	pthread_mutex_lock(&l->lock);
	l->stalled = false;
	l->ending = true;
	pthread_cond_signal(&l->wish);
	pthread_mutex_unlock(&l->lock);
	if (l->turnered)
		pthread_join(l->turner, NULL);
	l->turnered = false;
}

/* The VM stands still while it waits for what cannot be read: its time does not go on unseen, nor half of it without the other half. */
static void look_for_stall(struct gw_load *l)
{
	struct gw_lazy_stats st;
	bool stands;

	gw_lazy_stats(l->lazy, &st);
	stands = st.stalled && st.waiting > 0;
	if (stands == l->stalled)
		return;
	pthread_mutex_lock(&l->lock);
	l->stalled = stands;
	pthread_cond_signal(&l->wish);
	pthread_mutex_unlock(&l->lock);
	if (stands) {
		gw_warn("the VM waits for memory that cannot be read: %s", st.why);
		report(l, GW_LOAD_STALL);
	}
}

static void fetch(struct gw_load *l)
{
	uint64_t quiet_until = gw_now_ns() + QUIET_NS;

	while (!gw_lazy_wait(l->lazy, l->stalled, GW_MIN(gw_now_ns() + TICK_NS, quiet_until))) {
		look_for_stall(l);
		report(l, l->stalled ? GW_LOAD_STALL : GW_LOAD_FETCH);
		if (gw_now_ns() < quiet_until)
			continue;
		if (quiet_until != UINT64_MAX)
			begin_background(l);
		quiet_until = UINT64_MAX;
	}
	end_turner(l);
	gw_lazy_all_here(l->lazy);
}

static void *load_main(void *arg)
{
	struct gw_load *l = arg;
	struct gw_error err = GW_ERROR_INIT;

	report(l, GW_LOAD_OPEN);
	if (arrive(l, &err) < 0) {
		give_up(l, &err);
		return NULL;
	}
	if (gw_failpoint(GW_FP_LOAD_OWNED) < 0)
		gw_warn("loading: failpoint");
	/* Nobody else could take it back: what it does may be seen from outside at once. It is here, even if it must wait for memory before it runs. */
	pthread_mutex_lock(&l->lock);
	l->owned = true;
	pthread_cond_signal(&l->wish);
	pthread_mutex_unlock(&l->lock);
	l->progress.start_us = (gw_now_ns() - l->started_ns) / GW_NS_PER_US;
	report(l, GW_LOAD_FETCH);
	if (gw_failpoint(GW_FP_LOAD_RUNNING) < 0)
		gw_warn("loading: failpoint");
	fetch(l);
	l->progress.message[0] = '\0';
	report(l, GW_LOAD_DONE);
	return NULL;
}

/* ---- life ---- */

static int start_threads(struct gw_load *l)
{
	int r = gw_thread_create(&l->turner, turner_main, l);

	l->turnered = r == 0;
	if (r == 0)
		r = gw_thread_create(&l->thread, load_main, l);
	l->threaded = r == 0;
	return r;
}

int gw_load_start(const struct gw_load_params *params, const struct gw_move_vm *vm, struct gw_journal *journal, gw_load_progress_fn *fn, void *arg,
		  struct gw_load **ret, struct gw_error *err)
{
	struct gw_load *l = params->url && params->name ? calloc(1, sizeof(*l)) : NULL;
	int r;

	if (!l)
		return params->url && params->name ? gw_error_set(err, ENOMEM, "out of memory") :
						     gw_error_set(err, EINVAL, "a repository and a snapshot's name are needed");
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->wish, NULL);
	pthread_mutex_init(&l->life, NULL);
	l->p = *params;
	l->p.url = strdup(params->url);
	l->p.name = strdup(params->name);
	l->paused = params->paused;
	l->vm = *vm;
	l->journal = journal;
	l->fn = fn;
	l->arg = arg;
	l->started_ns = l->base_ns = gw_now_ns();
	l->progress.ram_bytes = gw_ram_size(vm->ram);
	r = l->p.url && l->p.name ? start_threads(l) : -ENOMEM;
	if (r < 0) {
		gw_load_free(l);
		return gw_error_errno(err, r, "cannot start the threads that load");
	}
	*ret = l;
	return 0;
}

int gw_load_cancel(struct gw_load *l)
{
	struct gw_lazy *lazy = NULL;
	int r = 0;

	pthread_mutex_lock(&l->lock);
	if (l->past_return) {
		r = -EBUSY;
	} else {
		l->cancelled = true;
		lazy = l->lazy;
		if (l->repo)
			gw_repo_cancel(l->repo);
	}
	pthread_mutex_unlock(&l->lock);
	/* Loading device state may wait for a page; what it finds in its place does not matter any more: this VM will not run. */
	if (lazy)
		gw_lazy_forget(lazy);
	return r;
}

int gw_load_pause(struct gw_load *l, bool pause)
{
	int r = 0;

	pthread_mutex_lock(&l->lock);
	if (l->ended)
		r = -ESHUTDOWN;
	else
		l->paused = pause;
	pthread_cond_signal(&l->wish);
	pthread_mutex_unlock(&l->lock);
	return r;
}

bool gw_load_paused(struct gw_load *l)
{
	bool is;

	pthread_mutex_lock(&l->lock);
	is = l->ended ? !l->vm.ops->running(l->vm.self) : l->paused && !l->runs && (!l->turning || l->stalled);
	pthread_mutex_unlock(&l->lock);
	return is;
}

int gw_load_touched(struct gw_load *l, struct gw_buf *out)
{
	return gw_lazy_touched(l->lazy, out);
}

void gw_load_forget(struct gw_load *l)
{
	struct gw_lazy *lazy;

	pthread_mutex_lock(&l->life);
	l->forgotten = true;
	pthread_mutex_unlock(&l->life);
	l->vm.ops->stop(l->vm.self);
	pthread_mutex_lock(&l->lock);
	lazy = l->lazy;
	if (l->repo)
		gw_repo_cancel(l->repo);
	pthread_mutex_unlock(&l->lock);
	if (lazy)
		gw_lazy_forget(lazy);
}

void gw_load_free(struct gw_load *l)
{
	if (!l)
		return;
	if (l->threaded) {
		(void)gw_load_cancel(l);
		pthread_join(l->thread, NULL);
	}
	end_turner(l);
	if (l->repo)
		gw_repo_cancel(l->repo);
	gw_lazy_free(l->lazy);
	gw_snap_free(l->snap);
	free(l->first);
	gw_repo_free(l->repo);
	free((char *)l->p.url);
	free((char *)l->p.name);
	OPENSSL_cleanse(l->p.key, sizeof(l->p.key));
	OPENSSL_cleanse(&l->p.ticket, sizeof(l->p.ticket));
	pthread_mutex_destroy(&l->life);
	pthread_cond_destroy(&l->wish);
	pthread_mutex_destroy(&l->lock);
	free(l);
}
