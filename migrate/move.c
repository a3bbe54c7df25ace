// SPDX-License-Identifier: Apache-2.0
/* One end of a move: life, failure, cancelling, channels, journal and control messages; see move.h. */
#include "migrate/move.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>

#include "lib/failpoint.h"
#include "lib/util.h"
#include "migrate/move-internal.h"

#define HANDSHAKE_NS (15 * GW_NS_PER_SEC)

const char *gw_move_phase_name(enum gw_move_phase phase)
{
	static const char *const names[] = { "connect", "copy", "stop", "commit", "done", "failed", "cancelled", "doubt" };

	return (unsigned)phase < ARRAY_SIZE(names) ? names[phase] : "unknown";
}

/* Makes every wait of this end return. */
static void wake(struct gw_move *mv)
{
	uint64_t one = 1;

	if (write(mv->wake_fd, &one, sizeof(one)) < 0) {
		/* Only when the counter is full: readable it is all the same. */
	}
}

int gw_move_fail(struct gw_move *mv, const struct gw_error *err)
{
	pthread_mutex_lock(&mv->lock);
	if (!mv->failed) {
		mv->failed = true;
		mv->error = *err;
	}
	pthread_mutex_unlock(&mv->lock);
	wake(mv);
	return -(err->code ?: EIO);
}

int gw_move_check(struct gw_move *mv, struct gw_error *err)
{
	int r = 0;

	pthread_mutex_lock(&mv->lock);
	if (mv->failed) {
		*err = mv->error;
		r = -(err->code ?: EIO);
	}
	pthread_mutex_unlock(&mv->lock);
	return r;
}

int gw_move_pass_return(struct gw_move *mv, struct gw_error *err)
{
	int r = 0;

	pthread_mutex_lock(&mv->lock);
	if (mv->failed) {
		*err = mv->error;
		r = -(err->code ?: EIO);
	} else {
		mv->past_return = true;
	}
	pthread_mutex_unlock(&mv->lock);
	return r;
}

int gw_move_cancel(struct gw_move *mv)
{
	int r = 0;

	pthread_mutex_lock(&mv->lock);
	if (mv->past_return) {
		r = -EBUSY;
	} else if (!mv->failed) {
		mv->failed = mv->cancelled = true;
		gw_error_set(&mv->error, ECANCELED, "cancelled");
	}
	pthread_mutex_unlock(&mv->lock);
	if (r == 0)
		wake(mv);
	return r;
}

static int set_resolved(struct gw_move *mv, int how)
{
	int r = -ENOENT;

	pthread_mutex_lock(&mv->lock);
	if ((mv->in_doubt || how == 3) && !mv->resolved) {
		mv->resolved = how;
		r = 0;
	}
	pthread_mutex_unlock(&mv->lock);
	if (r == 0)
		wake(mv);
	return r;
}

int gw_move_resolve(struct gw_move *mv, bool here)
{
	return set_resolved(mv, here ? 1 : 2);
}

uint64_t gw_move_epoch(struct gw_move *mv)
{
	uint64_t epoch;

	pthread_mutex_lock(&mv->lock);
	epoch = mv->epoch;
	pthread_mutex_unlock(&mv->lock);
	return epoch;
}

int gw_move_step(struct gw_move *mv, const char *name, struct gw_error *err)
{
	return gw_failpoint(name) < 0 ? gw_error_set(err, EIO, "failpoint %s", name) : 0;
}

static uint64_t wire_bytes(const struct gw_move *mv)
{
	uint64_t n = 0;

	if (mv->control)
		n += mv->source ? gw_channel_sent(mv->control) : gw_channel_received(mv->control);
	for (unsigned i = 0; i < mv->p.channels; i++) {
		if (mv->data[i])
			n += mv->source ? gw_channel_sent(mv->data[i]) : gw_channel_received(mv->data[i]);
	}
	return n;
}

void gw_move_report(struct gw_move *mv, enum gw_move_phase phase)
{
	struct gw_move_progress *p = &mv->progress;

	p->phase = phase;
	/* Closed channels no longer count: keep what was. */
	if (mv->control)
		p->bytes_sent = wire_bytes(mv);
	p->elapsed_ms = (gw_now_ns() - mv->started_ns) / GW_NS_PER_MS;
	mv->fn(mv->arg, p);
}

