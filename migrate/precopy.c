// SPDX-License-Identifier: Apache-2.0
/* Pre-copy rounds and when to end them; see precopy.h. */
#include "migrate/precopy.h"

#include <errno.h>

#include "lib/util.h"
#include "migrate/failpoints.h"
#include "migrate/move-internal.h"
#include "migrate/rounds.h"
#include "migrate/sender.h"

#define REPORT_NS (100 * GW_NS_PER_MS)
/* Between two looks at the dirty log within a round: taking it re-arms each page, and its next write costs the guest a fault. */
#define SYNC_MIN_NS GW_NS_PER_SEC
/* State of vCPUs and devices: packing, sending, loading, and three exchanges. Round trips and the last log are measured. */
#define STATE_NS (8 * GW_NS_PER_MS)
/* Rounds that are run although the target is met, and the part of the target that one must save: re-arming costs the guest a fault a page. */
#define EXTRA_ROUNDS 3
#define EXTRA_GAIN 4
/*
 * A guest may dirty each round as much as one can send, just above the target, for ever. Where the operator named no target, so many
 * rounds without anything gained mean that a blackout of up to so many times the default is taken.
 */
#define PLATEAU_ROUNDS 12
#define PLATEAU_TARGETS 6

/* A VM that shared its processors with the senders answers late: so long it may have them to itself before it is stopped, for this part of the target. */
#define GRACE_NS (40 * GW_NS_PER_MS)
#define GRACE_PART 2

/*
 * A round that leaves more than this part of what the one before left does not converge: what writes is then held for half of its time, then
 * for half of the rest. No further: a guest that hardly runs answers nobody.
 */
#define CONVERGE_PART 0.75
#define SLOW_MAX 75

struct gw_precopy {
	struct gw_move *mv;
	struct gw_senders *senders;
	struct gw_rounds *pages;
	bool slowed;
	uint32_t round;
	unsigned extra;
	uint64_t last_left;     /* that the round before left to send; 0 in the first */
	uint64_t rtt_ns;
	uint64_t begun_ns;      /* copying */
	uint64_t reported_ns;
	uint64_t best_left;     /* the least that a round left to send, */
	unsigned best_age;      /* and how many rounds ago */
	uint64_t base_bytes, base_ns; /* rate shown: since then */
	double rate;            /* bytes/s on the wire, acknowledged; 0 = unknown */
};

int gw_precopy_new(struct gw_move *mv, struct gw_senders *senders, uint64_t rtt_ns, struct gw_precopy **ret,
		   struct gw_error *err)
{
	struct gw_precopy *pc = calloc(1, sizeof(*pc));
	int r;

	if (!pc)
		return gw_error_set(err, ENOMEM, "out of memory");
	pc->mv = mv;
	pc->senders = senders;
	pc->rtt_ns = rtt_ns;
	pc->best_left = UINT64_MAX;
	r = gw_rounds_new(mv->vm.ram, &mv->vm.dirty, &pc->pages, err);
	if (r < 0) {
		gw_precopy_free(pc);
		return r;
	}
	*ret = pc;
	return 0;
}

static void end_slow(struct gw_precopy *pc)
{
	if (pc->slowed)
		pc->mv->vm.ops->slow(pc->mv->vm.self, 0);
	pc->slowed = false;
}

void gw_precopy_free(struct gw_precopy *pc)
{
	if (!pc)
		return;
	end_slow(pc);
	gw_rounds_free(pc->pages);
	free(pc);
}

static uint64_t left_bytes(const struct gw_precopy *pc)
{
	return gw_rounds_left(pc->pages, gw_senders_taken(pc->senders)) << GW_PAGE_SHIFT;
}

static uint64_t fixed_ns(const struct gw_precopy *pc)
{
	return 3 * pc->rtt_ns + gw_rounds_sync_cost_ns(pc->pages) + STATE_NS;
}

/* UINT64_MAX while the rate is not known; nothing takes no time at any rate. */
static uint64_t predict_ns(const struct gw_precopy *pc, uint64_t bytes)
{
	if (bytes == 0)
		return fixed_ns(pc);
	if (pc->rate <= 0)
		return UINT64_MAX;
	return (uint64_t)((double)bytes * 1e9 / pc->rate) + fixed_ns(pc);
}

/* The rate shown to people: wire bytes over about the last second. */
static void meter_rate(struct gw_precopy *pc, uint64_t now)
{
	struct gw_move_progress *p = &pc->mv->progress;
	uint64_t bytes = 0;

	for (unsigned i = 0; i < pc->mv->p.channels; i++)
		bytes += gw_channel_sent(pc->mv->data[i]);
	if (now - pc->base_ns < GW_NS_PER_MS)
		return;
	p->rate = (uint64_t)((double)(bytes - pc->base_bytes) * 1e9 / (double)(now - pc->base_ns));
	if (now - pc->base_ns > GW_NS_PER_SEC) {
		pc->base_bytes = bytes;
		pc->base_ns = now;
	}
	/* Good enough to predict by until a round has been acknowledged. */
	if (pc->round == 1)
		pc->rate = (double)p->rate;
}

