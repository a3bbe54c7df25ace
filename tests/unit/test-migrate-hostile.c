// SPDX-License-Identifier: Apache-2.0
/* Peers that know the secret and misbehave: the other end of the move is the test itself, speaking the stream by hand. */
#include "cmocka-all.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/util.h"
#include "migrate/channel.h"
#include "move-pair.h"

#define SIZE (64ull << 10)
#define PAGES 16u

/* The engine's end is real; `control` and `data` are the test's. */
struct rig {
	struct move_vm vm;
	struct move_end end;
	struct gw_move *mv;
	struct gw_channel *control, *data;
	bool engine_is_source;
};

static const uint8_t secret[32] = { 1 }, move_id[16] = { 2 };

static struct gw_channel *join(int fd, unsigned number, bool client)
{
	struct gw_channel_config c = {
		.fd = fd,
		.wake_fd = -1,
		.client = client,
		.number = number,
		.secret = secret,
		.move_id = move_id,
		.deadline_ns = gw_now_ns() + TEST_PATIENCE,
	};
	struct gw_error err = GW_ERROR_INIT;
	struct gw_channel *ch;

	assert_int_equal(gw_channel_new(&c, &ch, &err), 0);
	return ch;
}

static void begin(struct rig *r, bool engine_is_source)
{
	struct gw_move_params p = { .epoch = 2, .own_epoch = 1, .channels = 1 };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_move_vm handle;
	int pairs[2][2];

	memset(r, 0, sizeof(*r));
	r->engine_is_source = engine_is_source;
	move_vm_init(&r->vm, SIZE, 0);
	move_end_init(&r->end);
	handle = move_vm_handle(&r->vm);
	for (unsigned i = 0; i < ARRAY_SIZE(p.fds); i++)
		p.fds[i] = -1;
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pairs[i]), 0);
		p.fds[i] = pairs[i][0];
	}
	memcpy(p.secret, secret, sizeof(secret));
	memcpy(p.move_id, move_id, sizeof(move_id));
	if (engine_is_source) {
		move_vm_fill(&r->vm, 1, 0);
		move_vm_run(&r->vm);
		assert_int_equal(gw_move_source_start(&p, &handle, NULL, move_end_progress, &r->end, &r->mv, &err), 0);
	} else {
		assert_int_equal(gw_move_destination_start(&p, &handle, NULL, move_end_progress, &r->end, &r->mv, &err), 0);
	}
	r->control = join(pairs[0][1], 0, !engine_is_source);
	r->data = join(pairs[1][1], 1, !engine_is_source);
}

/* The engine must have failed, saying this; the VM runs where it ran before. */
static void expect_failure(struct rig *r, const char *message)
{
	move_end_wait(&r->end);
	if (r->end.latest.phase != GW_MOVE_FAILED || !strstr(r->end.latest.message, message))
		fprintf(stderr, "phase %d, message '%s', expected '%s'\n", r->end.latest.phase, r->end.latest.message, message);
	assert_int_equal(r->end.latest.phase, GW_MOVE_FAILED);
	assert_non_null(strstr(r->end.latest.message, message));
	assert_int_equal(move_vm_running(&r->vm), r->engine_is_source);
}

static void finish(struct rig *r)
{
	gw_move_free(r->mv);
	gw_channel_free(r->control);
	gw_channel_free(r->data);
	move_vm_release(&r->vm);
}

static void say(struct rig *r, uint16_t type, const void *msg)
{
	struct gw_error err = GW_ERROR_INIT;

	(void)gw_channel_send(r->control, type, msg, &err);
}

static uint16_t hear(struct rig *r)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_frame_header h;
	uint8_t *body;

	if (gw_channel_receive(r->control, &h, &body, gw_now_ns() + TEST_PATIENCE, &err) < 0)
		return 0;
	free(body);
	return h.type;
}

static void say_page(struct rig *r, enum gw_page_type type, bool last, uint32_t count, uint64_t index)
{
	struct gw_page_frame f = { type, last, count, index };
	uint8_t raw[GW_STREAM_HEADER];
	static const uint8_t page[4096] = { 0xaa };

	gw_page_frame_encode(&f, raw);
	(void)gw_channel_write(r->data, raw, sizeof(raw));
	for (unsigned i = 0; type == GW_PAGE_RAW && i < GW_MIN(count, 4u); i++)
		(void)gw_channel_write(r->data, page, sizeof(page));
	(void)gw_channel_flush(r->data);
}

