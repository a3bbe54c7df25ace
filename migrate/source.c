// SPDX-License-Identifier: Apache-2.0
/* The source's side of a move: hand-off step by step, and the way back from each; see move.h. */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "lib/log.h"
#include "lib/util.h"
#include "migrate/failpoints.h"
#include "migrate/move-internal.h"
#include "migrate/packets.h"
#include "migrate/precopy.h"
#include "migrate/sender.h"

#define GODWIT_PROGRAM "godwit 1"
#define HELLO_NS (20 * GW_NS_PER_SEC)
/* The last pages are all sent: what remains is in the sockets, then the state is loaded. The VM stands still meanwhile. */
#define READY_NS (20 * GW_NS_PER_SEC)
/* A digest runs over all RAM, which is slow in emulated hosts: 8 MB/s at the worst. */
#define DIGEST_BYTES_PER_SEC (8ull << 20)
/* Without an answer for so long the doubt is told; a late answer still settles it. */
#define RUNNING_NS (5 * GW_NS_PER_SEC)
/* How often is looked for packets that follow the VM. */
#define FORWARD_NS (4 * GW_NS_PER_MS)

struct source {
	struct gw_move *mv;
	struct gw_senders *senders;
	struct gw_precopy *precopy;
	bool was_running;
	bool stopped;
	bool journalled; /* COMMITTING was, or may have been, written */
	uint64_t rtt_ns;
	/* Moments of the blackout, in order; what each step took is logged at the end. */
	uint64_t stopped_ns, quiet_ns, synced_ns, saved_ns, sent_ns, ready_ns, commit_ns;
	struct gw_move_talk talk; /* .since_ns is stopped_ns when nobody waits */
	uint64_t load_us, pages_us, answered_us; /* as the destination says */
};

static int fill_regions(struct gw_move *mv, Godwit__StreamMachine *m, struct gw_error *err)
{
	const struct gw_ram_region *regions;
	unsigned count;

	regions = gw_ram_regions(mv->vm.ram, &count);
	m->regions = calloc(count, sizeof(*m->regions));
	if (!m->regions)
		return gw_error_set(err, ENOMEM, "out of memory");
	for (unsigned i = 0; i < count; i++) {
		Godwit__StreamRegion *r = malloc(sizeof(*r));

		if (!r)
			return gw_error_set(err, ENOMEM, "out of memory");
		godwit__stream_region__init(r);
		r->gpa = regions[i].gpa;
		r->size = regions[i].size;
		m->regions[m->n_regions++] = r;
	}
	return 0;
}

static int send_hello(struct source *s, struct gw_error *err)
{
	struct gw_move *mv = s->mv;
	Godwit__StreamHello hello = GODWIT__STREAM_HELLO__INIT;
	Godwit__StreamMachine *machine = NULL;
	int r;

	r = mv->vm.ops->describe(mv->vm.self, &machine, err);
	if (r < 0)
		return r;
	r = fill_regions(mv, machine, err);
	if (r == 0) {
		hello.version_min = GW_STREAM_VERSION_MIN;
		hello.version_max = GW_STREAM_VERSION;
		hello.move_id.data = mv->p.move_id;
		hello.move_id.len = sizeof(mv->p.move_id);
		hello.epoch = mv->p.epoch;
		hello.channels = mv->p.channels;
		hello.machine = machine;
		hello.digest = mv->p.digest;
		hello.paused = !s->was_running;
		hello.program = (char *)GODWIT_PROGRAM;
		r = gw_channel_send(mv->control, GW_STREAM_HELLO, &hello.base, err);
	}
	godwit__stream_machine__free_unpacked(machine, NULL);
	return r;
}