static void report(struct gw_precopy *pc, uint64_t now)
{
	struct gw_move_progress *p = &pc->mv->progress;
	uint64_t left = left_bytes(pc);
	uint64_t predicted;

	meter_rate(pc, now);
	predicted = predict_ns(pc, left);
	p->round = pc->round;
	p->bytes_left = left;
	p->dirty_rate = (uint64_t)gw_rounds_dirty_rate(pc->pages);
	p->zero_pages = gw_rounds_untouched(pc->pages) + gw_senders_zeros(pc->senders);
	p->predicted_blackout_us = predicted == UINT64_MAX ? 0 : predicted / 1000;
	/* Rounds shrink by the ratio of the rates: a geometric series. Without convergence there is no estimate. */
	p->eta_ms = 0;
	if (p->rate > p->dirty_rate)
		p->eta_ms = left * 1000 / (p->rate - p->dirty_rate);
	pc->reported_ns = now;
	gw_move_report(pc->mv, GW_MOVE_COPY);
}

/* To be asked after the log was taken: see gw_senders_taken(). */
static size_t taken(void *arg)
{
	return gw_senders_taken(((struct gw_precopy *)arg)->senders);
}

static int sync_log(struct gw_precopy *pc, struct gw_error *err)
{
	return gw_rounds_sync(pc->pages, taken, pc, err);
}

static bool timed_out(const struct gw_precopy *pc)
{
	uint64_t limit = pc->mv->p.timeout_ms;

	return limit && gw_now_ns() - pc->begun_ns >= limit * GW_NS_PER_MS;
}

/* Ends the round early: what no thread has taken stays for the next. */
static void interrupt_round(struct gw_precopy *pc)
{
	gw_rounds_put_off(pc->pages, gw_senders_interrupt(pc->senders));
}

static int timeout_error(struct gw_precopy *pc, struct gw_error *err)
{
	const struct gw_move_progress *p = &pc->mv->progress;

	return gw_error_set(err, ETIMEDOUT,
			    "the move did not converge within %llu ms: %llu MiB left, sending %llu MB/s, dirtied at %llu MB/s, predicted blackout %llu ms",
			    (unsigned long long)pc->mv->p.timeout_ms, (unsigned long long)(p->bytes_left >> 20),
			    (unsigned long long)(p->rate / 1000000), (unsigned long long)(p->dirty_rate / 1000000),
			    (unsigned long long)(p->predicted_blackout_us / 1000));
}

/* One round: until the destination has acknowledged all of it, or the time is up. */
static int run_round(struct gw_precopy *pc, struct gw_error *err)
{
	uint64_t interval = SYNC_MIN_NS;
	bool interrupted = false;
	int r;

	while (!gw_senders_wait(pc->senders, gw_now_ns() + REPORT_NS / 2)) {
		uint64_t now = gw_now_ns();

		r = gw_move_check(pc->mv, err);
		if (r < 0)
			return r;
		if (now - gw_rounds_synced_ns(pc->pages) >= interval && !interrupted) {
			r = sync_log(pc, err);
			if (r < 0)
				return r;
			/* Fewer looks in longer rounds and at slower logs. */
			interval = GW_MAX(interval + interval / 4, 20 * gw_rounds_sync_cost_ns(pc->pages));
		}
		if (now - pc->reported_ns >= REPORT_NS)
			report(pc, now);
		if (timed_out(pc) && !interrupted) {
			report(pc, now);
			if (!pc->mv->p.timeout_stops)
				return timeout_error(pc, err);
			interrupt_round(pc);
			interrupted = true;
		}
	}
	r = gw_move_check(pc->mv, err);
	return r < 0 ? r : gw_move_step(pc->mv, GW_FP_SRC_ROUND, err);
}

/* Learns the rate from a round. Short ones say little: their time is that of the round trip. */
static void learn_rate(struct gw_precopy *pc, uint64_t bytes, uint64_t spent_ns)
{
	double sample;

	if (spent_ns == 0 || bytes == 0)
		return;
	/*
	 * A round holds a round trip: one that is shorter shows that the pings were held up, as they are on a busy machine. Its rate is at least
	 * this; with none at all the rounds would go on until the time is up.
	 */
	if (spent_ns <= pc->rtt_ns) {
		pc->rtt_ns = spent_ns;
		if (pc->rate <= 0)
			pc->rate = (double)bytes * 1e9 / (double)spent_ns;
		return;
	}
	spent_ns -= pc->rtt_ns;
	sample = (double)bytes * 1e9 / (double)spent_ns;
	if (pc->rate <= 0 || spent_ns >= 100 * GW_NS_PER_MS)
		pc->rate = sample;
	else if (spent_ns >= 2 * GW_NS_PER_MS)
		pc->rate = 0.7 * pc->rate + 0.3 * sample;
}

