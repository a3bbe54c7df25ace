// SPDX-License-Identifier: Apache-2.0
/* A VM's memory and its sharer for tests, in this process or in one of its own that can be told what to write and asked what it sees. */
#ifndef GW_TESTS_UNIT_SHARE_VM_H
#define GW_TESTS_UNIT_SHARE_VM_H

#include <stdbool.h>
#include <sys/types.h>

#include "ksm/sharer.h"

struct share_vm {
	struct gw_ram *ram;
	struct gw_sharer *sharer;
};

/* Quick passes, so that a test need not wait. */
extern const struct gw_sharer_config share_vm_quick;

/* 0, or -EPERM or -ENOSYS where the host does not allow merging. */
int share_vm_try(uint64_t pages, const struct gw_sharer_config *config, struct share_vm *ret, struct gw_error *err);
/* Skips the test where the host does not allow merging. */
struct share_vm share_vm_new(uint64_t pages, const struct gw_sharer_config *config);
void share_vm_free(struct share_vm *vm);
/* Pages that differ from each other, and are the same wherever `seed` is: page + i gets the content seed + i. */
void share_vm_fill(struct share_vm *vm, uint64_t page, unsigned count, uint64_t seed);
bool share_vm_holds(struct share_vm *vm, uint64_t page, unsigned count, uint64_t seed);
struct gw_sharer_stats share_vm_stats(struct share_vm *vm);

/* Waits for something to become true, and fails when it does not (patience.h). */
#define WAIT_FOR(condition) \
	do { \
		uint64_t wf_end = gw_now_ns() + TEST_PATIENCE; \
		bool wf_true; \
		while (!(wf_true = (condition)) && gw_now_ns() < wf_end) \
			usleep(2000); \
		if (!wf_true) \
			fail_msg("%s", #condition); \
	} while (0)

/* A VM in a process of its own. */
struct share_vm_process {
	pid_t pid;
	int fd;
};

/* `sock` (taken) is its session, once it is told to attach. The caller has no other thread. */
struct share_vm_process share_vm_start(int sock, uint64_t pages, const struct gw_sharer_config *config);
/* The same; the VM's process calls `before` first (NULL: nothing). */
struct share_vm_process share_vm_start_after(int sock, uint64_t pages, const struct gw_sharer_config *config, void (*before)(void));
void share_vm_end(struct share_vm_process *p);
void share_vm_tell_attach(struct share_vm_process *p); /* once */
/* The same as for a VM in this process. */
void share_vm_tell_fill(struct share_vm_process *p, uint64_t page, unsigned count, uint64_t seed);
bool share_vm_ask_holds(struct share_vm_process *p, uint64_t page, unsigned count, uint64_t seed);
struct gw_sharer_stats share_vm_ask_stats(struct share_vm_process *p);

/* A test that needs the daemon begins with it and ends it; *state is NULL where the host does not allow merging, and the test is to skip itself. */
int share_vm_with_daemon(void **state);
int share_vm_without_daemon(void **state);

#endif
