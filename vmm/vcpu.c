// SPDX-License-Identifier: Apache-2.0
/* Virtual processors' threads and run loop; see vcpu.h. */
#include "vmm/vcpu.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "lib/util.h"
#include "vmm/bus.h"
#include "vmm/kvm-dirty.h"
#include "lib/thread.h"
#include "vmm/vm-internal.h"

/* The first real-time signals belong to the C library and to tools (valgrind, sanitizers). */
#define KICK_SIGNAL (SIGRTMIN + 4)

struct gw_vcpu {
	struct gw_vcpus *set;
	unsigned index;
	int fd;
	struct kvm_run *run;
	size_t run_size;
	pthread_t thread;
	pid_t tid;    /* set before the thread parks for the first time */
	bool started; /* thread exists */
	bool held;    /* under the set's lock: waits although it may run */
};

struct gw_vcpus {
	struct gw_vm *vm;
	unsigned count;
	struct gw_vcpu cpu[GW_MAX_CPUS];
	pthread_mutex_t lock;
	pthread_cond_t wake;   /* run, quit, or a vCPU's hold changed */
	pthread_cond_t parked; /* nparked grew */
	bool run;              /* under lock */
	bool quit;             /* under lock */
	unsigned nparked;      /* under lock */
};

int gw_vcpu_fd(const struct gw_vcpu *vcpu)
{
	return vcpu->fd;
}

pid_t gw_vcpu_tid(const struct gw_vcpu *vcpu)
{
	return vcpu->tid;
}

unsigned gw_vcpu_index(const struct gw_vcpu *vcpu)
{
	return vcpu->index;
}

struct gw_vm *gw_vcpu_vm(const struct gw_vcpu *vcpu)
{
	return vcpu->set->vm;
}

struct kvm_run *gw_vcpu_run_area(const struct gw_vcpu *vcpu)
{
	return vcpu->run;
}

unsigned gw_vcpus_count(const struct gw_vcpus *set)
{
	return set->count;
}

struct gw_vcpu *gw_vcpus_get(struct gw_vcpus *set, unsigned index)
{
	return &set->cpu[index];
}

static void handle_io(struct gw_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct gw_bus *bus = vcpu->set->vm->pio;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;

	for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
		if (run->io.direction == KVM_EXIT_IO_OUT)
			gw_bus_write(bus, run->io.port, data, run->io.size);
		else
			gw_bus_read(bus, run->io.port, data, run->io.size);
	}
}

static void handle_mmio(struct gw_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	if (run->mmio.is_write)
		gw_bus_write(vcpu->set->vm->mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
	else
		gw_bus_read(vcpu->set->vm->mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
}

/* The guest, or KVM, came to an end of this vCPU. All vCPUs are asked to park by the event. */
static void handle_system_event(struct gw_vcpu *vcpu)
{
	struct gw_vm *vm = vcpu->set->vm;

	switch (vcpu->run->system_event.type) {
	case KVM_SYSTEM_EVENT_SHUTDOWN:
		gw_vm_post_event(vm, GW_VM_POWEROFF, "the guest powered off");
		break;
	case KVM_SYSTEM_EVENT_RESET:
		gw_vm_post_event(vm, GW_VM_RESET, "the guest asked for a reset");
		break;
	default:
		gw_vm_post_event(vm, GW_VM_CRASHED, "the guest reported a crash");
	}
}

static void crash(struct gw_vcpu *vcpu, const char *what, uint64_t detail)
{
	struct kvm_regs regs;
	char reason[128];

	memset(&regs, 0, sizeof(regs));
	(void)ioctl(vcpu->fd, KVM_GET_REGS, &regs);
	snprintf(reason, sizeof(reason), "vCPU %u: %s (0x%llx) at rip 0x%llx", vcpu->index, what,
		 (unsigned long long)detail, (unsigned long long)regs.rip);
	gw_vm_post_event(vcpu->set->vm, GW_VM_CRASHED, reason);
}

static void handle_exit(struct gw_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		handle_io(vcpu);
		break;
	case KVM_EXIT_MMIO:
		handle_mmio(vcpu);
		break;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
	case KVM_EXIT_HLT: /* the in-kernel LAPIC waits for us; not seen in practice */
		break;
	case KVM_EXIT_DIRTY_RING_FULL:
		gw_dirty_ring_full(vcpu->set->vm->ring);
		break;
	case KVM_EXIT_SHUTDOWN:
		/* Triple fault: real chip sets reset the machine on the processor's shutdown cycle. */
		gw_vm_post_event(vcpu->set->vm, GW_VM_RESET, "triple fault");
		break;
	case KVM_EXIT_SYSTEM_EVENT:
		handle_system_event(vcpu);
		break;
	case KVM_EXIT_FAIL_ENTRY:
		crash(vcpu, "the processor refused to enter the guest", run->fail_entry.hardware_entry_failure_reason);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		crash(vcpu, "KVM cannot emulate an instruction", run->internal.suberror);
		break;
	default:
		crash(vcpu, "unexpected exit from KVM", run->exit_reason);
	}
}

/* After an interrupted KVM_RUN, and when nobody holds this vCPU (any more): true when nobody wants a stop. */
static bool go_on(struct gw_vcpu *vcpu)
{
	struct gw_vcpus *set = vcpu->set;
	bool run;

	pthread_mutex_lock(&set->lock);
	while (set->run && vcpu->held)
		pthread_cond_wait(&set->wake, &set->lock);
	run = set->run;
	/* A stop that was taken back before we parked. Under the lock: a stop that comes now sets it again after us. */
	if (run)
		__atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&set->lock);
	return run;
}

