// SPDX-License-Identifier: Apache-2.0
/* Moves of this VMM's VM: joins the engine with the VM, the journal and the main loop; see move.h. */
#include "vmm/move.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>

#include "lib/clock.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/util.h"
#include "migrate/move.h"
#include "vmm/move-internal.h"
#include "vmm/move-machine.h"
#include "vmm/prefault.h"
#include "vmm/talk.h"
#include "vmm/tap.h"
#include "vmm/vm.h"
#include "vmm/working-set.h"

/*
 * Of the packets that follow a VM, at a time: so many that are not TCP. It comes late to all of them, and has those first that somebody would
 * repeat much later; who asks by UDP counts on losses.
 */
#define FOLLOWING_OTHERS 8u

void gw_vm_move_wake(struct gw_vm_move *mv)
{
	uint64_t one = 1;

	if (write(mv->event_fd, &one, sizeof(one)) < 0) {
		/* Only when full: readable it is all the same. */
	}
}

/* The engine's thread. What is not dispatched in time is overwritten; the last one stays. */
static void take_progress(void *arg, const struct gw_move_progress *p)
{
	struct gw_vm_move *mv = arg;

	pthread_mutex_lock(&mv->lock);
	mv->latest = *p;
	mv->news = true;
	pthread_mutex_unlock(&mv->lock);
	gw_vm_move_wake(mv);
}

static struct gw_vm *vm_of(void *self)
{
	return ((struct gw_vm_move *)self)->vm;
}

static void op_slow(void *self, unsigned percent)
{
	gw_vm_slow(vm_of(self), percent);
}

_Static_assert(GW_TALK_FLOWS == GW_MOVE_TALKS, "what one names, the other carries");

static void op_awaited(void *self, struct gw_move_talk *ret)
{
	ret->since_ns = gw_talk_unanswered();
	ret->longest_ns = gw_talk_longest();
	ret->nanswered = gw_talk_answered(ret->answered);
}

static void op_stop(void *self)
{
	gw_vm_stop(vm_of(self));
}

static void op_run(void *self)
{
	struct gw_vm_move *mv = self;

	if (mv->arriving)
		gw_vm_run_held(mv->vm);
	else
		gw_vm_run(mv->vm);
}

static bool op_running(void *self)
{
	return gw_vm_running(vm_of(self));
}

static int op_save(void *self, struct gw_buf *out, struct gw_error *err)
{
	return gw_vm_save(vm_of(self), out, err);
}

static int op_load(void *self, const void *data, size_t len, struct gw_error *err)
{
	return gw_vm_load(vm_of(self), data, len, err);
}

static int op_renew(void *self, struct gw_error *err)
{
	return gw_vm_renew(vm_of(self), ((struct gw_vm_move *)self)->load_clone, err);
}

static int op_working_set_begin(void *self)
{
	struct gw_vm_move *mv = self;

	return gw_working_set_new(mv->vm, &mv->working_set);
}

static void op_working_set_end(void *self, uint64_t *bitmap)
{
	struct gw_vm_move *mv = self;

	if (mv->working_set && bitmap)
		gw_working_set_read(mv->working_set, bitmap);
	gw_working_set_free(gw_steal_ptr(&mv->working_set));
}

static void op_map(void *self, uint64_t first, uint64_t count)
{
	gw_vm_prefault_pages(vm_of(self), first, count);
}

static void op_warm(void *self)
{
	gw_vm_prefault(vm_of(self));
}

static int op_describe(void *self, Godwit__StreamMachine **ret, struct gw_error *err)
{
	return gw_move_machine_describe(vm_of(self), ret, err);
}

static int op_accept(void *self, const Godwit__StreamMachine *theirs, struct gw_error *err)
{
	return gw_move_machine_accept(vm_of(self), theirs, ((struct gw_vm_move *)self)->load_clone, err);
}

/* A power-off or reset that waits for the main loop must not travel half-done. */
static int op_settled(void *self, struct gw_error *err)
{
	if (gw_wait_fd(gw_vm_event_fd(vm_of(self)), POLLIN, 0) == 0)
		return gw_error_set(err, ECANCELED, "the guest has just powered off, rebooted or crashed");
	return 0;
}

static void op_owned(void *self, uint64_t epoch, const uint64_t *answered, size_t nanswered)
{
	struct gw_vm_move *mv = self;

	gw_talk_begin(answered, nanswered);
	mv->arriving = true;
}

static void op_released(void *self)
{
	struct gw_vm_move *mv = self;

	mv->arriving = false;
	gw_vm_release(mv->vm);
}

struct drain {
	gw_move_packet_fn *fn;
	void *arg;
	unsigned others;
};

