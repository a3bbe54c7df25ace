// SPDX-License-Identifier: Apache-2.0
/* What a VM must find at a move's destination, and whether this one offers it: compared before the first page moves. */
#ifndef GW_VMM_MOVE_MACHINE_H
#define GW_VMM_MOVE_MACHINE_H

#include <stdbool.h>

#include "lib/error.h"
#include "proto/stream.pb-c.h"

struct gw_vm;

/* *ret is owned (godwit__stream_machine__free_unpacked). */
int gw_move_machine_describe(struct gw_vm *vm, Godwit__StreamMachine **ret, struct gw_error *err);
/* Names the first difference that matters; a `clone` has other addresses. `theirs` is the peer's and may hold anything. */
int gw_move_machine_accept(struct gw_vm *vm, const Godwit__StreamMachine *theirs, bool clone, struct gw_error *err);

#endif
