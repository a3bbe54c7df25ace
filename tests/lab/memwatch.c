// SPDX-License-Identifier: Apache-2.0
/*
 * memwatch NAME...: four times a second one line "seconds bytes nanoseconds": the host's uptime, its available memory (with what its kernel keeps at hand for
 * its processors after much was freed, which MemAvailable leaves out), and the processor time that all threads of these names have taken. It goes before
 * everybody else, so that a busy host does not make it late.
 */
#include <dirent.h>
#include <inttypes.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define INTERVAL_NS 250000000L
#define SEARCH_EVERY 4 /* samples: threads come */
#define MAX_THREADS 64

static char threads[MAX_THREADS][64]; /* their schedstat files */
static unsigned count;

/* The first line of a file, without its end; false: there is none. */
static int read_line(const char *path, char *line, size_t size)
{
	FILE *f = fopen(path, "re");
	int ok = f && fgets(line, (int)size, f);

	if (f)
		fclose(f);
	if (ok)
		line[strcspn(line, "\n")] = '\0';
	return ok;
}

static void look_at(const char *process, const char *thread, char **names)
{
	char path[64], name[32];

	snprintf(path, sizeof(path), "/proc/%.16s/task/%.16s/comm", process, thread);
	if (!read_line(path, name, sizeof(name)))
		return;
	for (; *names && strcmp(*names, name) != 0; names++)
		;
	if (*names && count < MAX_THREADS)
		snprintf(threads[count++], sizeof(threads[0]), "/proc/%.16s/task/%.16s/schedstat", process, thread);
}

static void search(char **names)
{
	DIR *proc = opendir("/proc"), *task;
	char path[64];

	count = 0;
	for (struct dirent *p; proc && (p = readdir(proc));) {
		snprintf(path, sizeof(path), "/proc/%.16s/task", p->d_name);
		task = p->d_name[0] >= '0' && p->d_name[0] <= '9' ? opendir(path) : NULL;
		for (struct dirent *t; task && (t = readdir(task));)
			if (t->d_name[0] != '.')
				look_at(p->d_name, t->d_name, names);
		if (task)
			closedir(task);
	}
	if (proc)
		closedir(proc);
}

/* The sum of the numbers behind `label` in a file's lines. */
static uint64_t sum_of(const char *path, const char *label)
{
	FILE *f = fopen(path, "re");
	uint64_t sum = 0, n;
	char line[256], *at;

	while (f && fgets(line, sizeof(line), f))
		if ((at = strstr(line, label)) && sscanf(at + strlen(label), "%" SCNu64, &n) == 1)
			sum += n;
	if (f)
		fclose(f);
	return sum;
}

int main(int argc, char **argv)
{
	const struct sched_param first = { .sched_priority = sched_get_priority_max(SCHED_FIFO) };
	struct timespec interval = { 0, INTERVAL_NS };

	if (argc < 2 || sched_setscheduler(0, SCHED_FIFO, &first) < 0)
		return 2;
	for (unsigned i = 0;; i++) {
		char up[64] = "0", line[128];
		uint64_t cpu = 0, free;

		if (i % SEARCH_EVERY == 0)
			search(argv + 1);
		read_line("/proc/uptime", up, sizeof(up));
		free = (sum_of("/proc/meminfo", "MemAvailable:") << 10) + (sum_of("/proc/zoneinfo", " count:") << 12);
		for (unsigned k = 0; k < count; k++)
			cpu += read_line(threads[k], line, sizeof(line)) ? strtoull(line, NULL, 10) : 0;
		printf("%.*s %" PRIu64 " %" PRIu64 "\n", (int)strcspn(up, " "), up, free, cpu);
		fflush(stdout);
		nanosleep(&interval, NULL);
	}
}
