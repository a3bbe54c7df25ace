// SPDX-License-Identifier: Apache-2.0
/* Frames of a guest and its peers, as the conversations of a moving VM are read from them: a byte says who speaks, one how long it is. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/talk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	gw_talk_begin(NULL, 0);
	while (len > 2) {
		size_t n = GW_MIN((size_t)data[1], GW_MIN(len - 2, (size_t)GW_TALK_HEAD));
		uint8_t *frame = malloc(n ?: 1); /* of its own, so that a byte too far is seen */

		if (!frame)
			abort();
		memcpy(frame, data + 2, n);
		gw_talk_packet(frame, n, data[0] & 1);
		free(frame);
		data += n + 2;
		len -= n + 2;
	}
	(void)gw_talk_unanswered();
	(void)gw_talk_longest();
	gw_talk_end();
	return 0;
}
