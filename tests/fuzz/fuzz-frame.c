// SPDX-License-Identifier: Apache-2.0
/* Control messages: any bytes on a UNIX socket, received as the VMM's requests. */
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/clock.h"
#include "proto/frame.h"
#include "proto/vmm.pb-c.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	ProtobufCMessage *msg = NULL;
	int s[2];

	if (len == 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, s) < 0)
		return 0;
	if (send(s[0], data, len, MSG_DONTWAIT) == (ssize_t)len) {
		close(s[0]);
		while (gw_frame_recv(s[1], 1, &godwit__vmm_request__descriptor, &msg, NULL, NULL, GW_NO_DEADLINE) == 0)
			protobuf_c_message_free_unpacked(msg, NULL);
	} else {
		close(s[0]);
	}
	close(s[1]);
	return 0;
}
