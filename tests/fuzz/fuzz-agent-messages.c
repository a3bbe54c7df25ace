// SPDX-License-Identifier: Apache-2.0
/*
 * What other hosts, clients, VMMs and our own files hold: requests, replies and events of agents and VMMs, records, the data port's
 * preamble; with the check of the configuration that a peer sends, and the JSON that is made of each.
 */
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>

#include "agent/dataport.h"
#include "agent/json.h"
#include "agent/records.h"
#include "agent/vmconfig.h"
#include "proto/vmm.pb-c.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const ProtobufCMessageDescriptor *const kinds[] = {
	&godwit__agent_request__descriptor, &godwit__agent_reply__descriptor, &godwit__agent_event__descriptor,
	&godwit__vm_record__descriptor,	    &godwit__move_record__descriptor, &godwit__vmm_reply__descriptor,
	&godwit__vmm_event__descriptor,
};

static void as_json(const ProtobufCMessage *m)
{
	json_t *o = gw_json_message(m);
	char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;

	free(text);
	json_decref(o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct gw_error err = GW_ERROR_INIT;
	ProtobufCMessage *m = NULL;
	struct gw_preamble p;
	unsigned kind;

	if (size < 1)
		return 0;
	kind = data[0] % (sizeof(kinds) / sizeof(kinds[0]));
	if (size >= GW_PREAMBLE_LEN)
		gw_preamble_decode(data, &p);
	if (gw_record_decode(data + 1, size - 1, kinds[kind], &m, &err) == 0)
		protobuf_c_message_free_unpacked(m, NULL);
	m = protobuf_c_message_unpack(kinds[kind], NULL, size - 1, data + 1);
	if (!m)
		return 0;
	if (m->descriptor == &godwit__agent_request__descriptor) {
		Godwit__AgentRequest *req = (Godwit__AgentRequest *)m;

		if (req->op_case == GODWIT__AGENT_REQUEST__OP_CREATE)
			gw_vmconfig_check(req->create, &err);
		if (req->op_case == GODWIT__AGENT_REQUEST__OP_PEER_PREPARE && req->peer_prepare->config)
			gw_vmconfig_check(req->peer_prepare->config, &err);
	}
	as_json(m);
	protobuf_c_message_free_unpacked(m, NULL);
	return 0;
}
