// SPDX-License-Identifier: Apache-2.0
/* Repositories for tests; see repo-help.h. */
#include "cmocka-all.h"

#include "repo-help.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/util.h"
#include "migrate/repo/listing.h"

static const struct gw_repo_secret secret = { .passphrase = REPO_PASS };

void repo_init_url(const char *url, uint32_t grace_s)
{
	const struct gw_repo_params cheap = { .grace_s = grace_s, .scrypt = { 1024, 8, 1 } };
	struct gw_error err = GW_ERROR_INIT;

	if (gw_repo_init(url, &secret, &cheap, &err) < 0)
		fail_msg("%s", err.msg);
}

struct gw_repo *repo_open_url(const char *url)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_repo *repo;

	if (gw_repo_open(url, &secret, &repo, &err) < 0)
		fail_msg("%s", err.msg);
	return repo;
}

static int setup(void **state, uint32_t grace_s)
{
	struct repo_test *t = calloc(1, sizeof(*t));

	snprintf(t->dir, sizeof(t->dir), "/tmp/gw-test-repo-XXXXXX");
	assert_non_null(mkdtemp(t->dir));
	snprintf(t->url, sizeof(t->url), "file://%s/repo", t->dir);
	repo_init_url(t->url, grace_s);
	t->repo = repo_open_url(t->url);
	*state = t;
	return 0;
}

int repo_setup(void **state)
{
	return setup(state, 600);
}

int repo_setup_hasty(void **state)
{
	return setup(state, 4);
}

int repo_teardown(void **state)
{
	struct repo_test *t = *state;
	char cmd[128];
	int r;

	gw_repo_free(t->repo);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", t->dir);
	r = system(cmd);
	free(t);
	return r;
}

void repo_reopen(struct repo_test *t)
{
	gw_repo_free(t->repo);
	t->repo = repo_open_url(t->url);
}

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

void repo_fill_page(uint8_t *page, uint64_t number, unsigned seed)
{
	uint64_t random = number * 1000003 + seed;

	memset(page, 0, GW_PAGE_SIZE);
	switch (number % 8) {
	case 0:
	case 1: /* zero */
		break;
	case 2: /* the same in all */
		memset(page, 'x', GW_PAGE_SIZE);
		break;
	case 3:
	case 4: /* text */
		for (unsigned i = 0; i < 64; i++)
			snprintf((char *)page + i * 64, 64, "page %llu of memory %u, line %u of sixty-four", (unsigned long long)number, seed, i);
		break;
	default: /* random */
		for (unsigned i = 0; i < 512; i++) {
			uint64_t v = next_random(&random);

			memcpy(page + i * 8, &v, 8);
		}
	}
}

uint8_t *repo_memory(uint64_t pages, unsigned seed)
{
	uint8_t *memory = malloc(pages * GW_PAGE_SIZE);

	assert_non_null(memory);
	for (uint64_t i = 0; i < pages; i++)
		repo_fill_page(memory + i * GW_PAGE_SIZE, i, seed);
	return memory;
}

struct gw_snap_writer *repo_begin(struct gw_repo *repo, const char *name, uint64_t pages, struct gw_snap *parent)
{
	static const char *const disks[] = { "root.qcow2", "nbd://store/data" };
	const struct gw_snap_region regions[] = { { 0, pages / 2 * GW_PAGE_SIZE }, { 1ull << 32, (pages - pages / 2) * GW_PAGE_SIZE } };
	const struct gw_snap_writer_params params = {
		.name = name,
		.vm = "web-1",
		.host = "host-a",
		.vm_id = (const uint8_t *)"0123456789abcdef",
		.regions = regions,
		.nregions = 2,
		.disks = disks,
		.ndisks = 2,
		.parent = parent,
		.pack_bytes = 256 << 10,
		.workers = 2,
		.puts = 2,
	};
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap_writer *w;

	if (gw_snap_writer_new(repo, &params, &w, &err) < 0)
		fail_msg("%s", err.msg);
	return w;
}

void repo_save(struct gw_repo *repo, const char *name, const uint8_t *memory, uint64_t pages, struct gw_snap_info *ret)
{
	struct gw_snap_writer *w = repo_begin(repo, name, pages, NULL);
	struct gw_error err = GW_ERROR_INIT;

	assert_int_equal(gw_snap_writer_pages(w, 0, pages, memory), 0);
	assert_int_equal(gw_snap_writer_part(w, "state", "registers", 9), 0);
	if (gw_snap_writer_commit(w, ret, &err) < 0)
		fail_msg("%s", err.msg);
	gw_snap_writer_free(w);
}