static void sift(void *arg, unsigned device, const void *data, size_t len)
{
	struct drain *d = arg;

	if (len <= GW_TAP_HEADER || (!gw_talk_repeats((const uint8_t *)data + GW_TAP_HEADER, len - GW_TAP_HEADER) && ++d->others > FOLLOWING_OTHERS))
		return;
	d->fn(d->arg, device, data, len);
}

static void op_drain(void *self, gw_move_packet_fn *fn, void *arg)
{
	struct drain d = { .fn = fn, .arg = arg };

	gw_vm_drain(vm_of(self), sift, &d);
}

static void op_deliver(void *self, unsigned device, const void *data, size_t len)
{
	gw_vm_deliver(vm_of(self), device, data, len);
}

static bool op_resumed(void *self, uint64_t from_ns, uint64_t *answered_ns, uint64_t *longest_ns)
{
	*longest_ns = gw_talk_longest();
	return gw_talk_resumed(from_ns, answered_ns);
}

static void op_announce(void *self)
{
	gw_vm_announce(vm_of(self));
}

static const struct gw_move_vm_ops vm_ops = {
	.slow = op_slow,
	.stop = op_stop,
	.awaited = op_awaited,
	.run = op_run,
	.running = op_running,
	.save = op_save,
	.load = op_load,
	.renew = op_renew,
	.describe = op_describe,
	.accept = op_accept,
	.warm = op_warm,
	.working_set_begin = op_working_set_begin,
	.working_set_end = op_working_set_end,
	.map = op_map,
	.settled = op_settled,
	.owned = op_owned,
	.released = op_released,
	.drain = op_drain,
	.deliver = op_deliver,
	.resumed = op_resumed,
	.announce = op_announce,
};

/* A VM that boots here has effects from its first instruction on. */
static int own(struct gw_vm_move *mv, uint64_t epoch, struct gw_error *err)
{
	struct gw_journal_entry e = { .state = GW_JOURNAL_OWNER, .epoch = epoch ?: 1 };

	mv->epoch = e.epoch;
	if (!mv->journal)
		return 0;
	atomic_store(gw_journal_effect_word(mv->journal), 1);
	return gw_journal_write(mv->journal, &e, err);
}

int gw_vm_move_new(struct gw_vm *vm, const char *journal, bool incoming, uint64_t epoch,
		   const struct gw_vm_move_hooks *hooks, void *arg, struct gw_vm_move **ret, struct gw_error *err)
{
	struct gw_vm_move *mv = calloc(1, sizeof(*mv));
	int r = 0;

	if (!mv)
		return gw_error_set(err, ENOMEM, "out of memory");
	mv->vm = vm;
	mv->hooks = hooks;
	mv->arg = arg;
	mv->state = incoming ? GW_VM_MOVE_WAITING : GW_VM_MOVE_NONE;
	pthread_mutex_init(&mv->lock, NULL);
	mv->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (mv->event_fd < 0)
		r = gw_error_errno(err, errno, "cannot make an eventfd");
	if (r == 0 && journal)
		r = gw_journal_open(journal, &mv->journal, err);
	if (r == 0 && !incoming)
		r = own(mv, epoch, err);
	if (r < 0) {
		gw_vm_move_free(mv);
		return r;
	}
	*ret = mv;
	return 0;
}

void gw_vm_move_free(struct gw_vm_move *mv)
{
	if (!mv)
		return;
	gw_move_free(mv->engine);
	gw_vm_move_release_repo(mv);
	gw_journal_close(mv->journal);
	gw_closep(&mv->event_fd);
	pthread_mutex_destroy(&mv->lock);
	free(mv);
}

int gw_vm_move_fd(const struct gw_vm_move *mv)
{
	return mv->event_fd;
}

void gw_vm_move_set_state(struct gw_vm_move *mv, enum gw_vm_move_state state, const char *why)
{
	if (mv->state == state)
		return;
	/* A move needs the processor more, and finds its pages where they are; so does saving. */
	if (state == GW_VM_MOVE_OUT || state == GW_VM_MOVE_SAVING)
		gw_vm_share_pause(mv->vm);
	else if (state == GW_VM_MOVE_NONE && (mv->state == GW_VM_MOVE_OUT || mv->state == GW_VM_MOVE_SAVING || mv->state == GW_VM_MOVE_IN_DOUBT))
		gw_vm_share_resume(mv->vm);
	else if (state == GW_VM_MOVE_NONE && !mv->load)
		gw_vm_share_loaded(mv->vm); /* it came otherwise */
	mv->state = state;
	mv->hooks->state(mv->arg, state, why);
}