static int exchange_hello(struct source *s, struct gw_error *err)
{
	ProtobufCMessage *reply;
	uint32_t version;
	int r;

	r = gw_move_step(s->mv, GW_FP_SRC_HELLO, err);
	if (r == 0)
		r = send_hello(s, err);
	if (r == 0)
		r = gw_move_expect(s->mv, GW_STREAM_HELLO_REPLY, &godwit__stream_hello_reply__descriptor, &reply,
				   gw_now_ns() + HELLO_NS, err);
	if (r < 0)
		return r;
	version = ((Godwit__StreamHelloReply *)reply)->version;
	protobuf_c_message_free_unpacked(reply, NULL);
	if (version < GW_STREAM_VERSION_MIN || version > GW_STREAM_VERSION)
		return gw_error_set(err, EPROTO, "the destination chose stream version %u, this VMM speaks %u to %u", version,
				    GW_STREAM_VERSION_MIN, GW_STREAM_VERSION);
	s->mv->version = version;
	return 0;
}

/* The smallest of three round trips: the first ones also warm up the path. */
static int measure_rtt(struct source *s, struct gw_error *err)
{
	Godwit__StreamPing ping = GODWIT__STREAM_PING__INIT;

	s->rtt_ns = UINT64_MAX;
	for (unsigned i = 1; i <= 3; i++) {
		uint64_t begun = gw_now_ns(), cookie;
		ProtobufCMessage *pong;
		int r;

		ping.cookie = i;
		r = gw_channel_send(s->mv->control, GW_STREAM_PING, &ping.base, err);
		if (r == 0)
			r = gw_move_expect(s->mv, GW_STREAM_PONG, &godwit__stream_ping__descriptor, &pong,
					   gw_now_ns() + HELLO_NS, err);
		if (r < 0)
			return r;
		cookie = ((Godwit__StreamPing *)pong)->cookie;
		protobuf_c_message_free_unpacked(pong, NULL);
		if (cookie != i)
			return gw_error_set(err, EPROTO, "the destination answered another ping");
		s->rtt_ns = GW_MIN(s->rtt_ns, gw_now_ns() - begun);
	}
	return 0;
}

static int copy(struct source *s, struct gw_error *err)
{
	int r;

	r = gw_senders_new(s->mv, &s->senders, err);
	if (r == 0)
		r = gw_precopy_new(s->mv, s->senders, s->rtt_ns, &s->precopy, err);
	return r < 0 ? r : gw_precopy_run(s->precopy, err);
}

static int send_state(struct source *s, struct gw_error *err)
{
	struct gw_move *mv = s->mv;
	Godwit__StreamState msg = GODWIT__STREAM_STATE__INIT;
	uint8_t digest[16];
	gw_autobuf state = GW_BUF_INIT;
	int r;

	r = mv->vm.ops->save(mv->vm.self, &state, err);
	if (r < 0)
		return gw_error_wrap(err, "saving the state");
	s->saved_ns = gw_now_ns();
	r = gw_move_step(mv, GW_FP_SRC_STATE, err);
	if (r < 0)
		return r;
	if (mv->p.digest) {
		gw_ram_digest(mv->vm.ram, digest);
		msg.digest.data = digest;
		msg.digest.len = sizeof(digest);
	}
	msg.state.data = state.data;
	msg.state.len = state.len;
	return gw_channel_send(mv->control, GW_STREAM_STATE, &msg.base, err);
}

/* Waits for the last round to be sent; its own stall limits end it when the destination takes nothing more. */
static int wait_sent(struct source *s, struct gw_error *err)
{
	int r;

	while (!gw_senders_wait(s->senders, gw_now_ns() + 20 * GW_NS_PER_MS)) {
		r = gw_move_check(s->mv, err);
		if (r < 0)
			return r;
	}
	return gw_move_check(s->mv, err);
}

