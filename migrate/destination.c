// SPDX-License-Identifier: Apache-2.0
/* The destination's side of a move: what it checks, when it owns, and how it ends otherwise; see move.h. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "lib/log.h"
#include "lib/util.h"
#include "migrate/failpoints.h"
#include "migrate/move-internal.h"
#include "migrate/packets.h"
#include "migrate/pages.h"
#include "migrate/receiver.h"

#define GODWIT_PROGRAM "godwit 1"
#define HELLO_NS (30 * GW_NS_PER_SEC)
/* After STATE only what is in flight is missing. */
#define LAST_PAGES_NS (60 * GW_NS_PER_SEC)
/* The source compares nothing after READY but has to write its journal. */
#define COMMIT_NS (60 * GW_NS_PER_SEC)
#define REPORT_NS (150 * GW_NS_PER_MS)
/* How soon the end of the first round is noticed. */
#define WARM_NS (20 * GW_NS_PER_MS)
/* How often is looked whether the VM answers. */
#define LOOK_NS (4 * GW_NS_PER_MS)

struct destination {
	struct gw_move *mv;
	struct gw_receivers *receivers;
	bool owner_tried; /* OWNER may be in the journal */
	bool warm;        /* no (more) warming is due */
	uint64_t answered[GW_MOVE_TALKS]; /* as COMMIT says */
	size_t nanswered;
	Godwit__StreamPackets *packets;   /* that came before COMMIT */
	uint64_t reported_ns;
	uint64_t base_bytes, base_ns;
};

static int check_regions(struct gw_move *mv, const Godwit__StreamMachine *m, struct gw_error *err)
{
	const struct gw_ram_region *regions;
	uint64_t theirs = 0;
	unsigned count;
	bool same;

	regions = gw_ram_regions(mv->vm.ram, &count);
	same = m->n_regions == count;
	for (size_t i = 0; i < m->n_regions; i++) {
		theirs += m->regions[i]->size;
		same = same && m->regions[i]->gpa == regions[i].gpa && m->regions[i]->size == regions[i].size;
	}
	if (!same)
		return gw_error_set(err, EPROTO, "the VM has %llu MiB of memory at the source and %llu MiB here",
				    (unsigned long long)(theirs >> 20), (unsigned long long)(gw_ram_size(mv->vm.ram) >> 20));
	return 0;
}

static int check_hello(struct gw_move *mv, const Godwit__StreamHello *h, struct gw_error *err)
{
	if (h->version_min > GW_STREAM_VERSION || h->version_max < GW_STREAM_VERSION_MIN || h->version_min > h->version_max)
		return gw_error_set(err, EPROTO, "the source speaks stream versions %u to %u, this VMM %u to %u",
				    h->version_min, h->version_max, GW_STREAM_VERSION_MIN, GW_STREAM_VERSION);
	if (h->move_id.len != GW_MOVE_ID_LEN || memcmp(h->move_id.data, mv->p.move_id, GW_MOVE_ID_LEN) || h->epoch != mv->p.epoch ||
	    h->channels != mv->p.channels)
		return gw_error_set(err, EPROTO, "the source means another move");
	if (!h->machine)
		return gw_error_set(err, EPROTO, "the source does not describe the VM");
	return check_regions(mv, h->machine, err) < 0 ? -err->code : mv->vm.ops->accept(mv->vm.self, h->machine, err);
}

static int answer_hello(struct gw_move *mv, uint32_t theirs, struct gw_error *err)
{
	Godwit__StreamHelloReply reply = GODWIT__STREAM_HELLO_REPLY__INIT;

	mv->version = reply.version = GW_MIN(theirs, GW_STREAM_VERSION);
	reply.program = (char *)GODWIT_PROGRAM;
	return gw_channel_send(mv->control, GW_STREAM_HELLO_REPLY, &reply.base, err);
}

static int take_hello(struct gw_move *mv, struct gw_error *err)
{
	ProtobufCMessage *msg;
	Godwit__StreamHello *h;
	uint32_t version;
	int r;

	r = gw_move_expect(mv, GW_STREAM_HELLO, &godwit__stream_hello__descriptor, &msg, gw_now_ns() + HELLO_NS, err);
	if (r < 0)
		return r;
	h = (Godwit__StreamHello *)msg;
	r = check_hello(mv, h, err);
	mv->digest = h->digest;
	mv->paused = h->paused || mv->p.paused;
	version = h->version_max;
	protobuf_c_message_free_unpacked(msg, NULL);
	if (r == 0 && !mv->p.ram_is_zero)
		r = gw_pages_empty(mv->vm.ram, err); /* pages that are zero at the source are not sent */
	if (r == 0)
		r = gw_move_journal(mv, GW_JOURNAL_INCOMING, mv->p.epoch, err);
	if (r == 0)
		r = gw_move_step(mv, GW_FP_DST_HELLO, err);
	return r < 0 ? r : answer_hello(mv, version, err);
}

