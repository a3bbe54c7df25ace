// SPDX-License-Identifier: Apache-2.0
/* A VMM without KVM; see agent-vmm.h. */
#include "agent-vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>

#include "ksm/sharer.h"
#include "deny.h"
#include "lib/clock.h"
#include "lib/failpoint.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "lib/util.h"
#include "migrate/load.h"
#include "migrate/move.h"
#include "migrate/save.h"
#include "move-vm.h"
#include "proto/frame.h"
#include "proto/vmm.pb-c.h"

#define RAM_SIZE (8ull << 20)
#define FILL_SEED 42
#define FILL_ZERO_EVERY 3
#define MAX_CLIENTS 16
#define BALLOON_DEVICE "virtio-balloon balloon0\n"

enum move_state { NONE, WAITING, IN, OUT, DOUBT };

struct fake {
	const char *name, *control, *journal_path, *kernel;
	bool incoming;
	bool balloon;
	uint64_t target, asked; /* of the balloon; how often it was asked */
	uint64_t memory;        /* as the balloon has it */
	int share;              /* its end of a session with the page-store daemon */
	bool image_only;
	struct gw_sharer *sharer; /* NULL: share is all */
	uint64_t epoch;

	struct move_vm vm;
	struct gw_move_vm inner; /* move-vm's own operations */
	struct gw_journal *journal;
	int running_fd;          /* the lock of the VM that runs */
	struct gw_move *engine;
	enum move_state state;
	bool ended;
	int exit_code;

	pthread_mutex_t lock;
	struct gw_move_progress latest; /* under lock */
	bool news;
	int event_fd;
	struct gw_move_progress shown;
	bool ever;

	struct gw_save *save;
	struct gw_load *load;
	struct gw_save_progress saved;  /* under lock, like the next */
	struct gw_load_progress loaded;
	bool ever_loaded;
	struct gw_load_progress load_shown; /* what load_told points into */
	Godwit__LoadProgress load_told;
	uint8_t save_id[16];
	bool keep;
	char save_name[64];
	int listener;
	int clients[MAX_CLIENTS];
	bool subscribed[MAX_CLIENTS];
	unsigned nclients;
};

/* What a test is to know: another byte in GW_TEST_DIR/NAME.`what`. */
static void tell_test(struct fake *f, const char *what)
{
	gw_autofree char *path = NULL;
	gw_autofd fd = -1;

	if (asprintf(&path, "%s/%s.%s", getenv("GW_TEST_DIR") ?: "/tmp", f->name, what) >= 0)
		fd = open(path, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, ".", 1) != 1)
		gw_warn("cannot tell the test: %s", what);
}

static void op_run(void *self)
{
	struct fake *f = self;

	if (f->running_fd >= 0 && flock(f->running_fd, LOCK_EX | LOCK_NB) < 0)
		tell_test(f, "two");
	if (f->vm.keeps)
		tell_test(f, "ran");
	f->inner.ops->run(f->inner.self);
}

static void op_stop(void *self)
{
	struct fake *f = self;

	f->inner.ops->stop(f->inner.self);
	flock(f->running_fd, LOCK_UN);
}

static bool op_running(void *self)
{
	return ((struct fake *)self)->inner.ops->running(((struct fake *)self)->inner.self);
}

static int op_save(void *self, struct gw_buf *out, struct gw_error *err)
{
	return ((struct fake *)self)->inner.ops->save(((struct fake *)self)->inner.self, out, err);
}

static int op_load(void *self, const void *data, size_t len, struct gw_error *err)
{
	return ((struct fake *)self)->inner.ops->load(((struct fake *)self)->inner.self, data, len, err);
}

static int op_describe(void *self, Godwit__StreamMachine **ret, struct gw_error *err)
{
	return ((struct fake *)self)->inner.ops->describe(((struct fake *)self)->inner.self, ret, err);
}