/* True when rounds no longer make what is left clearly smaller. */
static bool on_plateau(struct gw_precopy *pc, uint64_t left)
{
	if (left < pc->best_left - pc->best_left / 8) {
		pc->best_left = left;
		pc->best_age = 0;
		return false;
	}
	return ++pc->best_age >= PLATEAU_ROUNDS;
}

/* The blackout that is taken once rounds gain nothing any more. */
static uint64_t plateau_ns(const struct gw_precopy *pc)
{
	return pc->mv->p.downtime_ms * GW_NS_PER_MS * (pc->mv->p.default_downtime ? PLATEAU_TARGETS : 1);
}

/* True when the VM is to be stopped now, with `left` bytes to send. */
static bool time_to_stop(struct gw_precopy *pc, uint64_t left)
{
	uint64_t predicted = predict_ns(pc, left);
	uint64_t target = pc->mv->p.downtime_ms * GW_NS_PER_MS;
	uint64_t round_ns, after;

	if (on_plateau(pc, left) && predicted <= plateau_ns(pc))
		return true;
	/* Where the fixed cost alone is past the target, no round can help: then the rest need only be negligible. */
	if (predicted > target)
		return predicted - fixed_ns(pc) <= 2 * GW_NS_PER_MS;
	/* Bytes that the guest would dirty during one more round; the gain is the blackout that it would save. */
	round_ns = predicted - fixed_ns(pc) + pc->rtt_ns + gw_rounds_sync_cost_ns(pc->pages);
	after = GW_MIN(left, (uint64_t)(gw_rounds_dirty_rate(pc->pages) * (double)round_ns / 1e9));
	if (pc->extra < EXTRA_ROUNDS && after < left / 2 && predicted - predict_ns(pc, after) > target / EXTRA_GAIN) {
		pc->extra++;
		return false;
	}
	return true;
}

/* After a round that was not the last: where the rounds do not shrink, above what would be taken, the VM is slowed down. */
static void converge(struct gw_precopy *pc, uint64_t left)
{
	struct gw_move *mv = pc->mv;
	unsigned percent = mv->progress.slowed + (100 - mv->progress.slowed) / 2;
	bool shrinks = pc->last_left == 0 || (double)left < CONVERGE_PART * (double)pc->last_left;

	pc->last_left = left;
	if (shrinks || percent > SLOW_MAX || predict_ns(pc, left) <= plateau_ns(pc) || !mv->vm.ops->slow)
		return;
	mv->vm.ops->slow(mv->vm.self, percent);
	mv->progress.slowed = percent;
	pc->slowed = true;
}

static uint64_t channel_bytes(const struct gw_precopy *pc)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < pc->mv->p.channels; i++)
		n += gw_channel_sent(pc->mv->data[i]);
	return n;
}

int gw_precopy_run(struct gw_precopy *pc, struct gw_error *err)
{
	pc->begun_ns = pc->base_ns = gw_now_ns();
	pc->base_bytes = channel_bytes(pc);
	for (;;) {
		uint64_t begun = gw_now_ns(), bytes = channel_bytes(pc), left = 0;
		bool peeked, stop;
		int r;

		pc->round++;
		gw_senders_begin(pc->senders, pc->round, gw_rounds_now(pc->pages), false);
		if (pc->round == 1) {
			r = gw_move_step(pc->mv, GW_FP_SRC_COPY, err);
			if (r < 0)
				return r;
		}
		r = run_round(pc, err);
		if (r < 0)
			return r;
		learn_rate(pc, channel_bytes(pc) - bytes, gw_now_ns() - begun);
		gw_rounds_copied(pc->pages); /* all of it is over there */
		r = gw_rounds_look(pc->pages, &peeked, &left, err);
		if (r < 0)
			return r;
		left <<= GW_PAGE_SHIFT;
		stop = time_to_stop(pc, left) || (timed_out(pc) && pc->mv->p.timeout_stops);
		if (!stop)
			converge(pc, left);
		if (!stop && peeked)
			r = sync_log(pc, err);
		if (r < 0)
			return r;
		gw_rounds_next(pc->pages);
		gw_senders_rewind(pc->senders);
		report(pc, gw_now_ns());
		if (stop)
			return 0;
		if (timed_out(pc))
			return timeout_error(pc, err);
	}
}

uint64_t gw_precopy_grace_ns(const struct gw_precopy *pc)
{
	double part = (double)(pc->mv->p.downtime_ms * GW_NS_PER_MS) / GRACE_PART;
	double dirty_rate = gw_rounds_dirty_rate(pc->pages);

	return dirty_rate > 0 ? GW_MIN(GRACE_NS, (uint64_t)(part * pc->rate / dirty_rate)) : GRACE_NS;
}

int gw_precopy_last(struct gw_precopy *pc, struct gw_error *err)
{
	int r = gw_rounds_last(pc->pages, err);

	if (r < 0)
		return r;
	pc->round++;
	pc->mv->progress.round = pc->round;
	gw_senders_begin(pc->senders, pc->round, gw_rounds_now(pc->pages), true);
	end_slow(pc); /* stopped as it is: only the means are given back, while the pages are on their way */
	return 0;
}
