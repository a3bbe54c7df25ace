// SPDX-License-Identifier: Apache-2.0
/* Repositories in a directory of their own, and memory to save there, for the tests of migrate/repo. */
#ifndef GW_TESTS_UNIT_REPO_HELP_H
#define GW_TESTS_UNIT_REPO_HELP_H

#include <stdint.h>

#include "migrate/repo/snap.h"
#include "migrate/repo/upkeep.h"
#include "migrate/repo/writer.h"

#define REPO_PASS "correct horse"

struct repo_test {
	char dir[64];
	char url[96];
	struct gw_repo *repo;
};

/* cmocka's setup and teardown; *state is a struct repo_test. scrypt is cheap; hasty: the grace period is four seconds, and writers have two. */
int repo_setup(void **state);
int repo_setup_hasty(void **state);
int repo_teardown(void **state);
/* Opens it again: nothing is remembered. */
void repo_reopen(struct repo_test *t);
struct gw_repo *repo_open_url(const char *url);
void repo_init_url(const char *url, uint32_t grace_s);

/* Memory whose pages are, by their number and `seed`: zero, text, random, or the same in all. */
uint8_t *repo_memory(uint64_t pages, unsigned seed);
void repo_fill_page(uint8_t *page, uint64_t number, unsigned seed);

/* Saves memory as the next generation of `name`; parameters beyond these may be NULL. */
void repo_save(struct gw_repo *repo, const char *name, const uint8_t *memory, uint64_t pages, struct gw_snap_info *ret);
struct gw_snap_writer *repo_begin(struct gw_repo *repo, const char *name, uint64_t pages, struct gw_snap *parent);
/* Opens and compares all. */
void repo_assert_holds(struct gw_repo *repo, const char *name, uint64_t generation, const uint8_t *memory, uint64_t pages);
/* 0: all pages are right; else the error. A wrong page fails the test. */
int repo_try_read(struct gw_repo *repo, const char *name, uint64_t generation, const uint8_t *memory, uint64_t pages, struct gw_error *err);

/* Paths of the objects below `prefix`, sorted; returns how many. */
#define REPO_MAX_OBJECTS 256
size_t repo_objects(struct gw_repo *repo, const char *prefix, char names[REPO_MAX_OBJECTS][96]);

/* Makes the objects below `prefix` so many seconds older. */
void repo_age(struct repo_test *t, const char *prefix, unsigned seconds);
/* Of a name the generation (0: the newest), which is gone then. */
void repo_remove(struct gw_repo *repo, const char *name, uint64_t generation);
/* And before it a run that only tells: it tells the same, and changes nothing. */
struct gw_prune_result repo_prune(struct gw_repo *repo, bool exclusive);
/* How many problems a check finds, data too; a line each in `all` (REPO_PROBLEMS bytes; may be NULL). */
#define REPO_PROBLEMS 4096
uint64_t repo_problems(struct gw_repo *repo, char *all);
void repo_assert_clean(struct gw_repo *repo);

#endif
