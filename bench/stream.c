// SPDX-License-Identifier: Apache-2.0
/*
 * The migration engine alone, memory to memory over loopback TCP on this machine, no KVM: bench-stream MIB CHANNELS tls|clear. Both
 * memories are touched beforehand, since first touches are slow and vary. "limit" instead of a mode measures what the machine
 * gives at best: one connection, 512 KiB a call, nothing else. Prints one JSON object.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "lib/clock.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/util.h"
#include "tests/unit/move-pair.h"

#define CALL (512u << 10)

static void die(const char *what)
{
	fprintf(stderr, "bench-stream: %s: error %d\n", what, errno);
	exit(1);
}

static void tcp_pair(int *a, int *b)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(addr);
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*a = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (l < 0 || *a < 0 || bind(l, (struct sockaddr *)&addr, len) < 0 || listen(l, 1) < 0 ||
	    getsockname(l, (struct sockaddr *)&addr, &len) < 0 || connect(*a, (struct sockaddr *)&addr, len) < 0)
		die("loopback");
	*b = accept4(l, NULL, NULL, SOCK_CLOEXEC);
	if (*b < 0)
		die("accept");
	close(l);
}

static void touch(struct gw_ram *ram)
{
	const struct gw_ram_region *regions;
	unsigned count;

	regions = gw_ram_regions(ram, &count);
	for (unsigned i = 0; i < count; i++) {
		for (uint64_t at = 0; at < regions[i].size; at += GW_PAGE_SIZE)
			((volatile uint8_t *)regions[i].hva)[at] = 0;
	}
}

struct half {
	uint8_t *memory;
	uint64_t size;
	int fd;
};

static void *send_all(void *arg)
{
	struct half *h = arg;

	for (uint64_t at = 0; at < h->size; at += CALL) {
		if (gw_write_full(h->fd, h->memory + at, CALL, GW_NO_DEADLINE) < 0)
			die("send");
	}
	return NULL;
}

static double limit(uint64_t size)
{
	struct move_vm a, b;
	struct half from, to;
	pthread_t thread;
	uint64_t begun;

	move_vm_init(&a, size, 0);
	move_vm_init(&b, size, 0);
	move_vm_fill(&a, 1, 0);
	touch(b.ram);
	from = (struct half){ gw_ram_page(a.ram, 0), size, -1 };
	to = (struct half){ gw_ram_page(b.ram, 0), size, -1 };
	tcp_pair(&from.fd, &to.fd);
	begun = gw_now_ns();
	pthread_create(&thread, NULL, send_all, &from);
	for (uint64_t at = 0; at < size; at += CALL) {
		if (gw_read_full(to.fd, to.memory + at, CALL, GW_NO_DEADLINE) < 0)
			die("receive");
	}
	pthread_join(thread, NULL);
	return (double)size / (double)(gw_now_ns() - begun);
}

static int run_move(uint64_t size, unsigned channels, bool clear)
{
	struct move_pair p;

	move_pair_init(&p, size, 0, channels);
	move_vm_fill(&p.s, 1, 0);
	touch(p.d.ram);
	p.pd.ram_is_zero = true;
	p.ps.clear = p.pd.clear = clear;
	p.paused = true;
	for (unsigned i = 0; i <= channels; i++) {
		close(p.ps.fds[i]);
		close(p.pd.fds[i]);
		tcp_pair(&p.ps.fds[i], &p.pd.fds[i]);
	}
	move_pair_start(&p);
	move_pair_wait(&p);
	if (p.es.latest.phase != GW_MOVE_DONE || !move_pair_equal(&p)) {
		fprintf(stderr, "bench-stream: the move failed: %s\n", p.es.latest.message);
		return 1;
	}
	printf("{\"bytes\": %llu, \"ms\": %llu, \"gb_per_s\": %.3f, \"cipher\": \"%s\", \"blackout_us\": %llu}\n",
	       (unsigned long long)p.es.latest.bytes_sent, (unsigned long long)p.es.latest.elapsed_ms,
	       (double)size / 1e6 / (double)GW_MAX(p.es.latest.elapsed_ms, (uint64_t)1), p.es.latest.cipher,
	       (unsigned long long)p.es.latest.blackout_us);
	move_pair_release(&p);
	return 0;
}

int main(int argc, char **argv)
{
	uint64_t size;

	gw_log_init("bench-stream", NULL, GW_LOG_WARN);
	if (argc != 4) {
		fprintf(stderr, "usage: bench-stream MIB CHANNELS tls|clear|limit\n");
		return 2;
	}
	size = strtoull(argv[1], NULL, 10) << 20;
	if (!strcmp(argv[3], "limit")) {
		printf("{\"gb_per_s\": %.3f}\n", limit(size));
		return 0;
	}
	return run_move(size, (unsigned)strtoul(argv[2], NULL, 10), !strcmp(argv[3], "clear"));
}
