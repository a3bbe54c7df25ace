// SPDX-License-Identifier: Apache-2.0
/*
 * The VM as its operator sees it: running, paused, moving, ended. Lives on the main thread's event loop, where everything that changes
 * it comes together: the guest's own power-off and reset, requests from the control socket, signals, the course of a move.
 */
#ifndef GW_VMM_MACHINE_H
#define GW_VMM_MACHINE_H

#include <stdbool.h>
#include <systemd/sd-event.h>

#include "lib/error.h"
#include "proto/vmm.pb-c.h"
#include "vmm/options.h"

struct gw_balloon_info;
struct gw_machine;
struct gw_vm;
struct gw_vm_move;

/* Exit codes of the process. */
enum { GW_EXIT_ENDED = 0, GW_EXIT_START = 1, GW_EXIT_FAILED = 2, GW_EXIT_CRASHED = 3 };

/* Told of everything that a client may want to know; `event` is borrowed. */
typedef void (*gw_machine_listener)(void *arg, const Godwit__VmmEvent *event);

/* Builds the VM (stopped) and joins it with the loop. options and loop are borrowed. */
int gw_machine_new(const struct gw_options *options, sd_event *loop, struct gw_machine **ret, struct gw_error *err);
void gw_machine_free(struct gw_machine *m);
void gw_machine_listen(struct gw_machine *m, gw_machine_listener listener, void *arg);
struct gw_vm *gw_machine_vm(struct gw_machine *m);
struct gw_vm_move *gw_machine_move(struct gw_machine *m);

/* Lets a VM that is not `incoming` run. */
void gw_machine_start(struct gw_machine *m);
/* -EBUSY while a move has the VM. */
int gw_machine_pause(struct gw_machine *m, struct gw_error *err);
int gw_machine_resume(struct gw_machine *m, struct gw_error *err);
int gw_machine_reset(struct gw_machine *m, struct gw_error *err);
int gw_machine_power_button(struct gw_machine *m, struct gw_error *err);
/* Leaves the loop with exit code `code` once what is under way has been answered. */
void gw_machine_end(struct gw_machine *m, int code, const char *reason);
/* Digest over all RAM; -EBUSY unless the VM is paused. */
int gw_machine_digest(struct gw_machine *m, uint8_t digest[16], struct gw_error *err);
/* How the balloon stands, after it has a new target unless that is 0. -EOPNOTSUPP: the VM has none; a target: -ERANGE, -EBUSY while a move has the VM. */
int gw_machine_balloon(struct gw_machine *m, uint64_t target, struct gw_balloon_info *ret, struct gw_error *err);

/* What is to be told; strings point into the machine and `move`, which the caller provides. */
struct gw_machine_status {
	Godwit__VmmStatus msg;
	Godwit__MoveProgress move;
	Godwit__SaveProgress save;
	Godwit__LoadProgress load;
};
void gw_machine_status(struct gw_machine *m, bool with_resident, struct gw_machine_status *ret);

#endif
