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

#include "lib/clock.h"
#include "lib/failpoint.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "lib/util.h"
#include "migrate/move.h"
#include "move-vm.h"
#include "proto/frame.h"
#include "proto/vmm.pb-c.h"

#define RAM_SIZE (8ull << 20)
#define MAX_CLIENTS 16

enum move_state { NONE, WAITING, IN, OUT, DOUBT };

struct fake {
	const char *name, *control, *journal_path, *kernel;
	bool incoming;
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

	int listener;
	int clients[MAX_CLIENTS];
	bool subscribed[MAX_CLIENTS];
	unsigned nclients;
};

static void two_running(struct fake *f)
{
	gw_autofree char *path = NULL;

	if (asprintf(&path, "%s/%s.two", getenv("GW_TEST_DIR") ?: "/tmp", f->name) >= 0)
		close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
}

static void op_run(void *self)
{
	struct fake *f = self;

	if (f->running_fd >= 0 && flock(f->running_fd, LOCK_EX | LOCK_NB) < 0)
		two_running(f);
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

static void on_progress(void *arg, const struct gw_move_progress *p)
{
	struct fake *f = arg;
	uint64_t one = 1;

	pthread_mutex_lock(&f->lock);
	f->latest = *p;
	f->news = true;
	pthread_mutex_unlock(&f->lock);
	if (write(f->event_fd, &one, sizeof(one)) < 0)
		gw_warn("eventfd");
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
	if (f->state == DOUBT)
		return GODWIT__VMM_RUN_STATE__VMM_DOUBT;
	return move_vm_running(&f->vm) ? GODWIT__VMM_RUN_STATE__VMM_RUNNING : GODWIT__VMM_RUN_STATE__VMM_PAUSED;
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
	if (f->ever) {
		fill_progress(&f->shown, m);
		s->move = m;
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
		if (req->op_case == GODWIT__VMM_REQUEST__OP_PAUSE)
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
	case GODWIT__VMM_REQUEST__OP_CANCEL:
		return f->engine && gw_move_cancel(f->engine) == 0 ? 0 : gw_error_set(err, EBUSY, "too late");
	case GODWIT__VMM_REQUEST__OP_RESOLVE:
		return f->engine && gw_move_resolve(f->engine, req->resolve->here) == 0 ? 0 : gw_error_set(err, ENOENT, "no doubt");
	case GODWIT__VMM_REQUEST__OP_CONSOLE:
		return console(reply_fd);
	case GODWIT__VMM_REQUEST__OP_SUBSCRIBE:
		f->subscribed[client] = true;
		return 0;
	default:
		return gw_error_set(err, ENOSYS, "unknown");
	}
}

static int serve(struct fake *f, unsigned client)
{
	Godwit__VmmReply reply = GODWIT__VMM_REPLY__INIT;
	Godwit__VmmFeatures features = GODWIT__VMM_FEATURES__INIT;
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
		reply.features = &features;
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
		else if (!strcmp(argv[i], "--incoming"))
			f->incoming = true;
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
	f->vm.hot_pages = 16;
	f->vm.write_rate = 300;
	f->inner = move_vm_handle(&f->vm);
	r = r ?: gw_unix_listen(f->control, 0600, &f->listener, err);
	r = r ?: gw_journal_open(f->journal_path, &f->journal, err);
	if (r < 0)
		return r;
	f->state = f->incoming ? WAITING : NONE;
	if (f->incoming)
		return 0;
	move_vm_fill(&f->vm, 42, 3);
	r = gw_journal_write(f->journal, &e, err);
	if (r == 0)
		op_run(f);
	return r;
}

int agent_vmm_main(int argc, char **argv)
{
	struct fake f = { .name = "?", .control = "", .journal_path = "", .kernel = "", .epoch = 1 };
	struct gw_error err = GW_ERROR_INIT;

	parse(&f, argc, argv);
	gw_log_init("godwit-vmm", f.name, GW_LOG_INFO);
	if (start(&f, &err) < 0) {
		gw_error_log("%s", gw_error_text(&err));
		return 1;
	}
	loop(&f);
	/* As the real one: whatever was told before the end is read before the end is seen. */
	if (f.engine)
		gw_move_free(f.engine);
	gw_journal_close(f.journal);
	move_vm_release(&f.vm);
	return f.exit_code;
}
