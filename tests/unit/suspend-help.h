// SPDX-License-Identifier: Apache-2.0
/* A VM without KVM (move-vm.h) that is saved to a repository (repo-help.h) and loaded from it. */
#ifndef GW_TESTS_UNIT_SUSPEND_HELP_H
#define GW_TESTS_UNIT_SUSPEND_HELP_H

#include "migrate/load.h"
#include "migrate/save.h"
#include "move-vm.h"
#include "repo-help.h"

#define MIB (1ull << 20)

struct suspend_test {
	struct repo_test *repo; /* after its own setup */
	struct move_vm vm;      /* that is saved */
	struct gw_journal *journal;
	struct gw_save *save;
	struct gw_save_params params;

	struct move_vm copy;    /* that is loaded */
	struct gw_journal *copy_journal;
	struct gw_load *load;
	struct gw_load_params load_params;
	bool exclusive;         /* nobody else goes on from the snapshot */
	uint64_t start_ns;      /* as of the load */
	bool touches_to_run;    /* as move_vm's */

	pthread_mutex_t lock;
	pthread_cond_t change;
	struct gw_save_progress saved;  /* under lock, as the next: the last news */
	struct gw_load_progress loaded;
	bool save_ended, load_ended, stalled_once;
};

/* A VM of `size` bytes in two regions, of which every third page was never touched; it runs when `rate` > 0, and writes so often a second. */
void suspend_init(struct suspend_test *t, struct repo_test *repo, uint64_t size, uint64_t rate);
void suspend_release(struct suspend_test *t);

/* With t->params, which suspend_init() has filled in. */
void suspend_start(struct suspend_test *t);
enum gw_save_phase suspend_wait(struct suspend_test *t);
void suspend_wait_phase(struct suspend_test *t, enum gw_save_phase phase);

/* Loads what was saved into a new VM that writes so often a second; 0: it stays paused. */
void resume_start(struct suspend_test *t, uint64_t rate);
enum gw_load_phase resume_wait(struct suspend_test *t);
void resume_wait_phase(struct suspend_test *t, enum gw_load_phase phase);
/* Frees the load and its VM. */
void resume_end(struct suspend_test *t);
/* All of the snapshot was loaded, and what the copy has done since, the original would have done. */
void resume_assert_equal(struct suspend_test *t);

enum gw_journal_state suspend_journal(struct suspend_test *t);

#endif