static void report(struct destination *d, enum gw_move_phase phase)
{
	struct gw_move_progress *p = &d->mv->progress;
	uint64_t now = gw_now_ns(), before = d->base_bytes;

	p->round = d->receivers ? gw_receivers_round(d->receivers) + 1 : 0;
	gw_move_report(d->mv, phase);
	if (now - d->base_ns < GW_NS_PER_MS)
		return;
	p->rate = (uint64_t)((double)(p->bytes_sent - before) * 1e9 / (double)(now - d->base_ns));
	if (now - d->base_ns > GW_NS_PER_SEC) {
		d->base_bytes = p->bytes_sent;
		d->base_ns = now;
	}
}

static int answer_ping(struct gw_move *mv, const struct gw_frame_header *h, const uint8_t *body, struct gw_error *err)
{
	ProtobufCMessage *ping;
	int r;

	r = gw_move_unpack(h, body, &godwit__stream_ping__descriptor, &ping, err);
	if (r < 0)
		return r;
	r = gw_channel_send(mv->control, GW_STREAM_PONG, ping, err);
	protobuf_c_message_free_unpacked(ping, NULL);
	return r;
}

/* Nothing came on the control channel for a while. */
static void between_messages(struct destination *d)
{
	struct gw_move *mv = d->mv;

	if (!d->warm && gw_receivers_round(d->receivers) > 0) {
		d->warm = true;
		mv->vm.ops->warm(mv->vm.self);
	}
	if (gw_now_ns() - d->reported_ns >= REPORT_NS) {
		d->reported_ns = gw_now_ns();
		report(d, GW_MOVE_COPY);
	}
}

/* Serves the control channel while pages arrive, until STATE. */
static int wait_state(struct destination *d, Godwit__StreamState **ret, struct gw_error *err)
{
	struct gw_move *mv = d->mv;
	int r;

	for (;;) {
		gw_autofree uint8_t *body = NULL;
		struct gw_frame_header h;

		r = gw_channel_wait(mv->control, gw_now_ns() + (d->warm ? REPORT_NS : WARM_NS));
		if (r == -ETIMEDOUT) {
			between_messages(d);
			continue;
		}
		if (r == 0)
			r = gw_channel_receive(mv->control, &h, &body, GW_NO_DEADLINE, err);
		else
			gw_error_set(err, r, r == -ECANCELED ? "cancelled" : "the connection to the source was lost");
		if (r < 0)
			return r;
		if (h.type == GW_STREAM_STATE)
			return gw_move_unpack(&h, body, &godwit__stream_state__descriptor, (ProtobufCMessage **)ret, err);
		if (h.type == GW_STREAM_ABORT)
			return gw_move_aborted(mv, &h, body, err);
		if (h.type != GW_STREAM_PING)
			return gw_error_set(err, EPROTO, "control message of type %#x while pages were taken", h.type);
		r = answer_ping(mv, &h, body, err);
		if (r < 0)
			return r;
	}
}

static int check_digest(struct gw_move *mv, const Godwit__StreamState *st, struct gw_error *err)
{
	uint8_t digest[16];

	if (!mv->digest)
		return 0;
	gw_ram_digest(mv->vm.ram, digest);
	if (st->digest.len != sizeof(digest) || memcmp(st->digest.data, digest, sizeof(digest)))
		return gw_error_set(err, EBADMSG, "guest memory arrived different: the digests do not agree");
	return 0;
}

static int load(struct destination *d, const Godwit__StreamState *st, struct gw_error *err)
{
	struct gw_move *mv = d->mv;
	Godwit__StreamReady ready = GODWIT__STREAM_READY__INIT;
	uint64_t begun = gw_now_ns();
	int r;

	r = gw_receivers_wait_last(d->receivers, gw_now_ns() + LAST_PAGES_NS, err);
	if (r == 0)
		r = gw_move_step(mv, GW_FP_DST_STATE, err);
	ready.pages_us = (gw_now_ns() - begun) / GW_NS_PER_US;
	begun = gw_now_ns();
	if (r == 0)
		r = mv->vm.ops->load(mv->vm.self, st->state.data, st->state.len, err);
	if (r == 0)
		r = check_digest(mv, st, err);
	if (r < 0)
		return r;
	ready.load_us = (gw_now_ns() - begun) / GW_NS_PER_US;
	r = gw_channel_send(mv->control, GW_STREAM_READY, &ready.base, err);
	return r < 0 ? r : gw_move_step(mv, GW_FP_DST_READY_SENT, err);
}

