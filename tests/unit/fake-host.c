// SPDX-License-Identifier: Apache-2.0
/* See fake-host.h. */
#include "tests/unit/fake-host.h"

#include <errno.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "tests/unit/patience.h"
#include "vmm/bus.h"
#include "vmm/iothread.h"
#include "vmm/virtqueue.h"
#include "vmm/vm.h"

/* Devices have copies of the devhost, so there is one fake at a time. */
static struct fake_host *the_fake;

static int msi_new(const struct gw_devhost *host, struct gw_msi **ret, struct gw_error *err)
{
	struct fake_host *fake = the_fake;
	struct gw_msi *msi = calloc(1, sizeof(*msi));

	if (!msi || fake->nmsi == FAKE_MAX_MSI) {
		free(msi);
		return gw_error_set(err, ENOSPC, "no more interrupts");
	}
	msi->fake = fake;
	fake->msi[fake->nmsi++] = msi;
	*ret = msi;
	return 0;
}

static void msi_free(struct gw_msi *msi)
{
	struct fake_host *fake = msi ? msi->fake : NULL;

	for (unsigned i = 0; fake && i < fake->nmsi; i++) {
		if (fake->msi[i] == msi) {
			fake->msi[i] = fake->msi[--fake->nmsi];
			break;
		}
	}
	free(msi);
}

static void msi_set(struct gw_msi *msi, uint64_t addr, uint32_t data, bool masked)
{
	msi->addr = addr;
	__atomic_store_n(&msi->data, data, __ATOMIC_RELAXED);
}

static int msi_commit(const struct gw_devhost *host, struct gw_error *err)
{
	the_fake->commits++;
	return 0;
}

static void msi_raise(struct gw_msi *msi)
{
	__atomic_fetch_add(&msi->raised, 1, __ATOMIC_RELEASE);
}

static int ioeventfd(const struct gw_devhost *host, uint64_t addr, unsigned len, int fd, bool add, struct gw_error *err)
{
	struct fake_host *fake = the_fake;

	for (unsigned i = 0; i < fake->nioeventfd; i++) {
		if (fake->ioeventfd[i].addr != addr)
			continue;
		if (add || fake->ioeventfd[i].fd != fd)
			return gw_error_set(err, EEXIST, "an ioeventfd is there");
		fake->ioeventfd[i] = fake->ioeventfd[--fake->nioeventfd];
		return 0;
	}
	if (!add)
		return gw_error_set(err, ENOENT, "no ioeventfd there");
	if (fake->no_ioeventfd || fake->nioeventfd == FAKE_MAX_IOEVENTFD)
		return gw_error_set(err, ENOSPC, "no more ioeventfds");
	fake->ioeventfd[fake->nioeventfd].addr = addr;
	fake->ioeventfd[fake->nioeventfd++].fd = fd;
	return 0;
}

static void disk_read(const struct gw_devhost *host, uint64_t gpa, uint64_t len)
{
}

static void note_frame(const struct gw_devhost *host, const struct iovec *iov, unsigned niov, uint64_t offset, bool said)
{
	__atomic_fetch_add(said ? &the_fake->said : &the_fake->heard, 1, __ATOMIC_RELAXED);
	gw_iov_read(iov, niov, offset, the_fake->frame, sizeof(the_fake->frame));
}

static bool overdue(const struct gw_devhost *host)
{
	return __atomic_load_n(&the_fake->overdue, __ATOMIC_RELAXED);
}

static void failed(const struct gw_devhost *host, const char *reason)
{
	__atomic_fetch_add(&the_fake->failures, 1, __ATOMIC_RELAXED);
}

static const struct gw_devhost_ops ops = { msi_new, msi_free, msi_set, msi_commit, msi_raise, ioeventfd, note_frame, disk_read, overdue, failed };

struct fake_host *fake_host_new(void)
{
	struct fake_host *fake = calloc(1, sizeof(*fake));
	struct gw_error err = GW_ERROR_INIT;

	if (!fake || gw_ram_new(2 * FAKE_RAM_HALF, FAKE_RAM_HALF, FAKE_HIGH, &fake->host.ram, &err) < 0 ||
	    gw_iothread_new("devices", &fake->host.io, &err) < 0)
		abort();
	fake->host.mmio = gw_bus_new();
	fake->host.pio = gw_bus_new();
	fake->host.ops = &ops;
	the_fake = fake;
	if (gw_pci_bus_new_on(&fake->host, &fake->pci, &err) < 0)
		abort();
	return fake;
}

void fake_host_free(struct fake_host *fake)
{
	gw_pci_bus_free(fake->pci);
	gw_iothread_free(fake->host.io);
	gw_bus_free(fake->host.mmio);
	gw_bus_free(fake->host.pio);
	gw_ram_free(fake->host.ram);
	free(fake);
}

void fake_write(struct fake_host *fake, uint64_t addr, uint64_t value, unsigned len)
{
	uint64_t one = 1;

	for (unsigned i = 0; i < fake->nioeventfd; i++) {
		if (fake->ioeventfd[i].addr == addr && write(fake->ioeventfd[i].fd, &one, sizeof(one)) == sizeof(one))
			return;
	}
	gw_bus_write(fake->host.mmio, addr, &value, len);
}

uint64_t fake_read(struct fake_host *fake, uint64_t addr, unsigned len)
{
	uint64_t value = 0;

	gw_bus_read(fake->host.mmio, addr, &value, len);
	return value;
}

void fake_config_write(struct fake_host *fake, unsigned slot, unsigned reg, uint32_t value, unsigned len)
{
	fake_write(fake, GW_GPA_ECAM + (slot << 15) + reg, value, len);
}

uint32_t fake_config_read(struct fake_host *fake, unsigned slot, unsigned reg, unsigned len)
{
	return (uint32_t)fake_read(fake, GW_GPA_ECAM + (slot << 15) + reg, len);
}

unsigned fake_raised(struct fake_host *fake, uint32_t data)
{
	unsigned n = 0;

	for (unsigned i = 0; i < fake->nmsi; i++) {
		if (__atomic_load_n(&fake->msi[i]->data, __ATOMIC_RELAXED) == data)
			n += __atomic_load_n(&fake->msi[i]->raised, __ATOMIC_ACQUIRE);
	}
	return n;
}

bool fake_wait(bool (*cond)(void *arg), void *arg)
{
	uint64_t deadline = gw_now_ns() + TEST_PATIENCE;

	while (!cond(arg)) {
		struct timespec pause = { .tv_nsec = 200000 };

		if (gw_now_ns() > deadline)
			return false;
		nanosleep(&pause, NULL);
	}
	return true;
}
