// SPDX-License-Identifier: Apache-2.0
/*
 * One "VM" of the native dedup bench: guest RAM (struct gw_ram) filled by a plan, without KVM. Its two ways to share are the engine's own sharer,
 * and kernel KSM by MADV_MERGEABLE over the same memory.
 *
 *   bench-dedup NUMBER MIB CONTENT HASHES share|ksm|none [SOCKET-FD [CPU-PERCENT]]
 *
 * The plan, of all pages: zero 30%, content common to all VMs in runs of 64 to 1024 pages 40%, common single pages scattered among unique ones
 * 10%, unique 20%. Runs lie in another order in each VM. CONTENT is a file of real contents: its first half is what is common, unique pages
 * come from the second half and carry a stamp. 64-bit hashes of all pages go to HASHES for the upper bound.
 *
 * A writer beats every millisecond, each time into another of its pages. Lines of stdin are commands: "share" begins, "beats" prints the gaps
 * since the last such command, "stats" the sharer's counters, "check" whether memory still is what was filled in; end of file ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <xxhash.h>

#include "ksm/sharer.h"
#include "ksm/stall.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "lib/util.h"

#define MAX_RUN 1024u
#define MIN_RUN 64u
#define BEAT_PAGES 256u

enum kind { ZERO, COMMON, MIXED };
struct run {
	enum kind kind;
	uint64_t from;  /* COMMON: page of the common content */
	uint32_t count;
};

struct vm {
	unsigned number;
	uint64_t pages;
	struct gw_ram *ram;
	const uint8_t *content;
	uint64_t content_pages;
	struct gw_sharer *sharer;
	uint64_t *beat_pages;  /* unique ones, that no one shares */
	unsigned nbeats;
	pthread_mutex_t lock;
	struct gw_stall beats; /* under lock */
	bool stop;
};