static int op_accept(void *self, const Godwit__StreamMachine *theirs, struct gw_error *err)
{
	return ((struct fake *)self)->inner.ops->accept(((struct fake *)self)->inner.self, theirs, err);
}

static void op_released(void *self)
{
	((struct fake *)self)->inner.ops->released(((struct fake *)self)->inner.self);
}

static const struct gw_move_vm_ops ops = {
	.stop = op_stop,
	.run = op_run,
	.running = op_running,
	.save = op_save,
	.load = op_load,
	.describe = op_describe,
	.accept = op_accept,
	.released = op_released,
};

static struct gw_move_vm handle(struct fake *f)
{
	return (struct gw_move_vm){ .ops = &ops, .self = f, .ram = f->vm.ram, .dirty = f->inner.dirty };
}

static void wake(struct fake *f)
{
	uint64_t one = 1;

	if (write(f->event_fd, &one, sizeof(one)) < 0)
		gw_warn("eventfd");
}

static void on_progress(void *arg, const struct gw_move_progress *p)
{
	struct fake *f = arg;

	pthread_mutex_lock(&f->lock);
	f->latest = *p;
	f->news = true;
	pthread_mutex_unlock(&f->lock);
	wake(f);
}

static void on_saved(void *arg, const struct gw_save_progress *p)
{
	struct fake *f = arg;

	pthread_mutex_lock(&f->lock);
	f->saved = *p;
	pthread_mutex_unlock(&f->lock);
	wake(f);
}

static void on_loaded(void *arg, const struct gw_load_progress *p)
{
	struct fake *f = arg;

	pthread_mutex_lock(&f->lock);
	f->loaded = *p;
	pthread_mutex_unlock(&f->lock);
	wake(f);
}

static void fill_progress(struct gw_move_progress *p, Godwit__MoveProgress *m)
{
	godwit__move_progress__init(m);
	m->move_id.data = p->move_id;
	m->move_id.len = sizeof(p->move_id);
	m->phase = (char *)gw_move_phase_name(p->phase);
	m->bytes_sent = p->bytes_sent;
	m->bytes_left = p->bytes_left;
	m->ram_bytes = p->ram_bytes;
	m->rate = p->rate;
	m->round = p->round;
	m->blackout_us = p->blackout_us;
	m->elapsed_ms = p->elapsed_ms;
	m->message = p->message;
	m->encrypted = p->encrypted;
	m->cipher = p->cipher;
}

static Godwit__VmmRunState run_state(struct fake *f)
{
	if (f->ended)
		return GODWIT__VMM_RUN_STATE__VMM_ENDED;
	if (f->state == WAITING || f->state == IN)
		return GODWIT__VMM_RUN_STATE__VMM_INCOMING;
	if (f->state == OUT)
		return GODWIT__VMM_RUN_STATE__VMM_MOVING;
	if (f->save)
		return GODWIT__VMM_RUN_STATE__VMM_SAVING;
	if (f->state == DOUBT)
		return GODWIT__VMM_RUN_STATE__VMM_DOUBT;
	if (f->load)
		return gw_load_paused(f->load) ? GODWIT__VMM_RUN_STATE__VMM_PAUSED : GODWIT__VMM_RUN_STATE__VMM_RUNNING;
	return move_vm_running(&f->vm) ? GODWIT__VMM_RUN_STATE__VMM_RUNNING : GODWIT__VMM_RUN_STATE__VMM_PAUSED;
}

static const Godwit__LoadProgress *fill_loaded(struct fake *f)
{
	Godwit__LoadProgress *m = &f->load_told;

	pthread_mutex_lock(&f->lock);
	f->load_shown = f->loaded;
	pthread_mutex_unlock(&f->lock);
	godwit__load_progress__init(m);
	m->phase = (char *)gw_load_phase_name(f->load_shown.phase);
	m->ram_bytes = f->load_shown.ram_bytes;
	m->bytes = f->load_shown.bytes;
	m->bytes_here = f->load_shown.bytes_here;
	m->message = f->load_shown.message;
	return m;
}