/* Stop, last pages and state in one flight, READY. */
static int switch_over(struct source *s, struct gw_error *err)
{
	struct gw_move *mv = s->mv;
	uint64_t patience = READY_NS;
	ProtobufCMessage *ready;
	int r;

	/* Nothing else runs meanwhile: it catches up with what it left unanswered while the senders had the processors. */
	if (s->was_running)
		gw_wait_fd(mv->wake_fd, POLLIN, gw_now_ns() + gw_precopy_grace_ns(s->precopy));
	s->stopped_ns = gw_now_ns();
	mv->vm.ops->stop(mv->vm.self);
	s->stopped = true;
	s->quiet_ns = gw_now_ns();
	if (mv->vm.ops->awaited && s->was_running)
		mv->vm.ops->awaited(mv->vm.self, &s->talk);
	s->talk.since_ns = s->talk.since_ns ? GW_MIN(s->talk.since_ns, s->stopped_ns) : s->stopped_ns;
	gw_move_report(mv, GW_MOVE_SWITCH);
	r = gw_move_step(mv, GW_FP_SRC_STOP, err);
	if (r == 0 && mv->vm.ops->settled)
		r = mv->vm.ops->settled(mv->vm.self, err);
	if (r == 0)
		r = gw_precopy_last(s->precopy, err);
	s->synced_ns = gw_now_ns();
	if (r == 0)
		r = send_state(s, err);
	/*
	 * Written while the destination loads the state, so that the disk's time is not added to the blackout. It only says that
	 * COMMIT may leave soon: every failure before that writes OWNER again.
	 */
	s->journalled = r == 0;
	if (r == 0)
		r = gw_move_journal(mv, GW_JOURNAL_COMMITTING, mv->p.epoch, err);
	if (r == 0)
		r = wait_sent(s, err);
	s->sent_ns = gw_now_ns();
	if (mv->p.digest)
		patience += gw_ram_size(mv->vm.ram) / DIGEST_BYTES_PER_SEC * GW_NS_PER_SEC;
	if (r == 0)
		r = gw_move_expect(mv, GW_STREAM_READY, &godwit__stream_ready__descriptor, &ready, gw_now_ns() + patience, err);
	if (r < 0)
		return r;
	s->ready_ns = gw_now_ns();
	s->load_us = ((Godwit__StreamReady *)ready)->load_us;
	s->pages_us = ((Godwit__StreamReady *)ready)->pages_us;
	protobuf_c_message_free_unpacked(ready, NULL);
	mv->progress.bytes_left = 0;
	return gw_move_step(mv, GW_FP_SRC_READY, err);
}

/* Up to the moment at which COMMIT may leave: after it, no way back by ourselves. Packets that left are lost to the VM should it stay here. */
static int prepare_commit(struct source *s, struct gw_error *err)
{
	int r = gw_move_step(s->mv, GW_FP_SRC_COMMIT_JOURNALLED, err);

	if (r == 0 && s->was_running)
		r = gw_packets_forward(s->mv, err);
	return r < 0 ? r : gw_move_pass_return(s->mv, err);
}

static void send_commit(struct source *s)
{
	Godwit__StreamCommit msg = GODWIT__STREAM_COMMIT__INIT;
	struct gw_error err = GW_ERROR_INIT;
	int r;

	msg.move_id.data = s->mv->p.move_id;
	msg.move_id.len = sizeof(s->mv->p.move_id);
	msg.epoch = s->mv->p.epoch;
	msg.answered = s->talk.answered;
	msg.n_answered = s->talk.nanswered;
	/* A failure to send does not tell that nothing left: the answer, or its absence, decides. */
	r = gw_channel_send(s->mv->control, GW_STREAM_COMMIT, &msg.base, &err);
	if (r == 0)
		r = gw_move_step(s->mv, GW_FP_SRC_COMMIT_SENT, &err);
	if (r < 0) {
		gw_warn("move: %s", gw_error_text(&err));
		gw_channel_free(gw_steal_ptr(&s->mv->control));
	}
}

enum answer { ANSWER_RUNNING, ANSWER_ABORTED, ANSWER_LOST, ANSWER_LATE, ANSWER_RESOLVED };

/* Reads the answer to COMMIT. LATE: nothing came yet. */
static enum answer read_answer(struct source *s, uint64_t deadline, struct gw_error *err)
{
	struct gw_move *mv = s->mv;
	gw_autofree uint8_t *body = NULL;
	struct gw_frame_header h;
	int r;