/* Runs guest code until it shall stop; on return no I/O of this vCPU is half done. */
static void run_guest(struct gw_vcpu *vcpu)
{
	for (;;) {
		int r = ioctl(vcpu->fd, KVM_RUN, 0);

		if (r == 0) {
			handle_exit(vcpu);
			continue;
		}
		/* A stop is the reason for EINTR; EAGAIN is an application processor that was woken. */
		if (errno == EINTR || errno == EAGAIN) {
			if (!go_on(vcpu))
				return;
			continue;
		}
		crash(vcpu, "KVM_RUN failed with errno", (uint64_t)errno);
		return;
	}
}

/* Waits until this vCPU may run: false to end the thread. */
static bool park(struct gw_vcpu *vcpu)
{
	struct gw_vcpus *set = vcpu->set;
	bool quit;

	pthread_mutex_lock(&set->lock);
	set->nparked++;
	pthread_cond_broadcast(&set->parked);
	while (!set->run && !set->quit)
		pthread_cond_wait(&set->wake, &set->lock);
	quit = set->quit;
	if (!quit) {
		set->nparked--;
		/* Under the lock: a stop that comes now sets it again after us. */
		__atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	}
	pthread_mutex_unlock(&set->lock);
	return !quit;
}

static void *vcpu_thread(void *arg)
{
	struct gw_vcpu *vcpu = arg;
	sigset_t set;
	char name[16];

	vcpu->tid = gettid();
	snprintf(name, sizeof(name), "vcpu%u", vcpu->index);
	pthread_setname_np(pthread_self(), name);
	sigemptyset(&set);
	sigaddset(&set, KICK_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	while (park(vcpu))
		run_guest(vcpu);
	return NULL;
}

static void on_kick(int sig)
{
	/* Its arrival alone ends KVM_RUN. */
}

static void set_signal(void)
{
	struct sigaction sa = { .sa_handler = on_kick };

	sigemptyset(&sa.sa_mask);
	sigaction(KICK_SIGNAL, &sa, NULL);
}

static int create_vcpu(struct gw_vcpus *set, unsigned index, struct gw_error *err)
{
	struct gw_vcpu *vcpu = &set->cpu[index];
	struct gw_vm *vm = set->vm;
	void *p;

	vcpu->set = set;
	vcpu->index = index;
	vcpu->fd = gw_kvm_ioctl_value(vm->fd, KVM_CREATE_VCPU, index);
	if (vcpu->fd < 0)
		return gw_error_errno(err, vcpu->fd, "cannot create vCPU %u", index);
	vcpu->run_size = vm->kvm.run_size;
	p = mmap(NULL, vcpu->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (p == MAP_FAILED)
		return gw_error_errno(err, errno, "cannot map the shared area of vCPU %u", index);
	vcpu->run = p;
	return 0;
}

static int start_thread(struct gw_vcpu *vcpu, struct gw_error *err)
{
	int r = gw_thread_create(&vcpu->thread, vcpu_thread, vcpu);

	if (r < 0)
		return gw_error_errno(err, r, "cannot start the thread of vCPU %u", vcpu->index);
	vcpu->started = true;
	return 0;
}

int gw_vcpus_new(struct gw_vm *vm, unsigned count, struct gw_vcpus **ret, struct gw_error *err)
{
	struct gw_vcpus *set = calloc(1, sizeof(*set));
	int r = 0;

	if (!set)
		return gw_error_set(err, ENOMEM, "out of memory");
	set->vm = vm;
	pthread_mutex_init(&set->lock, NULL);
	pthread_cond_init(&set->wake, NULL);
	pthread_cond_init(&set->parked, NULL);
	for (unsigned i = 0; i < GW_MAX_CPUS; i++)
		set->cpu[i].fd = -1;
	set_signal();
	for (; r == 0 && set->count < count; set->count++)
		r = create_vcpu(set, set->count, err);
	for (unsigned i = 0; r == 0 && i < count; i++)
		r = start_thread(&set->cpu[i], err);
	if (r < 0) {
		gw_vcpus_free(set);
		return r;
	}
	/* Parked before anybody asks. */
	gw_vcpus_stop(set);
	*ret = set;
	return 0;
}

void gw_vcpus_free(struct gw_vcpus *set)
{
	if (!set)
		return;
	gw_vcpus_request_stop(set);
	pthread_mutex_lock(&set->lock);
	set->quit = true;
	pthread_cond_broadcast(&set->wake);
	pthread_mutex_unlock(&set->lock);
	for (unsigned i = 0; i < GW_MAX_CPUS; i++) {
		struct gw_vcpu *vcpu = &set->cpu[i];

		if (vcpu->started)
			pthread_join(vcpu->thread, NULL);
		if (vcpu->run)
			munmap(vcpu->run, vcpu->run_size);
		gw_closep(&vcpu->fd);
	}
	pthread_cond_destroy(&set->parked);
	pthread_cond_destroy(&set->wake);
	pthread_mutex_destroy(&set->lock);
	free(set);
}

void gw_vcpus_run(struct gw_vcpus *set)
{
	pthread_mutex_lock(&set->lock);
	set->run = true;
	pthread_cond_broadcast(&set->wake);
	pthread_mutex_unlock(&set->lock);
}

/* Out of the guest, once: with the lock held, under which the thread then finds out why. */
static void kick(struct gw_vcpu *vcpu)
{
	__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	if (!pthread_equal(vcpu->thread, pthread_self()))
		pthread_kill(vcpu->thread, KICK_SIGNAL);
}

void gw_vcpus_request_stop(struct gw_vcpus *set)
{
	pthread_mutex_lock(&set->lock);
	set->run = false;
	for (unsigned i = 0; i < set->count; i++) {
		if (set->cpu[i].started)
			kick(&set->cpu[i]);
	}
	pthread_cond_broadcast(&set->wake); /* those that are held */
	pthread_mutex_unlock(&set->lock);
}

void gw_vcpus_hold(struct gw_vcpus *set, uint32_t mask)
{
	pthread_mutex_lock(&set->lock);
	for (unsigned i = 0; i < set->count; i++) {
		struct gw_vcpu *vcpu = &set->cpu[i];
		bool hold = mask >> i & 1;

		if (hold && !vcpu->held && set->run)
			kick(vcpu);
		vcpu->held = hold;
	}
	pthread_cond_broadcast(&set->wake);
	pthread_mutex_unlock(&set->lock);
}

void gw_vcpus_stop(struct gw_vcpus *set)
{
	gw_vcpus_request_stop(set);
	pthread_mutex_lock(&set->lock);
	while (set->nparked < set->count)
		pthread_cond_wait(&set->parked, &set->lock);
	pthread_mutex_unlock(&set->lock);
}
