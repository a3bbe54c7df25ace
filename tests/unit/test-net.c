// SPDX-License-Identifier: Apache-2.0
/* virtio-net and virtio-console, driven as a guest does; a socket pair that keeps packet boundaries stands in for the tap. */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_pci.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"
#include "tests/unit/virtio-guest.h"
#include "vmm/console.h"
#include "vmm/net.h"
#include "vmm/virtio-pci.h"
#include "vmm/vm.h"

#define SLOT 3
#define HDR 12
#define DATA(i) (0x200000ull + (i) * 0x20000)
#define NO_TSO (~(1ull << VIRTIO_NET_F_GUEST_TSO4 | 1ull << VIRTIO_NET_F_GUEST_TSO6))
#define NO_MERGE (~(1ull << VIRTIO_NET_F_MRG_RXBUF))

static const uint8_t test_mac[6] = { 0x52, 0x54, 0, 1, 2, 3 };

struct fixture {
	struct fake_host *fake;
	int wire; /* the other end of the "tap" */
	struct gw_virtio *vd;
	struct gw_device dev;
	struct guest guest;
};

static void open_net_as(struct fixture *f, bool incoming, const uint8_t mac[6])
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
	f->wire = fds[0];
	assert_int_equal(gw_net_new_on(fds[1], "net0", mac, incoming, &f->fake->host, &f->vd, NULL), 0);
	assert_int_equal(gw_virtio_pci_attach(f->vd, f->fake->pci, SLOT, NULL), 0);
	f->dev = gw_virtio_device(f->vd);
}

static void open_net(struct fixture *f, bool incoming)
{
	open_net_as(f, incoming, test_mac);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	f->fake = fake_host_new();
	open_net(f, false);
	f->dev.ops->resume(f->dev.self);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	f->dev.ops->free(f->dev.self);
	close(f->wire);
	fake_host_free(f->fake);
	free(f);
	return 0;
}

static size_t from_wire(struct fixture *f, uint8_t *data, size_t max)
{
	ssize_t n;

	assert_int_equal(gw_wait_fd(f->wire, POLLIN, gw_now_ns() + TEST_PATIENCE), 0);
	n = recv(f->wire, data, max, 0);
	assert_true(n > 0);
	return (size_t)n;
}

static void to_wire(struct fixture *f, size_t len, uint8_t seed)
{
	uint8_t packet[70000] = { 0 };

	for (size_t i = HDR; i < len; i++)
		packet[i] = (uint8_t)(seed + i / 256);
	assert_int_equal(gw_wait_fd(f->wire, POLLOUT, gw_now_ns() + TEST_PATIENCE), 0);
	assert_int_equal(send(f->wire, packet, len, 0), len);
}

static void give_buffers(struct fixture *f, unsigned first, unsigned n, uint32_t len)
{
	for (unsigned i = first; i < first + n; i++) {
		const struct guest_buf buf = { DATA(i), len, true };

		guest_add(&f->guest, 0, &buf, 1);
	}
	guest_kick(&f->guest, 0);
}

static void packets_leave(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	const struct guest_buf bufs[] = { { DATA(0), HDR, false }, { DATA(1), 1000, false }, { DATA(2), 446, false } };
	uint8_t packet[2048];

	assert_true(guest_start(g, f->fake, SLOT, UINT64_MAX));
	assert_memory_equal(((uint64_t[]){ guest_config_read(g, 0, 8) }), test_mac, 6);
	assert_int_equal(guest_config_read(g, 6, 2), VIRTIO_NET_S_LINK_UP);
	memset(guest_ptr(g, DATA(1), 1000), 'x', 1000);
	memset(guest_ptr(g, DATA(2), 446), 'y', 446);
	for (int i = 0; i < 100; i++) {
		guest_add(g, 1, bufs, 3);
		guest_kick(g, 1);
		assert_int_equal(from_wire(f, packet, sizeof(packet)), HDR + 1446);
		assert_int_equal(packet[HDR + 999], 'x');
		assert_int_equal(packet[HDR + 1000], 'y');
		assert_true(guest_used(g, 1, NULL, NULL));
	}
	assert_int_equal(f->fake->said, 100);
	assert_int_equal(f->fake->frame[0], 'x');
	guest_add(g, 1, &bufs[2], 0);
	guest_desc(g, 1, (uint16_t)(g->q[1].next_desc), DATA(0), 4, 0, 0);
	guest_avail(g, 1, (uint16_t)(g->q[1].next_desc % g->q[1].size));
	guest_kick(g, 1);
	assert_true(guest_broken(g));
}

