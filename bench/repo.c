// SPDX-License-Identifier: Apache-2.0
/*
 * Saving to a repository and reading from it, natively: bench-repo [MiB] [DIRECTORY] [WORKERS]. Memory is random (incompressible), or with KIND=text in the environment like
 * that of programs. Prints rates; "save" ends when the snapshot is durable.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "migrate/repo/snap.h"
#include "migrate/repo/writer.h"

static void die_of(const struct gw_error *err)
{
	fprintf(stderr, "bench-repo: %s\n", err->msg);
	exit(1);
}

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

/* Random, or words of a small vocabulary. */
static void fill(uint8_t *memory, size_t len, bool text)
{
	uint64_t state = 1;

	for (size_t i = 0; i < len; i += 8) {
		uint64_t v = next_random(&state);

		if (text)
			v = (v & 0xff) * 0x1003f1000307ull + (v >> 60);
		memcpy(memory + i, &v, 8);
	}
}

struct start {
	uint64_t wall, cpu;
};

static struct start begin(void)
{
	return (struct start){ gw_now_ns(), gw_clock_ns(CLOCK_PROCESS_CPUTIME_ID) };
}

/* Also by the time of processors that it took: what others do beside it hardly changes that. */
static void report(const char *what, uint64_t bytes, struct start start, const char *more)
{
	double wall = (double)(gw_now_ns() - start.wall) / 1e9, cpu = (double)(gw_clock_ns(CLOCK_PROCESS_CPUTIME_ID) - start.cpu) / 1e9;

	printf("%-20s %6.0f MB/s  %6.0f MB/cpu-s  %.3f s  %s\n", what, (double)bytes / 1e6 / wall, (double)bytes / 1e6 / cpu, wall, more);
}

static int last_size(void *self, const char *object, uint64_t size, const struct gw_snap_info *info, const struct gw_error *error)
{
	*(uint64_t *)self = size;
	return 0;
}

/* `parent`: all is kept but so many pages, which are changed. */
static void save(struct gw_repo *repo, const char *what, uint8_t *memory, uint64_t pages, unsigned workers, struct gw_snap *parent,
		 uint64_t changed)
{
	const struct gw_snap_region region = { 0, pages * GW_PAGE_SIZE };
	const struct gw_snap_writer_params params = { .name = "bench", .regions = &region, .nregions = 1, .workers = workers, .parent = parent };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap_progress p;
	struct gw_snap_writer *w;
	struct start start = begin();
	uint64_t state = 7, size = 0;
	char more[100];

	if (gw_snap_writer_new(repo, &params, &w, &err) < 0)
		die_of(&err);
	if (parent)
		gw_snap_writer_keep(w, 0, pages);
	for (uint64_t i = 0; i < pages && !parent; i += 512)
		gw_snap_writer_pages(w, i, GW_MIN(pages - i, 512ull), memory + i * GW_PAGE_SIZE);
	for (uint64_t i = 0; i < changed; i++) {
		uint64_t page = next_random(&state) % pages;

		memset(memory + page * GW_PAGE_SIZE, (int)(i % 255), 100);
		memcpy(memory + page * GW_PAGE_SIZE + 8, &i, sizeof(i));
		gw_snap_writer_pages(w, page, 1, memory + page * GW_PAGE_SIZE);
	}
	if (gw_snap_writer_commit(w, NULL, &err) < 0)
		die_of(&err);
	gw_snap_writer_progress(w, &p);
	gw_snap_list(repo, "bench", last_size, &size, &err);
	snprintf(more, sizeof(more), "%.1f MiB stored, manifest %.1f KiB", (double)p.put_bytes / 1048576, (double)size / 1024);
	report(what, pages * GW_PAGE_SIZE, start, more);
	gw_snap_writer_free(w);
}

static int drop_page(void *self, uint64_t page, const void *data)
{
	return 0;
}

/* What a fault costs: a page, and with it its blob. */
static void fault(struct gw_snap *s, uint64_t pages)
{
	const unsigned count = 2000;
	struct gw_error err = GW_ERROR_INIT;
	struct start start = begin();
	uint64_t state = 3;
	char more[60];

	for (unsigned i = 0; i < count; i++) {
		struct gw_snap_range range = { next_random(&state) % pages, 1 };

		gw_snap_neighbours(s, range.page, &range.page, &range.count);
		if (gw_snap_fetch(s, &range, 1, drop_page, NULL, &err) < 0)
			die_of(&err);
	}
	snprintf(more, sizeof(more), "%.0f us each", (double)(gw_now_ns() - start.wall) / 1e3 / count);
	report("faults, 16 pages", count * 16 * GW_PAGE_SIZE, start, more);
}

int main(int argc, char **argv)
{
	const uint64_t mib = argc > 1 ? strtoull(argv[1], NULL, 10) : 512, pages = mib * 256;
	const char *base = argc > 2 ? argv[2] : "/tmp", *kind = getenv("KIND");
	const unsigned workers = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 0;
	const struct gw_repo_secret secret = { .passphrase = "of a benchmark" };
	struct gw_error err = GW_ERROR_INIT;
	uint8_t *memory = malloc(pages * GW_PAGE_SIZE), *found = malloc(pages * GW_PAGE_SIZE);
	char dir[200], url[220];
	struct gw_repo *repo;
	struct gw_snap *s;
	struct start start;

	snprintf(dir, sizeof(dir), "%s/gw-bench-repo-XXXXXX", base);
	if (!memory || !found || !mkdtemp(dir))
		return 1;
	snprintf(url, sizeof(url), "file://%s", dir);
	fill(memory, pages * GW_PAGE_SIZE, kind && strcmp(kind, "text") == 0);
	memset(found, 1, pages * GW_PAGE_SIZE);
	if (gw_repo_init(url, &secret, NULL, &err) < 0 || gw_repo_open(url, &secret, &repo, &err) < 0)
		die_of(&err);
	save(repo, "save, new", memory, pages, workers, NULL, 0);
	save(repo, "save, all known", memory, pages, workers, NULL, 0);
	start = begin();
	if (gw_snap_open(repo, "bench", 0, &s, &err) < 0)
		die_of(&err);
	report("open", 0, start, "");
	save(repo, "save, all kept", memory, pages, workers, s, 0);
	start = begin();
	if (gw_snap_read(s, 0, pages, found, &err) < 0)
		die_of(&err);
	report("read, one thread", pages * GW_PAGE_SIZE, start, memcmp(memory, found, pages * GW_PAGE_SIZE) ? "WRONG" : "");
	fault(s, pages);
	save(repo, "save, 5% changed", memory, pages, workers, s, pages / 20);
	gw_snap_free(s);
	gw_repo_free(repo);
	snprintf(url, sizeof(url), "rm -rf %s", dir);
	return system(url);
}
