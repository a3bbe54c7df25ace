// SPDX-License-Identifier: Apache-2.0
/* The rounds of saving a VM, and when to end them. See save.h. */
#include <errno.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "migrate/failpoints.h"
#include "migrate/save-internal.h"

/* Words of the bitmap between two looks at the clock and at whether it was cancelled: 512 pages. */
#define PIECE_WORDS 8
/* Between two looks at the dirty log within a round: taking it re-arms each page, and its next write costs the guest a fault. */
#define SYNC_NS GW_NS_PER_SEC
#define COUNT_NS (50 * GW_NS_PER_MS)
#define DEFAULT_DOWNTIME_MS 300
/*
 * A round that leaves more than this part of what the one before left is the last but one, and so many are enough in any case: a guest that writes as fast
 * as pages are sealed stands still a little longer. It is not slowed down for that, as it would be by a move: nobody waits for it elsewhere.
 */
#define CONVERGE_PART 0.75
#define MAX_ROUNDS 10

static int copy_run(struct gw_save *s, uint64_t first, uint64_t count)
{
	while (count > 0) {
		uint64_t n = GW_MIN(count, gw_ram_contiguous(s->vm.ram, first));
		int r = gw_snap_writer_pages(s->writer, first, n, gw_ram_page(s->vm.ram, first));

		if (r < 0)
			return r;
		first += n;
		count -= n;
	}
	return 0;
}

/* Pages of the bitmap's words from..to-1. */
static int copy_piece(struct gw_save *s, const uint64_t *now, size_t from, size_t to, uint64_t *pages)
{
	uint64_t first = 0, count = 0;
	int r = 0;

	for (size_t w = from; w < to && r == 0; w++) {
		for (uint64_t bits = now[w]; bits && r == 0; bits &= bits - 1) {
			uint64_t page = w * 64 + (uint64_t)__builtin_ctzll(bits);

			if (count && page != first + count) {
				r = copy_run(s, first, count);
				count = 0;
			}
			if (count++ == 0)
				first = page;
			(*pages)++;
		}
	}
	return r == 0 && count ? copy_run(s, first, count) : r;
}

static size_t taken(void *arg)
{
	return ((struct gw_save *)arg)->word;
}

/* Counting what is left is work for as many words as RAM has: now and then will do. */
static void note(struct gw_save *s, size_t word, uint64_t pages)
{
	bool count = word == gw_rounds_words(s->rounds) || gw_now_ns() - s->counted_ns >= COUNT_NS;
	uint64_t left = count ? gw_rounds_left(s->rounds, word) << GW_PAGE_SHIFT : 0;

	s->word = word;
	pthread_mutex_lock(&s->lock);
	s->progress.bytes_done += pages << GW_PAGE_SHIFT;
	if (count)
		s->progress.bytes_left = left;
	s->progress.dirty_rate = (uint64_t)gw_rounds_dirty_rate(s->rounds);
	pthread_mutex_unlock(&s->lock);
	if (count)
		s->counted_ns = gw_now_ns();
}

/* One round; while the VM runs the log is taken now and then. */
static int copy_round(struct gw_save *s, bool tracked, struct gw_error *err)
{
	size_t words = gw_rounds_words(s->rounds);
	int r = 0;

	pthread_mutex_lock(&s->lock);
	s->progress.round++;
	pthread_mutex_unlock(&s->lock);
	s->word = 0;
	for (size_t w = 0; w < words; w += PIECE_WORDS) {
		size_t end = GW_MIN(w + PIECE_WORDS, words);
		uint64_t pages = 0;

		r = gw_save_check(s, err);
		if (r == 0 && copy_piece(s, gw_rounds_now(s->rounds), w, end, &pages) < 0)
			r = gw_snap_writer_flush(s->writer, err) ?: gw_error_set(err, EIO, "the pages cannot be saved");
		if (r < 0)
			return r;
		note(s, end, pages);
		if (tracked && gw_now_ns() - gw_rounds_synced_ns(s->rounds) >= SYNC_NS) {
			r = gw_rounds_sync(s->rounds, taken, s, err);
			if (r < 0)
				return r;
		}
	}
	gw_rounds_copied(s->rounds);
	/* Of a page that comes again the later counts. */
	return gw_snap_writer_flush(s->writer, err);
}

static bool time_to_stop(const struct gw_save *s, uint64_t left, uint64_t last_left, uint64_t pages, uint64_t spent_ns)
{
	uint64_t target = (s->p.downtime_ms ?: DEFAULT_DOWNTIME_MS) * GW_NS_PER_MS;
	double ns_a_page = (double)spent_ns / (double)GW_MAX(pages, (uint64_t)1);

	if ((double)left * ns_a_page <= (double)target || s->progress.round >= MAX_ROUNDS)
		return true;
	return last_left && (double)left >= CONVERGE_PART * (double)last_left;
}

/*
 * What the VM has touched lately comes before all else, so that it lies together: whoever resumes it reads that in one go. It is looked at again in its turn, as
 * any page, and found to be known unless it was written.
 */
static int copy_working_set(struct gw_save *s, struct gw_error *err)
{
	size_t words = gw_rounds_words(s->rounds);
	uint64_t pages = 0;
	int r = 0;

	for (size_t w = 0; w < words && r == 0; w += PIECE_WORDS)
		r = copy_piece(s, s->working_set, w, GW_MIN(w + PIECE_WORDS, words), &pages);
	/* A failure is told by the flush. */
	return gw_snap_writer_flush(s->writer, err) ?: r < 0 ? gw_error_set(err, EIO, "the pages cannot be saved") : 0;
}

int gw_save_rounds(struct gw_save *s, struct gw_error *err)
{
	bool live = s->p.live && s->was_running;
	uint64_t last_left = 0;
	int r = gw_rounds_new(s->vm.ram, live ? &s->vm.dirty : NULL, &s->rounds, err);

	if (r == 0 && s->working_set)
		r = copy_working_set(s, err);
	for (bool stop = !live; r == 0 && !stop;) {
		uint64_t begun = gw_now_ns(), before = s->progress.bytes_done, left;
		bool peeked;

		r = copy_round(s, true, err);
		r = r ?: gw_save_step(s, GW_FP_SAVE_ROUND, err);
		r = r ?: gw_rounds_look(s->rounds, &peeked, &left, err);
		if (r < 0)
			return r;
		stop = time_to_stop(s, left, last_left, (s->progress.bytes_done - before) >> GW_PAGE_SHIFT, gw_now_ns() - begun);
		last_left = left;
		if (!stop && peeked)
			r = gw_rounds_sync(s->rounds, taken, s, err);
		gw_rounds_next(s->rounds);
	}
	return r;
}

int gw_save_last_round(struct gw_save *s, struct gw_error *err)
{
	int r = s->p.live && s->was_running ? gw_rounds_last(s->rounds, err) : 0;

	return r ?: copy_round(s, false, err);
}