/* A hello that the destination accepts, to be changed. */
struct hello {
	Godwit__StreamHello msg;
	Godwit__StreamMachine machine;
	Godwit__StreamRegion region, *regions[1];
};

static Godwit__StreamHello *good_hello(struct hello *h)
{
	godwit__stream_hello__init(&h->msg);
	godwit__stream_machine__init(&h->machine);
	godwit__stream_region__init(&h->region);
	h->region.size = SIZE;
	h->regions[0] = &h->region;
	h->machine.cpus = 1;
	h->machine.n_regions = 1;
	h->machine.regions = h->regions;
	h->msg.version_min = h->msg.version_max = 1;
	h->msg.move_id = (ProtobufCBinaryData){ sizeof(move_id), (uint8_t *)move_id };
	h->msg.epoch = 2;
	h->msg.channels = 1;
	h->msg.machine = &h->machine;
	return &h->msg;
}

static void greet(struct rig *r)
{
	struct hello h;

	begin(r, false);
	say(r, GW_STREAM_HELLO, good_hello(&h));
	assert_int_equal(hear(r), GW_STREAM_HELLO_REPLY);
}

static void bad_hellos(void **state)
{
	struct hello h;
	struct rig r;

	begin(&r, false);
	good_hello(&h)->version_min = GW_STREAM_VERSION + 1;
	h.msg.version_max = 9;
	say(&r, GW_STREAM_HELLO, &h.msg);
	expect_failure(&r, "stream versions 3 to 9, this VMM 1 to 2");
	assert_int_equal(hear(&r), GW_STREAM_ABORT);
	finish(&r);

	begin(&r, false);
	good_hello(&h)->epoch = 3;
	say(&r, GW_STREAM_HELLO, &h.msg);
	expect_failure(&r, "another move");
	finish(&r);

	begin(&r, false);
	good_hello(&h)->machine = NULL;
	say(&r, GW_STREAM_HELLO, &h.msg);
	expect_failure(&r, "does not describe");
	finish(&r);

	begin(&r, false);
	good_hello(&h);
	h.region.gpa = 4096;
	say(&r, GW_STREAM_HELLO, &h.msg);
	expect_failure(&r, "memory");
	finish(&r);

	begin(&r, false);
	say(&r, GW_STREAM_STATE, &(Godwit__StreamState)GODWIT__STREAM_STATE__INIT);
	expect_failure(&r, "where StreamHello was due");
	finish(&r);
}

static void bad_pages(void **state)
{
	static const struct {
		enum gw_page_type type;
		uint32_t count;
		uint64_t index;
		const char *message;
	} bad[] = {
		{ GW_PAGE_RAW, 1, PAGES, "do not fit" },
		{ GW_PAGE_RAW, 2, PAGES - 1, "do not fit" },
		{ GW_PAGE_RAW, 1, UINT64_MAX, "do not fit" },
		{ GW_PAGE_ZERO, 0, 0, "do not fit" },
		{ GW_PAGE_END, 0, 2, "round 2 ended after round 0" },
		{ GW_PAGE_ACK, 0, 1, "may not acknowledge" },
		{ (enum gw_page_type)9, 0, 1, "unknown frame type 9" },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		struct rig r;

		greet(&r);
		say_page(&r, bad[i].type, false, bad[i].count, bad[i].index);
		expect_failure(&r, bad[i].message);
		finish(&r);
	}
}

