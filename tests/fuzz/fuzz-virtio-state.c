// SPDX-License-Identifier: Apache-2.0
/* Damaged states of virtio devices: either refused, or a device that a guest may use, break and reset as any other. */
#include <linux/virtio_pci.h>
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
#include "vmm/virtio-pci.h"
#include "vmm/vm.h"

#define FIRST_SLOT 1
#define DEVICES 4

static struct fake_host *fake;
static struct gw_device devices[DEVICES];
static struct guest guests[DEVICES];
static struct gw_buf states[DEVICES];
static int wire;

static void attach(struct gw_virtio *vd, unsigned i)
{
	if (gw_virtio_pci_attach(vd, fake->pci, FIRST_SLOT + i, NULL) < 0)
		abort();
	devices[i] = gw_virtio_device(vd);
	devices[i].ops->resume(devices[i].self);
}

static void save(unsigned i)
{
	struct gw_state_writer *w = NULL;

	if (gw_state_writer_new(&w) < 0 || devices[i].ops->save(devices[i].self, w, NULL) < 0 ||
	    gw_state_finish(w, &states[i]) < 0)
		abort();
	gw_state_writer_free(w);
}

static void set_up(void)
{
	static const uint8_t mac[6] = { 0x52, 0x54 };
	struct gw_disk_config config = { .name = "vda" };
	const struct guest_buf buf = { 0x600000, 2048, true };
	struct gw_virtio *vd;
	struct gw_blk *blk;
	char path[64];
	int disk = memfd_create("disk", MFD_CLOEXEC), fds[2];

	fake = fake_host_new();
	if (disk < 0 || ftruncate(disk, 1 << 20) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fds) < 0)
		abort();
	wire = fds[0];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", disk);
	config.path = path;
	if (gw_blk_new(&config, false, &fake->host, &blk, NULL) < 0)
		abort();
	attach(gw_blk_virtio(blk), 0);
	if (gw_net_new_on(fds[1], "net0", mac, false, &fake->host, &vd, NULL) < 0)
		abort();
	attach(vd, 1);
	if (gw_console_new(&fake->host, &vd, NULL) < 0)
		abort();
	attach(vd, 2);
	if (gw_balloon_new(&fake->host, &vd, NULL) < 0)
		abort();
	attach(vd, 3);
	for (unsigned i = 0; i < DEVICES; i++) {
		if (!guest_start(&guests[i], fake, FIRST_SLOT + i, UINT64_MAX))
			abort();
		guest_add(&guests[i], 0, &buf, 1);
		devices[i].ops->quiesce(devices[i].self);
		save(i);
	}
}

static void nothing(void *arg)
{
}

static int load(unsigned i, const struct gw_buf *buf)
{
	struct gw_state_reader *r = NULL;
	struct gw_error err = GW_ERROR_INIT;
	int ret = gw_state_reader_new(buf->data, buf->len, &r, &err);

	if (ret == 0)
		ret = devices[i].ops->load(devices[i].self, r, &err);
	gw_state_reader_free(r);
	/* Whoever refuses says why. */
	if (ret < 0 && !err.msg[0])
		abort();
	return ret;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	gw_autobuf buf = GW_BUF_INIT;
	unsigned which;

	if (!fake)
		set_up();
	if (len < 1)
		return 0;
	which = data[0] % DEVICES;
	if (gw_buf_append(&buf, states[which].data, states[which].len) < 0)
		abort();
	/* Three bytes each: where, and what is there instead. */
	for (size_t i = 1; i + 3 <= len; i += 3)
		buf.data[(data[i] | data[i + 1] << 8) % buf.len] = data[i + 2];
	if (load(which, &buf) == 0) {
		devices[which].ops->resume(devices[which].self);
		for (unsigned q = 0; q < guests[which].nqueues; q++)
			guest_kick(&guests[which], q);
		gw_iothread_call(fake->host.io, nothing, NULL);
		devices[which].ops->announce(devices[which].self);
		devices[which].ops->quiesce(devices[which].self);
	}
	devices[which].ops->reset(devices[which].self);
	if (load(which, &states[which]) < 0)
		abort();
	while (recv(wire, (uint8_t[256]){ 0 }, 256, 0) > 0)
		;
	return 0;
}