/* The engine has ended. */
static void conclude(struct gw_vm_move *mv, const struct gw_move_progress *p)
{
	bool leaving = mv->state == GW_VM_MOVE_OUT || mv->state == GW_VM_MOVE_IN_DOUBT;

	gw_talk_end();
	mv->epoch = gw_move_epoch(mv->engine);
	gw_move_free(gw_steal_ptr(&mv->engine));
	if (p->phase == GW_MOVE_DONE)
		gw_vm_move_set_state(mv, leaving ? GW_VM_MOVE_GONE : GW_VM_MOVE_NONE, "");
	else
		gw_vm_move_set_state(mv, leaving ? GW_VM_MOVE_NONE : GW_VM_MOVE_GONE, p->message);
}

void gw_vm_move_dispatch(struct gw_vm_move *mv)
{
	struct gw_move_progress p;
	uint64_t count;
	bool news;

	if (read(mv->event_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		gw_warn("move: reading an eventfd: error %d", errno);
	pthread_mutex_lock(&mv->lock);
	p = mv->latest;
	news = mv->news;
	mv->news = false;
	pthread_mutex_unlock(&mv->lock);
	gw_vm_move_dispatch_repo(mv);
	if (!news || !mv->engine)
		return;
	mv->shown = p;
	mv->ever = true;
	mv->hooks->progress(mv->arg, &p);
	switch (p.phase) {
	case GW_MOVE_DONE:
	case GW_MOVE_FAILED:
	case GW_MOVE_CANCELLED:
		conclude(mv, &p);
		break;
	case GW_MOVE_DOUBT:
		gw_vm_move_set_state(mv, GW_VM_MOVE_IN_DOUBT, p.message);
		break;
	default:
		break;
	}
}

static void close_all(const int *fds, unsigned nfds)
{
	for (unsigned i = 0; i < nfds; i++)
		close(fds[i]);
}

/* What both directions have in common. The descriptors are in params->fds on success, and untouched else. */
static int fill_params(struct gw_move_params *p, ProtobufCBinaryData id, ProtobufCBinaryData secret, uint64_t epoch,
		       uint32_t channels, bool clear, const char *peer, const int *fds, unsigned nfds, struct gw_error *err)
{
	memset(p, 0, sizeof(*p));
	if (id.len != sizeof(p->move_id))
		return gw_error_set(err, EINVAL, "a move needs an id of %zu bytes", sizeof(p->move_id));
	if (!clear && secret.len != sizeof(p->secret))
		return gw_error_set(err, EINVAL, "a move needs a secret of %zu bytes", sizeof(p->secret));
#ifndef GW_BENCH_SWITCHES
	if (clear)
		return gw_error_set(err, EPERM, "this build moves VMs encrypted only");
#endif
	if (channels < 1 || channels > GW_STREAM_MAX_CHANNELS || nfds != channels + 1)
		return gw_error_set(err, EINVAL, "%u data channels and %u descriptors do not fit", channels, nfds);
	memcpy(p->move_id, id.data, sizeof(p->move_id));
	if (secret.len == sizeof(p->secret))
		memcpy(p->secret, secret.data, sizeof(p->secret));
	p->epoch = epoch;
	p->channels = channels;
	p->clear = clear;
	snprintf(p->peer, sizeof(p->peer), "%s", peer);
	for (size_t i = 0; i < ARRAY_SIZE(p->fds); i++)
		p->fds[i] = i < nfds ? fds[i] : -1;
	return 0;
}

struct gw_move_vm gw_vm_move_handle(struct gw_vm_move *mv)
{
	return (struct gw_move_vm){
		.ops = &vm_ops,
		.self = mv,
		.ram = gw_vm_ram(mv->vm),
	};
}

static int begin_out(struct gw_vm_move *mv, const Godwit__MoveOut *req, const int *fds, unsigned nfds,
		     struct gw_move_params *p, struct gw_error *err)
{
	if (mv->state != GW_VM_MOVE_NONE)
		return gw_error_set(err, EBUSY, "another move is under way");
	if (mv->load)
		return gw_error_set(err, EBUSY, "the VM's memory is still on its way from a repository");
	if (req->epoch <= mv->epoch)
		return gw_error_set(err, EINVAL, "epoch %llu is not past the present one, %llu", (unsigned long long)req->epoch,
				    (unsigned long long)mv->epoch);
	if (fill_params(p, req->move_id, req->secret, req->epoch, req->channels, req->clear, req->peer, fds, nfds, err) < 0)
		return -err->code;
	p->own_epoch = mv->epoch;
	p->downtime_ms = req->downtime_ms;
	p->timeout_ms = req->timeout_ms;
	p->timeout_stops = req->policy == GODWIT__MOVE_POLICY__MOVE_STOP;
	p->bandwidth = req->bandwidth;
	p->digest = req->digest;
	return 0;
}

int gw_vm_move_out(struct gw_vm_move *mv, const Godwit__MoveOut *req, const int *fds, unsigned nfds, struct gw_error *err)
{
	struct gw_move_vm vm = gw_vm_move_handle(mv);
	struct gw_move_params p;
	int r;

	r = begin_out(mv, req, fds, nfds, &p, err);
	if (r < 0) {
		close_all(fds, nfds);
		return r;
	}
	vm.dirty = gw_vm_dirty_source(mv->vm);
	gw_talk_begin(NULL, 0);
	r = gw_move_source_start(&p, &vm, mv->journal, take_progress, mv, &mv->engine, err);
	OPENSSL_cleanse(p.secret, sizeof(p.secret));
	if (r < 0)
		gw_talk_end();
	else
		gw_vm_move_set_state(mv, GW_VM_MOVE_OUT, "");
	return r;
}

int gw_vm_move_in(struct gw_vm_move *mv, const Godwit__MoveIn *req, const int *fds, unsigned nfds, struct gw_error *err)
{
	struct gw_move_vm vm = gw_vm_move_handle(mv);
	struct gw_move_params p;
	int r;

	if (mv->state != GW_VM_MOVE_WAITING)
		r = gw_error_set(err, EBUSY, "this VMM does not wait for a VM to arrive");
	else
		r = fill_params(&p, req->move_id, req->secret, req->epoch, req->channels, req->clear, req->peer, fds, nfds, err);
	if (r < 0) {
		close_all(fds, nfds);
		return r;
	}
	p.paused = req->paused;
	r = gw_move_destination_start(&p, &vm, mv->journal, take_progress, mv, &mv->engine, err);
	OPENSSL_cleanse(p.secret, sizeof(p.secret));
	if (r == 0)
		gw_vm_move_set_state(mv, GW_VM_MOVE_IN, "");
	return r;
}

int gw_vm_move_cancel(struct gw_vm_move *mv, struct gw_error *err)
{
	if (mv->save)
		return gw_save_cancel(mv->save) < 0 ? gw_error_set(err, EBUSY, "too late: the snapshot is made") : 0;
	if (mv->load)
		return gw_load_cancel(mv->load) < 0 ? gw_error_set(err, EBUSY, "too late: the VM is here") : 0;
	if (!mv->engine)
		return gw_error_set(err, ENOENT, "no move is under way");
	if (gw_move_cancel(mv->engine) < 0)
		return gw_error_set(err, EBUSY, "too late: the destination is taking over");
	return 0;
}

int gw_vm_move_cancel_wait(struct gw_vm_move *mv)
{
	if (mv->engine)
		(void)gw_move_cancel(mv->engine);
	if (mv->save)
		(void)gw_save_cancel(mv->save);
	/* Past COMMIT an answer or a doubt comes within seconds; before it, the engine ends at once. */
	while (mv->save || (mv->engine && mv->state != GW_VM_MOVE_IN_DOUBT)) {
		gw_wait_fd(mv->event_fd, POLLIN, GW_NO_DEADLINE);
		gw_vm_move_dispatch(mv);
	}
	return mv->state == GW_VM_MOVE_NONE ? 0 : -EBUSY;
}

int gw_vm_move_resolve(struct gw_vm_move *mv, bool here, struct gw_error *err)
{
	if (!mv->engine || gw_move_resolve(mv->engine, here) < 0)
		return gw_error_set(err, ENOENT, "the VM is not in doubt");
	return 0;
}

enum gw_vm_move_state gw_vm_move_state(const struct gw_vm_move *mv)
{
	return mv->state;
}

bool gw_vm_move_busy(const struct gw_vm_move *mv)
{
	return mv->engine || mv->save || mv->load;
}

uint64_t gw_vm_move_epoch(const struct gw_vm_move *mv)
{
	return mv->engine ? gw_move_epoch(mv->engine) : mv->epoch;
}

bool gw_vm_move_progress(const struct gw_vm_move *mv, struct gw_move_progress *ret)
{
	if (mv->ever)
		*ret = mv->shown;
	return mv->ever;
}

void gw_vm_move_progress_msg(const struct gw_move_progress *p, Godwit__MoveProgress *msg)
{
	godwit__move_progress__init(msg);
	msg->move_id.data = (uint8_t *)p->move_id;
	msg->move_id.len = sizeof(p->move_id);
	msg->phase = (char *)gw_move_phase_name(p->phase);
	msg->bytes_sent = p->bytes_sent;
	msg->bytes_left = p->bytes_left;
	msg->ram_bytes = p->ram_bytes;
	msg->rate = p->rate;
	msg->dirty_rate = p->dirty_rate;
	msg->round = p->round;
	msg->predicted_blackout_us = p->predicted_blackout_us;
	msg->eta_ms = p->eta_ms;
	msg->blackout_us = p->blackout_us;
	msg->elapsed_ms = p->elapsed_ms;
	msg->zero_pages = p->zero_pages;
	msg->slowed = p->slowed;
	msg->message = (char *)p->message;
	msg->encrypted = p->encrypted;
	msg->cipher = (char *)p->cipher;
}