static void commit_out_of_turn(void **state)
{
	Godwit__StreamCommit commit = GODWIT__STREAM_COMMIT__INIT;
	Godwit__StreamState st = GODWIT__STREAM_STATE__INIT;
	uint8_t blob[16] = { 0 };
	struct rig r;

	commit.move_id = (ProtobufCBinaryData){ sizeof(move_id), (uint8_t *)move_id };
	commit.epoch = 2;
	st.state = (ProtobufCBinaryData){ sizeof(blob), blob };

	/* Before any page. */
	greet(&r);
	say(&r, GW_STREAM_COMMIT, &commit);
	expect_failure(&r, "while pages were taken");
	finish(&r);

	/* Of another epoch, after all went well. */
	greet(&r);
	say_page(&r, GW_PAGE_RAW, false, 1, 3);
	say_page(&r, GW_PAGE_END, true, 0, 1);
	say(&r, GW_STREAM_STATE, &st);
	assert_int_equal(hear(&r), GW_STREAM_READY);
	commit.epoch = 5;
	say(&r, GW_STREAM_COMMIT, &commit);
	expect_failure(&r, "COMMIT of another move");
	finish(&r);

	/* And the same as it should be: the hand-made source moves a VM in. */
	greet(&r);
	say_page(&r, GW_PAGE_RAW, false, 1, 3);
	say_page(&r, GW_PAGE_END, true, 0, 1);
	say(&r, GW_STREAM_STATE, &st);
	assert_int_equal(hear(&r), GW_STREAM_READY);
	commit.epoch = 2;
	say(&r, GW_STREAM_COMMIT, &commit);
	assert_int_equal(hear(&r), GW_STREAM_RUNNING);
	move_end_wait(&r.end);
	assert_int_equal(r.end.latest.phase, GW_MOVE_DONE);
	assert_true(move_vm_running(&r.vm));
	finish(&r);
}

/* Up to READY, as a source of that stream version. */
static void come_to_ready(struct rig *r, uint32_t version)
{
	Godwit__StreamState st = GODWIT__STREAM_STATE__INIT;
	uint8_t blob[16] = { 0 };
	struct hello h;

	st.state = (ProtobufCBinaryData){ sizeof(blob), blob };
	begin(r, false);
	good_hello(&h)->version_max = version;
	say(r, GW_STREAM_HELLO, &h.msg);
	assert_int_equal(hear(r), GW_STREAM_HELLO_REPLY);
	say_page(r, GW_PAGE_END, true, 0, 1);
	say(r, GW_STREAM_STATE, &st);
	assert_int_equal(hear(r), GW_STREAM_READY);
}

static void packets_out_of_turn(void **state)
{
	static uint8_t large[GW_STREAM_MAX_PACKET_BYTES + 1];
	Godwit__StreamPacket packet = GODWIT__STREAM_PACKET__INIT, *list[GW_STREAM_MAX_PACKETS + 1];
	Godwit__StreamPackets packets = GODWIT__STREAM_PACKETS__INIT;
	struct rig r;

	for (unsigned i = 0; i < ARRAY_SIZE(list); i++)
		list[i] = &packet;
	packets.packets = list;
	packet.data = (ProtobufCBinaryData){ 1, large };
	/* While pages are taken, in a version that has none, and twice. */
	greet(&r);
	say(&r, GW_STREAM_PACKETS, &packets);
	expect_failure(&r, "while pages were taken");
	finish(&r);
	come_to_ready(&r, 1);
	say(&r, GW_STREAM_PACKETS, &packets);
	expect_failure(&r, "where COMMIT was due");
	finish(&r);
	packets.n_packets = 1;
	come_to_ready(&r, 2);
	say(&r, GW_STREAM_PACKETS, &packets);
	say(&r, GW_STREAM_PACKETS, &packets);
	expect_failure(&r, "where StreamCommit was due");
	assert_int_equal(r.vm.ngot, 0);
	finish(&r);
	/* Too many, too large. */
	packets.n_packets = ARRAY_SIZE(list);
	come_to_ready(&r, 2);
	say(&r, GW_STREAM_PACKETS, &packets);
	expect_failure(&r, "257 packets of 257 bytes");
	finish(&r);
	packets.n_packets = 1;
	packet.data.len = sizeof(large);
	come_to_ready(&r, 2);
	say(&r, GW_STREAM_PACKETS, &packets);
	expect_failure(&r, "1 packets of 524289 bytes");
	finish(&r);
}

static void malformed_control(void **state)
{
	static const uint8_t huge[8] = { 0xff, 0xff, 0xff, 0x7f, 1, 1, 1, 0 };
	static const uint8_t garbage[12] = { 4, 0, 0, 0, 1, 1, 1, 0, 0xff, 0xff, 0xff, 0xff };
	struct rig r;

	begin(&r, false);
	gw_channel_write(r.control, huge, sizeof(huge));
	gw_channel_flush(r.control);
	expect_failure(&r, "malformed control message");
	finish(&r);

	begin(&r, false);
	gw_channel_write(r.control, garbage, sizeof(garbage));
	gw_channel_flush(r.control);
	expect_failure(&r, "malformed StreamHello");
	finish(&r);
}