int gw_move_connect(struct gw_move *mv, struct gw_error *err)
{
	const char *cipher;

	for (unsigned i = 0; i <= mv->p.channels; i++) {
		struct gw_channel_config config = {
			.fd = gw_steal_fd(&mv->p.fds[i]),
			.wake_fd = mv->wake_fd,
			.client = mv->source,
			.clear = mv->p.clear,
			.number = i,
			.secret = mv->p.secret,
			.move_id = mv->p.move_id,
			.deadline_ns = gw_now_ns() + HANDSHAKE_NS,
		};
		struct gw_channel **to = i == 0 ? &mv->control : &mv->data[i - 1];
		int r = gw_channel_new(&config, to, err);

		if (r < 0)
			return r;
	}
	cipher = gw_channel_cipher(mv->control);
	mv->progress.encrypted = cipher != NULL;
	snprintf(mv->progress.cipher, sizeof(mv->progress.cipher), "%s", cipher ?: "none");
	return 0;
}

void gw_move_disconnect(struct gw_move *mv)
{
	mv->progress.bytes_sent = GW_MAX(mv->progress.bytes_sent, wire_bytes(mv));
	for (unsigned i = 0; i < GW_STREAM_MAX_CHANNELS; i++)
		gw_channel_free(gw_steal_ptr(&mv->data[i]));
	gw_channel_free(gw_steal_ptr(&mv->control));
	for (unsigned i = 0; i < ARRAY_SIZE(mv->p.fds); i++)
		gw_closep(&mv->p.fds[i]);
}

int gw_move_journal(struct gw_move *mv, enum gw_journal_state state, uint64_t epoch, struct gw_error *err)
{
	struct gw_journal_entry e = { .state = state, .epoch = epoch };

	if (!mv->journal)
		return 0;
	memcpy(e.move_id, mv->p.move_id, sizeof(e.move_id));
	snprintf(e.peer, sizeof(e.peer), "%s", mv->p.peer);
	return gw_journal_write(mv->journal, &e, err);
}

int gw_move_unpack(const struct gw_frame_header *h, const uint8_t *body, const ProtobufCMessageDescriptor *desc,
		   ProtobufCMessage **ret, struct gw_error *err)
{
	*ret = protobuf_c_message_unpack(desc, NULL, h->len, body);
	return *ret ? 0 : gw_error_set(err, EPROTO, "malformed %s message", desc->short_name);
}

/* The peer's words go to logs and terminals: printable characters only. */
static void copy_text(char *to, size_t size, const char *from)
{
	size_t n = 0;

	for (; n < size - 1 && from[n]; n++)
		to[n] = from[n] >= ' ' && from[n] < 127 ? from[n] : '?';
	to[n] = '\0';
}

int gw_move_aborted(struct gw_move *mv, const struct gw_frame_header *h, const uint8_t *body, struct gw_error *err)
{
	ProtobufCMessage *msg;
	char text[300];
	int r, code;

	r = gw_move_unpack(h, body, &godwit__stream_abort__descriptor, &msg, err);
	if (r < 0)
		return r;
	copy_text(text, sizeof(text), ((Godwit__StreamAbort *)msg)->message);
	code = ((Godwit__StreamAbort *)msg)->error;
	protobuf_c_message_free_unpacked(msg, NULL);
	if (code <= 0 || code > 4095)
		code = EREMOTEIO;
	return gw_error_set(err, code, "the %s ended the move: %s", mv->source ? "destination" : "source", text);
}

int gw_move_expect(struct gw_move *mv, enum gw_stream_type type, const ProtobufCMessageDescriptor *desc,
		   ProtobufCMessage **ret, uint64_t deadline_ns, struct gw_error *err)
{
	gw_autofree uint8_t *body = NULL;
	struct gw_frame_header h;
	int r;

	r = gw_channel_receive(mv->control, &h, &body, deadline_ns, err);
	if (r < 0)
		return r;
	if (h.type == GW_STREAM_ABORT)
		return gw_move_aborted(mv, &h, body, err);
	if (h.type != type)
		return gw_error_set(err, EPROTO, "control message of type %#x where %s was due", h.type, desc->short_name);
	return gw_move_unpack(&h, body, desc, ret, err);
}

