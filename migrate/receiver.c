// SPDX-License-Identifier: Apache-2.0
/* The destination's receiving threads; see receiver.h. */
#include "migrate/receiver.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/failpoints.h"
#include "migrate/move-internal.h"
#include "migrate/pages.h"

struct receiver {
	struct gw_receivers *all;
	struct gw_channel *ch;
	pthread_t thread;
};

struct gw_receivers {
	struct gw_move *mv;
	struct receiver threads[GW_STREAM_MAX_CHANNELS];
	unsigned count; /* threads that exist */
	pthread_mutex_t lock;
	pthread_cond_t change;
	unsigned done;  /* under lock: threads that took their last round */
	bool failed;    /* under lock: a thread ended otherwise */
	_Atomic(uint32_t) round;
	_Atomic(uint64_t) pages;
};

static int stream_error(int r, struct gw_error *err)
{
	switch (r) {
	case -EPIPE:
		return gw_error_set(err, r, "the connection to the source was lost while pages were taken");
	case -EBADMSG:
		return gw_error_set(err, r, "the page stream was corrupted on its way");
	case -ECANCELED:
		return gw_error_set(err, r, "cancelled");
	default:
		return gw_error_errno(err, r, "page stream");
	}
}

/* Straight into guest memory, piece by piece where the run crosses regions. */
static int take_raw(const struct gw_page_io *io, struct gw_ram *ram, uint64_t index, uint64_t count, struct gw_error *err)
{
	while (count > 0) {
		uint64_t n = GW_MIN(count, gw_ram_contiguous(ram, index));
		int r = io->read(io->self, gw_ram_page(ram, index), n << GW_PAGE_SHIFT);

		if (r < 0)
			return stream_error(r, err);
		index += n;
		count -= n;
	}
	return 0;
}

/*
 * Pages never touched stay so: reading shows whether there is anything to clear. What the guest gives back in large blocks while it moves goes
 * back here, too; less would split huge pages for little.
 */
static void take_zero(struct gw_ram *ram, uint64_t index, uint64_t count)
{
	for (uint64_t i = index; i < index + count; i++) {
		void *page = gw_ram_page(ram, i);

		if (gw_page_is_zero(page))
			continue;
		if (count == GW_STREAM_MAX_RUN && gw_ram_discard(ram, gw_ram_gpa(ram, index), count << GW_PAGE_SHIFT) == 0)
			return;
		memset(page, 0, GW_PAGE_SIZE);
	}
}

static int acknowledge(const struct gw_page_io *io, uint32_t round, struct gw_error *err)
{
	struct gw_page_frame f = { .type = GW_PAGE_ACK, .index = round };
	uint8_t raw[GW_STREAM_HEADER];
	int r;

	gw_page_frame_encode(&f, raw);
	r = io->write(io->self, raw, sizeof(raw));
	return r < 0 ? stream_error(r, err) : 0;
}

int gw_receive_frame(const struct gw_page_io *io, struct gw_ram *ram, uint32_t *round, uint64_t *pages, struct gw_error *err)
{
	uint8_t raw[GW_STREAM_HEADER];
	struct gw_page_frame f;
	int r;

	r = io->read(io->self, raw, sizeof(raw));
	if (r < 0)
		return stream_error(r, err);
	r = gw_page_frame_decode(raw, gw_ram_pages(ram), &f, err);
	if (r < 0)
		return r;
	switch (f.type) {
	case GW_PAGE_RAW:
		*pages += f.count;
		return take_raw(io, ram, f.index, f.count, err);
	case GW_PAGE_ZERO:
		take_zero(ram, f.index, f.count);
		return 0;
	case GW_PAGE_END:
		if (f.index != (uint64_t)*round + 1)
			return gw_error_set(err, EPROTO, "page stream: round %llu ended after round %u",
					    (unsigned long long)f.index, *round);
		(*round)++;
		return f.last ? 1 : acknowledge(io, *round, err);
	case GW_PAGE_ACK:
		break;
	}
	return gw_error_set(err, EPROTO, "page stream: the source may not acknowledge");
}

