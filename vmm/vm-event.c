// SPDX-License-Identifier: Apache-2.0
/*
 * What the guest asks of the main loop: power-off, reset, or that it broke down. The vCPUs are asked to park at once, so that the
 * guest does not run on after its end; the event is kept until the main loop takes it, and a VM with one does not run.
 */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#include "lib/util.h"
#include "vmm/vm-internal.h"

int gw_vm_events_init(struct gw_vm *vm, struct gw_error *err)
{
	pthread_mutex_init(&vm->event_lock, NULL);
	vm->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return vm->event_fd < 0 ? gw_error_errno(err, errno, "cannot make an eventfd") : 0;
}

void gw_vm_events_release(struct gw_vm *vm)
{
	gw_closep(&vm->event_fd);
	pthread_mutex_destroy(&vm->event_lock);
}

void gw_vm_post_event(struct gw_vm *vm, enum gw_vm_event event, const char *reason)
{
	const uint64_t one = 1;
	ssize_t n;

	pthread_mutex_lock(&vm->event_lock);
	/* The first counts: what follows is mostly its consequence. */
	if (!vm->event_pending) {
		vm->event_pending = true;
		vm->event = event;
		snprintf(vm->event_reason, sizeof(vm->event_reason), "%s", reason);
	}
	pthread_mutex_unlock(&vm->event_lock);
	if (vm->vcpus)
		gw_vcpus_request_stop(vm->vcpus);
	n = write(vm->event_fd, &one, sizeof(one));
	(void)n; /* a full counter is readable too */
}

bool gw_vm_event_pending(struct gw_vm *vm)
{
	bool pending;

	pthread_mutex_lock(&vm->event_lock);
	pending = vm->event_pending;
	pthread_mutex_unlock(&vm->event_lock);
	return pending;
}

int gw_vm_event_fd(const struct gw_vm *vm)
{
	return vm->event_fd;
}

int gw_vm_next_event(struct gw_vm *vm, enum gw_vm_event *event, char reason[128])
{
	uint64_t n;
	int r = -EAGAIN;

	if (read(vm->event_fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
		return -errno;
	pthread_mutex_lock(&vm->event_lock);
	if (vm->event_pending) {
		*event = vm->event;
		snprintf(reason, sizeof(vm->event_reason), "%s", vm->event_reason);
		vm->event_pending = false;
		r = 0;
	}
	pthread_mutex_unlock(&vm->event_lock);
	return r;
}