static void packets_arrive_in_one_buffer(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	uint32_t len;
	uint8_t *p;

	assert_true(guest_start(g, f->fake, SLOT, NO_TSO));
	give_buffers(f, 0, 4, 2048);
	for (unsigned i = 0; i < 4; i++) {
		to_wire(f, HDR + 100 + i, (uint8_t)(i + 1));
		assert_true(guest_used(g, 0, NULL, &len));
		assert_int_equal(len, HDR + 100 + i);
		p = guest_ptr(g, DATA(i), 2048);
		assert_int_equal(p[HDR], i + 1);
		assert_int_equal(p[10] | p[11] << 8, 1);
	}
	assert_int_equal(f->fake->heard, 4);
	assert_int_equal(f->fake->frame[0], 4);
}

/* What comes meanwhile arrives in order, and without a kick of the guest. */
static void a_guest_that_is_late_gets_packets_in_batches(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	uint32_t len;

	assert_true(guest_start(g, f->fake, SLOT, NO_TSO));
	give_buffers(f, 0, 32, 2048);
	__atomic_store_n(&f->fake->overdue, true, __ATOMIC_RELAXED);
	to_wire(f, HDR + 100, 1);
	assert_true(guest_used(g, 0, NULL, &len));
	for (unsigned i = 1; i < 32; i++)
		to_wire(f, HDR + 100 + i, 1);
	for (unsigned i = 1; i < 32; i++) {
		assert_true(guest_used(g, 0, NULL, &len));
		assert_int_equal(len, HDR + 100 + i);
	}
}

static void check_merged(struct fixture *f, size_t total, uint8_t seed)
{
	struct guest *g = &f->guest;
	unsigned count = 0;
	uint16_t head;
	uint32_t len;
	uint8_t *first = NULL;
	size_t at = 0;

	while (at < total) {
		uint8_t *p;

		assert_true(guest_used(g, 0, &head, &len));
		p = guest_ptr(g, ((struct vring_desc *)guest_ptr(g, g->q[0].desc, 512))[head].addr, len);
		first = first ?: p;
		for (size_t i = 0; i < len; i++) {
			if (at + i >= HDR)
				assert_int_equal(p[i], (uint8_t)(seed + (at + i) / 256));
		}
		at += len;
		count++;
	}
	assert_int_equal(at, total);
	assert_int_equal(first[10] | first[11] << 8, count);
}

/* Whether there is room for the largest packet (straight in) or not (by copy), the guest sees the same. */
static void large_packets_are_merged(void **state)
{
	struct fixture *f = *state;

	assert_true(guest_start(&f->guest, f->fake, SLOT, UINT64_MAX));
	give_buffers(f, 0, 30, 4096); /* 120 KiB: direct */
	to_wire(f, HDR + 60000, 5);
	check_merged(f, HDR + 60000, 5);
	to_wire(f, HDR + 50000, 6); /* 60 KiB are left: aside */
	check_merged(f, HDR + 50000, 6);
	to_wire(f, HDR + 20000, 7); /* no room: waits for the guest */
	give_buffers(f, 0, 10, 4096);
	check_merged(f, HDR + 20000, 7);
}

