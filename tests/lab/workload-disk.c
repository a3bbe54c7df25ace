// SPDX-License-Identifier: Apache-2.0
/*
 * The disk checker: writes blocks at pseudo-random places past the guest's page cache, flushes, and reads each block back
 * before it is written again. An I/O error is a fault: a disk must stay whole across a move.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "workload.h"

#define BLOCK 4096u
#define TICK_NS 10000000
#define WRITES_PER_FLUSH 16

struct checker {
	int fd;
	uint64_t *sequence;	/* what each block must hold now */
	uint64_t *buffer;
	uint64_t random;
	struct workload_report report;
};

/* xorshift64 (Marsaglia, 2003) */
static uint64_t next_random(struct checker *c)
{
	c->random ^= c->random << 13;
	c->random ^= c->random >> 7;
	c->random ^= c->random << 17;
	return c->random;
}

static void write_block(struct checker *c, uint64_t i)
{
	workload_fill(c->buffer, BLOCK, i, c->sequence[i]);
	if (pwrite(c->fd, c->buffer, BLOCK, (off_t)(i * BLOCK)) != BLOCK) {
		printf("WORKLOAD FAULT disk write: %s\n", strerror(errno));
		workload_report_fault(&c->report, i, c->sequence[i], 0);
		return;
	}
	c->report.written++;
}

static void check_block(struct checker *c, uint64_t i)
{
	memset(c->buffer, 0, BLOCK);
	if (pread(c->fd, c->buffer, BLOCK, (off_t)(i * BLOCK)) != BLOCK)
		printf("WORKLOAD FAULT disk read: %s\n", strerror(errno));
	if (!workload_verify(c->buffer, BLOCK, i, c->sequence[i]))
		workload_report_fault(&c->report, i, c->sequence[i], c->buffer[1]);
	c->report.checked++;
}

static void flush(struct checker *c)
{
	if (fdatasync(c->fd) < 0) {
		printf("WORKLOAD FAULT disk flush: %s\n", strerror(errno));
		workload_report_fault(&c->report, 0, 0, 0);
	}
}

static void run(struct checker *c)
{
	int64_t tick = workload_now();

	for (uint64_t i = 0; i < c->report.units; i++) {
		write_block(c, i);
		workload_report_answer(&c->report);
	}
	flush(c);
	for (uint64_t n = 1;; n++) {
		uint64_t i = next_random(c) % c->report.units;

		check_block(c, i);
		c->sequence[i]++;
		write_block(c, i);
		if (n % WRITES_PER_FLUSH == 0)
			flush(c);
		workload_report_answer(&c->report);
		tick += TICK_NS;
		if (tick < workload_now())
			tick = workload_now();
		else
			workload_sleep_until(tick);
	}
}

int workload_disk(int argc, char **argv)
{
	struct checker c = { .random = 0x9e3779b97f4a7c15u, .report = { .name = "disk", .unit = "blocks" } };
	void *buffer;
	off_t size;

	if (argc < 1 || argc > 2) {
		fprintf(stderr, "workload: verify-disk DEVICE [SIZE_MB]\n");
		return 2;
	}
	c.report.units = workload_number(argc > 1 ? argv[1] : "2", 1, 1 << 20) * 1024 * 1024 / BLOCK;
	c.fd = open(argv[0], O_RDWR | O_DIRECT | O_CLOEXEC);
	size = c.fd < 0 ? -1 : lseek(c.fd, 0, SEEK_END);
	if (size < 0) {
		fprintf(stderr, "workload: %s: %s\n", argv[0], strerror(errno));
		return 1;
	}
	if ((uint64_t)size < c.report.units * BLOCK) {
		fprintf(stderr, "workload: %s is smaller than the size to check\n", argv[0]);
		return 1;
	}
	c.sequence = calloc(c.report.units, sizeof(*c.sequence));
	if (posix_memalign(&buffer, BLOCK, BLOCK) || !c.sequence) {
		fprintf(stderr, "workload: no memory\n");
		return 1;
	}
	c.buffer = buffer;
	workload_report_open(&c.report, WORKLOAD_DISK_PORT);
	run(&c);
	return 0;
}
