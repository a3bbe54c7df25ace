// SPDX-License-Identifier: Apache-2.0
/*
 * netdelay: a link that holds every frame back for a fixed time, for kernels without sch_netem.
 *
 * netdelay TAP MS makes the tap device and, for each frame that the kernel sends into it, gives the same frame back MS
 * milliseconds later; tc rules around it (gwlab/network.py) steer frames in and carry them on to where they were going.
 * Frames travel with their virtio_net_hdr, so that large segments and missing checksums pass as they are.
 * Prints "ready" when the device exists. What does not fit the queue is dropped, as on a real link.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define FRAME_MAX (70 * 1024)
#define QUEUE_BYTES_MAX (256u * 1024 * 1024)

struct frame {
	struct frame *next;
	int64_t due;		/* CLOCK_MONOTONIC, ns */
	size_t len;
	char data[];
};

struct queue {
	struct frame *head, **tail;
	size_t bytes;
};

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int open_tap(const char *name)
{
	struct ifreq r = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return -errno;
	snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", name);
	if (ioctl(fd, TUNSETIFF, &r) < 0)
		return -errno;
	if (ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN) < 0)
		return -errno;
	return fd;
}

/* Takes in all frames that wait; false when the device is gone. */
static bool take_frames(int fd, struct queue *q, int64_t delay)
{
	static char buf[FRAME_MAX];
	ssize_t n;

	while ((n = read(fd, buf, sizeof(buf))) > 0) {
		struct frame *f;

		if (q->bytes + (size_t)n > QUEUE_BYTES_MAX)
			continue;
		f = malloc(sizeof(*f) + (size_t)n);
		if (!f)
			continue;
		f->next = NULL;
		f->due = now_ns() + delay;
		f->len = (size_t)n;
		memcpy(f->data, buf, (size_t)n);
		*q->tail = f;
		q->tail = &f->next;
		q->bytes += (size_t)n;
	}
	return n == 0 || errno == EAGAIN || errno == EINTR;
}

static void give_due_frames(int fd, struct queue *q)
{
	int64_t now = now_ns();

	while (q->head && q->head->due <= now) {
		struct frame *f = q->head;

		/* A frame that the kernel refuses is lost, as on a real link. */
		if (write(fd, f->data, f->len) < 0 && errno == EAGAIN)
			return;
		q->head = f->next;
		if (!q->head)
			q->tail = &q->head;
		q->bytes -= f->len;
		free(f);
	}
}

int main(int argc, char **argv)
{
	struct queue q = { .tail = &q.head };
	int64_t delay;
	int fd;

	if (argc != 3) {
		fprintf(stderr, "usage: netdelay TAP MS\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Sleeps end within this slack; the default of 50 us would blur short delays under load. */
	prctl(PR_SET_TIMERSLACK, 1000);
	delay = (int64_t)(strtod(argv[2], NULL) * 1e6);
	fd = open_tap(argv[1]);
	if (fd < 0) {
		fprintf(stderr, "netdelay: %s: %s\n", argv[1], strerror(-fd));
		return 1;
	}
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		int64_t wait = q.head ? q.head->due - now_ns() : 0;
		struct timespec t = { .tv_sec = wait / 1000000000, .tv_nsec = wait % 1000000000 };

		if (wait >= 0 && ppoll(&p, 1, q.head ? &t : NULL, NULL) < 0 && errno != EINTR)
			return 1;
		if (!take_frames(fd, &q, delay))
			return 0;
		give_due_frames(fd, &q);
	}
}