static void without_merging_small_buffers_lose_packets(void **state)
{
	struct fixture *f = *state;
	uint32_t len;

	assert_true(guest_start(&f->guest, f->fake, SLOT, NO_MERGE & NO_TSO));
	give_buffers(f, 0, 2, 512);
	to_wire(f, HDR + 1000, 1); /* dropped: VIRTIO 1.2 §5.1.6.3.2 */
	to_wire(f, HDR + 200, 2);
	assert_true(guest_used(&f->guest, 0, NULL, &len));
	assert_int_equal(len, HDR + 200);
}

static void a_starved_guest_catches_up(void **state)
{
	struct fixture *f = *state;
	uint32_t len;

	assert_true(guest_start(&f->guest, f->fake, SLOT, NO_TSO));
	for (unsigned i = 0; i < 5; i++)
		to_wire(f, HDR + 60 + i, 1);
	assert_false(guest_used_now(&f->guest, 0, NULL, NULL));
	for (unsigned i = 0; i < 5; i++) {
		give_buffers(f, i, 1, 2048);
		assert_true(guest_used(&f->guest, 0, NULL, &len));
		assert_int_equal(len, HDR + 60 + i);
	}
}

static uint8_t control(struct guest *g, uint8_t class, uint8_t cmd, const void *data, uint32_t len)
{
	uint8_t *p = guest_ptr(g, DATA(30), 64);
	const struct guest_buf bufs[] = { { DATA(30), 2, false }, { DATA(30) + 2, len, false }, { DATA(30) + 63, 1, true } };

	p[0] = class;
	p[1] = cmd;
	memcpy(p + 2, data, len);
	p[63] = 0xaa;
	guest_add(g, 2, bufs, 3);
	guest_kick(g, 2);
	assert_true(guest_used(g, 2, NULL, NULL));
	return p[63];
}

static void control_commands(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	const uint8_t mac[6] = { 2, 0, 0, 0, 0, 9 }, multicast[6] = { 1, 0, 0, 0, 0, 9 };

	assert_true(guest_start(g, f->fake, SLOT, UINT64_MAX));
	assert_int_equal(control(g, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, "\1", 1), VIRTIO_NET_OK);
	assert_int_equal(control(g, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, mac, 6), VIRTIO_NET_OK);
	assert_int_equal(guest_config_read(g, 5, 1), 9);
	assert_int_equal(control(g, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, multicast, 6), VIRTIO_NET_ERR);
	assert_int_equal(control(g, VIRTIO_NET_CTRL_MQ, 0, "\2\0", 2), VIRTIO_NET_ERR);
}

static void arrival_is_announced(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	uint8_t frame[2048];
	uint64_t start;
	unsigned changes;

	assert_true(guest_start(g, f->fake, SLOT, UINT64_MAX));
	changes = fake_raised(f->fake, GUEST_MESSAGE(SLOT, 0));
	start = gw_now_ns();
	f->dev.ops->announce(f->dev.self);
	assert_int_equal(from_wire(f, frame, sizeof(frame)), HDR + 60);
	assert_memory_equal(frame + HDR, "\xff\xff\xff\xff\xff\xff", 6);
	assert_memory_equal(frame + HDR + 6, test_mac, 6);
	assert_memory_equal(frame + HDR + 12, "\x80\x35", 2);
	assert_int_equal(guest_config_read(g, 6, 2), VIRTIO_NET_S_LINK_UP);
	for (int i = 0; i < 5; i++)
		assert_int_equal(from_wire(f, frame, sizeof(frame)), HDR + 60);
	/* Then it is the guest's turn. */
	while (fake_raised(f->fake, GUEST_MESSAGE(SLOT, 0)) == changes)
		assert_true(gw_now_ns() - start < TEST_PATIENCE && usleep(1000) == 0);
	assert_int_equal(fake_raised(f->fake, GUEST_MESSAGE(SLOT, 0)), changes + 1);
	assert_int_equal(guest_config_read(g, 6, 2), VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE);
	assert_int_equal(control(g, VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, "\0", 1), VIRTIO_NET_OK);
	assert_int_equal(guest_config_read(g, 6, 2), VIRTIO_NET_S_LINK_UP);
}