	if (!mv->control)
		return ANSWER_LOST;
	r = gw_channel_wait(mv->control, deadline);
	if (r == -ETIMEDOUT)
		return ANSWER_LATE;
	if (r == -ECANCELED)
		return ANSWER_RESOLVED;
	/* Once it begins, the rest of a small message is on its way. */
	r = gw_channel_receive(mv->control, &h, &body, gw_now_ns() + RUNNING_NS, err);
	if (r < 0)
		return ANSWER_LOST;
	if (h.type == GW_STREAM_RUNNING)
		return ANSWER_RUNNING;
	if (h.type == GW_STREAM_ABORT) {
		gw_move_aborted(mv, &h, body, err);
		return ANSWER_ABORTED;
	}
	gw_error_set(err, EPROTO, "the destination answered COMMIT with a message of type %#x", h.type);
	return ANSWER_LOST;
}

static void tell_doubt(struct source *s, const char *why)
{
	struct gw_move *mv = s->mv;

	pthread_mutex_lock(&mv->lock);
	mv->in_doubt = true;
	pthread_mutex_unlock(&mv->lock);
	snprintf(mv->progress.message, sizeof(mv->progress.message), "%.*s: the destination may be running the VM",
		 (int)sizeof(mv->progress.message) - 60, why);
	gw_warn("move: %s; paused until this is settled", mv->progress.message);
	gw_move_report(mv, GW_MOVE_DOUBT);
}

static int wait_resolved(struct source *s, struct gw_error *err)
{
	struct gw_move *mv = s->mv;
	int how;

	for (;;) {
		enum answer a;

		pthread_mutex_lock(&mv->lock);
		how = mv->resolved;
		pthread_mutex_unlock(&mv->lock);
		if (how)
			return how;
		/* An answer that comes late settles it as well as anybody. */
		a = read_answer(s, gw_now_ns() + GW_NS_PER_SEC, err);
		if (a == ANSWER_RUNNING)
			return 2;
		if (a == ANSWER_ABORTED)
			return 4;
		if (a == ANSWER_LOST && mv->control)
			gw_channel_free(gw_steal_ptr(&mv->control));
		if (!mv->control)
			gw_wait_fd(mv->wake_fd, POLLIN, gw_now_ns() + GW_NS_PER_SEC);
	}
}

static void journal_released(struct source *s)
{
	struct gw_error err = GW_ERROR_INIT;

	/* The destination runs it whatever is written here; COMMITTING in the journal leads the agents to the same answer. */
	if (gw_move_journal(s->mv, GW_JOURNAL_RELEASED, s->mv->p.epoch, &err) < 0)
		gw_warn("move: %s", gw_error_text(&err));
}

/* Runs the VM again, first of all; then cleans up. */
static void take_back(struct source *s, const struct gw_error *why, bool cancelled)
{
	struct gw_move *mv = s->mv;

	if (s->stopped && s->was_running)
		mv->vm.ops->run(mv->vm.self);
	/* It may have run there, and bridges may have learned that. */
	if (s->commit_ns && s->was_running && mv->vm.ops->announce)
		mv->vm.ops->announce(mv->vm.self);
	if (mv->control)
		gw_move_say_abort(mv, why);
	gw_senders_free(gw_steal_ptr(&s->senders));
	gw_precopy_free(gw_steal_ptr(&s->precopy));
	gw_move_disconnect(mv);
	snprintf(mv->progress.message, sizeof(mv->progress.message), "%.250s", gw_error_text(why));
	mv->progress.predicted_blackout_us = mv->progress.eta_ms = 0;
	gw_move_report(mv, cancelled ? GW_MOVE_CANCELLED : GW_MOVE_FAILED);
}

/* The doubt was settled for this side, or the destination said ABORTED: the VM is ours under a newer epoch than any other's. */
static void own_again(struct source *s, struct gw_error *why)
{
	struct gw_move *mv = s->mv;
	struct gw_error err = GW_ERROR_INIT;

	pthread_mutex_lock(&mv->lock);
	mv->in_doubt = false;
	mv->epoch = mv->p.epoch + 1;
	pthread_mutex_unlock(&mv->lock);
	/* Not durable means: after a crash the agents look again. The VM is ours all the same. */
	if (gw_move_journal(mv, GW_JOURNAL_OWNER, mv->p.epoch + 1, &err) < 0)
		gw_warn("move: %s", gw_error_text(&err));
	gw_channel_free(gw_steal_ptr(&mv->control));
	take_back(s, why, false);
}