/* Lets the source's engine come to its rounds; each ping is answered so late. */
static void accept_source_slowly(struct rig *r, unsigned pong_ms)
{
	Godwit__StreamHelloReply reply = GODWIT__STREAM_HELLO_REPLY__INIT;

	begin(r, true);
	assert_int_equal(hear(r), GW_STREAM_HELLO);
	reply.version = 1;
	say(r, GW_STREAM_HELLO_REPLY, &reply);
	for (unsigned i = 1; i <= 3; i++) {
		Godwit__StreamPing pong = GODWIT__STREAM_PING__INIT;

		assert_int_equal(hear(r), GW_STREAM_PING);
		usleep(pong_ms * 1000);
		pong.cookie = i;
		say(r, GW_STREAM_PONG, &pong);
	}
}

static void accept_source(struct rig *r)
{
	accept_source_slowly(r, 0);
}

static void bad_destinations(void **state)
{
	Godwit__StreamHelloReply reply = GODWIT__STREAM_HELLO_REPLY__INIT;
	Godwit__StreamPing pong = GODWIT__STREAM_PING__INIT;
	Godwit__StreamRunning running = GODWIT__STREAM_RUNNING__INIT;
	Godwit__StreamAbort abort_msg = GODWIT__STREAM_ABORT__INIT;
	struct rig r;

	begin(&r, true);
	reply.version = GW_STREAM_VERSION + 1;
	say(&r, GW_STREAM_HELLO_REPLY, &reply);
	expect_failure(&r, "chose stream version 3");
	finish(&r);

	begin(&r, true);
	reply.version = 1;
	say(&r, GW_STREAM_HELLO_REPLY, &reply);
	pong.cookie = 99;
	say(&r, GW_STREAM_PONG, &pong);
	expect_failure(&r, "another ping");
	finish(&r);

	/* Text of a peer goes to terminals: nothing but printable characters. */
	begin(&r, true);
	abort_msg.message = (char *)"no \x1b[31mroom\n";
	abort_msg.error = 28;
	say(&r, GW_STREAM_ABORT, &abort_msg);
	expect_failure(&r, "the destination ended the move: no ?[31mroom?");
	finish(&r);

	accept_source(&r);
	say_page(&r, GW_PAGE_ACK, false, 0, 7);
	expect_failure(&r, "acknowledged something else than round 1");
	finish(&r);

	accept_source(&r);
	say_page(&r, GW_PAGE_RAW, false, 1, 0);
	expect_failure(&r, "acknowledged something else");
	finish(&r);

	/* RUNNING before COMMIT. */
	accept_source(&r);
	say_page(&r, GW_PAGE_ACK, false, 0, 1);
	say(&r, GW_STREAM_RUNNING, &running);
	expect_failure(&r, "where StreamReady was due");
	finish(&r);
}

/* Pings that were held up, as on a busy machine, and a round that is not: with nothing left to send it is the last before the stop. */
static void a_round_shorter_than_the_pings(void **state)
{
	struct rig r;

	accept_source_slowly(&r, 300);
	say_page(&r, GW_PAGE_ACK, false, 0, 1);
	assert_int_equal(hear(&r), GW_STREAM_STATE);
	say(&r, GW_STREAM_ABORT, &(Godwit__StreamAbort)GODWIT__STREAM_ABORT__INIT);
	expect_failure(&r, "the destination ended the move");
	assert_int_equal(r.end.latest.round, 2); /* of which one was the last */
	finish(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bad_hellos),
		cmocka_unit_test(bad_pages),
		cmocka_unit_test(packets_out_of_turn),
		cmocka_unit_test(commit_out_of_turn),
		cmocka_unit_test(malformed_control),
		cmocka_unit_test(bad_destinations),
		cmocka_unit_test(a_round_shorter_than_the_pings),
	};

	gw_log_init("test", NULL, GW_LOG_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