/* COMMIT, and what may come right before it. */
static int take_commit(struct destination *d, ProtobufCMessage **ret, struct gw_error *err)
{
	uint64_t deadline = gw_now_ns() + COMMIT_NS;
	gw_autofree uint8_t *body = NULL;
	struct gw_frame_header h;
	int r = gw_channel_receive(d->mv->control, &h, &body, deadline, err);

	if (r == 0 && h.type == GW_STREAM_PACKETS && d->mv->version >= GW_STREAM_VERSION_PACKETS) {
		r = gw_packets_take(&h, body, &d->packets, err);
		return r ?: gw_move_expect(d->mv, GW_STREAM_COMMIT, &godwit__stream_commit__descriptor, ret, deadline, err);
	}
	if (r == 0 && h.type == GW_STREAM_ABORT)
		return gw_move_aborted(d->mv, &h, body, err);
	if (r == 0 && h.type != GW_STREAM_COMMIT)
		return gw_error_set(err, EPROTO, "control message of type %#x where COMMIT was due", h.type);
	return r ?: gw_move_unpack(&h, body, &godwit__stream_commit__descriptor, ret, err);
}

static int wait_commit(struct destination *d, struct gw_error *err)
{
	struct gw_move *mv = d->mv;
	ProtobufCMessage *msg;
	Godwit__StreamCommit *c;
	bool ours;
	int r;

	r = take_commit(d, &msg, err);
	if (r < 0)
		return r;
	c = (Godwit__StreamCommit *)msg;
	ours = c->move_id.len == GW_MOVE_ID_LEN && !memcmp(c->move_id.data, mv->p.move_id, GW_MOVE_ID_LEN) &&
	       c->epoch == mv->p.epoch;
	d->nanswered = GW_MIN(c->n_answered, ARRAY_SIZE(d->answered));
	for (size_t i = 0; i < d->nanswered; i++)
		d->answered[i] = c->answered[i];
	protobuf_c_message_free_unpacked(msg, NULL);
	if (!ours)
		return gw_error_set(err, EPROTO, "COMMIT of another move");
	return gw_move_step(mv, GW_FP_DST_COMMIT_RECEIVED, err);
}

/* COMMIT is here: own the VM, durably, then run it. A failure to write means that it never ran here: the source takes it back. */
static int take_over(struct destination *d, struct gw_error *err)
{
	struct gw_move *mv = d->mv;
	int r;

	r = gw_move_pass_return(mv, err);
	if (r == 0 && mv->journal)
		atomic_store(gw_journal_effect_word(mv->journal), 0);
	if (r < 0)
		return r;
	d->owner_tried = true;
	r = gw_move_journal(mv, GW_JOURNAL_OWNER, mv->p.epoch, err);
	if (r < 0)
		return r;
	pthread_mutex_lock(&mv->lock);
	mv->epoch = mv->p.epoch;
	pthread_mutex_unlock(&mv->lock);
	/* From here on the VM is ours: nothing that fails may end it. */
	if (gw_move_step(mv, GW_FP_DST_OWNER_JOURNALLED, err) < 0)
		gw_warn("move: %s", gw_error_text(err));
	if (mv->vm.ops->owned)
		mv->vm.ops->owned(mv->vm.self, mv->p.epoch, d->answered, d->nanswered);
	if (!mv->paused)
		mv->vm.ops->run(mv->vm.self);
	return 0;
}

/* Returns when RUNNING left, or 0. */
static uint64_t say_running(struct gw_move *mv)
{
	Godwit__StreamRunning running = GODWIT__STREAM_RUNNING__INIT;
	struct gw_error err = GW_ERROR_INIT;
	uint64_t now;
	int r;

	running.epoch = mv->p.epoch;
	r = gw_move_step(mv, GW_FP_DST_STARTED, &err);
	/* From here on it is not the source's any more, whatever happens to this process. */
	if (mv->journal)
		atomic_store(gw_journal_effect_word(mv->journal), 1);
	now = gw_now_ns();
	if (r == 0)
		r = gw_channel_send(mv->control, GW_STREAM_RUNNING, &running.base, &err);
	if (r < 0) {
		gw_warn("move: the source was not told that the VM runs here: %s", gw_error_text(&err));
		return 0;
	}
	if (gw_move_step(mv, GW_FP_DST_RUNNING_SENT, &err) < 0)
		gw_warn("move: %s", gw_error_text(&err));
	return now;
}