int repo_try_read(struct gw_repo *repo, const char *name, uint64_t generation, const uint8_t *memory, uint64_t pages, struct gw_error *err)
{
	uint8_t *found = malloc(pages * GW_PAGE_SIZE);
	struct gw_snap *s;
	int r;

	assert_non_null(found);
	r = gw_snap_open(repo, name, generation, &s, err);
	if (r == 0) {
		assert_int_equal(gw_snap_info(s)->pages, pages);
		r = gw_snap_read(s, 0, pages, found, err);
		gw_snap_free(s);
	}
	if (r == 0 && memcmp(found, memory, pages * GW_PAGE_SIZE))
		fail_msg("%s holds a wrong page", name);
	free(found);
	return r;
}

void repo_assert_holds(struct gw_repo *repo, const char *name, uint64_t generation, const uint8_t *memory, uint64_t pages)
{
	struct gw_error err = GW_ERROR_INIT;

	if (repo_try_read(repo, name, generation, memory, pages, &err) < 0)
		fail_msg("%s", err.msg);
}

size_t repo_objects(struct gw_repo *repo, const char *prefix, char names[REPO_MAX_OBJECTS][96])
{
	struct gw_listing l;
	size_t n;

	assert_int_equal(gw_listing_read(gw_repo_bucket(repo), prefix, &l, NULL), 0);
	n = l.count;
	assert_true(n <= REPO_MAX_OBJECTS);
	for (size_t i = 0; i < n; i++)
		snprintf(names[i], 96, "%s", l.all[i].name);
	gw_listing_release(&l);
	return n;
}

void repo_age(struct repo_test *t, const char *prefix, unsigned seconds)
{
	struct gw_listing l;

	assert_int_equal(gw_listing_read(gw_repo_bucket(t->repo), prefix, &l, NULL), 0);
	for (size_t i = 0; i < l.count; i++) {
		char path[200];
		struct stat st;

		snprintf(path, sizeof(path), "%s/repo/%s", t->dir, l.all[i].name);
		assert_int_equal(stat(path, &st), 0);
		const struct timespec times[2] = { st.st_atim, { st.st_mtim.tv_sec - seconds, 0 } };
		assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
	}
	gw_listing_release(&l);
}

static void keep_problem(void *self, const char *object, const char *text)
{
	char *all = self;
	size_t used = all ? strlen(all) : 0;

	if (all)
		snprintf(all + used, REPO_PROBLEMS - used, "%s %s\n", object, text);
}

uint64_t repo_problems(struct gw_repo *repo, char *all)
{
	const struct gw_repo_check_params params = { .read_data = true, .problem = keep_problem, .self = all };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_repo_check_result result;

	if (all)
		all[0] = '\0';
	if (gw_repo_check(repo, &params, &result, &err) < 0)
		fail_msg("%s", err.msg);
	return result.problems;
}

void repo_assert_clean(struct gw_repo *repo)
{
	char all[REPO_PROBLEMS];

	if (repo_problems(repo, all))
		fail_msg("%s", all);
}

void repo_remove(struct gw_repo *repo, const char *name, uint64_t generation)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap *s;

	assert_int_equal(gw_snap_open(repo, name, generation, &s, &err), 0);
	assert_int_equal(gw_snap_remove(repo, gw_snap_object(s), &err), 0);
	assert_int_equal(gw_snap_remove(repo, gw_snap_object(s), &err), -ENOENT);
	gw_snap_free(s);
}

struct gw_prune_result repo_prune(struct gw_repo *repo, bool exclusive)
{
	struct gw_upkeep upkeep = { 0 };
	struct gw_prune_params params = { .exclusive = exclusive, .dry_run = true, .upkeep = &upkeep };
	char before[REPO_MAX_OBJECTS][96], after[REPO_MAX_OBJECTS][96];
	struct gw_error err = GW_ERROR_INIT;
	struct gw_prune_result told, result;
	size_t n = repo_objects(repo, "", before);

	if (gw_repo_prune(repo, &params, &told, &err) < 0)
		fail_msg("%s", err.msg);
	assert_int_equal(repo_objects(repo, "", after), n);
	for (size_t i = 0; i < n; i++)
		assert_string_equal(before[i], after[i]);
	assert_int_equal(upkeep.total, 0);
	params.dry_run = false;
	if (gw_repo_prune(repo, &params, &result, &err) < 0)
		fail_msg("%s", err.msg);
	assert_int_equal(upkeep.done, upkeep.total);
	assert_int_equal(upkeep.total > 0, result.repacked_packs > 0);
	/* The new packs are somewhat larger, by their headers. */
	assert_true(told.repacked_bytes <= result.repacked_bytes && result.repacked_bytes < told.repacked_bytes + 4096);
	told.repacked_bytes = result.repacked_bytes;
	assert_memory_equal(&told, &result, sizeof(told));
	return result;
}