static void log_blackout(const struct source *s, uint64_t answered)
{
	gw_info("blackout %llu us: unanswered before %llu, stop %llu, dirty log %llu, save %llu, send %llu, ready %llu (there: pages %llu, load %llu), journal %llu, commit to running %llu, first answers %llu, longest silence else %llu; round trip %llu",
		(unsigned long long)s->mv->progress.blackout_us, (unsigned long long)(s->stopped_ns - s->talk.since_ns) / 1000,
		(unsigned long long)(s->quiet_ns - s->stopped_ns) / 1000,
		(unsigned long long)(s->synced_ns - s->quiet_ns) / 1000, (unsigned long long)(s->saved_ns - s->synced_ns) / 1000,
		(unsigned long long)(s->sent_ns - s->saved_ns) / 1000, (unsigned long long)(s->ready_ns - s->sent_ns) / 1000,
		(unsigned long long)s->pages_us, (unsigned long long)s->load_us,
		(unsigned long long)(s->commit_ns - s->ready_ns) / 1000, (unsigned long long)(answered - s->commit_ns) / 1000,
		(unsigned long long)s->answered_us, (unsigned long long)s->talk.longest_ns / 1000, (unsigned long long)s->rtt_ns / 1000);
}

/* The VM runs there, and not all of the network knows it yet. Returns when the destination has something to say, or at the deadline. */
static void forward_until_word(struct source *s, uint64_t deadline_ns)
{
	while (gw_packets_forward(s->mv, NULL) == 0 && gw_now_ns() < deadline_ns &&
	       gw_channel_wait(s->mv->control, gw_now_ns() + FORWARD_NS) == -ETIMEDOUT)
		;
}

/* When the guest answered again; stays 0 when it did not, or the destination does not say. */
static void wait_answered(struct source *s)
{
	struct gw_error err = GW_ERROR_INIT;
	const Godwit__StreamAnswered *answered;
	uint64_t longest_us;
	ProtobufCMessage *msg;

	if (s->was_running)
		forward_until_word(s, gw_now_ns() + 2 * GW_MOVE_ANSWER_NS + s->rtt_ns);
	if (!s->was_running || gw_move_expect(s->mv, GW_STREAM_ANSWERED, &godwit__stream_answered__descriptor, &msg,
					      gw_now_ns() + 2 * GW_MOVE_ANSWER_NS + s->rtt_ns, &err) < 0)
		return;
	answered = (Godwit__StreamAnswered *)msg;
	s->answered_us = GW_MIN(answered->after_us, 2 * GW_MOVE_ANSWER_NS / GW_NS_PER_US);
	longest_us = GW_MIN(answered->longest_us, 2 * GW_MOVE_ANSWER_NS / GW_NS_PER_US);
	s->talk.longest_ns = GW_MAX(s->talk.longest_ns, longest_us * GW_NS_PER_US);
	protobuf_c_message_free_unpacked(msg, NULL);
}

/* RUNNING has come. */
static void let_go(struct source *s, uint64_t answered)
{
	struct gw_move *mv = s->mv;
	struct gw_error err = GW_ERROR_INIT;
	uint64_t stood_ns = answered - s->talk.since_ns;

	if (gw_move_step(mv, GW_FP_SRC_RUNNING, &err) < 0)
		gw_warn("move: %s", gw_error_text(&err));
	/* Somebody waits for it; the journal waits for the disk. */
	if (s->was_running)
		(void)gw_packets_forward(mv, NULL);
	journal_released(s);
	wait_answered(s);
	mv->progress.blackout_us = (stood_ns - GW_MIN(s->rtt_ns / 2, stood_ns)) / 1000 + s->answered_us;
	mv->progress.blackout_us = GW_MAX(mv->progress.blackout_us, s->talk.longest_ns / 1000);
	log_blackout(s, answered);
	gw_move_report(mv, GW_MOVE_DONE);
}

