// SPDX-License-Identifier: Apache-2.0
/*
 * The memory dirtier: rewrites its pages in rotation at a given rate. What a page must hold is known from an array outside
 * the region, so that a page that comes back older than it was is found as surely as a torn or a foreign one.
 * Each page is checked right before it is rewritten; with rate 0 pages are only checked. One that checks when it is asked leaves its memory alone until then.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "workload.h"

#define PAGE 4096u
/* Ticks of 10 ms: shorter ones cost more than the work under emulation. */
#define TICK_NS 10000000
#define CHECK_ONLY_MB_PER_S 10

struct dirtier {
	char *region;
	uint64_t *sequence;	/* what each page must hold now */
	uint64_t pages, next;
	bool write;
	struct workload_report report;
};

static void visit(struct dirtier *d)
{
	uint64_t i = d->next;
	uint64_t *page = (uint64_t *)(d->region + i * PAGE);

	if (!workload_verify(page, PAGE, i, d->sequence[i])) {
		workload_report_fault(&d->report, i, d->sequence[i], page[1]);
		workload_fill(page, PAGE, i, d->sequence[i]);
	}
	d->report.checked++;
	if (d->write) {
		d->sequence[i]++;
		workload_fill(page, PAGE, i, d->sequence[i]);
		d->report.written++;
	}
	d->next = (i + 1) % d->pages;
}

static void run(struct dirtier *d, uint64_t rate)
{
	int64_t tick = workload_now(), last;
	/* Pages a tick, in 1/1024 to keep odd rates exact. */
	uint64_t share = rate * 1024 * 1024 / PAGE * 1024 * TICK_NS / 1000000000, due = 0;

	for (;;) {
		for (due += share; due >= 1024; due -= 1024)
			visit(d);
		workload_report_answer(&d->report);
		tick += TICK_NS;
		last = workload_now();
		/* After a stall the rate goes on, without catching up: a burst would not be this workload any more. */
		if (tick < last)
			tick = last;
		else
			workload_sleep_until(tick);
	}
}

/* All pages before each answer. */
static void run_when_asked(struct dirtier *d)
{
	struct pollfd p = { .fd = d->report.sock, .events = POLLIN };

	while (poll(&p, 1, -1) > 0 || errno == EINTR) {
		for (uint64_t i = 0; i < d->pages; i++)
			visit(d);
		workload_report_answer(&d->report);
	}
}

int workload_dirty(int argc, char **argv)
{
	struct dirtier d = { .report = { .name = "dirty", .unit = "pages" } };
	bool asked = argc == 3 && !strcmp(argv[2], "asked");
	uint64_t rate;

	if (argc != 2 && !asked) {
		fprintf(stderr, "workload: dirty RATE_MB_PER_S SIZE_MB [asked]\n");
		return 2;
	}
	rate = workload_number(argv[0], 0, 100000);
	d.pages = workload_number(argv[1], 1, 1 << 20) * 1024 * 1024 / PAGE;
	d.write = rate > 0;
	d.region = mmap(NULL, d.pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	d.sequence = calloc(d.pages, sizeof(*d.sequence));
	if (d.region == MAP_FAILED || !d.sequence) {
		fprintf(stderr, "workload: dirty: %s\n", strerror(errno));
		return 1;
	}
	for (uint64_t i = 0; i < d.pages; i++)
		workload_fill((uint64_t *)(d.region + i * PAGE), PAGE, i, 0);
	d.report.units = d.pages;
	workload_report_open(&d.report, WORKLOAD_DIRTY_PORT);
	if (asked)
		run_when_asked(&d);
	else
		run(&d, rate ? rate : CHECK_ONLY_MB_PER_S);
	return 0;
}
