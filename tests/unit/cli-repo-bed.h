// SPDX-License-Identifier: Apache-2.0
/* What tests of godwit repo share: a repository in a directory, and what they say of it on command lines. */
#ifndef GW_TESTS_UNIT_CLI_REPO_BED_H
#define GW_TESTS_UNIT_CLI_REPO_BED_H

#include "cli-process.h"
#include "repo-help.h"

/* Of each VM that is saved. */
#define CLI_REPO_PAGES 400ull

struct cli_repo {
	struct repo_test *t;
	char pass[128], other_pass[128], bad_pass[128]; /* files */
	char other[128];                                /* URL */
};

/* *state is a struct cli_repo; the environment names its passphrase. Hasty: what is unused may go at once. */
int cli_repo_setup(void **state);
int cli_repo_setup_hasty(void **state);
int cli_repo_teardown(void **state);

/* A file of its own for a passphrase. */
void cli_repo_secret(const char *path, const char *text);
void cli_repo_save(struct gw_repo *repo, const char *name, unsigned seed, struct gw_snap_info *ret);
/* Path of the object of a folder whose name sorts at `nth`. */
void cli_repo_object(struct cli_repo *f, const char *folder, size_t nth, char name[96], char path[256]);
/* A bit of the byte at `at`. */
void cli_repo_flip(const char *path, off_t at);

#endif
