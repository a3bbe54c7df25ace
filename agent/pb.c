// SPDX-License-Identifier: Apache-2.0
/* Fields and copies of protobuf-c messages that live on the heap. */
#include <errno.h>
#include <string.h>

#include "agent/vmconfig.h"
#include "lib/util.h"

int gw_pb_set_string(char **field, const char *value)
{
	char *copy = strdup(value);

	if (!copy)
		return -ENOMEM;
	/* An unset string field points at protobuf-c's static empty string. */
	if (*field != protobuf_c_empty_string)
		free(*field);
	*field = copy;
	return 0;
}

int gw_pb_set_bytes(ProtobufCBinaryData *field, const void *data, size_t len)
{
	uint8_t *copy = malloc(len + 1);

	if (!copy)
		return -ENOMEM;
	memcpy(copy, data, len);
	free(field->data);
	field->data = copy;
	field->len = len;
	return 0;
}

void gw_make_printable(char *text)
{
	for (unsigned char *p = (unsigned char *)text; *p; p++) {
		if (*p < ' ' || *p >= 0x7f)
			*p = '?';
	}
}

ProtobufCMessage *gw_pb_copy(const ProtobufCMessage *msg)
{
	size_t len = protobuf_c_message_get_packed_size(msg);
	gw_autofree uint8_t *raw = malloc(len + 1);

	if (!raw)
		return NULL;
	protobuf_c_message_pack(msg, raw);
	return protobuf_c_message_unpack(msg->descriptor, NULL, len, raw);
}
