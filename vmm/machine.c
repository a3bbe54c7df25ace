// SPDX-License-Identifier: Apache-2.0
/* The VM as its operator sees it; see machine.h. */
#include "vmm/machine.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#include "lib/log.h"
#include "lib/util.h"
#include "vmm/balloon.h"
#include "vmm/hostmem.h"
#include "vmm/move.h"
#include "vmm/virtio-devices.h"
#include "vmm/vm.h"

struct gw_machine {
	const struct gw_options *options;
	sd_event *loop;
	struct gw_vm *vm;
	struct gw_vm_move *move;
	sd_event_source *events;    /* the guest's */
	sd_event_source *move_news;
	gw_machine_listener listener;
	void *listener_arg;
	bool ended;
	bool stalled;               /* it waits for memory that cannot be read */
	bool paused;                /* by request, while its memory is on its way */
	char reason[160];           /* why it ended or is paused */
	struct gw_move_progress progress;
};

/* From the VM's release to this process's end. */
#define CLEAR_AFTER_US (300 * 1000)

static Godwit__VmmRunState run_state(const struct gw_machine *m)
{
	if (m->ended)
		return GODWIT__VMM_RUN_STATE__VMM_ENDED;
	switch (gw_vm_move_state(m->move)) {
	case GW_VM_MOVE_WAITING:
	case GW_VM_MOVE_IN:
		return GODWIT__VMM_RUN_STATE__VMM_INCOMING;
	case GW_VM_MOVE_OUT:
		return GODWIT__VMM_RUN_STATE__VMM_MOVING;
	case GW_VM_MOVE_IN_DOUBT:
		return GODWIT__VMM_RUN_STATE__VMM_DOUBT;
	case GW_VM_MOVE_SAVING:
		return GODWIT__VMM_RUN_STATE__VMM_SAVING;
	case GW_VM_MOVE_SUSPENDED:
	case GW_VM_MOVE_GONE:
		return GODWIT__VMM_RUN_STATE__VMM_ENDED;
	case GW_VM_MOVE_NONE:
		break;
	}
	return gw_vm_move_paused(m->move) ? GODWIT__VMM_RUN_STATE__VMM_PAUSED : GODWIT__VMM_RUN_STATE__VMM_RUNNING;
}

void gw_machine_status(struct gw_machine *m, bool with_resident, struct gw_machine_status *ret)
{
	struct gw_virtio *balloon = gw_vm_balloon(m->vm);

	godwit__vmm_status__init(&ret->msg);
	ret->msg.state = run_state(m);
	ret->msg.name = m->options->config.name;
	ret->msg.memory = m->options->config.memory;
	ret->msg.cpus = m->options->config.cpus;
	ret->msg.epoch = gw_vm_move_epoch(m->move);
	ret->msg.pid = (uint32_t)getpid();
	ret->msg.reason = m->reason;
	ret->msg.version = (char *)GW_VMM_VERSION;
	ret->msg.balloon = balloon ? gw_balloon_size(balloon) : 0;
	if (with_resident)
		ret->msg.resident = gw_hostmem_resident(gw_vm_ram(m->vm));
	if (gw_vm_move_progress(m->move, &m->progress)) {
		gw_vm_move_progress_msg(&m->progress, &ret->move);
		ret->msg.move = &ret->move;
	}
	if (gw_vm_move_saved(m->move, &ret->save))
		ret->msg.save = &ret->save;
	if (gw_vm_move_loaded(m->move, &ret->load))
		ret->msg.load = &ret->load;
}

/* Fills in what all events have. */
static void tell_event(struct gw_machine *m, const char *kind, const char *message, Godwit__VmmEvent *event)
{
	struct gw_machine_status status;

	if (!m->listener)
		return;
	gw_machine_status(m, false, &status);
	event->kind = (char *)kind;
	event->message = (char *)message;
	event->status = &status.msg;
	m->listener(m->listener_arg, event);
	event->status = NULL;
}