static void fill_status(struct fake *f, Godwit__VmmStatus *s, Godwit__MoveProgress *m)
{
	godwit__vmm_status__init(s);
	s->state = run_state(f);
	s->name = (char *)f->name;
	s->memory = RAM_SIZE;
	s->cpus = 1;
	s->epoch = f->engine ? gw_move_epoch(f->engine) : f->epoch;
	s->pid = (uint32_t)getpid();
	s->resident = RAM_SIZE;
	s->balloon = f->balloon ? f->memory - f->target : 0;
	if (f->ever) {
		fill_progress(&f->shown, m);
		s->move = m;
	}
	if (f->ever_loaded)
		s->load = (Godwit__LoadProgress *)fill_loaded(f);
}

static void fill_saved(struct fake *f, Godwit__SaveProgress *m)
{
	godwit__save_progress__init(m);
	m->phase = (char *)gw_save_phase_name(f->saved.phase);
	m->snapshot.data = f->saved.snapshot;
	m->snapshot.len = sizeof(f->saved.snapshot);
	m->generation = f->saved.generation;
	m->stored_pages = f->saved.stored_pages;
	m->message = f->saved.message;
	m->keep = f->keep;
	m->name = f->save_name;
	m->id.data = f->save_id;
	m->id.len = sizeof(f->save_id);
}

static void tell_saved(struct fake *f)
{
	Godwit__VmmEvent ev = GODWIT__VMM_EVENT__INIT;
	Godwit__SaveProgress m;

	fill_saved(f, &m);
	ev.kind = (char *)"save";
	ev.save = &m;
	for (unsigned i = 0; i < f->nclients; i++) {
		if (f->subscribed[i])
			gw_frame_send(f->clients[i], 3, &ev.base, NULL, 0, gw_now_ns() + GW_NS_PER_SEC);
	}
}

static void tell(struct fake *f, const char *kind, bool with_move)
{
	Godwit__VmmEvent ev = GODWIT__VMM_EVENT__INIT;
	Godwit__VmmStatus status;
	Godwit__MoveProgress move;

	fill_status(f, &status, &move);
	ev.kind = (char *)kind;
	ev.status = &status;
	ev.move = with_move ? &move : NULL;
	for (unsigned i = 0; i < f->nclients; i++) {
		if (f->subscribed[i])
			gw_frame_send(f->clients[i], 3, &ev.base, NULL, 0, gw_now_ns() + GW_NS_PER_SEC);
	}
}

static void end(struct fake *f, int code)
{
	f->ended = true;
	f->exit_code = code;
	tell(f, "state", false);
}

/* All that it ever wrote, and nothing else, is in the memory that was loaded. */
static void look_at_memory(struct fake *f)
{
	bool running = move_vm_running(&f->vm);

	move_vm_stop(&f->vm);
	tell_test(f, move_vm_remembers(&f->vm, FILL_SEED, FILL_ZERO_EVERY) ? "equal" : "wrong");
	if (running)
		move_vm_run(&f->vm);
}

static void take_repo_news(struct fake *f)
{
	enum gw_save_phase saved;
	enum gw_load_phase loaded;

	pthread_mutex_lock(&f->lock);
	saved = f->saved.phase;
	loaded = f->loaded.phase;
	pthread_mutex_unlock(&f->lock);
	if (f->save) {
		tell_saved(f);
		if (saved >= GW_SAVE_DONE) {
			gw_save_free(f->save);
			f->save = NULL;
			if (saved == GW_SAVE_DONE && !f->keep)
				end(f, 0);
			else
				tell(f, "state", false);
		}
	}
	if (f->load && loaded != GW_LOAD_OPEN && f->state == IN) {
		f->state = NONE;
		if (loaded >= GW_LOAD_FAILED)
			end(f, 1);
		else
			tell(f, "state", false);
	}
	if (f->load)
		tell(f, "load", false);
	if (f->load && loaded >= GW_LOAD_DONE) {
		gw_load_free(f->load);
		f->load = NULL;
		if (f->sharer)
			gw_sharer_loaded(f->sharer);
		if (loaded == GW_LOAD_DONE && f->vm.keeps)
			look_at_memory(f);
	}
}