static bool wire_drained(void *arg)
{
	struct fixture *f = arg;
	int queued = 1;

	/* Bytes that the other side has not read yet. */
	return ioctl(f->wire, TIOCOUTQ, &queued) == 0 && queued == 0;
}

/* Staged buffers go back to the queue at quiesce, packets wait in the tap, and both meet at the new place. */
static void state_goes_over(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	struct gw_state_writer *w = NULL;
	struct gw_state_reader *r = NULL;
	struct gw_buf buf = GW_BUF_INIT;
	struct gw_error err = GW_ERROR_INIT;
	uint32_t len;

	assert_true(guest_start(g, f->fake, SLOT, UINT64_MAX));
	give_buffers(f, 0, 20, 4096);
	to_wire(f, HDR + 500, 1);
	assert_true(guest_used(g, 0, NULL, NULL));
	f->dev.ops->quiesce(f->dev.self);
	assert_int_equal(gw_state_writer_new(&w), 0);
	assert_int_equal(f->dev.ops->save(f->dev.self, w, &err), 0);
	assert_int_equal(gw_state_finish(w, &buf), 0);
	gw_state_writer_free(w);
	to_wire(f, HDR + 500, 2);
	f->dev.ops->quiesce(f->dev.self);
	assert_false(guest_used_now(g, 0, NULL, NULL));
	f->dev.ops->free(f->dev.self);
	close(f->wire);
	open_net(f, true);
	/* Floods before the arrival are not for the guest. */
	for (int i = 0; i < 300; i++)
		to_wire(f, HDR + 60, 9);
	assert_true(fake_wait(wire_drained, f));
	assert_int_equal(gw_state_reader_new(buf.data, buf.len, &r, &err), 0);
	assert_int_equal(f->dev.ops->load(f->dev.self, r, &err), 0);
	gw_state_reader_free(r);
	gw_buf_release(&buf);
	to_wire(f, HDR + 40000, 3);
	f->dev.ops->resume(f->dev.self);
	check_merged(f, HDR + 40000, 3);
	to_wire(f, HDR + 77, 4);
	assert_true(guest_used(g, 0, NULL, &len));
	assert_int_equal(len, HDR + 77);
}

struct gathered {
	unsigned count;
	size_t len[300];
	uint8_t data[300][HDR + 100];
};

static void gather(void *arg, unsigned device, const void *data, size_t len)
{
	struct gathered *got = arg;

	assert_int_equal(device, 5);
	assert_true(got->count < ARRAY_SIZE(got->len) && len <= sizeof(got->data[0]));
	got->len[got->count] = len;
	memcpy(got->data[got->count++], data, len);
}

