// SPDX-License-Identifier: Apache-2.0
/*
 * The control socket of a VM that runs Linux on real KVM: requests, events, consoles, several clients, rude clients. Needs what
 * test-kvm.c needs; skipped without.
 */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"
#include "proto/frame.h"
#include "vmm/control.h"
#include "vmm/machine.h"

#define SOCKET "/tmp/godwit-test-control.sock"

struct server {
	struct gw_options options;
	pthread_t thread;
	int ready[2];
	int code;
};

static bool can_run(void)
{
	return access("/dev/kvm", R_OK | W_OK) == 0 && getenv("GODWIT_TEST_KERNEL") && getenv("GODWIT_TEST_INITRD");
}

/* What main() does, without signals and terminal. */
static void *serve(void *arg)
{
	struct server *s = arg;
	struct gw_error err = GW_ERROR_INIT;
	struct gw_control *control = NULL;
	struct gw_machine *m = NULL;
	sd_event *loop = NULL;
	char ok = 'n';

	if (sd_event_new(&loop) >= 0 && gw_control_new(SOCKET, loop, &control, &err) == 0 &&
	    gw_machine_new(&s->options, loop, &m, &err) == 0 && gw_control_attach(control, m, &err) == 0) {
		gw_machine_start(m);
		ok = 'y';
	} else {
		print_message("%s\n", gw_error_text(&err));
	}
	assert_int_equal(write(s->ready[1], &ok, 1), 1);
	if (ok == 'y')
		s->code = sd_event_loop(loop);
	gw_control_free(control);
	gw_machine_free(m);
	sd_event_unref(loop);
	return NULL;
}

static void start(struct server *s)
{
	char ok;

	memset(s, 0, sizeof(*s));
	s->options.config = (struct gw_vm_config){
		.name = "test",
		.memory = 128ull << 20,
		.cpus = 2,
		.kernel = getenv("GODWIT_TEST_KERNEL"),
		.initrd = getenv("GODWIT_TEST_INITRD"),
		.cmdline = "console=ttyS0 quiet",
	};
	s->code = -1;
	assert_int_equal(pipe(s->ready), 0);
	assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
	assert_int_equal(read(s->ready[0], &ok, 1), 1);
	assert_int_equal(ok, 'y');
}

static void finish(struct server *s, int code)
{
	pthread_join(s->thread, NULL);
	assert_int_equal(s->code, code);
	assert_int_equal(access(SOCKET, F_OK), -1);
	close(s->ready[0]);
	close(s->ready[1]);
}

static int dial(void)
{
	struct gw_error err = GW_ERROR_INIT;
	int sock = -1;

	if (gw_unix_connect(SOCKET, &sock, &err) < 0)
		fail_msg("%s", gw_error_text(&err));
	return sock;
}

static uint64_t soon(void)
{
	return gw_now_ns() + TEST_PATIENCE;
}

static void request(int sock, Godwit__VmmRequest__OpCase op)
{
	Godwit__VmmRequest req = GODWIT__VMM_REQUEST__INIT;
	Godwit__Empty empty = GODWIT__EMPTY__INIT;

	req.op_case = op;
	req.status = &empty; /* all members of the union are pointers to messages */
	assert_int_equal(gw_frame_send(sock, 1, &req.base, NULL, 0, soon()), 0);
}

static Godwit__VmmReply *ask_fd(int sock, Godwit__VmmRequest__OpCase op, int *fd)
{
	ProtobufCMessage *msg = NULL;
	int fds[GW_MAX_FDS];
	unsigned nfds = 0;

	request(sock, op);
	assert_int_equal(gw_frame_recv(sock, 2, &godwit__vmm_reply__descriptor, &msg, fds, &nfds, soon()), 0);
	if (fd) {
		assert_int_equal(nfds, 1);
		*fd = fds[0];
	} else {
		assert_int_equal(nfds, 0);
	}
	return (Godwit__VmmReply *)msg;
}

