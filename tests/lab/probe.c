// SPDX-License-Identifier: Apache-2.0
/*
 * probe: measures from outside how long a guest does not answer. It sends a small UDP datagram each millisecond to the guest's
 * heartbeat (workload.c) and notes when each answer arrived, by the kernel's receive timestamps.
 *
 *   probe IP PORT [--seconds N] [--interval-us N] [--min-gap-ms N]
 *
 * A gap runs from the first probe that was sent after the last answer to the next answer: the time in which a question
 * found no answer. Time in which this program itself was not scheduled, and asked nothing, does not count that way.
 * It ends after N seconds, or on SIGINT or SIGTERM, and prints one JSON object; SIGUSR1 prints one and goes on with fresh
 * counters, so that a driver can ask for each phase of a test. "ready" goes to stderr when the first answer has come.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define GAPS_MAX 1000
#define SENT_RING 65536	/* send times of the newest probes, by sequence number */

struct gap {
	int64_t start, end;	/* CLOCK_REALTIME, ns */
};

struct probe {
	int sock;
	uint64_t next;		/* sequence number of the next probe */
	uint64_t first_unanswered;
	int64_t sent_at[SENT_RING];
	int64_t min_gap;
	uint64_t sent, received;
	int64_t started, longest_rtt, total_rtt;
	struct gap longest, gaps[GAPS_MAX];
	size_t gap_count;
	bool ready;
};

static int64_t now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void note_gap(struct probe *p, int64_t start, int64_t end)
{
	if (end - start > p->longest.end - p->longest.start)
		p->longest = (struct gap){ start, end };
	if (end - start >= p->min_gap && p->gap_count < GAPS_MAX)
		p->gaps[p->gap_count++] = (struct gap){ start, end };
}

static void note_reply(struct probe *p, uint64_t sequence, int64_t received_at)
{
	int64_t sent_at;

	if (sequence >= p->next || p->next - sequence > SENT_RING)
		return;
	sent_at = p->sent_at[sequence % SENT_RING];
	p->received++;
	p->total_rtt += received_at - sent_at;
	if (received_at - sent_at > p->longest_rtt)
		p->longest_rtt = received_at - sent_at;
	/* Only the first answer after a silence ends it; its start is the oldest probe sent since the last answer. */
	if (p->first_unanswered < p->next && p->next - p->first_unanswered <= SENT_RING)
		note_gap(p, p->sent_at[p->first_unanswered % SENT_RING], received_at);
	p->first_unanswered = p->next;
	if (!p->ready) {
		p->ready = true;
		p->gap_count = 0;
		p->longest = (struct gap){ 0, 0 };
		fprintf(stderr, "ready\n");
	}
}

/* The kernel's timestamp of a datagram, or the present where it gave none. */
static int64_t received_time(struct msghdr *m)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) {
			struct timespec t;

			memcpy(&t, CMSG_DATA(c), sizeof(t));
			return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
		}
	}
	return now_ns(CLOCK_REALTIME);
}

static void take_replies(struct probe *p)
{
	for (;;) {
		uint64_t sequence;
		char control[256];
		struct iovec v = { &sequence, sizeof(sequence) };
		struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
		ssize_t n = recvmsg(p->sock, &m, MSG_DONTWAIT);

		if (n < 0) {
			/* ECONNREFUSED tells of an ICMP error: the guest is up, its heartbeat not yet. */
			if (errno == ECONNREFUSED || errno == EINTR)
				continue;
			return;
		}
		if (n == sizeof(sequence))
			note_reply(p, sequence, received_time(&m));
	}
}

static void send_probe(struct probe *p)
{
	uint64_t sequence = p->next;

	p->sent_at[sequence % SENT_RING] = now_ns(CLOCK_REALTIME);
	/* A refused or unreachable send is a probe without an answer: it counts as sent. */
	send(p->sock, &sequence, sizeof(sequence), MSG_DONTWAIT | MSG_NOSIGNAL);
	p->next++;
	p->sent++;
}