/* What comes to a stopped guest is taken from the tap; elsewhere the guest gets it first, as far as it gives buffers. */
static void packets_follow_a_guest(void **state)
{
	static struct gathered got;
	static uint8_t large[70000];
	const struct gw_packet_sink sink = { gather, &got, 5 };
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	uint32_t len;

	assert_true(guest_start(g, f->fake, SLOT, NO_TSO));
	/* One that runs keeps its own. */
	to_wire(f, HDR + 88, 88);
	f->dev.ops->drain(f->dev.self, &sink);
	give_buffers(f, 0, 4, 2048);
	assert_true(guest_used(g, 0, NULL, &len));
	assert_int_equal(len, HDR + 88);
	f->dev.ops->quiesce(f->dev.self);
	f->dev.ops->drain(f->dev.self, &sink);
	assert_int_equal(got.count, 0);
	for (unsigned i = 0; i < 70; i++)
		to_wire(f, HDR + i, (uint8_t)i);
	/* One that is stopped takes none. */
	f->dev.ops->deliver(f->dev.self, large, HDR + 60);
	f->dev.ops->drain(f->dev.self, &sink);
	assert_int_equal(got.count, 70);
	to_wire(f, HDR + 99, 99);
	f->dev.ops->resume(f->dev.self);
	f->dev.ops->deliver(f->dev.self, large, HDR - 1);
	f->dev.ops->deliver(f->dev.self, large, sizeof(large));
	assert_true(guest_used(g, 0, NULL, &len));
	assert_int_equal(len, HDR + 99);
	for (unsigned i = 0; i < got.count; i++)
		f->dev.ops->deliver(f->dev.self, got.data[i], got.len[i]);
	for (unsigned i = 0; i < 70; i++) {
		if (i >= 2)
			give_buffers(f, i % 40, 1, 2048);
		assert_true(guest_used(g, 0, NULL, &len));
		assert_int_equal(len, HDR + i);
	}
	/* What waits is bounded, and a reset forgets it. */
	for (unsigned i = 0; i < 40; i++)
		f->dev.ops->deliver(f->dev.self, large, 65536);
	f->dev.ops->reset(f->dev.self);
	assert_true(guest_start(g, f->fake, SLOT, NO_TSO));
	give_buffers(f, 0, 1, 2048);
	to_wire(f, HDR + 77, 4);
	assert_true(guest_used(g, 0, NULL, &len));
	assert_int_equal(len, HDR + 77);
}

/* Its state goes over to a device with another address, as a clone's if so wanted. */
static void transplant(struct fixture *f, const uint8_t mac[6], bool clone)
{
	struct gw_state_writer *w;
	struct gw_state_reader *r;
	gw_autobuf buf = GW_BUF_INIT;
	struct gw_error err = GW_ERROR_INIT;

	f->dev.ops->quiesce(f->dev.self);
	assert_int_equal(gw_state_writer_new(&w), 0);
	assert_int_equal(f->dev.ops->save(f->dev.self, w, &err), 0);
	assert_int_equal(gw_state_finish(w, &buf), 0);
	gw_state_writer_free(w);
	f->dev.ops->free(f->dev.self);
	close(f->wire);
	open_net_as(f, true, mac);
	assert_int_equal(gw_state_reader_new(buf.data, buf.len, &r, &err), 0);
	assert_int_equal(f->dev.ops->load(f->dev.self, r, &err), 0);
	gw_state_reader_free(r);
	if (clone)
		f->dev.ops->clone(f->dev.self);
	f->dev.ops->resume(f->dev.self);
}

/* What the guest sends from `from` leaves as if from `seen`; what comes for `seen` is for `from`. */
static void check_address(struct fixture *f, const uint8_t from[6], const uint8_t seen[6])
{
	struct guest *g = &f->guest;
	const struct guest_buf bufs[] = { { DATA(0), HDR + 9, false }, { DATA(1), 1000, false } };
	uint8_t packet[2048] = { 0 }, *p = guest_ptr(g, DATA(0), HDR + 9);
	uint32_t len;

	memset(p, 0, HDR + 9);
	memcpy(p + HDR + 6, from, 3);
	memset(guest_ptr(g, DATA(1), 1000), 'x', 1000);
	memcpy(guest_ptr(g, DATA(1), 3), from + 3, 3);
	guest_add(g, 1, bufs, 2);
	guest_kick(g, 1);
	assert_int_equal(from_wire(f, packet, sizeof(packet)), HDR + 1009);
	assert_memory_equal(packet + HDR + 6, seen, 6);
	assert_int_equal(packet[HDR + 12], 'x');
	assert_int_equal(packet[HDR + 1008], 'x');
	/* Its own memory is as it was. */
	assert_memory_equal(p + HDR + 6, from, 3);
	assert_true(guest_used(g, 1, NULL, NULL));
	give_buffers(f, 4, 1, 2048);
	memset(packet, 0, HDR);
	memcpy(packet + HDR, seen, 6);
	assert_int_equal(send(f->wire, packet, HDR + 200, 0), HDR + 200);
	assert_true(guest_used(g, 0, NULL, &len));
	assert_int_equal(len, HDR + 200);
	assert_memory_equal(guest_ptr(g, DATA(4) + HDR, 6), from, 6);
}

