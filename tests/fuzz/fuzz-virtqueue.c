// SPDX-License-Identifier: Apache-2.0
/*
 * Rings, descriptors and buffers of a hostile guest, against each kind of device. Addresses are bent so that most hit RAM: else
 * every chain would end at its first descriptor.
 */
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "lib/buf.h"
#include "lib/util.h"
#include "tests/unit/virtio-guest.h"
#include "vmm/balloon.h"
#include "vmm/blk.h"
#include "vmm/console.h"
#include "vmm/iothread.h"
#include "vmm/net.h"
#include "vmm/rng.h"
#include "vmm/virtio-pci.h"
#include "vmm/vm.h"

#define FIRST_SLOT 1
#define DEVICES 5
#define BALLOON 4
#define DATA 0x200000ull
#define DATA_MASK 0x3ffffull

static struct fake_host *fake;
static struct gw_device devices[DEVICES];
static int wire;

static void attach(struct gw_virtio *vd, unsigned i)
{
	if (gw_virtio_pci_attach(vd, fake->pci, FIRST_SLOT + i, NULL) < 0)
		abort();
	devices[i] = gw_virtio_device(vd);
	devices[i].ops->resume(devices[i].self);
}

static void set_up(void)
{
	static const uint8_t mac[6] = { 0x52, 0x54 };
	struct gw_disk_config config = { .name = "vda" };
	struct gw_virtio *vd;
	struct gw_blk *blk;
	char path[64];
	int disk = memfd_create("disk", MFD_CLOEXEC), fds[2];

	fake = fake_host_new();
	if (disk < 0 || ftruncate(disk, 1 << 20) < 0)
		abort();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", disk);
	config.path = path;
	if (gw_blk_new(&config, false, &fake->host, &blk, NULL) < 0)
		abort();
	attach(gw_blk_virtio(blk), 0);
	if (gw_rng_new(&fake->host, &vd, NULL) < 0)
		abort();
	attach(vd, 1);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fds) < 0)
		abort();
	wire = fds[0];
	if (gw_net_new_on(fds[1], "net0", mac, false, &fake->host, &vd, NULL) < 0)
		abort();
	attach(vd, 2);
	if (gw_console_new(&fake->host, &vd, NULL) < 0)
		abort();
	attach(vd, 3);
	if (gw_balloon_new(&fake->host, &vd, NULL) < 0)
		abort();
	attach(vd, BALLOON);
}

struct input {
	const uint8_t *data;
	size_t len;
};

static uint64_t take(struct input *in, unsigned bytes)
{
	uint64_t v = 0;
	unsigned n = (unsigned)GW_MIN((size_t)bytes, in->len);

	memcpy(&v, in->data, n);
	in->data += n;
	in->len -= n;
	return v;
}

static void put_desc(struct guest *g, unsigned queue, struct input *in, unsigned i)
{
	unsigned how = (unsigned)take(in, 1);
	uint64_t addr = take(in, how & 0x80 ? 8 : 3);
	uint32_t len = (uint32_t)take(in, how & 0x40 ? 4 : 2);
	uint16_t flags = how & 7, next = (how & 0x20) ? (uint16_t)take(in, 1) : (uint16_t)(i + 1);

	if (!(how & 0x80))
		addr = DATA + (addr & DATA_MASK);
	if (flags & VRING_DESC_F_INDIRECT)
		len = (how & 0x10) ? len : (len & 0xff) * 16;
	guest_desc(g, queue, (uint16_t)i, addr, len, flags, next);
}

static void nothing(void *arg)
{
}

/* Kicks are handled before the call that comes after them. */
static void sync_devices(void)
{
	gw_iothread_call(fake->host.io, nothing, NULL);
}

static void drain_wire(void)
{
	uint8_t buf[2048];

	while (recv(wire, buf, sizeof(buf), 0) > 0)
		;
}

static void save_and_load(struct gw_device *dev)
{
	struct gw_state_writer *w = NULL;
	struct gw_state_reader *r = NULL;
	struct gw_error err = GW_ERROR_INIT;
	gw_autobuf buf = GW_BUF_INIT;

	/* What was saved must be taken back, whatever the guest did. */
	dev->ops->quiesce(dev->self);
	if (gw_state_writer_new(&w) < 0 || dev->ops->save(dev->self, w, &err) < 0 || gw_state_finish(w, &buf) < 0 ||
	    gw_state_reader_new(buf.data, buf.len, &r, &err) < 0 || dev->ops->load(dev->self, r, &err) < 0)
		abort();
	gw_state_writer_free(w);
	gw_state_reader_free(r);
	dev->ops->resume(dev->self);
	sync_devices();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct input in = { data, len };
	struct guest g;
	unsigned which, queue, rounds;
	uint64_t features;
	uint8_t *memory;

	if (!fake)
		set_up();
	which = take(&in, 1) % DEVICES;
	features = take(&in, 1) & 1 ? UINT64_MAX : 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC;
	if (!guest_start(&g, fake, FIRST_SLOT + which, features))
		abort();
	queue = take(&in, 1) % g.nqueues;
	/* Headers, indirect tables and the like: some of the input as memory. */
	memory = guest_ptr(&g, DATA, DATA_MASK + 1);
	memcpy(memory, data, GW_MIN(len, (size_t)DATA_MASK));
	for (rounds = 0; in.len > 0 && rounds < 8; rounds++) {
		unsigned n = take(&in, 1) % (GUEST_QUEUE_SIZE + 1), avail = take(&in, 1) % 8;

		for (unsigned i = 0; i < n; i++)
			put_desc(&g, queue, &in, i);
		if (avail == 7) /* an index from nowhere */
			g.q[queue].avail_idx = (uint16_t)take(&in, 2);
		for (unsigned i = 0; i < avail; i++)
			guest_avail(&g, queue, (uint16_t)take(&in, 1));
		if (which == 2) {
			size_t size = GW_MIN(in.len + 12, (size_t)1500);

			(void)!send(wire, memory, size, 0);
		}
		guest_kick(&g, queue);
		sync_devices();
		if (which == BALLOON) {
			struct gw_balloon_info info;

			gw_balloon_info(devices[BALLOON].self, &info);
		}
		while (guest_used_now(&g, queue, NULL, NULL) && g.q[queue].last_used % 64)
			;
		drain_wire();
	}
	if (len & 1)
		save_and_load(&devices[which]);
	guest_reset(&g);
	drain_wire();
	return 0;
}