static void print_result(struct probe *p)
{
	int64_t now = now_ns(CLOCK_REALTIME), open_gap = 0;

	if (p->first_unanswered < p->next && p->next - p->first_unanswered <= SENT_RING)
		open_gap = now - p->sent_at[p->first_unanswered % SENT_RING];
	printf("{\"sent\":%" PRIu64 ",\"received\":%" PRIu64 ",\"seconds\":%.3f,\"rtt_mean_ms\":%.3f,\"rtt_max_ms\":%.3f,"
	       "\"longest_gap_ms\":%.3f,\"longest_gap_start\":%.6f,\"open_gap_ms\":%.3f,\"gaps\":[",
	       p->sent, p->received, (double)(now - p->started) / 1e9,
	       p->received ? (double)p->total_rtt / 1e6 / (double)p->received : 0.0, (double)p->longest_rtt / 1e6,
	       (double)(p->longest.end - p->longest.start) / 1e6, (double)p->longest.start / 1e9, (double)open_gap / 1e6);
	for (size_t i = 0; i < p->gap_count; i++)
		printf("%s{\"start\":%.6f,\"ms\":%.3f}", i ? "," : "", (double)p->gaps[i].start / 1e9,
		       (double)(p->gaps[i].end - p->gaps[i].start) / 1e6);
	printf("]}\n");
	fflush(stdout);
}

static void reset_counters(struct probe *p)
{
	p->sent = p->received = 0;
	p->longest_rtt = p->total_rtt = 0;
	p->longest = (struct gap){ 0, 0 };
	p->gap_count = 0;
	p->started = now_ns(CLOCK_REALTIME);
}

static int run(struct probe *p, int64_t interval, int64_t end)
{
	struct itimerspec every = { .it_interval.tv_sec = interval / 1000000000, .it_interval.tv_nsec = interval % 1000000000,
				    .it_value.tv_nsec = 1 };
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC), signals;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (timer < 0 || signals < 0 || timerfd_settime(timer, 0, &every, NULL) < 0)
		return -errno;
	while (!end || now_ns(CLOCK_MONOTONIC) < end) {
		struct pollfd f[3] = {
			{ .fd = timer, .events = POLLIN }, { .fd = p->sock, .events = POLLIN }, { .fd = signals, .events = POLLIN },
		};
		struct signalfd_siginfo info;
		uint64_t ticks;

		if (poll(f, 3, 1000) < 0 && errno != EINTR)
			return -errno;
		take_replies(p);
		if (read(timer, &ticks, sizeof(ticks)) == sizeof(ticks))
			send_probe(p);
		if (read(signals, &info, sizeof(info)) == sizeof(info)) {
			if (info.ssi_signo != SIGUSR1)
				return 0;
			print_result(p);
			reset_counters(p);
		}
	}
	return 0;
}

static int open_socket(const char *ip, const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)strtoul(port, NULL, 10)) };
	int one = 1, sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (sock < 0)
		return -errno;
	if (inet_pton(AF_INET, ip, &a.sin_addr) != 1)
		return -EINVAL;
	setsockopt(sock, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof(one));
	if (connect(sock, (struct sockaddr *)&a, sizeof(a)) < 0)
		return -errno;
	return sock;
}

int main(int argc, char **argv)
{
	static struct probe p;
	struct sched_param priority = { .sched_priority = 10 };
	int64_t seconds = 0, interval_us = 1000;
	int r;

	p.min_gap = 10 * 1000000;
	for (int i = 3; i + 1 < argc; i += 2) {
		int64_t value = strtoll(argv[i + 1], NULL, 10);

		if (!strcmp(argv[i], "--seconds"))
			seconds = value;
		else if (!strcmp(argv[i], "--interval-us") && value > 0)
			interval_us = value;
		else if (!strcmp(argv[i], "--min-gap-ms"))
			p.min_gap = value * 1000000;
		else
			argc = 0;
	}
	if (argc < 3 || argc % 2 == 0) {
		fprintf(stderr, "usage: probe IP PORT [--seconds N] [--interval-us N] [--min-gap-ms N]\n");
		return 2;
	}
	p.sock = open_socket(argv[1], argv[2]);
	if (p.sock < 0) {
		fprintf(stderr, "probe: %s %s: %s\n", argv[1], argv[2], strerror(-p.sock));
		return 1;
	}
	/* Beside busy emulators an ordinary process waits for milliseconds; without the right to it the figures only get worse. */
	sched_setscheduler(0, SCHED_FIFO, &priority);
	prctl(PR_SET_TIMERSLACK, 1000);
	reset_counters(&p);
	r = run(&p, interval_us * 1000, seconds ? now_ns(CLOCK_MONOTONIC) + seconds * 1000000000 : 0);
	if (r < 0) {
		fprintf(stderr, "probe: %s\n", strerror(-r));
		return 1;
	}
	print_result(&p);
	return 0;
}
