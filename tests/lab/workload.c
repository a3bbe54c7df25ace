// SPDX-License-Identifier: Apache-2.0
/*
 * workload: the program that guests run in tests and benches. It writes memory or disk at a given rate and checks, for ever,
 * that it finds again what it wrote; a move that loses or mixes up one page or block shows as a fault.
 *
 *   workload dirty RATE_MB_PER_S SIZE_MB      dirty memory, check it in rotation
 *   workload dirty RATE_MB_PER_S SIZE_MB asked   the same, all of it whenever it is asked, and nothing in between
 *   workload verify-disk DEVICE [SIZE_MB]     write, flush and re-read blocks (O_DIRECT); DESTROYS what DEVICE holds
 *   workload heartbeat IP PORT                answer every UDP datagram at once (probe.c asks)
 *   workload tick IP PORT MS                  every MS send a datagram there (a broadcast address will do) with its number, as text
 *   workload check [IP]                       ask the workloads at IP (127.0.0.1) and print a line for each:
 *                                             WORKLOAD ok dirty pages=N faults=0 ... ; exit 1 on faults, 2 when none answers
 */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include "workload.h"

int64_t workload_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void workload_sleep_until(int64_t ns)
{
	struct timespec t = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

/* The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): neighbouring inputs give unrelated words. */
static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* The first two words are index and sequence in clear, so that a fault can say what was found instead. */
void workload_fill(uint64_t *block, size_t len, uint64_t index, uint64_t sequence)
{
	uint64_t word = mix(index * 0x9e3779b97f4a7c15u + mix(sequence));

	block[0] = index;
	block[1] = sequence;
	for (size_t i = 2; i < len / sizeof(*block); i++)
		block[i] = word += 0x9e3779b97f4a7c15u ^ (word << 7);
}

bool workload_verify(const uint64_t *block, size_t len, uint64_t index, uint64_t sequence)
{
	uint64_t word = mix(index * 0x9e3779b97f4a7c15u + mix(sequence)), wrong;

	wrong = (block[0] ^ index) | (block[1] ^ sequence);
	for (size_t i = 2; i < len / sizeof(*block); i++) {
		word += 0x9e3779b97f4a7c15u ^ (word << 7);
		wrong |= block[i] ^ word;
	}
	return !wrong;
}

uint64_t workload_number(const char *text, uint64_t min, uint64_t max)
{
	char *end;
	uint64_t n;

	errno = 0;
	n = strtoull(text, &end, 10);
	if (errno || end == text || *end || n < min || n > max) {
		fprintf(stderr, "workload: %s: a number from %" PRIu64 " to %" PRIu64 "\n", text, min, max);
		exit(2);
	}
	return n;
}

void workload_report_open(struct workload_report *r, uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };

	r->sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (r->sock < 0 || bind(r->sock, (struct sockaddr *)&a, sizeof(a)) < 0) {
		fprintf(stderr, "workload: port %u: %s\n", port, strerror(errno));
		exit(1);
	}
}

static int describe(const struct workload_report *r, char *text, size_t room)
{
	return snprintf(text, room, "WORKLOAD %s %s %s=%" PRIu64 " faults=%" PRIu64 " checked=%" PRIu64 " written=%" PRIu64,
			r->faults ? "FAULTY" : "ok", r->name, r->unit, r->units, r->faults, r->checked, r->written);
}

void workload_report_answer(struct workload_report *r)
{
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	char text[256], question[64];

	while (recvfrom(r->sock, question, sizeof(question), MSG_DONTWAIT, (struct sockaddr *)&from, &len) >= 0) {
		int n = describe(r, text, sizeof(text));

		if (n > 0 && (size_t)n < sizeof(text))
			sendto(r->sock, text, (size_t)n, MSG_DONTWAIT, (struct sockaddr *)&from, len);
		len = sizeof(from);
	}
}

void workload_report_fault(struct workload_report *r, uint64_t index, uint64_t expected, uint64_t found)
{
	r->faults++;
	if (r->faults <= 20)
		printf("WORKLOAD FAULT %s index=%" PRIu64 " expected=%" PRIu64 " found=%" PRIu64 "\n", r->name, index, expected, found);
	fflush(stdout);
}

