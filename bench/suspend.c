// SPDX-License-Identifier: Apache-2.0
/*
 * Saving RAM to a repository and bringing it back, natively: bench-suspend [--kind random|text] [--from FILE] [--workers N] [--fill MIB] [--kept] URL MIB. With --kept URL
 * is a new folder's path, and the repository in it is served to this process over loopback, as by another host's agent. Of MIB of RAM so much is filled (all;
 * the rest is zero), with what does not compress or with what programs' memory is like, or with a file's content. Makes the repository in an empty URL. The figures go to stderr for
 * people, and as one JSON object to stdout; "save" ends when the snapshot is durable.
 */
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/clock.h"
#include "lib/ram/ram.h"
#include "lib/util.h"
#include "migrate/lazy.h"
#include "migrate/repo/snap.h"
#include "migrate/repo/writer.h"
#include "tests/unit/repo-host.h"

#define WARM_STEP (8ull << 20)
#define WARM_AHEAD (64ull << 20)
#define READ_PAGES 4096ull /* at a time, by each who reads eagerly */
#define READERS 2u /* as many as this bench's machine has processors: what is read eagerly has them all */

static void die_of(const struct gw_error *err)
{
	fprintf(stderr, "bench-suspend: %s\n", gw_error_text(err));
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

/* RAM is what the file holds; returns bytes. */
static uint64_t fill_from(uint8_t *memory, uint64_t len, const char *path)
{
	FILE *f = fopen(path, "re");
	uint64_t n = f ? fread(memory, 1, len, f) : 0;

	if (n == 0 || n % GW_PAGE_SIZE || fclose(f)) {
		fprintf(stderr, "bench-suspend: %s cannot be read, or is no RAM\n", path);
		exit(1);
	}
	return n;
}

/*
 * Memory that was touched a moment ago, given back to the kernel a little before it is used: on a virtual machine whose host is told of free pages
 * (free page reporting, every 2 s) the first touch of what the host has to find again takes many times as long as the second, and would fall to whichever
 * part comes to it.
 */
struct warm {
	uint8_t *p;
	uint64_t bytes;
	_Atomic uint64_t given;
};

static void warm_new(struct warm *w, uint64_t bytes)
{
	w->p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	w->bytes = bytes;
	w->given = 0;
	if (w->p == MAP_FAILED)
		exit(1);
	gw_ram_advise(w->p, bytes);
	for (uint64_t i = 0; i < bytes; i += GW_PAGE_SIZE)
		w->p[i] = 1;
}

/* So many bytes have been used, in all. */
static void warm_give(struct warm *w, uint64_t used)
{
	uint64_t until = GW_MIN(w->bytes, GW_ALIGN_DOWN(used, WARM_STEP) + WARM_AHEAD), given = w->given;

	while (given < until && !atomic_compare_exchange_weak(&w->given, &given, until))
		;
	if (given < until)
		(void)madvise(w->p + given, until - given, MADV_DONTNEED);
}

static void warm_end(struct warm *w)
{
	munmap(w->p, w->bytes);
}

struct bench {
	struct gw_repo *repo;
	struct gw_ram *ram;
	uint64_t pages, filled; /* of RAM; of them not zero, from the first on */
	unsigned workers;
	bool comma;
};

/* One figure, in seconds and MB/s, or in bytes. */
static void tell(struct bench *b, const char *name, double value)
{
	printf("%s\"%s\": %.6f", b->comma ? ", " : "{", name, value);
	b->comma = true;
}

static void tell_time(struct bench *b, const char *name, uint64_t begin, uint64_t bytes)
{
	double s = (double)(gw_now_ns() - begin) / 1e9;
	char key[48];

	snprintf(key, sizeof(key), "%s_s", name);
	tell(b, key, s);
	if (bytes)
		fprintf(stderr, "%-22s %8.3f s %8.0f MB/s\n", name, s, (double)bytes / 1e6 / s);
	else
		fprintf(stderr, "%-22s %8.3f s\n", name, s);
}

static uint8_t *memory(const struct bench *b)
{
	return gw_ram_page(b->ram, 0);
}

/* `parent`: all is kept but so many pages, which are changed. */
static void save(struct bench *b, const char *what, struct gw_snap *parent, uint64_t changed)
{
	const struct gw_snap_region region = { 0, b->pages * GW_PAGE_SIZE };
	const struct gw_snap_writer_params params = { .name = "bench", .regions = &region, .nregions = 1, .workers = b->workers, .parent = parent };
	struct gw_error err = GW_ERROR_INIT;
	uint64_t begin, state = 7;
	struct gw_snap_progress p;
	struct gw_snap_writer *w;
	struct warm warm;
	char key[48];

	/* For the page cache. */
	warm_new(&warm, b->pages * GW_PAGE_SIZE);
	warm_end(&warm);
	begin = gw_now_ns();
	if (gw_snap_writer_new(b->repo, &params, &w, &err) < 0)
		die_of(&err);
	if (parent)
		gw_snap_writer_keep(w, 0, b->pages);
	for (uint64_t i = 0; i < b->pages && !parent; i += 512)
		gw_snap_writer_pages(w, i, GW_MIN(b->pages - i, 512ull), memory(b) + i * GW_PAGE_SIZE);
	for (uint64_t i = 0; i < changed; i++) {
		uint64_t page = next_random(&state) % b->filled;

		memset(memory(b) + page * GW_PAGE_SIZE, (int)(i % 255), 100);
		memcpy(memory(b) + page * GW_PAGE_SIZE + 8, &i, sizeof(i));
		gw_snap_writer_pages(w, page, 1, memory(b) + page * GW_PAGE_SIZE);
	}
	if (gw_snap_writer_commit(w, NULL, &err) < 0)
		die_of(&err);
	gw_snap_writer_progress(w, &p);
	tell_time(b, what, begin, b->filled * GW_PAGE_SIZE);
	snprintf(key, sizeof(key), "%s_stored_bytes", what);
	tell(b, key, (double)p.put_bytes);
	fprintf(stderr, "%-22s %8.1f MiB stored\n", "", (double)p.put_bytes / 1048576);
	gw_snap_writer_free(w);
}

struct part {
	pthread_t thread;
	struct warm *warm;
	_Atomic uint64_t *done; /* pages, by all */
	struct gw_snap *snap;
	uint64_t first, count;
	uint8_t *into;
};

static void *read_part(void *arg)
{
	struct gw_error err = GW_ERROR_INIT;
	struct part *p = arg;

	for (uint64_t i = 0; i < p->count; i += READ_PAGES) {
		uint64_t n = GW_MIN(p->count - i, READ_PAGES);

		if (gw_snap_read(p->snap, p->first + i, n, p->into + i * GW_PAGE_SIZE, &err) < 0)
			die_of(&err);
		warm_give(p->warm, (*p->done += n) * GW_PAGE_SIZE);
	}
	return NULL;
}

/* All bytes, by all processors, with nobody who waits for one of them. */
static void read_eagerly(struct bench *b, struct gw_snap *s)
{
	struct gw_error err = GW_ERROR_INIT;
	struct part parts[READERS];
	_Atomic uint64_t done = 0;
	struct gw_ram *copy;
	struct warm warm;
	uint64_t begin;

	warm_new(&warm, b->pages * GW_PAGE_SIZE);
	if (gw_ram_new(b->pages * GW_PAGE_SIZE, b->pages * GW_PAGE_SIZE, UINT64_MAX & ~4095ull, &copy, &err) < 0)
		die_of(&err);
	begin = gw_now_ns();
	warm_give(&warm, 0);
	for (unsigned i = 0; i < READERS; i++) {
		uint64_t first = b->filled * i / READERS, end = b->filled * (i + 1) / READERS;

		parts[i] = (struct part){ .warm = &warm, .done = &done, .snap = s, .first = first, .count = end - first, .into = gw_ram_page(copy, first) };
		if (pthread_create(&parts[i].thread, NULL, read_part, &parts[i]) != 0)
			exit(1);
	}
	for (unsigned i = 0; i < READERS; i++)
		pthread_join(parts[i].thread, NULL);
	tell_time(b, "eager", begin, b->filled * GW_PAGE_SIZE);
	if (memcmp(gw_ram_page(copy, 0), memory(b), b->filled * GW_PAGE_SIZE) != 0)
		exit(3);
	gw_ram_free(copy);
	warm_end(&warm);
}

/* As a VM is resumed: from the opening to the first page that somebody waits for; then each page is touched, one after the other. */
static void touch_lazily(struct bench *b)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_lazy_stats st;
	struct gw_lazy *lazy;
	struct gw_ram *copy;
	struct gw_snap *s;
	uint64_t begin, touch, sum = 0;
	const volatile uint8_t *p;
	struct warm warm;

	warm_new(&warm, b->pages * GW_PAGE_SIZE);
	begin = gw_now_ns();
	if (gw_ram_new(b->pages * GW_PAGE_SIZE, b->pages * GW_PAGE_SIZE, UINT64_MAX & ~4095ull, &copy, &err) < 0 ||
	    gw_snap_open(b->repo, "bench", 0, &s, &err) < 0 || gw_lazy_new(copy, s, NULL, &lazy, &err) < 0)
		die_of(&err);
	p = gw_ram_page(copy, 0);
	sum += p[b->filled / 2 * GW_PAGE_SIZE];
	tell_time(b, "first_touch", begin, 0);
	if (gw_lazy_background(lazy, NULL, 0) < 0)
		exit(1);
	touch = gw_now_ns();
	for (uint64_t i = 0; i < b->pages; i++) {
		warm_give(&warm, i * GW_PAGE_SIZE);
		sum += p[i * GW_PAGE_SIZE];
	}
	tell_time(b, "lazy_touch", touch, b->filled * GW_PAGE_SIZE);
	while (!gw_lazy_wait(lazy, false, gw_now_ns() + GW_NS_PER_SEC))
		;
	tell_time(b, "resident", begin, b->filled * GW_PAGE_SIZE);
	gw_lazy_stats(lazy, &st);
	fprintf(stderr, "%-22s %llu waited for, sum %llu\n", "", (unsigned long long)st.faults, (unsigned long long)sum);
	if (memcmp((const void *)p, memory(b), b->pages * GW_PAGE_SIZE) != 0)
		exit(3);
	gw_lazy_free(lazy);
	gw_snap_free(s);
	gw_ram_free(copy);
	warm_end(&warm);
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "kind", 1, NULL, 'k' }, { "from", 1, NULL, 'i' }, { "workers", 1, NULL, 'w' },
						 { "fill", 1, NULL, 'f' }, { "kept", 0, NULL, 'r' }, { NULL, 0, NULL, 0 } };
	struct gw_repo_secret secret = { .passphrase = "of a benchmark" };
	struct gw_error err = GW_ERROR_INIT;
	struct bench b = { 0 };
	struct gw_snap *s;
	bool text = false, kept = false;
	const char *url, *from = NULL;
	struct gw_ticket ticket;
	uint64_t fill_mib = 0;
	int o;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (o == 'k')
			text = strcmp(optarg, "text") == 0;
		else if (o == 'i')
			from = optarg;
		else if (o == 'w')
			b.workers = (unsigned)strtoul(optarg, NULL, 10);
		else if (o == 'r')
			kept = true;
		else if (o == 'f')
			fill_mib = strtoull(optarg, NULL, 10);
		else
			return 2;
	}
	if (argc - optind != 2)
		return 2;
	url = argv[optind];
	if (kept) {
		ticket = repo_host_ticket(repo_host_new(url, 0, NULL, NULL), "bench");
		secret.ticket = &ticket;
		url = "godwit://loopback/bench";
	}
	b.pages = strtoull(argv[optind + 1], NULL, 10) * 256;
	b.filled = fill_mib ? fill_mib * 256 : b.pages;
	if (gw_ram_new(b.pages * GW_PAGE_SIZE, b.pages * GW_PAGE_SIZE, UINT64_MAX & ~4095ull, &b.ram, &err) < 0)
		die_of(&err);
	if (from)
		b.filled = fill_from(memory(&b), b.pages * GW_PAGE_SIZE, from) / GW_PAGE_SIZE;
	else
		fill(memory(&b), b.filled * GW_PAGE_SIZE, text);
	if (gw_repo_init(url, &secret, NULL, &err) < 0 || gw_repo_open(url, &secret, &b.repo, &err) < 0)
		die_of(&err);
	save(&b, "save", NULL, 0);
	save(&b, "save_known", NULL, 0);
	touch_lazily(&b);
	if (gw_snap_open(b.repo, "bench", 0, &s, &err) < 0)
		die_of(&err);
	read_eagerly(&b, s);
	save(&b, "save_5_percent", s, b.filled / 20);
	gw_snap_free(s);
	gw_repo_free(b.repo);
	gw_ram_free(b.ram);
	printf("}\n");
	return 0;
}