static void tell(struct gw_machine *m, const char *kind, const char *message)
{
	Godwit__VmmEvent event = GODWIT__VMM_EVENT__INIT;

	tell_event(m, kind, message, &event);
}

static void set_reason(struct gw_machine *m, const char *reason)
{
	snprintf(m->reason, sizeof(m->reason), "%s", reason);
}

void gw_machine_end(struct gw_machine *m, int code, const char *reason)
{
	if (m->ended)
		return;
	m->ended = true;
	if (reason != m->reason)
		set_reason(m, reason);
	tell(m, "shutdown", m->reason);
	(void)sd_event_exit(m->loop, code);
}

/* Puts the VM back to power-on and lets it run, unless it was paused. */
static int reset_vm(struct gw_machine *m, bool run, struct gw_error *err)
{
	int r;

	gw_vm_stop(m->vm);
	gw_vm_move_forget(m->move);
	r = gw_vm_reset(m->vm, err);
	if (r < 0) {
		gw_error_wrap(err, "cannot start the VM again");
		gw_error_log("%s", gw_error_text(err));
		gw_machine_end(m, GW_EXIT_FAILED, gw_error_text(err));
		return r;
	}
	if (run)
		gw_vm_run(m->vm);
	tell(m, "reset", m->reason);
	return 0;
}

static void handle_event(struct gw_machine *m, enum gw_vm_event event, const char *reason)
{
	struct gw_error err = GW_ERROR_INIT;

	set_reason(m, reason);
	switch (event) {
	case GW_VM_POWEROFF:
		gw_info("%s", reason);
		gw_vm_stop(m->vm);
		gw_machine_end(m, GW_EXIT_ENDED, reason);
		break;
	case GW_VM_RESET:
		gw_info("reset: %s", reason);
		(void)reset_vm(m, true, &err);
		break;
	case GW_VM_CRASHED:
		gw_error_log("the VM crashed: %s", reason);
		gw_vm_stop(m->vm);
		gw_machine_end(m, GW_EXIT_CRASHED, reason);
		break;
	}
}

static int on_event(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct gw_machine *m = arg;
	enum gw_vm_event event;
	char reason[128];

	/* The guest ended itself while it moves: it ends here, unless it is not ours any more. */
	if (gw_vm_move_busy(m->move) && gw_vm_move_cancel_wait(m->move) < 0) {
		(void)sd_event_source_set_enabled(m->events, SD_EVENT_OFF);
		return 0;
	}
	if (gw_vm_next_event(m->vm, &event, reason) == 0)
		handle_event(m, event, reason);
	return 0;
}

static int on_move_news(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	gw_vm_move_dispatch(((struct gw_machine *)arg)->move);
	return 0;
}

static void on_progress(void *arg, const struct gw_move_progress *p)
{
	Godwit__VmmEvent event = GODWIT__VMM_EVENT__INIT;
	Godwit__MoveProgress msg;

	gw_vm_move_progress_msg(p, &msg);
	event.move = &msg;
	tell_event(arg, "move", p->message, &event);
}

static void on_saved(void *arg, const Godwit__SaveProgress *p)
{
	Godwit__VmmEvent event = GODWIT__VMM_EVENT__INIT;

	event.save = (Godwit__SaveProgress *)p;
	tell_event(arg, "save", p->message, &event);
}

/* What it waits for is worth more than a figure. */
static void tell_stall(struct gw_machine *m, const Godwit__LoadProgress *p)
{
	bool stalled = !strcmp(p->phase, "stall");
	char text[150];

	if (stalled == m->stalled)
		return;
	m->stalled = stalled;
	snprintf(text, sizeof(text), stalled ? "the VM stands still: %.120s" : m->paused ? "the VM's memory can be read again" :
		 "the VM goes on: its memory can be read again", p->message);
	if (!m->paused)
		set_reason(m, stalled ? text : "");
	tell(m, "warning", text);
}

