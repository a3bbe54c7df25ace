// SPDX-License-Identifier: Apache-2.0
/* Repositories of each version of the format must stay readable: tests/golden/repo-vN. GODWIT_MAKE_GOLDEN=DIRECTORY in the environment makes one of this version. */
#include "cmocka-all.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/upkeep.h"
#include "repo-help.h"

#define PAGES 48ull

static uint8_t *text_memory(void)
{
	uint8_t *memory = malloc(16 * GW_PAGE_SIZE);

	for (uint64_t i = 0; i < 16; i++)
		repo_fill_page(memory + i * GW_PAGE_SIZE, 8 * i + 3, 5);
	return memory;
}

/* The same a few bytes on: told against the other. */
static uint8_t *moved_memory(void)
{
	uint8_t *memory = text_memory();

	memmove(memory, memory + 64, 16 * GW_PAGE_SIZE - 64);
	return memory;
}

static const struct gw_repo_secret secret = { .passphrase = "golden passphrase" };

static void save_text(struct gw_repo *repo, const char *name, uint8_t *memory)
{
	const struct gw_snap_region region = { 0, 16 * GW_PAGE_SIZE };
	const struct gw_snap_writer_params params = { .name = name, .regions = &region, .nregions = 1, .compression = GW_SNAP_SMALL };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap_writer *w;

	assert_int_equal(gw_snap_writer_new(repo, &params, &w, &err), 0);
	assert_int_equal(gw_snap_writer_pages(w, 0, 16, memory), 0);
	assert_int_equal(gw_snap_writer_commit(w, NULL, &err), 0);
	gw_snap_writer_free(w);
	free(memory);
}

/* Two generations: the second has three other pages, and keeps the rest by reference. A snapshot by the other compression. And one that resembles this. */
static void make_golden(const char *dir)
{
	const struct gw_repo_params params = { .scrypt = { 1024, 8, 1 }, .label = "golden" };
	uint8_t *memory = repo_memory(PAGES, 1);
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap_writer *w;
	struct gw_repo *repo;
	struct gw_snap *s;
	char url[PATH_MAX + 8];

	snprintf(url, sizeof(url), "file://%s", dir);
	assert_int_equal(gw_repo_init(url, &secret, &params, &err), 0);
	assert_int_equal(gw_repo_open(url, &secret, &repo, &err), 0);
	repo_save(repo, "golden", memory, PAGES, NULL);
	assert_int_equal(gw_snap_open(repo, "golden", 0, &s, &err), 0);
	w = repo_begin(repo, "golden", PAGES, s);
	assert_int_equal(gw_snap_writer_keep(w, 0, PAGES), 0);
	assert_int_equal(gw_snap_writer_flush(w, &err), 0);
	for (uint64_t i = 3; i < 6; i++)
		repo_fill_page(memory + i * GW_PAGE_SIZE, i, 2);
	assert_int_equal(gw_snap_writer_pages(w, 3, 3, memory + 3 * GW_PAGE_SIZE), 0);
	assert_int_equal(gw_snap_writer_part(w, "state", "later registers", 15), 0);
	assert_int_equal(gw_snap_writer_commit(w, NULL, &err), 0);
	gw_snap_writer_free(w);
	gw_snap_free(s);
	save_text(repo, "text", text_memory());
	save_text(repo, "moved", moved_memory());
	gw_repo_free(repo);
	free(memory);
}

static struct gw_repo *open_golden(const char *name)
{
	char path[PATH_MAX], url[PATH_MAX + 8], relative[100];
	struct gw_error err = GW_ERROR_INIT;
	struct gw_repo *repo;

	snprintf(relative, sizeof(relative), "tests/golden/%s", name);
	assert_non_null(realpath(relative, path));
	snprintf(url, sizeof(url), "file://%s", path);
	if (gw_repo_open(url, &secret, &repo, &err) < 0)
		fail_msg("%s", err.msg);
	return repo;
}

static void holds(const char *name)
{
	uint8_t *memory = repo_memory(PAGES, 1), *text = text_memory();
	struct gw_repo *repo = open_golden(name);
	struct gw_error err = GW_ERROR_INIT;
	struct gw_repo_key *keys;
	struct gw_snap *s;
	uint64_t len;
	size_t n;

	assert_int_equal(gw_repo_list_keys(repo, &keys, &n, &err), 0);
	assert_int_equal(n, 1);
	assert_string_equal(keys[0].info.label, "golden");
	free(keys);
	repo_assert_clean(repo);
	repo_assert_holds(repo, "golden", 1, memory, PAGES);
	for (uint64_t i = 3; i < 6; i++)
		repo_fill_page(memory + i * GW_PAGE_SIZE, i, 2);
	repo_assert_holds(repo, "golden", 2, memory, PAGES);
	assert_int_equal(gw_snap_open(repo, "golden", 0, &s, &err), 0);
	assert_int_equal(gw_snap_info(s)->generation, 2);
	assert_string_equal(gw_snap_info(s)->host, "host-a");
	assert_string_equal(gw_snap_info(s)->disks[1], "nbd://store/data");
	assert_memory_equal(gw_snap_part(s, "state", &len), "later registers", 15);
	gw_snap_free(s);
	repo_assert_holds(repo, "text", 0, text, 16);
	gw_repo_free(repo);
	free(memory);
	free(text);
}

static void version_1(void **state)
{
	holds("repo-v1");
}

static void version_2(void **state)
{
	uint8_t *moved = moved_memory();
	struct gw_error err = GW_ERROR_INIT;
	struct gw_repo *repo;
	struct gw_snap *s;

	holds("repo-v2");
	repo = open_golden("repo-v2");
	repo_assert_holds(repo, "moved", 0, moved, 16);
	assert_int_equal(gw_snap_open(repo, "moved", 0, &s, &err), 0);
	assert_int_equal(gw_snap_manifest(s)->places.nsegments, 2);
	assert_int_equal(gw_snap_manifest(s)->places.segments[0].blobs[0].base.blobs + gw_snap_manifest(s)->places.segments[1].blobs[0].base.blobs, 1);
	gw_snap_free(s);
	gw_repo_free(repo);
	free(moved);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(version_1), cmocka_unit_test(version_2) };
	const char *dir = getenv("GODWIT_MAKE_GOLDEN");

	if (dir) {
		make_golden(dir);
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