static int begin_save(struct fake *f, const Godwit__Save *req, struct gw_error *err)
{
	struct gw_save_params p = { .url = req->url, .name = req->name, .vm = f->name, .host = req->host, .live = req->live, .keep = req->keep,
				    .epoch = f->epoch, .about = req->about.data, .about_len = req->about.len };
	struct gw_move_vm vm = handle(f);

	if (f->state != NONE || f->save || f->load || req->key.len != sizeof(p.key) || req->id.len != sizeof(f->save_id))
		return gw_error_set(err, EINVAL, "not now");
	memcpy(p.key, req->key.data, sizeof(p.key));
	if (req->ticket && gw_ticket_read(req->ticket, &p.ticket, err) < 0)
		return -EPROTO;
	memcpy(f->save_id, req->id.data, sizeof(f->save_id));
	f->keep = req->keep;
	snprintf(f->save_name, sizeof(f->save_name), "%s", req->name);
	f->saved.phase = GW_SAVE_OPEN;
	return gw_save_start(&p, &vm, f->journal, on_saved, f, &f->save, err);
}

static int begin_load(struct fake *f, const Godwit__Load *req, struct gw_error *err)
{
	struct gw_load_params p = { .url = req->url, .name = req->name, .generation = req->generation, .epoch = req->epoch, .paused = req->paused };
	struct gw_move_vm vm = handle(f);

	if (f->state != WAITING || req->key.len != sizeof(p.key) || req->id.len != sizeof(p.id))
		return gw_error_set(err, EINVAL, "not now");
	memcpy(p.key, req->key.data, sizeof(p.key));
	if (req->ticket && gw_ticket_read(req->ticket, &p.ticket, err) < 0)
		return -EPROTO;
	memcpy(p.id, req->id.data, sizeof(p.id));
	f->state = IN;
	f->ever_loaded = true;
	f->epoch = req->epoch;
	p.lineage = f->sharer ? gw_sharer_lineage(f->sharer) : NULL;
	return gw_load_start(&p, &vm, f->journal, on_loaded, f, &f->load, err);
}

static void take_news(struct fake *f)
{
	uint64_t count;
	bool leaving = f->state == OUT || f->state == DOUBT, news;

	if (read(f->event_fd, &count, sizeof(count)) < 0)
		return;
	pthread_mutex_lock(&f->lock);
	news = f->news;
	f->news = false;
	f->shown = f->latest;
	pthread_mutex_unlock(&f->lock);
	take_repo_news(f);
	if (!news || !f->engine)
		return;
	f->ever = true;
	tell(f, "move", true);
	if (f->shown.phase == GW_MOVE_DOUBT && f->state != DOUBT) {
		f->state = DOUBT;
		tell(f, "state", false);
	}
	if (f->shown.phase != GW_MOVE_DONE && f->shown.phase != GW_MOVE_FAILED && f->shown.phase != GW_MOVE_CANCELLED)
		return;
	f->epoch = gw_move_epoch(f->engine);
	gw_move_free(f->engine);
	f->engine = NULL;
	f->state = NONE;
	if ((f->shown.phase == GW_MOVE_DONE) == leaving)
		end(f, leaving ? 0 : 1);
	else
		tell(f, "state", false);
}

