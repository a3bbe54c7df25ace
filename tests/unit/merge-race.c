// SPDX-License-Identifier: Apache-2.0
/* Writers against the merger; see merge-race.h. */
#include "merge-race.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "ksm/merge.h"
#include "lib/clock.h"
#include "lib/util.h"

#define PAGES_EACH 32u
#define WRITERS 16u

struct shared {
	struct gw_ram *ram;
	uint8_t *store; /* PAGES_EACH pages, what the chunk holds; every fourth is zeros */
	bool stop;
};

struct writer {
	struct shared *s;
	enum race_kind kind;
	unsigned number;
	uint64_t writes, lost;
	char first_loss[240];
	int file;       /* READ, DIRECT, URING: of PAGES_EACH pages whose word 0 is 1 + the page, the rest as the store's */
	pthread_t thread;
	int error;
};

static uint8_t *page_of(const struct writer *w, unsigned i)
{
	return gw_ram_page(w->s->ram, (uint64_t)w->number * PAGES_EACH + i);
}

static uint64_t gpa_of(const struct writer *w, unsigned i)
{
	return ((uint64_t)w->number * PAGES_EACH + i) << GW_PAGE_SHIFT;
}

/* As a guest does: without asking a sanitizer what others do with the page at the time. */
#define GUEST __attribute__((no_sanitize("thread"), noinline))
static GUEST void store(void *at, uint64_t value)
{
	*(volatile uint64_t *)at = value;
}
static GUEST uint64_t load(const void *at)
{
	return *(const volatile uint64_t *)at;
}

/* What the kernel finds at an address by its page tables, past the processor's own memory of them. */
static uint64_t kernel_load(const void *at)
{
	gw_autofd fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	uint64_t value = 0;

	return fd >= 0 && pread(fd, &value, sizeof(value), (off_t)(uintptr_t)at) == sizeof(value) ? value : UINT64_MAX;
}

static void check(struct writer *w, unsigned i, uint64_t round, const uint64_t *at, uint64_t written, uint64_t before)
{
	uint64_t seen = load(at);

	if (seen == written)
		return;
	if (__atomic_fetch_add(&w->lost, 1, __ATOMIC_RELAXED) == 0)
		snprintf(w->first_loss, sizeof(w->first_loss), "kind %d, page %u, round %llu: %llx written over %llx, %llx seen, then %llx by the kernel, %llx",
			 (int)w->kind, i, (unsigned long long)round, (unsigned long long)written, (unsigned long long)before,
			 (unsigned long long)seen, (unsigned long long)kernel_load(at), (unsigned long long)load(at));
}

/* One word, by the processor. */
static void write_user(struct writer *w, unsigned i, uint64_t round)
{
	uint64_t *word = (uint64_t *)page_of(w, i) + round % 512;
	uint64_t was = load(word), mine = was ^ (round | 1ull << 63);

	store(word, mine);
	for (int k = 0; k < 64 && load(word) == mine; k++)
		__builtin_ia32_pause();
	check(w, i, round, word, mine, was);
	store(word, was); /* equal again */
	__atomic_fetch_add(&w->writes, 1, __ATOMIC_RELAXED);
}

static ssize_t uring_read(struct io_uring *ring, int fd, void *to, off_t at)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;
	ssize_t n;

	io_uring_prep_read(sqe, fd, to, GW_PAGE_SIZE, (uint64_t)at);
	if (io_uring_submit_and_wait(ring, 1) < 0 || io_uring_wait_cqe(ring, &cqe) < 0)
		return -1;
	n = cqe->res;
	io_uring_cqe_seen(ring, cqe);
	return n;
}

/* A whole page, by the kernel. */
static int write_kernel(struct writer *w, struct io_uring *ring, unsigned i, uint64_t round)
{
	uint8_t *page = page_of(w, i);
	off_t at = (off_t)i << GW_PAGE_SHIFT;
	uint64_t was = load(w->s->store + at);
	ssize_t n;

	gw_ram_io_begin(w->s->ram, gpa_of(w, i), GW_PAGE_SIZE);
	n = w->kind == RACE_URING ? uring_read(ring, w->file, page, at) : syscall(SYS_pread64, w->file, page, GW_PAGE_SIZE, at);
	gw_ram_io_end(w->s->ram, gpa_of(w, i), GW_PAGE_SIZE);
	if (n != (ssize_t)GW_PAGE_SIZE)
		return -EIO;
	check(w, i, round, (const uint64_t *)page, i + 1, was);
	store(page, was); /* equal again */
	__atomic_fetch_add(&w->writes, 1, __ATOMIC_RELAXED);
	return 0;
}