static void on_loaded(void *arg, const Godwit__LoadProgress *p)
{
	Godwit__VmmEvent event = GODWIT__VMM_EVENT__INIT;

	event.load = (Godwit__LoadProgress *)p;
	tell_event(arg, "load", p->message, &event);
	tell_stall(arg, p);
}

static int on_cleared(sd_event_source *s, uint64_t usec, void *arg)
{
	gw_machine_end(arg, GW_EXIT_ENDED, "moved away");
	return 0;
}

/*
 * Giving back a VM's memory and KVM's structures is work for some processor; the guest has just begun to run at the destination with cold
 * caches, and where both hosts share one it waits for it. So the end comes a little later than the news of it.
 */
static void end_after_a_while(struct gw_machine *m)
{
	tell(m, "state", "moved away");
	if (sd_event_add_time_relative(m->loop, NULL, CLOCK_MONOTONIC, CLEAR_AFTER_US, 0, on_cleared, m) < 0)
		gw_machine_end(m, GW_EXIT_ENDED, "moved away");
}

static void on_move_state(void *arg, enum gw_vm_move_state state, const char *why)
{
	struct gw_machine *m = arg;

	set_reason(m, why ? why : "");
	switch (state) {
	case GW_VM_MOVE_GONE:
		if (!m->reason[0]) {
			end_after_a_while(m);
			return;
		}
		gw_error_log("the move failed: %s", m->reason);
		gw_machine_end(m, GW_EXIT_FAILED, m->reason);
		return;
	case GW_VM_MOVE_SUSPENDED:
		gw_machine_end(m, GW_EXIT_ENDED, m->reason);
		return;
	case GW_VM_MOVE_NONE:
		(void)sd_event_source_set_enabled(m->events, SD_EVENT_ON);
		break;
	case GW_VM_MOVE_IN_DOUBT:
		gw_warn("the VM is paused: %s", m->reason);
		break;
	default:
		break;
	}
	tell(m, "state", m->reason);
}

static const struct gw_vm_move_hooks move_hooks = { .progress = on_progress, .state = on_move_state, .saved = on_saved, .loaded = on_loaded };

int gw_machine_new(const struct gw_options *options, sd_event *loop, struct gw_machine **ret, struct gw_error *err)
{
	struct gw_machine *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return gw_error_set(err, ENOMEM, "out of memory");
	m->options = options;
	m->loop = loop;
	r = gw_vm_new(&options->config, &m->vm, err);
	if (r == 0)
		r = gw_vm_move_new(m->vm, options->journal, options->config.incoming, options->epoch, &move_hooks, m, &m->move,
				   err);
	if (r < 0) {
		gw_machine_free(m);
		return r;
	}
	r = sd_event_add_io(loop, &m->events, gw_vm_event_fd(m->vm), EPOLLIN, on_event, m);
	if (r >= 0)
		r = sd_event_add_io(loop, &m->move_news, gw_vm_move_fd(m->move), EPOLLIN, on_move_news, m);
	if (r < 0) {
		gw_machine_free(m);
		return gw_error_errno(err, r, "cannot watch the VM");
	}
	*ret = m;
	return 0;
}

void gw_machine_free(struct gw_machine *m)
{
	if (!m)
		return;
	m->listener = NULL;
	sd_event_source_disable_unref(m->events);
	sd_event_source_disable_unref(m->move_news);
	gw_vm_move_free(m->move);
	gw_vm_free(m->vm);
	free(m);
}

void gw_machine_listen(struct gw_machine *m, gw_machine_listener listener, void *arg)
{
	m->listener = listener;
	m->listener_arg = arg;
}

struct gw_vm *gw_machine_vm(struct gw_machine *m)
{
	return m->vm;
}

struct gw_vm_move *gw_machine_move(struct gw_machine *m)
{
	return m->move;
}