static void die(const char *what)
{
	fprintf(stderr, "bench-dedup: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014. */
static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

/* Cuts `total` pages into runs whose lengths are the same in every VM. */
static unsigned cut(struct run *runs, enum kind kind, uint64_t total)
{
	uint64_t seed = (uint64_t)kind + 1, at = 0;
	unsigned n = 0;

	while (at < total) {
		uint64_t len = MIN_RUN + next_random(&seed) % (MAX_RUN - MIN_RUN);

		len = GW_MIN(len, total - at);
		runs[n++] = (struct run){ kind, at, (uint32_t)len };
		at += len;
	}
	return n;
}

/* The same runs in every VM, shuffled by its number. */
static unsigned plan(const struct vm *vm, struct run *runs)
{
	uint64_t seed = 1000 + vm->number, zero = vm->pages * 30 / 100, common = vm->pages * 40 / 100;
	unsigned n = cut(runs, ZERO, zero);

	n += cut(runs + n, COMMON, common);
	n += cut(runs + n, MIXED, vm->pages - zero - common);
	for (unsigned i = n - 1; i > 0; i--) {
		unsigned k = (unsigned)(next_random(&seed) % (i + 1));
		struct run r = runs[i];

		runs[i] = runs[k];
		runs[k] = r;
	}
	return n;
}

/* A page that only this VM has. */
static void fill_unique(const struct vm *vm, uint8_t *page, uint64_t index)
{
	uint64_t half = vm->content_pages / 2;
	uint64_t stamp[2] = { vm->number + 1, index };

	memcpy(page, vm->content + ((half + (index * 7 + vm->number * 131) % half) << GW_PAGE_SHIFT), GW_PAGE_SIZE);
	memcpy(page + 1024, stamp, sizeof(stamp));
}

static void fill_common(const struct vm *vm, uint8_t *page, uint64_t which)
{
	memcpy(page, vm->content + (which % (vm->content_pages / 2) << GW_PAGE_SHIFT), GW_PAGE_SIZE);
}

static void fill(struct vm *vm)
{
	struct run *runs = calloc(vm->pages / MIN_RUN + 64, sizeof(*runs));
	uint64_t seed = 5000 + vm->number, single = vm->pages * 40 / 100, page = 0;
	unsigned n;

	vm->beat_pages = calloc(BEAT_PAGES, sizeof(*vm->beat_pages));
	if (!runs || !vm->beat_pages)
		die("memory");
	n = plan(vm, runs);
	for (unsigned i = 0; i < n; i++) {
		for (uint32_t k = 0; k < runs[i].count; k++, page++) {
			uint8_t *p = gw_ram_page(vm->ram, page);

			if (runs[i].kind == ZERO) {
				memset(p, 0, GW_PAGE_SIZE);
			} else if (runs[i].kind == COMMON) {
				fill_common(vm, p, runs[i].from + k);
			} else if (next_random(&seed) % 3 == 0) {
				/* A third of these: a tenth of all, each content once, in an order of this VM's own. */
				fill_common(vm, p, single++);
			} else {
				fill_unique(vm, p, page);
				if (vm->nbeats < BEAT_PAGES && next_random(&seed) % 64 == 0)
					vm->beat_pages[vm->nbeats++] = page;
			}
		}
	}
	free(runs);
}

static void write_hashes(const struct vm *vm, const char *path)
{
	gw_autofile *f = fopen(path, "we");

	if (!f)
		die(path);
	for (uint64_t i = 0; i < vm->pages; i++) {
		const void *p = gw_ram_page(vm->ram, i);
		uint64_t h = gw_page_is_zero(p) ? 0 : XXH3_64bits(p, GW_PAGE_SIZE);

		fwrite(&h, sizeof(h), 1, f);
	}
}

/* What memory holds apart from the beats' words. */
static uint64_t checksum(const struct vm *vm)
{
	uint64_t sum = 0;
	unsigned k = 0;

	for (uint64_t i = 0; i < vm->pages; i++) {
		if (k < vm->nbeats && vm->beat_pages[k] == i)
			k++;
		else
			sum += XXH3_64bits_withSeed(gw_ram_page(vm->ram, i), GW_PAGE_SIZE, i);
	}
	return sum;
}

static void *beat(void *arg)
{
	struct vm *vm = arg;
	uint64_t last = gw_now_ns();

	prctl(PR_SET_NAME, "beat");
	for (unsigned i = 0; !__atomic_load_n(&vm->stop, __ATOMIC_RELAXED); i++) {
		struct timespec ms = { 0, 1000000 };
		uint64_t now;

		nanosleep(&ms, NULL);
		*(volatile uint64_t *)gw_ram_page(vm->ram, vm->beat_pages[i % vm->nbeats]) = i;
		now = gw_now_ns();
		pthread_mutex_lock(&vm->lock);
		gw_stall_add(&vm->beats, now - last);
		pthread_mutex_unlock(&vm->lock);
		last = now;
	}
	return NULL;
}

static void print_beats(struct vm *vm)
{
	struct gw_stall b;

	pthread_mutex_lock(&vm->lock);
	b = vm->beats;
	memset(&vm->beats, 0, sizeof(vm->beats));
	pthread_mutex_unlock(&vm->lock);
	printf("{\"beats\":%" PRIu64 ",\"p50_us\":%" PRIu64 ",\"p99_us\":%" PRIu64 ",\"p999_us\":%" PRIu64 ",\"max_us\":%" PRIu64 "}\n", b.count,
	       gw_stall_quantile(&b, 500) / 1000, gw_stall_quantile(&b, 990) / 1000, gw_stall_quantile(&b, 999) / 1000, b.max_ns / 1000);
}

static void print_stats(struct vm *vm)
{
	struct gw_sharer_stats s = { 0 };

	if (vm->sharer)
		gw_sharer_stats(vm->sharer, &s);
	printf("{\"passes\":%" PRIu64 ",\"zero\":%" PRIu64 ",\"shared\":%" PRIu64 ",\"broken\":%" PRIu64 ",\"hashed\":%" PRIu64 ",\"differing\":%" PRIu64
	       ",\"busy\":%" PRIu64 ",\"over_budget\":%" PRIu64 ",\"failed\":%" PRIu64 ",\"mappings\":%u,\"metadata\":%" PRIu64 ",\"cpu_ms\":%" PRIu64
	       ",\"windows\":%" PRIu64 ",\"stall_p50_us\":%" PRIu64 ",\"stall_p99_us\":%" PRIu64 ",\"stall_max_us\":%" PRIu64 ",\"pass_ms\":%" PRIu64
	       ",\"chunks\":%" PRIu64 ",\"reason\":\"%s\"}\n",
	       s.passes, s.zero_pages, s.shared_pages, s.broken_pages, s.hashed_pages, s.differing_pages, s.busy_pages, s.over_budget_pages,
	       s.failed_pages, s.mappings, s.metadata_bytes, s.cpu_ns / 1000000, s.windows, s.stall_p50_ns / 1000, s.stall_p99_ns / 1000,
	       s.stall_max_ns / 1000, s.pass_ns / 1000000, s.chunks, s.reason);
}

static void begin(struct vm *vm, const char *mode, int fd, unsigned cpu)
{
	struct gw_sharer_config config = { .cpu_percent = cpu };
	struct gw_error err = GW_ERROR_INIT;
	const struct gw_ram_region *regions;
	unsigned count;

	if (strcmp(mode, "share") == 0) {
		if (gw_sharer_new(vm->ram, &config, &vm->sharer, &err) < 0) {
			fprintf(stderr, "bench-dedup: %s\n", gw_error_text(&err));
			exit(1);
		}
		gw_sharer_attach(vm->sharer, fd);
	} else if (strcmp(mode, "ksm") == 0) {
		regions = gw_ram_regions(vm->ram, &count);
		for (unsigned i = 0; i < count; i++) {
			if (madvise(regions[i].hva, regions[i].size, MADV_MERGEABLE) < 0)
				die("MADV_MERGEABLE");
		}
	}
	puts("{}");
}

static void *open_content(const char *path, uint64_t *pages)
{
	gw_autofd fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *p;

	if (fd < 0 || fstat(fd, &st) < 0)
		die(path);
	*pages = (uint64_t)st.st_size >> GW_PAGE_SHIFT;
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die(path);
	return p;
}

int main(int argc, char **argv)
{
	struct gw_error err = GW_ERROR_INIT;
	struct vm vm = { .lock = PTHREAD_MUTEX_INITIALIZER };
	uint64_t number, mib, fd = 0, cpu = 100, before;
	pthread_t beats;
	char line[64];

	if (argc < 6 || gw_parse_uint(argv[1], "NUMBER", 0, 1000, &number, &err) < 0 || gw_parse_uint(argv[2], "MIB", 4, 65536, &mib, &err) < 0 ||
	    (argc > 6 && gw_parse_uint(argv[6], "SOCKET-FD", 0, 1024, &fd, &err) < 0) ||
	    (argc > 7 && gw_parse_uint(argv[7], "CPU-PERCENT", 1, 100, &cpu, &err) < 0)) {
		fprintf(stderr, "usage: bench-dedup NUMBER MIB CONTENT HASHES share|ksm|none [SOCKET-FD [CPU-PERCENT]]\n%s\n", err.msg);
		return 2;
	}
	gw_log_init("bench-dedup", argv[1], GW_LOG_WARN);
	vm.number = (unsigned)number;
	vm.pages = mib << (20 - GW_PAGE_SHIFT);
	vm.content = open_content(argv[3], &vm.content_pages);
	if (gw_ram_new(mib << 20, 3ull << 30, 4ull << 30, &vm.ram, &err) < 0) {
		fprintf(stderr, "bench-dedup: %s\n", gw_error_text(&err));
		return 1;
	}
	fill(&vm);
	munmap((void *)vm.content, vm.content_pages << GW_PAGE_SHIFT);
	write_hashes(&vm, argv[4]);
	before = checksum(&vm);
	if (pthread_create(&beats, NULL, beat, &vm) != 0)
		die("thread");
	puts("{\"ready\":true}");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (strncmp(line, "share", 5) == 0)
			begin(&vm, argv[5], (int)fd, (unsigned)cpu);
		else if (strncmp(line, "beats", 5) == 0)
			print_beats(&vm);
		else if (strncmp(line, "stats", 5) == 0)
			print_stats(&vm);
		else if (strncmp(line, "check", 5) == 0)
			printf("{\"same\":%s}\n", checksum(&vm) == before ? "true" : "false");
		fflush(stdout);
	}
	__atomic_store_n(&vm.stop, true, __ATOMIC_RELAXED);
	pthread_join(beats, NULL);
	gw_sharer_free(vm.sharer);
	gw_ram_free(vm.ram);
	return 0;
}