static void commit(struct source *s)
{
	struct gw_move *mv = s->mv;
	struct gw_error err = GW_ERROR_INIT;
	uint64_t answered;
	enum answer a;
	int how;

	s->commit_ns = gw_now_ns();
	send_commit(s);
	gw_move_report(mv, GW_MOVE_COMMIT);
	a = read_answer(s, gw_now_ns() + RUNNING_NS, &err);
	answered = gw_now_ns();
	if (a == ANSWER_RUNNING) {
		let_go(s, answered);
		return;
	}
	if (a == ANSWER_ABORTED) {
		own_again(s, &err);
		return;
	}
	tell_doubt(s, a == ANSWER_LATE ? "no answer to COMMIT" : "the connection was lost after COMMIT");
	how = wait_resolved(s, &err);
	switch (how) {
	case 1:
		gw_error_set(&err, ECONNABORTED, "the doubt was settled: the VM stays here");
		own_again(s, &err);
		break;
	case 2:
		mv->progress.message[0] = '\0';
		journal_released(s);
		gw_move_report(mv, GW_MOVE_DONE);
		break;
	case 4:
		own_again(s, &err);
		break;
	default: /* the process ends: the journal says COMMITTING, the VM stays stopped */
		break;
	}
}

/* When the connection broke, the destination's own word, if it got one out, says more than the break. */
static void ask_reason(struct gw_move *mv, struct gw_error *err)
{
	gw_autofree uint8_t *body = NULL;
	struct gw_error theirs = GW_ERROR_INIT;
	struct gw_frame_header h;

	if (!mv->control || (err->code != EPIPE && err->code != EBADMSG && err->code != ECONNRESET))
		return;
	gw_channel_ignore_wake(mv->control);
	if (gw_channel_wait(mv->control, gw_now_ns() + 300 * GW_NS_PER_MS) == 0 &&
	    gw_channel_receive(mv->control, &h, &body, gw_now_ns() + 300 * GW_NS_PER_MS, &theirs) == 0 &&
	    h.type == GW_STREAM_ABORT) {
		gw_move_aborted(mv, &h, body, &theirs);
		*err = theirs;
	}
}

static void give_up(struct source *s, struct gw_error *err)
{
	struct gw_move *mv = s->mv;
	struct gw_error first = GW_ERROR_INIT, ignored = GW_ERROR_INIT;
	bool cancelled;

	/* Sets the failure if a worker did not, stops the workers, and learns which came first. */
	gw_move_fail(mv, err);
	gw_move_check(mv, &first);
	pthread_mutex_lock(&mv->lock);
	cancelled = mv->cancelled;
	mv->past_return = true; /* nothing is left to be cancelled */
	pthread_mutex_unlock(&mv->lock);
	if (s->stopped && s->was_running)
		mv->vm.ops->run(mv->vm.self);
	s->stopped = false;
	if (s->journalled && gw_move_journal(mv, GW_JOURNAL_OWNER, mv->p.own_epoch, &ignored) < 0)
		gw_warn("move: %s", gw_error_text(&ignored));
	if (!cancelled)
		ask_reason(mv, &first);
	take_back(s, &first, cancelled);
}

void *gw_move_source_main(void *arg)
{
	struct source s = { .mv = arg };
	struct gw_error err = GW_ERROR_INIT;
	int r;

	s.was_running = s.mv->vm.ops->running(s.mv->vm.self);
	gw_move_report(s.mv, GW_MOVE_CONNECT);
	r = gw_move_step(s.mv, GW_FP_SRC_CONNECT, &err);
	if (r == 0)
		r = gw_move_connect(s.mv, &err);
	if (r == 0)
		r = exchange_hello(&s, &err);
	if (r == 0)
		r = measure_rtt(&s, &err);
	if (r == 0)
		r = copy(&s, &err);
	if (r == 0)
		r = switch_over(&s, &err);
	if (r == 0)
		r = prepare_commit(&s, &err);
	if (r < 0)
		give_up(&s, &err);
	else
		commit(&s);
	/* After a hand-over, or in doubt at the end of the process. */
	gw_senders_free(s.senders);
	gw_precopy_free(s.precopy);
	return NULL;
}
