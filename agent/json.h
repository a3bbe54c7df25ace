// SPDX-License-Identifier: Apache-2.0
/* Messages as JSON for --json and the event journal: field names as in the .proto, bytes in hex, enum values as short words. */
#ifndef GW_AGENT_JSON_H
#define GW_AGENT_JSON_H

#include <jansson.h>
#include <protobuf-c/protobuf-c.h>

/* New reference, or NULL when out of memory. */
json_t *gw_json_message(const ProtobufCMessage *msg);
/* "running" for VM_RUNNING: the word after the first '_', in lower case, to `out`. */
void gw_enum_word(const ProtobufCEnumDescriptor *desc, int value, char *out, size_t size);

#endif