static void *write_on(void *arg)
{
	struct writer *w = arg;
	struct io_uring ring;
	uint64_t round = 1;

	if (w->kind == RACE_URING && io_uring_queue_init(4, &ring, 0) < 0) {
		w->error = -ENOSYS;
		return NULL;
	}
	for (; !__atomic_load_n(&w->s->stop, __ATOMIC_RELAXED) && w->error == 0; round++) {
		unsigned i = (unsigned)(round * 7 % PAGES_EACH);

		if (w->kind == RACE_USER)
			write_user(w, i, round);
		else
			__atomic_store_n(&w->error, write_kernel(w, &ring, i, round), __ATOMIC_RELAXED);
	}
	if (w->kind == RACE_URING)
		io_uring_queue_exit(&ring);
	return NULL;
}

/* Contents that differ everywhere but in the zero pages. */
static void fill_store(uint8_t *store)
{
	uint64_t *words = (uint64_t *)store;

	for (size_t i = 0; i < PAGES_EACH * 512; i++)
		words[i] = i / 512 % 4 == 3 ? 0 : (i + 1) * 0x9e3779b97f4a7c15ull;
}

static int make_chunk(const uint8_t *store)
{
	int fd = memfd_create("race", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || pwrite(fd, store, PAGES_EACH << GW_PAGE_SHIFT, 0) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
		return -errno;
	return fd;
}

/* O_DIRECT wants a file system that has it: beside the program. */
static int make_file(enum race_kind kind, const uint8_t *store)
{
	char path[] = "build/race-XXXXXX";
	gw_autofd fd = mkstemp(path);
	int again = -1;

	if (fd < 0)
		return -errno;
	for (unsigned i = 0; i < PAGES_EACH; i++) {
		uint64_t page[512];

		memcpy(page, store + ((size_t)i << GW_PAGE_SHIFT), sizeof(page));
		page[0] = i + 1;
		if (pwrite(fd, page, sizeof(page), (off_t)i << GW_PAGE_SHIFT) != sizeof(page))
			return -EIO;
	}
	fsync(fd);
	again = open(path, O_RDONLY | O_CLOEXEC | (kind == RACE_READ ? 0 : O_DIRECT));
	again = again < 0 ? -errno : again;
	unlink(path);
	return again;
}

static void order_all(struct gw_merger *m, unsigned writers, uint32_t chunk)
{
	for (uint32_t page = 0; page < writers * PAGES_EACH; page += 4) {
		gw_merger_store(m, page, 3, chunk, page % PAGES_EACH);
		gw_merger_zero(m, page + 3, 1);
	}
	gw_merger_run(m);
}

static uint64_t total(const struct writer *w, unsigned n)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < n; i++)
		sum += __atomic_load_n(&w[i].writes, __ATOMIC_RELAXED);
	return sum;
}

static void merge_on(const struct race *race, struct gw_merger *m, const struct writer *w, unsigned n, const int chunks[2])
{
	const struct gw_merger_stats *st = gw_merger_stats(m);
	uint64_t end = race->seconds ? gw_now_ns() + race->seconds * GW_NS_PER_SEC : UINT64_MAX;
	unsigned round = 0;

	while (gw_now_ns() < end && (total(w, n) < race->writes || st->store_pages + st->again_pages + st->zero_pages < race->merges)) {
		/* Two chunks of one content in turn: pages are given back while it is the same one, and mapped over when it changes. */
		order_all(m, n, (uint32_t)chunks[round++ / 4 % 2]);
		/* What was written meanwhile leaves its overlay now and then. */
		if (round % 8 == 5) {
			gw_merger_leave(m, 0, n * PAGES_EACH);
			gw_merger_run(m);
			gw_merger_count_mappings(m);
		}
		for (unsigned i = 0; i < n; i++) {
			if (__atomic_load_n(&w[i].error, __ATOMIC_RELAXED) || (race->until_lost && __atomic_load_n(&w[i].lost, __ATOMIC_RELAXED)))
				return;
		}
	}
}