static int begin(struct fake *f, const Godwit__VmmRequest *req, int *fds, unsigned nfds, struct gw_error *err)
{
	const Godwit__MoveOut *out = req->op_case == GODWIT__VMM_REQUEST__OP_MOVE_OUT ? req->move_out : NULL;
	const Godwit__MoveIn *in = out ? NULL : req->move_in;
	const ProtobufCBinaryData *id = out ? &out->move_id : &in->move_id;
	const ProtobufCBinaryData *secret = out ? &out->secret : &in->secret;
	struct gw_move_params p = { .epoch = out ? out->epoch : in->epoch, .channels = out ? out->channels : in->channels };
	struct gw_move_vm vm = handle(f);
	int r = 0;

	if (f->state != (out ? NONE : WAITING) || id->len != 16 || secret->len != 32 || nfds != p.channels + 1)
		r = gw_error_set(err, EINVAL, "not now");
	if (r < 0) {
		for (unsigned i = 0; i < nfds; i++)
			close(fds[i]);
		return r;
	}
	memcpy(p.move_id, id->data, 16);
	memcpy(p.secret, secret->data, 32);
	snprintf(p.peer, sizeof(p.peer), "%s", out ? out->peer : in->peer);
	for (size_t i = 0; i < ARRAY_SIZE(p.fds); i++)
		p.fds[i] = i < nfds ? fds[i] : -1;
	p.own_epoch = f->epoch;
	p.bandwidth = out ? out->bandwidth : 0;
	p.digest = out && out->digest;
	p.paused = in && in->paused;
	if (out)
		r = gw_move_source_start(&p, &vm, f->journal, on_progress, f, &f->engine, err);
	else
		r = gw_move_destination_start(&p, &vm, f->journal, on_progress, f, &f->engine, err);
	if (r == 0)
		f->state = out ? OUT : IN;
	return r;
}

/* Gives every byte back. */
static void *echo(void *arg)
{
	int fd = *(int *)arg;
	char buf[256];
	ssize_t n;

	free(arg);
	while ((n = read(fd, buf, sizeof(buf))) > 0)
		gw_write_full(fd, buf, (size_t)n, GW_NO_DEADLINE);
	close(fd);
	return NULL;
}

