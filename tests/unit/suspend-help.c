// SPDX-License-Identifier: Apache-2.0
/* Saving and loading a VM without KVM; see suspend-help.h. */
#include "cmocka-all.h"

#include "suspend-help.h"

#include <errno.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/util.h"

static void wait_change(struct suspend_test *t)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += 60;
	if (pthread_cond_timedwait(&t->change, &t->lock, &ts) == ETIMEDOUT) {
		fprintf(stderr, "saving or loading hangs: save %s, load %s: %s\n", gw_save_phase_name(t->saved.phase), gw_load_phase_name(t->loaded.phase),
			t->loaded.message);
		abort();
	}
}

static void on_save(void *arg, const struct gw_save_progress *p)
{
	struct suspend_test *t = arg;

	pthread_mutex_lock(&t->lock);
	if (t->save_ended)
		abort();
	t->saved = *p;
	t->save_ended = p->phase >= GW_SAVE_DONE;
	pthread_cond_broadcast(&t->change);
	pthread_mutex_unlock(&t->lock);
}

static void on_load(void *arg, const struct gw_load_progress *p)
{
	struct suspend_test *t = arg;

	pthread_mutex_lock(&t->lock);
	if (t->load_ended)
		abort();
	t->loaded = *p;
	t->stalled_once |= p->phase == GW_LOAD_STALL;
	t->load_ended = p->phase >= GW_LOAD_DONE;
	pthread_cond_broadcast(&t->change);
	pthread_mutex_unlock(&t->lock);
}

static struct gw_journal *open_journal(struct repo_test *repo, const char *name)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_journal *j;
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", repo->dir, name);
	if (gw_journal_open(path, &j, &err) < 0)
		fail_msg("%s", gw_error_text(&err));
	return j;
}

static void fail_without_uffd(struct move_vm *vm)
{
	/* Its guest then gives no memory back: what is found there afterwards is not certain (lazy.h). */
	if (!move_vm_use_uffd(vm))
		skip();
}

void suspend_init(struct suspend_test *t, struct repo_test *repo, uint64_t size, uint64_t rate)
{
	const struct gw_journal_entry own = { .state = GW_JOURNAL_OWNER, .epoch = 3 };

	memset(t, 0, sizeof(*t));
	t->repo = repo;
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->change, NULL);
	move_vm_init(&t->vm, size, size / 2);
	fail_without_uffd(&t->vm);
	move_vm_fill(&t->vm, 7, 3);
	t->vm.write_rate = rate;
	t->journal = open_journal(repo, "journal");
	assert_int_equal(gw_journal_write(t->journal, &own, NULL), 0);
	if (rate)
		move_vm_run(&t->vm);
	t->params = (struct gw_save_params){ .url = repo->url, .name = "web", .vm = "web", .host = "h1", .epoch = 3, .live = true };
	memcpy(t->params.key, gw_repo_key(repo->repo), sizeof(t->params.key));
}

void suspend_release(struct suspend_test *t)
{
	gw_save_free(t->save);
	gw_journal_close(t->journal);
	move_vm_release(&t->vm);
	pthread_mutex_destroy(&t->lock);
	pthread_cond_destroy(&t->change);
}

void suspend_start(struct suspend_test *t)
{
	struct gw_move_vm vm = move_vm_handle(&t->vm);
	struct gw_error err = GW_ERROR_INIT;

	gw_save_free(gw_steal_ptr(&t->save));
	t->save_ended = false;
	memset(&t->saved, 0, sizeof(t->saved));
	if (gw_save_start(&t->params, &vm, t->journal, on_save, t, &t->save, &err) < 0)
		fail_msg("%s", gw_error_text(&err));
}

enum gw_save_phase suspend_wait(struct suspend_test *t)
{
	pthread_mutex_lock(&t->lock);
	while (!t->save_ended)
		wait_change(t);
	pthread_mutex_unlock(&t->lock);
	if (t->saved.phase == GW_SAVE_FAILED)
		fprintf(stderr, "saving failed: %s\n", t->saved.message);
	return t->saved.phase;
}

void suspend_wait_phase(struct suspend_test *t, enum gw_save_phase phase)
{
	pthread_mutex_lock(&t->lock);
	while (t->saved.phase < phase)
		wait_change(t);
	pthread_mutex_unlock(&t->lock);
}

void resume_start(struct suspend_test *t, uint64_t rate)
{
	uint64_t size = gw_ram_size(t->vm.ram);
	struct gw_error err = GW_ERROR_INIT;
	struct gw_move_vm vm;

	move_vm_init(&t->copy, size, size / 2);
	fail_without_uffd(&t->copy);
	t->copy.write_rate = rate;
	t->copy.touches_to_run = t->touches_to_run;
	t->copy_journal = open_journal(t->repo, "copy-journal");
	t->load_ended = t->stalled_once = false;
	memset(&t->loaded, 0, sizeof(t->loaded));
	t->load_params = (struct gw_load_params){ .url = t->repo->url, .name = "web", .epoch = 4, .paused = rate == 0, .exclusive = t->exclusive,
					       .start_ns = t->start_ns };
	memcpy(t->load_params.key, t->params.key, sizeof(t->load_params.key));
	memcpy(t->load_params.id, t->saved.snapshot, sizeof(t->load_params.id));
	vm = move_vm_handle(&t->copy);
	if (gw_load_start(&t->load_params, &vm, t->copy_journal, on_load, t, &t->load, &err) < 0)
		fail_msg("%s", gw_error_text(&err));
}

enum gw_load_phase resume_wait(struct suspend_test *t)
{
	pthread_mutex_lock(&t->lock);
	while (!t->load_ended)
		wait_change(t);
	pthread_mutex_unlock(&t->lock);
	if (t->loaded.phase == GW_LOAD_FAILED)
		fprintf(stderr, "loading failed: %s\n", t->loaded.message);
	return t->loaded.phase;
}

void resume_wait_phase(struct suspend_test *t, enum gw_load_phase phase)
{
	pthread_mutex_lock(&t->lock);
	while (t->loaded.phase != phase && !t->load_ended)
		wait_change(t);
	pthread_mutex_unlock(&t->lock);
}

void resume_end(struct suspend_test *t)
{
	gw_load_free(gw_steal_ptr(&t->load));
	gw_journal_close(gw_steal_ptr(&t->copy_journal));
	move_vm_release(&t->copy);
}

void resume_assert_equal(struct suspend_test *t)
{
	move_vm_stop(&t->copy);
	move_vm_stop(&t->vm);
	assert_true(move_vm_catch_up(&t->vm, &t->copy));
	assert_true(move_vm_equal(&t->vm, &t->copy));
}

enum gw_journal_state suspend_journal(struct suspend_test *t)
{
	return gw_journal_last(t->journal)->state;
}