void gw_machine_start(struct gw_machine *m)
{
	if (m->options->config.incoming)
		return;
	gw_vm_run(m->vm);
	tell(m, "state", "");
}

/* Only while no move has the VM, and it is here at all. `loading`: or its memory may be on its way. */
static int check_free(const struct gw_machine *m, bool loading, struct gw_error *err)
{
	if (m->ended)
		return gw_error_set(err, ESHUTDOWN, "the VM has ended");
	if (gw_vm_move_loading(m->move) && !loading)
		return gw_error_set(err, EBUSY, "the VM's memory is still on its way from a repository");
	if (gw_vm_move_busy(m->move) && !gw_vm_move_loading(m->move))
		return gw_error_set(err, EBUSY, gw_vm_move_state(m->move) == GW_VM_MOVE_SAVING ? "the VM is being saved" : "the VM is moving");
	if (gw_vm_move_state(m->move) != GW_VM_MOVE_NONE)
		return gw_error_set(err, EBUSY, "the VM is not here (yet)");
	return 0;
}

static int check_ours(const struct gw_machine *m, struct gw_error *err)
{
	return check_free(m, false, err);
}

/* While its memory is on its way that may take a while: then the news that it stands still comes when it does. */
static int set_paused(struct gw_machine *m, bool pause, struct gw_error *err)
{
	bool asked;
	int r = check_free(m, true, err);

	if (r < 0)
		return r;
	asked = gw_vm_move_pause(m->move, pause) == 0;
	if (!asked && gw_vm_running(m->vm) != pause)
		return 0;
	if (!asked && pause)
		gw_vm_stop(m->vm);
	else if (!asked)
		gw_vm_run(m->vm);
	m->paused = asked && pause;
	set_reason(m, pause ? "paused by request" : "");
	tell(m, "state", m->reason);
	return 0;
}

int gw_machine_pause(struct gw_machine *m, struct gw_error *err)
{
	return set_paused(m, true, err);
}

int gw_machine_resume(struct gw_machine *m, struct gw_error *err)
{
	return set_paused(m, false, err);
}

int gw_machine_reset(struct gw_machine *m, struct gw_error *err)
{
	int r = check_ours(m, err);

	if (r < 0)
		return r;
	set_reason(m, "reset by request");
	return reset_vm(m, gw_vm_running(m->vm), err);
}

int gw_machine_power_button(struct gw_machine *m, struct gw_error *err)
{
	enum gw_vm_move_state state = gw_vm_move_state(m->move);

	if (m->ended)
		return gw_error_set(err, ESHUTDOWN, "the VM has ended");
	/* While it leaves, the button may still be pressed here; the guest then ends and so does the move. */
	if (state != GW_VM_MOVE_NONE && state != GW_VM_MOVE_OUT && state != GW_VM_MOVE_SAVING)
		return gw_error_set(err, EBUSY, "the VM is not here (yet)");
	gw_vm_power_button(m->vm);
	return 0;
}

int gw_machine_digest(struct gw_machine *m, uint8_t digest[16], struct gw_error *err)
{
	int r = check_ours(m, err);

	if (r < 0)
		return r;
	if (gw_vm_running(m->vm))
		return gw_error_set(err, EBUSY, "the VM runs: its memory changes all the time; pause it first");
	gw_ram_digest(gw_vm_ram(m->vm), digest);
	return 0;
}

int gw_machine_balloon(struct gw_machine *m, uint64_t target, struct gw_balloon_info *ret, struct gw_error *err)
{
	struct gw_virtio *balloon = gw_vm_balloon(m->vm);
	int r = target ? check_ours(m, err) : 0;

	if (r == 0 && !balloon)
		r = gw_error_set(err, EOPNOTSUPP, "the VM has no balloon");
	if (r == 0 && target)
		r = gw_balloon_set_target(balloon, target, err);
	if (r == 0)
		gw_balloon_info(balloon, ret);
	return r;
}
