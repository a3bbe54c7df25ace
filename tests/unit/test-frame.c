// SPDX-License-Identifier: Apache-2.0
/* proto/frame: messages and descriptors over a socket, and every way of being malformed. */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "lib/bytes.h"
#include "lib/clock.h"
#include "lib/util.h"
#include "proto/frame.h"
#include "proto/vmm.pb-c.h"

static uint64_t soon(void)
{
	return gw_now_ns() + TEST_PATIENCE;
}

static void message_and_descriptor_arrive(void **state)
{
	Godwit__VmmReply out = GODWIT__VMM_REPLY__INIT;
	ProtobufCMessage *in = NULL;
	int s[2], fds[GW_MAX_FDS];
	unsigned n = 0;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
	out.error = ENOENT;
	out.message = (char *)"no such disk";
	assert_int_equal(gw_frame_send(s[0], 2, &out.base, &s[0], 1, soon()), 0);
	assert_int_equal(gw_frame_recv(s[1], 2, &godwit__vmm_reply__descriptor, &in, fds, &n, soon()), 0);
	assert_int_equal(n, 1);
	assert_int_equal(((Godwit__VmmReply *)in)->error, ENOENT);
	assert_string_equal(((Godwit__VmmReply *)in)->message, "no such disk");
	protobuf_c_message_free_unpacked(in, NULL);
	close(fds[0]);
	close(s[0]);
	close(s[1]);
}

static int receive(const void *raw, size_t len)
{
	ProtobufCMessage *in = NULL;
	int s[2], r;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
	assert_int_equal(send(s[0], raw, len, 0), (ssize_t)len);
	close(s[0]);
	r = gw_frame_recv(s[1], 2, &godwit__vmm_reply__descriptor, &in, NULL, NULL, soon());
	assert_null(in);
	close(s[1]);
	return r;
}

static void malformed_frames_are_refused(void **state)
{
	uint8_t h[GW_FRAME_HEADER + 4] = { 0 };

	gw_put_le16(h + 4, 2);
	gw_put_le16(h + 6, GW_FRAME_VERSION);
	gw_put_le32(h, GW_FRAME_MAX + 1);
	assert_int_equal(receive(h, GW_FRAME_HEADER), -EPROTO);
	gw_put_le32(h, 10); /* says 10, has 4 */
	assert_int_equal(receive(h, sizeof(h)), -EPIPE);
	gw_put_le32(h, 4);
	memcpy(h + GW_FRAME_HEADER, "\xff\xff\xff\xff", 4);
	assert_int_equal(receive(h, sizeof(h)), -EPROTO);
	gw_put_le16(h + 4, 3); /* another type */
	assert_int_equal(receive(h, sizeof(h)), -EPROTO);
	gw_put_le16(h + 4, 2);
	gw_put_le16(h + 6, GW_FRAME_VERSION + 1);
	assert_int_equal(receive(h, sizeof(h)), -EPROTO);
	assert_int_equal(receive(h, 3), -EPIPE);
}

static void too_large_is_not_sent(void **state)
{
	Godwit__VmmFeatures f = GODWIT__VMM_FEATURES__INIT;
	gw_autobuf out = GW_BUF_INIT;

	f.cpuid.len = GW_FRAME_MAX;
	f.cpuid.data = calloc(1, GW_FRAME_MAX);
	assert_int_equal(gw_frame_pack(&out, 1, &f.base), -EMSGSIZE);
	assert_int_equal(out.len, 0);
	free(f.cpuid.data);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(message_and_descriptor_arrive),
		cmocka_unit_test(malformed_frames_are_refused),
		cmocka_unit_test(too_large_is_not_sent),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