static void ask(int sock, Godwit__VmmRequest__OpCase op, int error)
{
	Godwit__VmmReply *reply = ask_fd(sock, op, NULL);

	if (reply->error != error)
		fail_msg("request %d: want %d, got %d: %s", op, error, reply->error, reply->message);
	assert_true(!error == !reply->message[0]);
	godwit__vmm_reply__free_unpacked(reply, NULL);
}

static Godwit__VmmRunState state(int sock)
{
	Godwit__VmmReply *reply = ask_fd(sock, GODWIT__VMM_REQUEST__OP_STATUS, NULL);
	Godwit__VmmRunState s = reply->status->state;

	assert_string_equal(reply->status->name, "test");
	assert_int_equal(reply->status->cpus, 2);
	assert_true(reply->status->resident > 0);
	godwit__vmm_reply__free_unpacked(reply, NULL);
	return s;
}

static void balloon(int sock, uint64_t target, int error, uint64_t told)
{
	Godwit__VmmRequest req = GODWIT__VMM_REQUEST__INIT;
	Godwit__Balloon b = GODWIT__BALLOON__INIT;
	ProtobufCMessage *msg = NULL;
	Godwit__VmmReply *reply;

	b.target = target;
	req.op_case = GODWIT__VMM_REQUEST__OP_BALLOON;
	req.balloon = &b;
	assert_int_equal(gw_frame_send(sock, 1, &req.base, NULL, 0, soon()), 0);
	assert_int_equal(gw_frame_recv(sock, 2, &godwit__vmm_reply__descriptor, &msg, NULL, NULL, soon()), 0);
	reply = (Godwit__VmmReply *)msg;
	assert_int_equal(reply->error, error);
	assert_true(error ? !reply->balloon : reply->balloon->target == told);
	godwit__vmm_reply__free_unpacked(reply, NULL);
}

static void wait_event(int sock, const char *kind)
{
	for (;;) {
		ProtobufCMessage *msg = NULL;
		bool found;

		assert_int_equal(gw_frame_recv(sock, 3, &godwit__vmm_event__descriptor, &msg, NULL, NULL, soon()), 0);
		found = !strcmp(((Godwit__VmmEvent *)msg)->kind, kind);
		protobuf_c_message_free_unpacked(msg, NULL);
		if (found)
			return;
	}
}

static void wait_text(int fd, const char *text)
{
	char buf[65536];
	size_t len = 0;

	while (len < sizeof(buf) - 1) {
		ssize_t n;

		buf[len] = '\0';
		if (strstr(buf, text))
			return;
		if (gw_wait_fd(fd, POLLIN, soon()) < 0)
			fail_msg("no \"%s\" but: %s", text, buf);
		n = read(fd, buf + len, sizeof(buf) - 1 - len);
		assert_true(n > 0);
		len += (size_t)n;
	}
	fail_msg("no \"%s\"", text);
}