static const uint8_t first_mac[6] = { 2, 0, 0, 0, 0, 1 }, second_mac[6] = { 2, 0, 0, 0, 0, 2 };

/* The guest keeps what it knows, whatever becomes of its clone; to the outside it has what this VM is configured to have. */
static void a_clone_has_an_address_of_its_own(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;
	uint8_t frame[2048];

	assert_true(guest_start(g, f->fake, SLOT, NO_TSO));
	check_address(f, test_mac, test_mac);
	transplant(f, first_mac, true);
	check_address(f, test_mac, first_mac);
	assert_memory_equal(((uint64_t[]){ guest_config_read(g, 0, 8) }), test_mac, 6);
	f->dev.ops->announce(f->dev.self);
	assert_int_equal(from_wire(f, frame, sizeof(frame)), HDR + 60);
	assert_memory_equal(frame + HDR + 6, first_mac, 6);
	/* It moves, and is cloned itself. */
	transplant(f, first_mac, false);
	check_address(f, test_mac, first_mac);
	transplant(f, second_mac, true);
	check_address(f, test_mac, second_mac);
	/* A clone that is configured as the guest knows it needs no other. */
	transplant(f, test_mac, true);
	check_address(f, test_mac, test_mac);
}

static void a_driver_that_starts_anew_reads_it(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;

	assert_true(guest_start(g, f->fake, SLOT, NO_TSO));
	transplant(f, first_mac, true);
	guest_reset(g);
	assert_true(guest_start(g, f->fake, SLOT, NO_TSO));
	assert_memory_equal(((uint64_t[]){ guest_config_read(g, 0, 8) }), first_mac, 6);
	check_address(f, first_mac, first_mac);
	/* Or takes one of its choice, also outside. */
	transplant(f, second_mac, true);
	check_address(f, first_mac, second_mac);
	assert_int_equal(control(g, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, first_mac, 6), VIRTIO_NET_OK);
	check_address(f, first_mac, second_mac);
	assert_int_equal(control(g, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, test_mac, 6), VIRTIO_NET_OK);
	check_address(f, test_mac, test_mac);
}

static bool link_down(void *arg)
{
	return !(guest_config_read(arg, 6, 2) & VIRTIO_NET_S_LINK_UP);
}

static void a_deleted_tap_is_a_link_down(void **state)
{
	struct fixture *f = *state;

	assert_true(guest_start(&f->guest, f->fake, SLOT, UINT64_MAX));
	give_buffers(f, 0, 20, 4096);
	shutdown(f->wire, SHUT_RDWR);
	assert_true(fake_wait(link_down, &f->guest));
	/* Packets go nowhere, and the guest does not hang. */
	guest_add(&f->guest, 1, &(struct guest_buf){ DATA(0), 100, false }, 1);
	guest_kick(&f->guest, 1);
	assert_true(guest_used(&f->guest, 1, NULL, NULL));
}

/* A driver that has set up no queue at all, and a tap that goes away. */
static void a_queueless_guest_is_harmless(void **state)
{
	struct fixture *f = *state;
	struct guest *g = &f->guest;

	assert_true(guest_start(g, f->fake, SLOT, UINT64_MAX));
	guest_reset(g);
	guest_common_write(g, VIRTIO_PCI_COMMON_GFSELECT, 1, 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_GF, 1, 4);
	guest_common_write(g, VIRTIO_PCI_COMMON_STATUS, 11, 1);
	guest_common_write(g, VIRTIO_PCI_COMMON_STATUS, 15, 1);
	for (unsigned i = 0; i < 3; i++)
		guest_kick(g, i);
	to_wire(f, HDR + 60, 1);
	f->dev.ops->announce(f->dev.self);
	shutdown(f->wire, SHUT_RDWR);
	assert_true(fake_wait(link_down, g));
	f->dev.ops->quiesce(f->dev.self);
	f->dev.ops->resume(f->dev.self);
}