/* Waits for at most LOOK_NS. False: nothing will come any more. */
static bool take_packets(struct gw_move *mv)
{
	Godwit__StreamPackets *p = NULL;
	gw_autofree uint8_t *body = NULL;
	struct gw_frame_header h;
	int r = gw_channel_wait(mv->control, gw_now_ns() + LOOK_NS);

	if (r == -ETIMEDOUT)
		return true;
	r = r ?: gw_channel_receive(mv->control, &h, &body, gw_now_ns() + GW_NS_PER_SEC, NULL);
	if (r < 0 || h.type != GW_STREAM_PACKETS || gw_packets_take(&h, body, &p, NULL) < 0)
		return false;
	gw_packets_deliver(mv, p);
	godwit__stream_packets__free_unpacked(p, NULL);
	return true;
}

/* What follows the VM is handed to it, until it answers. */
static void say_answered(struct gw_move *mv, uint64_t running_ns)
{
	Godwit__StreamAnswered msg = GODWIT__STREAM_ANSWERED__INIT;
	uint64_t when = 0, longest = 0;
	bool more = true;

	while (mv->vm.ops->resumed && !mv->paused && !mv->vm.ops->resumed(mv->vm.self, running_ns, &when, &longest)) {
		more = more && take_packets(mv);
		if (!more)
			usleep(LOOK_NS / GW_NS_PER_US);
	}
	msg.after_us = when > running_ns ? (when - running_ns) / GW_NS_PER_US : 0;
	msg.longest_us = longest / GW_NS_PER_US;
	(void)gw_channel_send(mv->control, GW_STREAM_ANSWERED, &msg.base, NULL);
}

static void give_up(struct destination *d, struct gw_error *err)
{
	struct gw_move *mv = d->mv;
	struct gw_error first = GW_ERROR_INIT, ignored = GW_ERROR_INIT;
	bool cancelled;
	int r;

	gw_move_fail(mv, err);
	gw_move_check(mv, &first);
	pthread_mutex_lock(&mv->lock);
	cancelled = mv->cancelled;
	mv->past_return = true;
	pthread_mutex_unlock(&mv->lock);
	/*
	 * Written before it is said: the source runs on by this word. Where OWNER may be in the journal and cannot be taken back, nothing
	 * is said: the source is then in doubt, and people decide.
	 */
	r = gw_move_journal(mv, GW_JOURNAL_ABORTED, mv->p.epoch, &ignored);
	if (r < 0)
		gw_warn("move: %s", gw_error_text(&ignored));
	if (r == 0 || !d->owner_tried)
		gw_move_say_abort(mv, &first);
	gw_receivers_free(gw_steal_ptr(&d->receivers));
	gw_move_disconnect(mv);
	snprintf(mv->progress.message, sizeof(mv->progress.message), "%.250s", gw_error_text(&first));
	gw_move_report(mv, cancelled ? GW_MOVE_CANCELLED : GW_MOVE_FAILED);
}

static int arrive(struct destination *d, struct gw_error *err)
{
	struct gw_move *mv = d->mv;
	Godwit__StreamState *state = NULL;
	int r;

	r = gw_move_step(mv, GW_FP_DST_CONNECT, err);
	if (r == 0)
		r = gw_move_connect(mv, err);
	if (r == 0)
		r = take_hello(mv, err);
	if (r == 0)
		r = gw_receivers_new(mv, &d->receivers, err);
	if (r < 0)
		return r;
	d->base_ns = d->reported_ns = gw_now_ns();
	d->warm = !mv->vm.ops->warm;
	report(d, GW_MOVE_COPY);
	r = wait_state(d, &state, err);
	if (r < 0)
		return r;
	report(d, GW_MOVE_SWITCH);
	r = load(d, state, err);
	godwit__stream_state__free_unpacked(state, NULL);
	if (r == 0)
		r = wait_commit(d, err);
	return r < 0 ? r : take_over(d, err);
}

void *gw_move_destination_main(void *arg)
{
	struct destination d = { .mv = arg };
	struct gw_error err = GW_ERROR_INIT;
	uint64_t running_ns;

	gw_move_report(d.mv, GW_MOVE_CONNECT);
	if (arrive(&d, &err) < 0) {
		give_up(&d, &err);
		godwit__stream_packets__free_unpacked(d.packets, NULL);
		return NULL;
	}
	running_ns = say_running(d.mv);
	if (d.mv->vm.ops->released)
		d.mv->vm.ops->released(d.mv->vm.self);
	if (d.mv->vm.ops->announce && !d.mv->paused)
		d.mv->vm.ops->announce(d.mv->vm.self);
	if (!d.mv->paused)
		gw_packets_deliver(d.mv, d.packets);
	if (running_ns)
		say_answered(d.mv, running_ns);
	report(&d, GW_MOVE_DONE);
	gw_receivers_free(d.receivers);
	godwit__stream_packets__free_unpacked(d.packets, NULL);
	return NULL;
}
