// SPDX-License-Identifier: Apache-2.0
/*
 * Virtual processors: one thread each, that is either parked or runs guest code. All are stopped and let run together.
 *
 * Stopping: the stopper clears `run`, sets immediate_exit in the vCPU's shared area and sends a signal. Whatever the thread does at
 * that instant, its next KVM_RUN returns at once, after it has completed the I/O of an exit that was being handled; only
 * then does the thread park. So a parked vCPU's state is whole, and no exit is lost.
 */
#ifndef GW_VMM_VCPU_H
#define GW_VMM_VCPU_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "lib/error.h"

struct gw_vm;
struct gw_vcpu;
struct gw_vcpus;

/* Creates `count` vCPUs of the VM and their threads, parked. Dirty rings and irqchip must have been set up before. */
int gw_vcpus_new(struct gw_vm *vm, unsigned count, struct gw_vcpus **ret, struct gw_error *err);
/* Stops and joins all. Takes NULL. */
void gw_vcpus_free(struct gw_vcpus *set);
unsigned gw_vcpus_count(const struct gw_vcpus *set);
struct gw_vcpu *gw_vcpus_get(struct gw_vcpus *set, unsigned index);

/* Lets all run. */
void gw_vcpus_run(struct gw_vcpus *set);
/* Asks all to park and returns; also from a vCPU's own thread. */
void gw_vcpus_request_stop(struct gw_vcpus *set);
/* The same, and waits until all have. Never from a vCPU thread. */
void gw_vcpus_stop(struct gw_vcpus *set);

/*
 * Holds those in `mask` (bit = index), and lets all others go that were held; none is waited for. For whom runs and stops the VM a held
 * vCPU is a running one that gets nothing done.
 */
void gw_vcpus_hold(struct gw_vcpus *set, uint32_t mask);

int gw_vcpu_fd(const struct gw_vcpu *vcpu);
pid_t gw_vcpu_tid(const struct gw_vcpu *vcpu); /* its thread, as the kernel knows it */
unsigned gw_vcpu_index(const struct gw_vcpu *vcpu);
struct gw_vm *gw_vcpu_vm(const struct gw_vcpu *vcpu);
struct kvm_run *gw_vcpu_run_area(const struct gw_vcpu *vcpu);

#endif
