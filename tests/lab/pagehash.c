// SPDX-License-Identifier: Apache-2.0
/*
 * pagehash PID...: reads the guest RAM of VMMs (the largest mapping of each that is private and writable) from outside and prints one JSON
 * object: pages that hold something, pages of zeros among them, different contents among the others, and contents that more than one page
 * of the same VMM holds or more than one VMM.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE 4096u
#define MAX_PIDS 64

struct seen {
	uint64_t hash;
	uint32_t pid;
};

static struct seen *all;
static size_t count, room;

static void add(uint64_t hash, uint32_t pid)
{
	if (count == room) {
		room = room ? room * 2 : 1 << 16;
		all = realloc(all, room * sizeof(*all));
		if (!all)
			exit(1);
	}
	all[count++] = (struct seen){ hash, pid };
}

/* FNV-1a over words: a fair hash is enough, for nothing is merged by it. */
static uint64_t hash_page(const uint64_t *w, int *zero)
{
	uint64_t h = 0xcbf29ce484222325ull, any = 0;

	for (unsigned i = 0; i < PAGE / 8; i++) {
		any |= w[i];
		h = (h ^ w[i]) * 0x100000001b3ull;
		h ^= h >> 29;
	}
	*zero = any == 0;
	return h;
}

static int largest(const char *pid, uint64_t *start, uint64_t *end)
{
	char path[64], line[512], mode[8];
	uint64_t a, b;
	FILE *f;

	*start = *end = 0;
	snprintf(path, sizeof(path), "/proc/%s/maps", pid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s", &a, &b, mode) == 3 && !strcmp(mode, "rw-p") && b - a > *end - *start)
			*start = a, *end = b;
	}
	if (f)
		fclose(f);
	return *end ? 0 : -1;
}

static uint64_t present, zeros;

static int read_vmm(const char *pid, uint32_t number)
{
	static uint64_t page[PAGE / 8];
	uint64_t start, end;
	char path[64];
	int mem, map;

	if (largest(pid, &start, &end) < 0)
		return -1;
	snprintf(path, sizeof(path), "/proc/%s/mem", pid);
	mem = open(path, O_RDONLY);
	snprintf(path, sizeof(path), "/proc/%s/pagemap", pid);
	map = open(path, O_RDONLY);
	for (uint64_t at = start; mem >= 0 && map >= 0 && at < end; at += PAGE) {
		uint64_t entry;
		int zero;

		if (pread(map, &entry, 8, (off_t)(at / PAGE * 8)) != 8 || !(entry >> 62) || pread(mem, page, PAGE, (off_t)at) != PAGE)
			continue;
		present++;
		entry = hash_page(page, &zero);
		if (zero)
			zeros++;
		else
			add(entry, number);
	}
	close(mem);
	close(map);
	return 0;
}

static int by_hash(const void *a, const void *b)
{
	const struct seen *x = a, *y = b;

	return x->hash != y->hash ? (x->hash < y->hash ? -1 : 1) : (int)x->pid - (int)y->pid;
}

int main(int argc, char **argv)
{
	uint64_t distinct = 0, within = 0, between = 0;

	for (int i = 1; i < argc && i < MAX_PIDS; i++) {
		if (read_vmm(argv[i], (uint32_t)i) < 0) {
			fprintf(stderr, "pagehash: cannot read process %s\n", argv[i]);
			return 1;
		}
	}
	qsort(all, count, sizeof(*all), by_hash);
	for (size_t i = 0; i < count; i++) {
		if (i == 0 || all[i].hash != all[i - 1].hash)
			distinct++;
		else if (all[i].pid == all[i - 1].pid)
			within++;
		else
			between++;
	}
	printf("{\"present\":%" PRIu64 ",\"zero\":%" PRIu64 ",\"distinct\":%" PRIu64 ",\"within\":%" PRIu64 ",\"between\":%" PRIu64 "}\n", present, zeros,
	       distinct, within, between);
	return 0;
}