static int read_channel(void *self, void *data, size_t len)
{
	/* Rounds may be far apart under a bandwidth cap; a dead peer is noticed by TCP (wire.c). */
	return gw_channel_read(self, data, len, GW_NO_DEADLINE);
}

static int write_channel(void *self, const void *data, size_t len)
{
	int r = gw_channel_write(self, data, len);

	return r < 0 ? r : gw_channel_flush(self);
}

static void *receiver_main(void *arg)
{
	struct receiver *t = arg;
	struct gw_receivers *rs = t->all;
	const struct gw_page_io io = { .read = read_channel, .write = write_channel, .self = t->ch };
	struct gw_error err = GW_ERROR_INIT;
	uint32_t round = 0;
	uint64_t pages = 0;
	int r;

	r = gw_move_step(rs->mv, GW_FP_DST_COPY, &err);
	while (r == 0) {
		uint64_t before = pages;

		r = gw_receive_frame(&io, rs->mv->vm.ram, &round, &pages, &err);
		atomic_fetch_add_explicit(&rs->pages, pages - before, memory_order_relaxed);
		atomic_store_explicit(&rs->round, round, memory_order_relaxed);
	}
	if (r < 0)
		gw_move_fail(rs->mv, &err);
	pthread_mutex_lock(&rs->lock);
	if (r < 0)
		rs->failed = true;
	else
		rs->done++;
	pthread_cond_broadcast(&rs->change);
	pthread_mutex_unlock(&rs->lock);
	return NULL;
}

int gw_receivers_new(struct gw_move *mv, struct gw_receivers **ret, struct gw_error *err)
{
	struct gw_receivers *rs = calloc(1, sizeof(*rs));
	pthread_condattr_t attr;

	if (!rs)
		return gw_error_set(err, ENOMEM, "out of memory");
	rs->mv = mv;
	pthread_mutex_init(&rs->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&rs->change, &attr);
	pthread_condattr_destroy(&attr);
	for (unsigned i = 0; i < mv->p.channels; i++) {
		struct receiver *t = &rs->threads[i];
		int r;

		t->all = rs;
		t->ch = mv->data[i];
		r = pthread_create(&t->thread, NULL, receiver_main, t);
		if (r) {
			gw_error_errno(err, r, "cannot start a receiving thread");
			gw_move_fail(mv, err);
			gw_receivers_free(rs);
			return -r;
		}
		rs->count++;
	}
	*ret = rs;
	return 0;
}

void gw_receivers_free(struct gw_receivers *rs)
{
	if (!rs)
		return;
	for (unsigned i = 0; i < rs->count; i++)
		pthread_join(rs->threads[i].thread, NULL);
	pthread_cond_destroy(&rs->change);
	pthread_mutex_destroy(&rs->lock);
	free(rs);
}

int gw_receivers_wait_last(struct gw_receivers *rs, uint64_t deadline_ns, struct gw_error *err)
{
	struct timespec ts = { .tv_sec = (time_t)(deadline_ns / GW_NS_PER_SEC), .tv_nsec = (long)(deadline_ns % GW_NS_PER_SEC) };
	int r = 0;

	pthread_mutex_lock(&rs->lock);
	while (rs->done < rs->count && !rs->failed && r == 0)
		r = pthread_cond_timedwait(&rs->change, &rs->lock, &ts);
	if (rs->done == rs->count)
		r = 0;
	pthread_mutex_unlock(&rs->lock);
	if (gw_move_check(rs->mv, err) < 0)
		return -(err->code ?: EIO);
	return r ? gw_error_set(err, ETIMEDOUT, "the last pages did not come in time") : 0;
}

uint32_t gw_receivers_round(const struct gw_receivers *rs)
{
	return atomic_load_explicit(&rs->round, memory_order_relaxed);
}

uint64_t gw_receivers_pages(const struct gw_receivers *rs)
{
	return atomic_load_explicit(&rs->pages, memory_order_relaxed);
}
