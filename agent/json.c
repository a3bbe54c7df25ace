// SPDX-License-Identifier: Apache-2.0
/* Messages as JSON by their descriptors; see json.h. */
#include "agent/json.h"

#include <ctype.h>
#include <string.h>

#include "lib/parse.h"
#include "lib/util.h"

void gw_enum_word(const ProtobufCEnumDescriptor *desc, int value, char *out, size_t size)
{
	const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(desc, value);
	const char *word = v ? strchr(v->name, '_') : NULL;
	size_t n = 0;

	word = word ? word + 1 : "unknown";
	for (; word[n] && n + 1 < size; n++)
		out[n] = (char)tolower((unsigned char)word[n]);
	out[n] = '\0';
}

static json_t *bytes(const ProtobufCBinaryData *d)
{
	gw_autofree char *hex = malloc(2 * d->len + 1);

	if (!hex)
		return NULL;
	gw_format_hex(d->data, (unsigned)d->len, hex);
	return json_string(hex);
}

/* Text of a VMM or a peer may hold bytes that are not UTF-8, which jansson refuses. */
static json_t *text(const char *s)
{
	gw_autofree char *clean = NULL;
	json_t *j = json_string(s);

	if (j)
		return j;
	clean = strdup(s);
	for (char *p = clean; p && *p; p++) {
		if (!isprint((unsigned char)*p))
			*p = '?';
	}
	return clean ? json_string(clean) : NULL;
}

static json_t *value(const ProtobufCFieldDescriptor *f, const void *at)
{
	char word[64];

	switch (f->type) {
	case PROTOBUF_C_TYPE_BOOL:
		return json_boolean(*(const protobuf_c_boolean *)at);
	case PROTOBUF_C_TYPE_ENUM:
		gw_enum_word(f->descriptor, *(const int *)at, word, sizeof(word));
		return json_string(word);
	case PROTOBUF_C_TYPE_STRING:
		return text(*(char *const *)at ?: "");
	case PROTOBUF_C_TYPE_BYTES:
		return bytes(at);
	case PROTOBUF_C_TYPE_MESSAGE:
		return *(ProtobufCMessage *const *)at ? gw_json_message(*(ProtobufCMessage *const *)at) : json_null();
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32:
		return json_integer(*(const int32_t *)at);
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32:
		return json_integer(*(const uint32_t *)at);
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
		return json_integer((json_int_t) * (const uint64_t *)at);
	default:
		return json_null();
	}
}

static json_t *repeated(const ProtobufCFieldDescriptor *f, const ProtobufCMessage *msg)
{
	size_t n = *(const size_t *)((const char *)msg + f->quantifier_offset);
	const char *array = *(char *const *)((const char *)msg + f->offset);
	json_t *list = json_array();

	for (size_t i = 0; list && i < n; i++) {
		/* Only strings and messages repeat in our messages. */
		const void *at = array + i * sizeof(void *);

		if (json_array_append_new(list, value(f, at)) < 0) {
			json_decref(list);
			return NULL;
		}
	}
	return list;
}

json_t *gw_json_message(const ProtobufCMessage *msg)
{
	json_t *o = json_object();

	for (unsigned i = 0; o && i < msg->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &msg->descriptor->fields[i];
		json_t *v = f->label == PROTOBUF_C_LABEL_REPEATED ? repeated(f, msg) : value(f, (const char *)msg + f->offset);

		if (json_object_set_new(o, f->name, v) < 0) {
			json_decref(o);
			return NULL;
		}
	}
	return o;
}