static void taps_that_are_not_there(void **state)
{
	struct fixture *f = *state;
	struct gw_net_config config = { .name = "net1", .tap = "gw-no-such-tap" };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_virtio *vd = NULL;
	uint8_t a[6], b[6];

	assert_int_equal(gw_net_new(&config, "vm", false, &f->fake->host, &vd, &err), -ENODEV);
	assert_non_null(strstr(err.msg, "does not exist"));
	config.tap = "a/b";
	assert_int_equal(gw_net_new(&config, "vm", false, &f->fake->host, &vd, &err), -EINVAL);
	gw_net_default_mac("vm", "net0", a);
	gw_net_default_mac("vm", "net1", b);
	assert_memory_not_equal(a, b, 6);
	gw_net_default_mac("vm", "net0", b);
	assert_memory_equal(a, b, 6);
	assert_memory_equal(a, "\x52\x54\x00", 3);
}

static void the_console_talks_and_remembers(void **state)
{
	struct fixture *f = *state;
	struct gw_virtio *vd = NULL;
	struct gw_device dev;
	struct guest g;
	const struct guest_buf out = { DATA(0), 5, false }, in = { DATA(1), 64, true };
	char text[16] = { 0 };
	uint32_t len;
	int fds[2];

	assert_int_equal(gw_console_new(&f->fake->host, &vd, NULL), 0);
	assert_int_equal(gw_virtio_pci_attach(vd, f->fake->pci, 2, NULL), 0);
	dev = gw_virtio_device(vd);
	dev.ops->resume(dev.self);
	assert_true(guest_start(&g, f->fake, 2, UINT64_MAX));
	memcpy(guest_ptr(&g, DATA(0), 5), "hello", 5);
	guest_add(&g, 1, &out, 1);
	guest_kick(&g, 1);
	assert_true(guest_used(&g, 1, NULL, NULL));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	gw_console_attach(vd, fds[1]);
	assert_int_equal(gw_read_full(fds[0], text, 5, gw_now_ns() + TEST_PATIENCE), 0);
	assert_string_equal(text, "hello");
	assert_int_equal(write(fds[0], "typed", 5), 5);
	guest_add(&g, 0, &in, 1);
	guest_kick(&g, 0);
	assert_true(guest_used(&g, 0, NULL, &len));
	assert_int_equal(len, 5);
	assert_memory_equal(guest_ptr(&g, DATA(1), 5), "typed", 5);
	close(fds[0]);
	/* Nobody reads any more: output goes on. */
	for (int i = 0; i < 20; i++) {
		guest_add(&g, 1, &out, 1);
		guest_kick(&g, 1);
		assert_true(guest_used(&g, 1, NULL, NULL));
	}
	dev.ops->free(dev.self);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(packets_leave),
		T(packets_arrive_in_one_buffer),
		T(a_guest_that_is_late_gets_packets_in_batches),
		T(large_packets_are_merged),
		T(without_merging_small_buffers_lose_packets),
		T(a_starved_guest_catches_up),
		T(control_commands),
		T(arrival_is_announced),
		T(packets_follow_a_guest),
		T(state_goes_over),
		T(a_clone_has_an_address_of_its_own),
		T(a_driver_that_starts_anew_reads_it),
		T(a_deleted_tap_is_a_link_down),
		T(a_queueless_guest_is_harmless),
		T(taps_that_are_not_there),
		T(the_console_talks_and_remembers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