static int console(int *reply_fd)
{
	int pair[2], *arg = malloc(sizeof(int));
	pthread_t t;

	if (!arg || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -ENOMEM;
	*arg = pair[0];
	pthread_create(&t, NULL, echo, arg);
	pthread_detach(t);
	*reply_fd = pair[1];
	return 0;
}

static int share(struct fake *f, const Godwit__Share *req, const int *fds, unsigned nfds, struct gw_error *err)
{
	gw_autofree char *path = NULL;

	if (asprintf(&path, "%s/NO-USERFAULTFD", getenv("GW_TEST_DIR") ?: "/tmp") < 0 || nfds != 1)
		return gw_error_set(err, EINVAL, "one descriptor");
	if (access(path, F_OK) == 0 && getenv("GW_TEST_SHARING")) {
		deny_userfaultfd(EPERM);
	} else if (access(path, F_OK) == 0) {
		close(fds[0]);
		return gw_error_set(err, EPERM, "no userfaultfd for kernel faults");
	}
	if (getenv("GW_TEST_SHARING")) {
		const struct gw_sharer_config config = { .cpu_percent = 100, .interval_ns = 20 * GW_NS_PER_MS, .loading = f->state == WAITING };
		int r = f->sharer ? 0 : gw_sharer_new(f->vm.ram, &config, &f->sharer, err);

		if (r == 0)
			gw_sharer_attach(f->sharer, fds[0]);
		else
			close(fds[0]);
		return r;
	}
	if (f->share >= 0)
		close(f->share);
	f->share = fds[0];
	f->image_only = req->image_only;
	return 0;
}

static void fill_share(struct fake *f, Godwit__ShareStatus *s)
{
	struct pollfd p = { .fd = f->share };

	godwit__share_status__init(s);
	s->attached = f->share >= 0 && poll(&p, 1, 0) == 0;
	s->reason = (char *)(s->attached ? "" : "no page store");
	s->limit = "limited by a test";
	s->image_only = f->image_only;
	s->pages = RAM_SIZE / 4096;
	s->zero_pages = 300;
	s->shared_pages = 1000;
	s->broken_pages = 7;
	s->busy_pages = 3;
	s->mappings = 20;
	s->mappings_budget = 30000;
	s->passes = 2;
	s->pass_age_ms = 4000;
	s->cpu_ms = 250;
	s->metadata_bytes = 4096;
	s->stall_p50_us = 40;
	s->stall_p99_us = 90;
	s->stall_max_us = 1200;
}

static void tell_sharing(struct fake *f, Godwit__ShareStatus *s)
{
	struct gw_sharer_stats stats;

	if (!f->sharer) {
		fill_share(f, s);
		return;
	}
	gw_sharer_stats(f->sharer, &stats);
	godwit__share_status__init(s);
	s->attached = stats.attached;
	s->pages = stats.pages;
	s->zero_pages = stats.zero_pages;
	s->shared_pages = stats.shared_pages;
	s->lineage_pages = stats.lineage_pages;
	s->passes = stats.passes;
	s->metadata_bytes = stats.metadata_bytes;
}

static int dispatch(struct fake *f, unsigned client, const Godwit__VmmRequest *req, int *fds, unsigned nfds, int *reply_fd,
		    struct gw_error *err)
{
	switch (req->op_case) {
	case GODWIT__VMM_REQUEST__OP_STATUS:
	case GODWIT__VMM_REQUEST__OP_FEATURES:
		return 0;
	case GODWIT__VMM_REQUEST__OP_PAUSE:
	case GODWIT__VMM_REQUEST__OP_RESUME:
		if (f->state != NONE)
			return gw_error_set(err, EBUSY, "a move has the VM");
		if (f->load && gw_load_pause(f->load, req->op_case == GODWIT__VMM_REQUEST__OP_PAUSE) == 0)
			; /* its thread does it */
		else if (req->op_case == GODWIT__VMM_REQUEST__OP_PAUSE)
			op_stop(f);
		else
			op_run(f);
		tell(f, "state", false);
		return 0;
	case GODWIT__VMM_REQUEST__OP_POWER_BUTTON:
		if (!getenv("GW_TEST_DEAF"))
			end(f, 0);
		return 0;
	case GODWIT__VMM_REQUEST__OP_QUIT:
		end(f, 0);
		return 0;
	case GODWIT__VMM_REQUEST__OP_MOVE_OUT:
	case GODWIT__VMM_REQUEST__OP_MOVE_IN:
		return begin(f, req, fds, nfds, err);
	case GODWIT__VMM_REQUEST__OP_SAVE:
		return begin_save(f, req->save, err);
	case GODWIT__VMM_REQUEST__OP_LOAD:
		return begin_load(f, req->load, err);
	case GODWIT__VMM_REQUEST__OP_CANCEL:
		if (f->save)
			return gw_save_cancel(f->save) == 0 ? 0 : gw_error_set(err, EBUSY, "too late");
		return f->engine && gw_move_cancel(f->engine) == 0 ? 0 : gw_error_set(err, EBUSY, "too late");
	case GODWIT__VMM_REQUEST__OP_RESOLVE:
		return f->engine && gw_move_resolve(f->engine, req->resolve->here) == 0 ? 0 : gw_error_set(err, ENOENT, "no doubt");
	case GODWIT__VMM_REQUEST__OP_CONSOLE:
		return console(reply_fd);
	case GODWIT__VMM_REQUEST__OP_SUBSCRIBE:
		f->subscribed[client] = true;
		return 0;
	case GODWIT__VMM_REQUEST__OP_BALLOON:
		if (!f->balloon)
			return gw_error_set(err, EOPNOTSUPP, "no balloon");
		f->target = req->balloon->target ?: f->target;
		return 0;
	case GODWIT__VMM_REQUEST__OP_SHARE:
		return share(f, req->share, fds, nfds, err);
	case GODWIT__VMM_REQUEST__OP_SHARE_STATUS:
		return 0;
	default:
		return gw_error_set(err, ENOSYS, "unknown");
	}
}

static int serve(struct fake *f, unsigned client)
{
	Godwit__VmmReply reply = GODWIT__VMM_REPLY__INIT;
	Godwit__VmmFeatures features = GODWIT__VMM_FEATURES__INIT;
	Godwit__BalloonStatus balloon = GODWIT__BALLOON_STATUS__INIT;
	Godwit__GuestMemory memory = GODWIT__GUEST_MEMORY__INIT;
	Godwit__ShareStatus sharing;
	Godwit__MoveProgress move;
	Godwit__VmmStatus status;
	struct gw_error err = GW_ERROR_INIT;
	Godwit__VmmRequest *req;
	ProtobufCMessage *m;
	int fds[GW_MAX_FDS], reply_fd = -1;
	unsigned nfds = 0;
	int r = gw_frame_recv(f->clients[client], 1, &godwit__vmm_request__descriptor, &m, fds, &nfds, gw_now_ns() + GW_NS_PER_SEC);

	if (r < 0)
		return r;
	req = (Godwit__VmmRequest *)m;
	reply.error = -dispatch(f, client, req, fds, nfds, &reply_fd, &err);
	reply.message = err.msg;
	fill_status(f, &status, &move);
	if (req->op_case == GODWIT__VMM_REQUEST__OP_STATUS)
		reply.status = &status;
	if (req->op_case == GODWIT__VMM_REQUEST__OP_FEATURES) {
		features.stream_version = features.state_version = 1;
		features.devices.data = (uint8_t *)BALLOON_DEVICE;
		features.devices.len = f->balloon ? strlen(BALLOON_DEVICE) : 0;
		reply.features = &features;
	}
	if (req->op_case == GODWIT__VMM_REQUEST__OP_BALLOON && !reply.error) {
		balloon.target = balloon.actual = f->target;
		balloon.driver = true;
		/* The guest takes a little while to tell. */
		memory.age_ms = f->asked++ < 3 ? 60000 : 1;
		memory.free = RAM_SIZE / 2;
		memory.available = strtoull(getenv("GW_TEST_SPARE") ?: "0", NULL, 10) << 20;
		balloon.memory = &memory;
		reply.balloon = &balloon;
	}
	if (req->op_case == GODWIT__VMM_REQUEST__OP_SHARE_STATUS) {
		tell_sharing(f, &sharing);
		reply.share = &sharing;
	}
	r = gw_frame_send(f->clients[client], 2, &reply.base, &reply_fd, reply_fd >= 0, gw_now_ns() + GW_NS_PER_SEC);
	gw_closep(&reply_fd);
	godwit__vmm_request__free_unpacked(req, NULL);
	return r;
}

static void drop(struct fake *f, unsigned client)
{
	close(f->clients[client]);
	f->nclients--;
	f->clients[client] = f->clients[f->nclients];
	f->subscribed[client] = f->subscribed[f->nclients];
}

static void loop(struct fake *f)
{
	while (!f->ended) {
		struct pollfd p[MAX_CLIENTS + 2] = { { .fd = f->listener, .events = POLLIN }, { .fd = f->event_fd, .events = POLLIN } };
		unsigned n = f->nclients;

		for (unsigned i = 0; i < n; i++)
			p[2 + i] = (struct pollfd){ .fd = f->clients[i], .events = POLLIN };
		if (poll(p, 2 + n, -1) < 0)
			continue;
		if (p[1].revents)
			take_news(f);
		for (unsigned i = n; i-- > 0 && !f->ended;) {
			if (p[2 + i].revents && serve(f, i) < 0)
				drop(f, i);
		}
		if (p[0].revents) {
			int fd = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);

			if (fd >= 0 && f->nclients < MAX_CLIENTS) {
				f->subscribed[f->nclients] = false;
				f->clients[f->nclients++] = fd;
			} else if (fd >= 0) {
				close(fd);
			}
		}
	}
}

