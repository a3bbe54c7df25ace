// SPDX-License-Identifier: Apache-2.0
/*
 * Durable records, each a file that appears whole or not at all: a VM's (STATE/vms/NAME/record) and, at the destination of a
 * move, the move's end (STATE/moves/MOVE-ID); that a snapshot was resumed here (STATE/resumed/SNAPSHOT-ID). Little: a magic line, then the packed message.
 */
#ifndef GW_AGENT_RECORDS_H
#define GW_AGENT_RECORDS_H

#include "agent/agent.h"
#include "proto/agent.pb-c.h"

#define GW_ID_LEN 16

int gw_record_save(const char *path, const ProtobufCMessage *msg, struct gw_error *err);
/* *ret is owned. -ENOENT: no such file; -EPROTO: it is not one of ours, or of a later version. */
int gw_record_load(const char *path, const ProtobufCMessageDescriptor *desc, ProtobufCMessage **ret, struct gw_error *err);
/* The decoder alone, for files read elsewhere. */
int gw_record_decode(const void *data, size_t len, const ProtobufCMessageDescriptor *desc, ProtobufCMessage **ret,
		     struct gw_error *err);

/*
 * How the move `id` to this host ended; *ret is owned (godwit__move_record__free_unpacked), NULL when nothing was decided.
 */
int gw_outcome_get(struct gw_agent *a, const uint8_t id[GW_ID_LEN], Godwit__MoveRecord **ret, struct gw_error *err);
/*
 * Decides it, for ever: durable when it returns 0. Deciding again the same way is fine; the other way is -EEXIST.
 */
int gw_outcome_decide(struct gw_agent *a, const uint8_t id[GW_ID_LEN], const char *vm, const char *peer, uint64_t epoch,
		   Godwit__MoveSide side, const char *reason, struct gw_error *err);

/*
 * Whether a VM came to be here from the snapshot `id` before (resume.h). Kept when the VM has gone and nothing else remembers it.
 */
int gw_resumed_get(struct gw_agent *a, const uint8_t id[GW_ID_LEN], bool *ret, struct gw_error *err);
/* Durable when it returns 0. */
int gw_resumed_note(struct gw_agent *a, const uint8_t id[GW_ID_LEN], const char *vm, uint64_t epoch, struct gw_error *err);

#endif