static void test_requests(void **arg)
{
	struct server s;
	Godwit__VmmReply *reply;
	int sock, other, console;
	uint8_t digest[16];

	if (!can_run())
		skip();
	start(&s);
	sock = dial();
	other = dial();
	ask(other, GODWIT__VMM_REQUEST__OP_SUBSCRIBE, 0);
	assert_int_equal(state(sock), GODWIT__VMM_RUN_STATE__VMM_RUNNING);
	godwit__vmm_reply__free_unpacked(ask_fd(sock, GODWIT__VMM_REQUEST__OP_CONSOLE, &console), NULL);
	wait_text(console, "GUEST-READY");

	ask(sock, GODWIT__VMM_REQUEST__OP_DIGEST, EBUSY);
	ask(sock, GODWIT__VMM_REQUEST__OP_PAUSE, 0);
	ask(sock, GODWIT__VMM_REQUEST__OP_PAUSE, 0);
	wait_event(other, "state");
	assert_int_equal(state(sock), GODWIT__VMM_RUN_STATE__VMM_PAUSED);
	/* A paused VM does not change. */
	reply = ask_fd(sock, GODWIT__VMM_REQUEST__OP_DIGEST, NULL);
	assert_int_equal(reply->digest->ram.len, 16);
	memcpy(digest, reply->digest->ram.data, 16);
	godwit__vmm_reply__free_unpacked(reply, NULL);
	reply = ask_fd(other, GODWIT__VMM_REQUEST__OP_DIGEST, NULL);
	assert_memory_equal(digest, reply->digest->ram.data, 16);
	godwit__vmm_reply__free_unpacked(reply, NULL);
	ask(sock, GODWIT__VMM_REQUEST__OP_RESUME, 0);
	wait_event(other, "state");

	reply = ask_fd(sock, GODWIT__VMM_REQUEST__OP_FEATURES, NULL);
	assert_true(reply->features->cpuid.len > 100);
	assert_true(reply->features->tsc_khz > 0);
	assert_non_null(memmem(reply->features->devices.data, reply->features->devices.len, "serial 0\n", 9));
	godwit__vmm_reply__free_unpacked(reply, NULL);
	balloon(sock, 0, 0, 128ull << 20);
	balloon(sock, 63ull << 20, ERANGE, 0);
	balloon(sock, 120ull << 20, 0, 120ull << 20);
	balloon(sock, 0, 0, 120ull << 20);
	ask(sock, GODWIT__VMM_REQUEST__OP_CANCEL, ENOENT);
	ask(sock, GODWIT__VMM_REQUEST__OP__NOT_SET, ENOSYS);

	/* A second console sees what was said before it came. */
	close(console);
	godwit__vmm_reply__free_unpacked(ask_fd(sock, GODWIT__VMM_REQUEST__OP_CONSOLE, &console), NULL);
	wait_text(console, "GUEST-READY");
	assert_int_equal(gw_write_full(console, "echo six-$((2*3))\n", 18, soon()), 0);
	wait_text(console, "six-6");

	ask(sock, GODWIT__VMM_REQUEST__OP_RESET, 0);
	wait_event(other, "reset");
	wait_text(console, "GUEST-READY");
	ask(sock, GODWIT__VMM_REQUEST__OP_POWER_BUTTON, 0);
	wait_event(other, "shutdown");
	close(console);
	close(other);
	close(sock);
	finish(&s, GW_EXIT_ENDED);
}

static void test_rude_clients(void **arg)
{
	static const uint8_t garbage[64] = { 0xff, 0xff, 0xff, 0xff, 1 };
	static const uint8_t no_message[GW_FRAME_HEADER + 4] = { 4, 0, 0, 0, 1, 0, 1, 0, 0xff, 0xff, 0xff, 0xff };
	static const uint8_t features[GW_FRAME_HEADER + 2] = { 2, 0, 0, 0, 1, 0, 1, 0, 14 << 3 | 2, 0 };
	struct server s;
	int sock, bad, silent;
	char byte;

	if (!can_run())
		skip();
	start(&s);
	sock = dial();
	bad = dial();
	assert_int_equal(gw_write_full(bad, garbage, sizeof(garbage), soon()), 0);
	assert_int_equal(read(bad, &byte, 1), 0);
	close(bad);
	bad = dial();
	assert_int_equal(gw_write_full(bad, no_message, sizeof(no_message), soon()), 0);
	assert_int_equal(read(bad, &byte, 1), 0);
	close(bad);
	/* One that asks and never reads is dropped in the end, and delays nobody. */
	silent = dial();
	for (int i = 0; i < 2000 && send(silent, features, sizeof(features), MSG_NOSIGNAL) > 0; i++)
		;
	assert_int_equal(state(sock), GODWIT__VMM_RUN_STATE__VMM_RUNNING);
	while (read(silent, (char[4096]){ 0 }, 4096) > 0)
		;
	close(silent);
	ask(sock, GODWIT__VMM_REQUEST__OP_QUIT, 0);
	close(sock);
	finish(&s, GW_EXIT_ENDED);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_requests),
		cmocka_unit_test(test_rude_clients),
	};

	/* One test alone: by a pattern of its name. */
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