static void parse(struct fake *f, int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		const char *value = i + 1 < argc ? argv[i + 1] : "";

		if (!strcmp(argv[i], "--name"))
			f->name = value;
		else if (!strcmp(argv[i], "--control"))
			f->control = value;
		else if (!strcmp(argv[i], "--journal"))
			f->journal_path = value;
		else if (!strcmp(argv[i], "--kernel"))
			f->kernel = value;
		else if (!strcmp(argv[i], "--epoch"))
			gw_parse_uint(value, "epoch", 1, UINT64_MAX, &f->epoch, NULL);
		else if (!strcmp(argv[i], "--memory") && getenv("GW_TEST_SPARE") &&
			 gw_parse_uint(value, "memory", 1, UINT64_MAX, &f->memory, NULL) == 0)
			f->target = f->memory;
		else if (!strcmp(argv[i], "--incoming"))
			f->incoming = true;
		else if (!strcmp(argv[i], "--no-balloon"))
			f->balloon = false;
	}
}

static int start(struct fake *f, struct gw_error *err)
{
	gw_autofree char *path = NULL;
	struct gw_journal_entry e = { .state = GW_JOURNAL_OWNER, .epoch = f->epoch };
	size_t len = strlen(f->kernel);
	int r = gw_failpoint_init(err);

	if (len >= 4 && !strcmp(f->kernel + len - 4, "/bad"))
		return gw_error_set(err, EINVAL, "%s is not a kernel", f->kernel);
	if (asprintf(&path, "%s/%s.running", getenv("GW_TEST_DIR") ?: "/tmp", f->name) < 0)
		return -ENOMEM;
	f->running_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	f->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&f->lock, NULL);
	move_vm_init(&f->vm, RAM_SIZE, 0);
	f->vm.keeps = getenv("GW_TEST_REMEMBER");
	f->vm.hot_pages = f->vm.keeps ? 1024 : 16;
	f->vm.write_rate = f->vm.keeps ? 3000 : 300;
	f->inner = move_vm_handle(&f->vm);
	r = r ?: gw_unix_listen(f->control, 0600, &f->listener, err);
	r = r ?: gw_journal_open(f->journal_path, &f->journal, err);
	if (r < 0)
		return r;
	f->state = f->incoming ? WAITING : NONE;
	if (f->incoming)
		return 0;
	move_vm_fill(&f->vm, FILL_SEED, FILL_ZERO_EVERY);
	r = gw_journal_write(f->journal, &e, err);
	if (r == 0)
		op_run(f);
	return r;
}

int agent_vmm_main(int argc, char **argv)
{
	struct fake f = { .name = "?", .control = "", .journal_path = "", .kernel = "", .epoch = 1, .target = RAM_SIZE, .memory = RAM_SIZE, .share = -1,
			  .balloon = !getenv("GW_TEST_OLD") };
	struct gw_error err = GW_ERROR_INIT;

	parse(&f, argc, argv);
	gw_log_init("godwit-vmm", f.name, GW_LOG_INFO);
	if (start(&f, &err) < 0) {
		gw_error_log("%s", gw_error_text(&err));
		return 1;
	}
	loop(&f);
	if (f.load)
		_exit(f.exit_code); /* its guest may wait for memory */
	gw_save_free(f.save);
	/* As the real one: whatever was told before the end is read before the end is seen. */
	if (f.engine)
		gw_move_free(f.engine);
	gw_sharer_free(f.sharer);
	gw_journal_close(f.journal);
	move_vm_release(&f.vm);
	return f.exit_code;
}