static int finish(struct writer *w, unsigned n, struct race_result *ret, char why[256])
{
	int r = 0;

	for (unsigned i = 0; i < n; i++) {
		pthread_join(w[i].thread, NULL);
		ret->writes[w[i].kind] += w[i].writes;
		ret->lost[w[i].kind] += w[i].lost;
		if (w[i].lost && !ret->first_loss[0])
			memcpy(ret->first_loss, w[i].first_loss, sizeof(ret->first_loss));
		if (w[i].error) {
			r = w[i].error;
			snprintf(why, 256, "a writer of kind %d failed: %s", (int)w[i].kind, strerror(-r));
		}
		if (w[i].file >= 0)
			close(w[i].file);
	}
	return r;
}

int race_run(const struct race *race, struct race_result *ret, char why[256])
{
	struct shared s = { .store = aligned_alloc(GW_PAGE_SIZE, PAGES_EACH << GW_PAGE_SHIFT) };
	struct gw_merger_limits limits = { .mappings = 20000 };
	struct gw_error err = GW_ERROR_INIT;
	struct writer w[WRITERS] = { 0 };
	struct gw_pagemap *map = NULL;
	struct gw_written *written = NULL;
	struct gw_overlays *overlays = NULL;
	struct gw_merger *m = NULL;
	unsigned n = 0;
	int r, chunks[2];

	memset(ret, 0, sizeof(*ret));
	memset(s.store, 0, PAGES_EACH << GW_PAGE_SHIFT);
	fill_store(s.store);
	r = gw_ram_new((uint64_t)WRITERS * PAGES_EACH << GW_PAGE_SHIFT, 1ull << 32, 1ull << 32, &s.ram, &err);
	if (r == 0)
		r = gw_pagemap_new(&map);
	if (r == 0)
		r = gw_written_new(s.ram, map, false, &written);
	if (r == 0)
		r = gw_overlays_new(gw_ram_pages(s.ram), &overlays);
	for (unsigned i = 0; i < 2 && r >= 0; i++)
		r = chunks[i] = gw_overlays_add(overlays, i, make_chunk(s.store), PAGES_EACH);
	if (r >= 0)
		r = gw_merger_new(s.ram, map, written, overlays, &limits, &m, &err);
	if (r < 0) {
		snprintf(why, 256, "%s", err.code ? gw_error_text(&err) : strerror(-r));
		goto out;
	}
	gw_window_break(gw_merger_window(m), race->broken);
	for (enum race_kind k = 0; k < RACE_KINDS; k++) {
		for (unsigned i = 0; i < race->writers[k] && n < WRITERS && r >= 0; i++, n++) {
			w[n] = (struct writer){ .s = &s, .kind = k, .number = n, .file = -1 };
			memcpy(page_of(&w[n], 0), s.store, PAGES_EACH << GW_PAGE_SHIFT);
			if (k != RACE_USER)
				r = w[n].file = make_file(k, s.store);
			if (r >= 0)
				pthread_create(&w[n].thread, NULL, write_on, &w[n]);
			else
				snprintf(why, 256, "no file to read from: %s", strerror(-r));
		}
	}
	if (r >= 0)
		merge_on(race, m, w, n, chunks);
	else
		n--;
	__atomic_store_n(&s.stop, true, __ATOMIC_RELAXED);
	r = r < 0 ? (finish(w, n, ret, why), r) : finish(w, n, ret, why);
	ret->merges = gw_merger_stats(m)->store_pages;
	ret->zeros = gw_merger_stats(m)->zero_pages;
	ret->again = gw_merger_stats(m)->again_pages;
	ret->stall_p50_ns = gw_stall_quantile(&gw_merger_stats(m)->stall, 500);
	ret->stall_p99_ns = gw_stall_quantile(&gw_merger_stats(m)->stall, 990);
	ret->stall_max_ns = gw_merger_stats(m)->stall.max_ns;
out:
	gw_merger_free(m);
	gw_written_free(written);
	gw_overlays_free(overlays);
	gw_pagemap_free(map);
	gw_ram_free(s.ram);
	free(s.store);
	return r < 0 ? r : 0;
}