/* Asks one workload; 0 ok, 1 faulty, 2 no answer. */
static int ask(const char *ip, uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct timeval patience = { .tv_usec = 300000 };
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int result = 2;

	if (sock < 0 || inet_pton(AF_INET, ip, &a.sin_addr) != 1 || connect(sock, (struct sockaddr *)&a, sizeof(a)) < 0) {
		fprintf(stderr, "workload: %s: not an address that can be reached\n", ip);
		exit(2);
	}
	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	for (int attempt = 0; attempt < 3 && result == 2; attempt++) {
		char text[257];
		ssize_t n;

		if (send(sock, "?", 1, 0) < 0)
			continue;
		n = recv(sock, text, sizeof(text) - 1, 0);
		/* Nobody listens there: the answer is an ICMP error, at once. */
		if (n < 0 && errno == ECONNREFUSED)
			break;
		if (n < 0)
			continue;
		text[n] = '\0';
		puts(text);
		result = strstr(text, "WORKLOAD ok ") == text ? 0 : 1;
	}
	close(sock);
	return result;
}

int workload_check(int argc, char **argv)
{
	const char *ip = argc > 0 ? argv[0] : "127.0.0.1";
	int dirty = ask(ip, WORKLOAD_DIRTY_PORT), disk = ask(ip, WORKLOAD_DISK_PORT);

	if (dirty == 1 || disk == 1)
		return 1;
	if (dirty == 2 && disk == 2) {
		fprintf(stderr, "workload: no workload answers at %s\n", ip);
		return 2;
	}
	return 0;
}

int workload_heartbeat(int argc, char **argv)
{
	struct sockaddr_in a = { .sin_family = AF_INET }, from;
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	char data[2048];

	if (argc != 2 || inet_pton(AF_INET, argv[0], &a.sin_addr) != 1) {
		fprintf(stderr, "workload: heartbeat IP PORT\n");
		return 2;
	}
	a.sin_port = htons((uint16_t)workload_number(argv[1], 1, 65535));
	if (sock < 0 || bind(sock, (struct sockaddr *)&a, sizeof(a)) < 0) {
		fprintf(stderr, "workload: heartbeat %s %s: %s\n", argv[0], argv[1], strerror(errno));
		return 1;
	}
	for (;;) {
		socklen_t len = sizeof(from);
		ssize_t n = recvfrom(sock, data, sizeof(data), 0, (struct sockaddr *)&from, &len);

		if (n >= 0)
			sendto(sock, data, (size_t)n, MSG_DONTWAIT, (struct sockaddr *)&from, len);
	}
}

int workload_tick(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), yes = 1;
	int64_t period, next = workload_now();

	if (argc != 3 || inet_pton(AF_INET, argv[0], &to.sin_addr) != 1) {
		fprintf(stderr, "workload: tick IP PORT MS\n");
		return 2;
	}
	to.sin_port = htons((uint16_t)workload_number(argv[1], 1, 65535));
	period = (int64_t)workload_number(argv[2], 1, 60000) * 1000000;
	if (sock < 0 || setsockopt(sock, SOL_SOCKET, SO_BROADCAST, &yes, sizeof(yes)) < 0) {
		fprintf(stderr, "workload: tick: %s\n", strerror(errno));
		return 1;
	}
	for (uint64_t n = 0;; n++) {
		char text[32];
		int len = snprintf(text, sizeof(text), "%" PRIu64, n);

		sendto(sock, text, (size_t)len, MSG_DONTWAIT, (struct sockaddr *)&to, sizeof(to));
		/* What was missed while the machine stood still is not made up for. */
		next = next + period > workload_now() ? next + period : workload_now() + period;
		workload_sleep_until(next);
	}
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(int argc, char **argv);
	} modes[] = {
		{ "dirty", workload_dirty },
		{ "verify-disk", workload_disk },
		{ "heartbeat", workload_heartbeat },
		{ "tick", workload_tick },
		{ "check", workload_check },
	};

	for (size_t i = 0; argc > 1 && i < sizeof(modes) / sizeof(modes[0]); i++)
		if (!strcmp(argv[1], modes[i].name))
			return modes[i].run(argc - 2, argv + 2);
	fprintf(stderr, "usage: workload dirty RATE_MB_PER_S SIZE_MB [asked] | verify-disk DEVICE [SIZE_MB] | heartbeat IP PORT | tick IP PORT MS | check [IP]\n");
	return 2;
}
