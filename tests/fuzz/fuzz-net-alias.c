// SPDX-License-Identifier: Apache-2.0
/* Packets of a clone's guest and of its network, in which two addresses change places. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/net-alias.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	uint8_t *packet;
	bool changed;

	if (len < 12)
		return 0;
	/* Both addresses come first, so that they are found in the packet. */
	len -= 12;
	packet = malloc(len ?: 1);
	if (!packet)
		abort();
	memcpy(packet, data + 12, len);
	changed = gw_net_alias_swap(data, data + 6, packet, len);
	if (!changed && memcmp(packet, data + 12, len))
		abort();
	free(packet);
	return 0;
}
