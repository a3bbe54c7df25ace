// SPDX-License-Identifier: Apache-2.0
/* The source's sending threads; see sender.h. */
#include "migrate/sender.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/move-internal.h"
#include "migrate/pages.h"

/* Words of the bitmap that a thread takes at a time: 512 pages. */
#define PIECE_WORDS 8
/* A capped sender may be this far behind its pace and catch up. */
#define PACE_SLACK (20 * GW_NS_PER_MS)

struct sender {
	struct gw_senders *all;
	struct gw_channel *ch;
	pthread_t thread;
};

struct gw_senders {
	struct gw_move *mv;
	struct sender threads[GW_STREAM_MAX_CHANNELS];
	unsigned count;      /* threads that exist */
	size_t words;        /* of a bitmap */
	uint32_t max_run;    /* pages in one frame */

	pthread_mutex_t lock;
	pthread_cond_t begin, over;
	/* Under lock; constant while a round runs. */
	uint32_t round;      /* 0 before the first */
	unsigned busy;       /* threads that have not finished the round */
	const uint64_t *bitmap;
	bool last;
	bool quit;

	_Atomic(size_t) taken;
	_Atomic(uint64_t) pages, zeros;
	_Atomic(uint64_t) pace_ns; /* when the bytes sent so far are due to be through, under the bandwidth cap */
};

/* Waits until `bytes` more fit the cap. */
static void pace(struct gw_senders *s, uint64_t bytes)
{
	uint64_t cost = bytes * GW_NS_PER_SEC / s->mv->p.bandwidth;
	uint64_t now = gw_now_ns();
	uint64_t due = atomic_load(&s->pace_ns);
	uint64_t from;

	do {
		from = GW_MAX(due, now - PACE_SLACK);
	} while (!atomic_compare_exchange_weak(&s->pace_ns, &due, from + cost));
	while (from > (now = gw_now_ns())) {
		struct pollfd p = { .fd = s->mv->wake_fd, .events = POLLIN };

		if (poll(&p, 1, gw_ms_until(from)) > 0)
			return;
	}
}

static int send_frame(struct sender *t, enum gw_page_type type, uint64_t index, uint32_t count, bool last)
{
	struct gw_page_frame f = { .type = type, .last = last, .count = count, .index = index };
	uint8_t raw[GW_STREAM_HEADER];

	gw_page_frame_encode(&f, raw);
	return gw_channel_write(t->ch, raw, sizeof(raw));
}

/* Sends `count` pages from `index` on, adjacent in host memory, in frames that the cap allows. */
static int send_raw(struct sender *t, uint64_t index, uint32_t count)
{
	struct gw_senders *s = t->all;
	const uint8_t *p = gw_ram_page(s->mv->vm.ram, index);

	while (count > 0) {
		uint32_t n = GW_MIN(count, s->max_run);
		int r;

		if (s->mv->p.bandwidth && !s->last)
			pace(s, (uint64_t)n << GW_PAGE_SHIFT);
		r = send_frame(t, GW_PAGE_RAW, index, n, false);
		if (r == 0)
			r = gw_channel_write(t->ch, p, (size_t)n << GW_PAGE_SHIFT);
		if (r < 0)
			return r;
		atomic_fetch_add_explicit(&s->pages, n, memory_order_relaxed);
		p += (size_t)n << GW_PAGE_SHIFT;
		index += n;
		count -= n;
	}
	return 0;
}

static int send_zero(struct sender *t, uint64_t index, uint32_t count)
{
	struct gw_senders *s = t->all;

	atomic_fetch_add_explicit(&s->zeros, count, memory_order_relaxed);
	return s->round > 1 ? send_frame(t, GW_PAGE_ZERO, index, count, false) : 0;
}

/* A run of pages of one kind, adjacent in host memory, not sent yet. */
struct run {
	uint64_t index;
	uint32_t count;
	bool zero;
};

static int send_run(struct sender *t, struct run *run)
{
	int r = 0;

	if (run->count)
		r = run->zero ? send_zero(t, run->index, run->count) : send_raw(t, run->index, run->count);
	run->count = 0;
	return r;
}

/* The piece of the bitmap from word `first` on. The pages are read after the dirty sync that gave the bitmap. */
static int send_piece(struct sender *t, size_t first)
{
	struct gw_senders *s = t->all;
	size_t end = GW_MIN(first + PIECE_WORDS, s->words);
	struct run run = { .count = 0 };
	int r = 0;

	for (size_t w = first; w < end && r == 0; w++) {
		uint64_t bits = s->bitmap[w];

		while (bits && r == 0) {
			uint64_t index = w * 64 + (uint64_t)__builtin_ctzll(bits);
			bool zero = gw_page_is_zero(gw_ram_page(s->mv->vm.ram, index));

			bits &= bits - 1;
			if (run.count && (zero != run.zero || index != run.index + run.count ||
					  gw_ram_contiguous(s->mv->vm.ram, run.index) == run.count))
				r = send_run(t, &run);
			if (run.count == 0)
				run = (struct run){ .index = index, .count = 0, .zero = zero };
			run.count++;
		}
	}
	return r == 0 ? send_run(t, &run) : r;
}

static int wait_ack(struct sender *t, uint32_t round, struct gw_error *err)
{
	uint8_t raw[GW_STREAM_HEADER];
	struct gw_page_frame f;
	int r;

	/* What is under way is bounded by the sockets' buffers; a dead connection ends by its own timeouts. */
	r = gw_channel_read(t->ch, raw, sizeof(raw), gw_now_ns() + 60 * GW_NS_PER_SEC);
	if (r < 0)
		return r;
	r = gw_page_frame_decode(raw, gw_ram_pages(t->all->mv->vm.ram), &f, err);
	if (r == 0 && (f.type != GW_PAGE_ACK || f.index != round))
		r = gw_error_set(err, EPROTO, "the destination acknowledged something else than round %u", round);
	return r;
}