void gw_move_say_abort(struct gw_move *mv, const struct gw_error *err)
{
	Godwit__StreamAbort msg = GODWIT__STREAM_ABORT__INIT;

	if (!mv->control)
		return;
	msg.error = err->code;
	msg.message = (char *)gw_error_text(err);
	gw_channel_ignore_wake(mv->control);
	gw_channel_set_stall(mv->control, GW_NS_PER_SEC);
	(void)gw_channel_send(mv->control, GW_STREAM_ABORT, &msg.base, NULL);
}

/* Signals belong to the main thread. */
static int start_thread(struct gw_move *mv, struct gw_error *err)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&mv->thread, NULL, mv->source ? gw_move_source_main : gw_move_destination_main, mv);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		return gw_error_errno(err, r, "cannot start the move's thread");
	mv->started = true;
	return 0;
}

static int start(bool source, const struct gw_move_params *params, const struct gw_move_vm *vm, struct gw_journal *journal,
		 gw_move_progress_fn fn, void *arg, struct gw_move **ret, struct gw_error *err)
{
	bool sane = params->channels >= 1 && params->channels <= GW_STREAM_MAX_CHANNELS;
	struct gw_move *mv = sane ? calloc(1, sizeof(*mv)) : NULL;
	int r = 0;

	if (!mv) {
		for (unsigned i = 0; i < ARRAY_SIZE(params->fds); i++) {
			if (params->fds[i] >= 0)
				close(params->fds[i]);
		}
		return sane ? gw_error_set(err, ENOMEM, "out of memory") :
			      gw_error_set(err, EINVAL, "a move needs 1 to %u data channels", GW_STREAM_MAX_CHANNELS);
	}
	mv->p = *params;
	mv->vm = *vm;
	mv->journal = journal;
	mv->fn = fn;
	mv->arg = arg;
	mv->source = source;
	mv->epoch = params->own_epoch;
	mv->started_ns = gw_now_ns();
	mv->p.default_downtime = mv->p.downtime_ms == 0;
	if (mv->p.default_downtime)
		mv->p.downtime_ms = 50;
	memcpy(mv->progress.move_id, params->move_id, GW_MOVE_ID_LEN);
	mv->progress.ram_bytes = gw_ram_size(vm->ram);
	pthread_mutex_init(&mv->lock, NULL);
	mv->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (mv->wake_fd < 0)
		r = gw_error_errno(err, errno, "cannot make an eventfd");
	if (r == 0)
		r = start_thread(mv, err);
	if (r < 0) {
		gw_move_free(mv);
		return r;
	}
	*ret = mv;
	return 0;
}

int gw_move_source_start(const struct gw_move_params *params, const struct gw_move_vm *vm, struct gw_journal *journal,
			 gw_move_progress_fn fn, void *arg, struct gw_move **ret, struct gw_error *err)
{
	return start(true, params, vm, journal, fn, arg, ret, err);
}

int gw_move_destination_start(const struct gw_move_params *params, const struct gw_move_vm *vm, struct gw_journal *journal,
			      gw_move_progress_fn fn, void *arg, struct gw_move **ret, struct gw_error *err)
{
	return start(false, params, vm, journal, fn, arg, ret, err);
}

void gw_move_free(struct gw_move *mv)
{
	if (!mv)
		return;
	if (mv->started) {
		/* A destination past COMMIT is left to finish; a source waits for an answer that may never come. */
		if (gw_move_cancel(mv) < 0 && mv->source)
			set_resolved(mv, 3);
		pthread_join(mv->thread, NULL);
	}
	gw_move_disconnect(mv);
	gw_closep(&mv->wake_fd);
	pthread_mutex_destroy(&mv->lock);
	OPENSSL_cleanse(mv->p.secret, sizeof(mv->p.secret));
	free(mv);
}
