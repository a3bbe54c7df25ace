// SPDX-License-Identifier: Apache-2.0
/*
 * A VM's configuration: read from a VM file (godwit.vm(5)), or taken from a client or a peer, which may be hostile; in
 * either case it passes gw_vmconfig_check(). In memory it is the message godwit.VmConfig, all of whose strings are non-NULL.
 */
#ifndef GW_AGENT_VMCONFIG_H
#define GW_AGENT_VMCONFIG_H

#include <stddef.h>

#include "lib/error.h"
#include "proto/agent.pb-c.h"

/* What the VMM can take (vmm/vm.h). */
#define GW_VM_MAX_CPUS 32
#define GW_VM_MAX_DISKS 16
#define GW_VM_MAX_NETS 8
#define GW_VM_MIN_MEMORY (64ull << 20)
#define GW_VM_MAX_MEMORY (1ull << 40)
#define GW_VM_MAX_CMDLINE 2047 /* bytes; the kernel's COMMAND_LINE_SIZE is 2048 */
#define GW_VM_MAX_PATH 1023

/* Parses a VM file; `file` is for messages. *ret is owned (gw_vmconfig_free). */
int gw_vmconfig_parse(const char *file, const char *text, size_t len, Godwit__VmConfig **ret, struct gw_error *err);
int gw_vmconfig_read(const char *path, Godwit__VmConfig **ret, struct gw_error *err);

/* Whether every value is one that a VM file could have held. */
int gw_vmconfig_check(const Godwit__VmConfig *config, struct gw_error *err);

/* Gives nets without a MAC a random, locally administered one. 0 or -ENOMEM. */
int gw_vmconfig_fill(Godwit__VmConfig *config);

/* Owned deep copy, or NULL when out of memory. */
Godwit__VmConfig *gw_vmconfig_copy(const Godwit__VmConfig *config);
void gw_vmconfig_free(Godwit__VmConfig *config);
static inline void gw_vmconfig_freep(Godwit__VmConfig **p)
{
	gw_vmconfig_free(*p);
}

/* Replaces *field, a string of a message, by a copy. 0 or -ENOMEM. */
int gw_pb_set_string(char **field, const char *value);
/* Replaces a bytes field by a copy. 0 or -ENOMEM. */
int gw_pb_set_bytes(ProtobufCBinaryData *field, const void *data, size_t len);
/* Text of a guest, a VMM or a peer goes to terminals and logs: control characters and bytes past ASCII become '?'. */
void gw_make_printable(char *text);
/* Owned deep copy of any message, NULL when out of memory. */
ProtobufCMessage *gw_pb_copy(const ProtobufCMessage *msg);

#endif