static int send_round(struct sender *t, struct gw_error *err)
{
	struct gw_senders *s = t->all;
	size_t first;
	int r = 0;

	while (r == 0 && (first = atomic_fetch_add(&s->taken, PIECE_WORDS)) < s->words)
		r = send_piece(t, first);
	if (r == 0)
		r = send_frame(t, GW_PAGE_END, s->round, 0, s->last);
	if (r == 0)
		r = gw_channel_flush(t->ch);
	if (r == 0 && !s->last)
		r = wait_ack(t, s->round, err);
	return r;
}

/* Next round after `done`; false when there is none. */
static bool next_round(struct gw_senders *s, uint32_t done)
{
	bool more;

	pthread_mutex_lock(&s->lock);
	while (s->round == done && !s->quit)
		pthread_cond_wait(&s->begin, &s->lock);
	more = s->round != done && !s->quit;
	pthread_mutex_unlock(&s->lock);
	return more;
}

static void finish_round(struct gw_senders *s)
{
	pthread_mutex_lock(&s->lock);
	if (--s->busy == 0)
		pthread_cond_broadcast(&s->over);
	pthread_mutex_unlock(&s->lock);
}

static void *sender_main(void *arg)
{
	struct sender *t = arg;
	struct gw_senders *s = t->all;
	struct gw_error err = GW_ERROR_INIT;
	uint32_t done = 0;
	bool ended = false;

	while (!ended && next_round(s, done)) {
		int r = send_round(t, &err);

		if (r < 0) {
			if (!err.code && r == -ETIMEDOUT)
				gw_error_set(&err, ETIMEDOUT, "the destination takes no more data");
			else if (!err.code && r == -EPIPE)
				gw_error_set(&err, EPIPE, "the connection to the destination was lost while pages were sent");
			else if (!err.code)
				gw_error_errno(&err, r, "sending pages");
			gw_move_fail(s->mv, &err);
		}
		done = s->round;
		ended = r < 0 || s->last;
		finish_round(s);
	}
	return NULL;
}

int gw_senders_new(struct gw_move *mv, struct gw_senders **ret, struct gw_error *err)
{
	struct gw_senders *s = calloc(1, sizeof(*s));
	pthread_condattr_t attr;

	if (!s)
		return gw_error_set(err, ENOMEM, "out of memory");
	s->mv = mv;
	s->words = gw_ram_bitmap_words(mv->vm.ram);
	/* A frame of a capped stream lasts at most a twentieth of a second. */
	s->max_run = GW_STREAM_MAX_RUN;
	if (mv->p.bandwidth && mv->p.bandwidth / 20 / GW_PAGE_SIZE < GW_STREAM_MAX_RUN)
		s->max_run = (uint32_t)(mv->p.bandwidth / 20 / GW_PAGE_SIZE) ?: 1;
	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->begin, &attr);
	pthread_cond_init(&s->over, &attr);
	pthread_condattr_destroy(&attr);
	for (unsigned i = 0; i < mv->p.channels; i++) {
		struct sender *t = &s->threads[i];
		int r;

		t->all = s;
		t->ch = mv->data[i];
		r = pthread_create(&t->thread, NULL, sender_main, t);
		if (r) {
			gw_senders_free(s);
			return gw_error_errno(err, r, "cannot start a sending thread");
		}
		s->count++;
	}
	*ret = s;
	return 0;
}

void gw_senders_free(struct gw_senders *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	s->quit = true;
	pthread_cond_broadcast(&s->begin);
	pthread_mutex_unlock(&s->lock);
	for (unsigned i = 0; i < s->count; i++)
		pthread_join(s->threads[i].thread, NULL);
	pthread_cond_destroy(&s->begin);
	pthread_cond_destroy(&s->over);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

void gw_senders_begin(struct gw_senders *s, uint32_t round, const uint64_t *bitmap, bool last)
{
	pthread_mutex_lock(&s->lock);
	s->round = round;
	s->bitmap = bitmap;
	s->last = last;
	s->busy = s->count;
	atomic_store(&s->taken, 0);
	pthread_cond_broadcast(&s->begin);
	pthread_mutex_unlock(&s->lock);
}

bool gw_senders_wait(struct gw_senders *s, uint64_t deadline_ns)
{
	struct timespec ts = { .tv_sec = (time_t)(deadline_ns / GW_NS_PER_SEC), .tv_nsec = (long)(deadline_ns % GW_NS_PER_SEC) };
	bool over;

	pthread_mutex_lock(&s->lock);
	while (s->busy > 0) {
		if (pthread_cond_timedwait(&s->over, &s->lock, &ts) == ETIMEDOUT)
			break;
	}
	over = s->busy == 0;
	pthread_mutex_unlock(&s->lock);
	return over;
}

size_t gw_senders_taken(const struct gw_senders *s)
{
	return GW_MIN(atomic_load(&s->taken), s->words);
}

size_t gw_senders_interrupt(struct gw_senders *s)
{
	/* Far enough from overflow for the threads' last additions. */
	size_t first = atomic_exchange(&s->taken, SIZE_MAX / 2);

	return GW_MIN(first, s->words);
}

void gw_senders_rewind(struct gw_senders *s)
{
	atomic_store(&s->taken, 0);
}

uint64_t gw_senders_pages(const struct gw_senders *s)
{
	return atomic_load_explicit(&s->pages, memory_order_relaxed);
}

uint64_t gw_senders_zeros(const struct gw_senders *s)
{
	return atomic_load_explicit(&s->zeros, memory_order_relaxed);
}
