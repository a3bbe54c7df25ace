// SPDX-License-Identifier: Apache-2.0
/* What tests of godwit repo share; see cli-repo-bed.h. */
#include "cmocka-all.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "cli-repo-bed.h"
#include "lib/io.h"
#include "lib/util.h"

void cli_repo_secret(const char *path, const char *text)
{
	assert_int_equal(gw_write_file_atomic(path, text, strlen(text), 0600, NULL), 0);
}

static int setup_with(void **state, int (*setup)(void **))
{
	struct cli_repo *f = calloc(1, sizeof(*f));
	void *t;

	assert_int_equal(setup(&t), 0);
	f->t = t;
	snprintf(f->pass, sizeof(f->pass), "%s/pass", f->t->dir);
	snprintf(f->other_pass, sizeof(f->other_pass), "%s/other-pass", f->t->dir);
	snprintf(f->bad_pass, sizeof(f->bad_pass), "%s/bad-pass", f->t->dir);
	snprintf(f->other, sizeof(f->other), "file://%s/other", f->t->dir);
	cli_repo_secret(f->pass, REPO_PASS "\n");
	cli_repo_secret(f->other_pass, "another passphrase");
	cli_repo_secret(f->bad_pass, "quite another\n");
	unsetenv("GODWIT_REPO");
	setenv("GODWIT_REPO_PASSPHRASE_FILE", f->pass, 1);
	*state = f;
	return 0;
}

int cli_repo_setup(void **state)
{
	return setup_with(state, repo_setup);
}

int cli_repo_setup_hasty(void **state)
{
	return setup_with(state, repo_setup_hasty);
}

int cli_repo_teardown(void **state)
{
	struct cli_repo *f = *state;
	void *t = f->t;

	free(f);
	return repo_teardown(&t);
}

void cli_repo_save(struct gw_repo *repo, const char *name, unsigned seed, struct gw_snap_info *ret)
{
	uint8_t *memory = repo_memory(CLI_REPO_PAGES, seed);

	repo_save(repo, name, memory, CLI_REPO_PAGES, ret);
	free(memory);
}

void cli_repo_object(struct cli_repo *f, const char *folder, size_t nth, char name[96], char path[256])
{
	char names[REPO_MAX_OBJECTS][96];

	assert_true(repo_objects(f->t->repo, folder, names) > nth);
	snprintf(name, 96, "%s", names[nth]);
	snprintf(path, 256, "%s/repo/%s", f->t->dir, name);
}

void cli_repo_flip(const char *path, off_t at)
{
	gw_autofd fd = open(path, O_RDWR | O_CLOEXEC);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
}
