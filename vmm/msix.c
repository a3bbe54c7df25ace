// SPDX-License-Identifier: Apache-2.0
/*
 * MSI-X; see msix.h.
 *
 * Interrupts come from our own threads alone, so masking is done here and never costs a change of KVM's routes: those
 * change only when an unmasked vector's message does.
 */
#include "vmm/msix.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <pthread.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/log.h"
#include "lib/util.h"

/* Table in the BAR's first page, pending bits in the second. */
#define TABLE_OFFSET 0
#define PBA_OFFSET 0x1000
#define BAR_SIZE 0x2000
#define CAP_SIZE 12

struct vector {
	struct gw_msi *msi;
	uint64_t route_addr; /* what KVM's route has */
	uint32_t route_data;
	bool routed;
};

struct gw_msix {
	struct gw_pci_dev *dev;
	struct gw_devhost host;
	char *name;
	unsigned cap; /* offset of the capability */
	unsigned count;
	pthread_mutex_t lock; /* over all below; innermost */
	struct vector vectors[GW_MSIX_MAX_VECTORS];
	bool enabled, masked; /* bits of the message control register */
	bool stale;           /* a route was set and not committed */
	/* What the guest sees: four dwords a vector (address, high address, data, control), and the pending bits. */
	uint8_t table[GW_MSIX_MAX_VECTORS * PCI_MSIX_ENTRY_SIZE];
	uint64_t pending;
};

static const struct gw_state_field msix_fields[] = {
	GW_STATE_BYTES(struct gw_msix, table, 1),
	GW_STATE_UINT(struct gw_msix, pending, 1),
	{ },
};
static const struct gw_state_desc msix_state = { "msix", 1, 1, msix_fields };

static uint8_t *entry(struct gw_msix *msix, unsigned vector)
{
	return msix->table + vector * PCI_MSIX_ENTRY_SIZE;
}

static bool is_masked(struct gw_msix *msix, unsigned vector)
{
	return msix->masked || (gw_get_le32(entry(msix, vector) + PCI_MSIX_ENTRY_VECTOR_CTRL) & PCI_MSIX_ENTRY_CTRL_MASKBIT);
}

/* Sets the route of an unmasked vector when its message changed; under the lock. */
static void route(struct gw_msix *msix, unsigned vector)
{
	struct vector *v = &msix->vectors[vector];
	const uint8_t *e = entry(msix, vector);
	uint64_t addr = gw_get_le64(e + PCI_MSIX_ENTRY_LOWER_ADDR);
	uint32_t data = gw_get_le32(e + PCI_MSIX_ENTRY_DATA);

	if (!msix->enabled || is_masked(msix, vector))
		return;
	if (v->routed && v->route_addr == addr && v->route_data == data)
		return;
	msix->host.ops->msi_set(v->msi, addr, data, false);
	v->routed = true;
	v->route_addr = addr;
	v->route_data = data;
	msix->stale = true;
}

static void commit(struct gw_msix *msix)
{
	struct gw_error err = GW_ERROR_INIT;

	if (!msix->stale)
		return;
	msix->stale = false;
	if (msix->host.ops->msi_commit(&msix->host, &err) < 0)
		gw_warn("%s: %s", msix->name, gw_error_text(&err));
}

/* Sends what became pending while it was masked; under the lock, routes are committed. */
static void deliver(struct gw_msix *msix)
{
	for (unsigned i = 0; msix->pending && msix->enabled && i < msix->count; i++) {
		if (!(msix->pending >> i & 1) || is_masked(msix, i))
			continue;
		msix->pending &= ~(1ull << i);
		msix->host.ops->msi_raise(msix->vectors[i].msi);
	}
}

static void update_all(struct gw_msix *msix)
{
	for (unsigned i = 0; i < msix->count; i++)
		route(msix, i);
}

void gw_msix_raise(struct gw_msix *msix, unsigned vector)
{
	if (vector >= msix->count)
		return;
	pthread_mutex_lock(&msix->lock);
	if (msix->enabled && is_masked(msix, vector))
		msix->pending |= 1ull << vector;
	else if (msix->enabled)
		msix->host.ops->msi_raise(msix->vectors[vector].msi);
	pthread_mutex_unlock(&msix->lock);
}

static void read_control(struct gw_msix *msix)
{
	uint16_t control = gw_get_le16(gw_pci_config(msix->dev) + msix->cap + PCI_MSIX_FLAGS);

	msix->enabled = control & PCI_MSIX_FLAGS_ENABLE;
	msix->masked = control & PCI_MSIX_FLAGS_MASKALL;
}

void gw_msix_config_written(struct gw_msix *msix, unsigned reg, unsigned len)
{
	unsigned flags = msix->cap + PCI_MSIX_FLAGS;

	if (reg >= flags + 2 || reg + len <= flags)
		return;
	pthread_mutex_lock(&msix->lock);
	read_control(msix);
	update_all(msix);
	commit(msix);
	deliver(msix);
	pthread_mutex_unlock(&msix->lock);
}

static void bar_read(void *self, uint64_t offset, void *data, unsigned len)
{
	struct gw_msix *msix = self;
	uint8_t pba[8];

	memset(data, 0, len);
	pthread_mutex_lock(&msix->lock);
	gw_put_le64(pba, msix->pending);
	if (offset + len <= msix->count * PCI_MSIX_ENTRY_SIZE)
		memcpy(data, msix->table + offset, len);
	else if (offset >= PBA_OFFSET && offset + len <= PBA_OFFSET + sizeof(pba))
		memcpy(data, pba + (offset - PBA_OFFSET), len);
	pthread_mutex_unlock(&msix->lock);
}

/* §6.8.2: aligned dwords and qwords only; the pending bits are read-only. */
static void bar_write(void *self, uint64_t offset, const void *data, unsigned len)
{
	struct gw_msix *msix = self;
	unsigned vector = (unsigned)(offset / PCI_MSIX_ENTRY_SIZE);

	if ((len != 4 && len != 8) || offset % len || offset + len > msix->count * PCI_MSIX_ENTRY_SIZE)
		return;
	pthread_mutex_lock(&msix->lock);
	memcpy(msix->table + offset, data, len);
	route(msix, vector);
	commit(msix);
	deliver(msix);
	pthread_mutex_unlock(&msix->lock);
}

static const struct gw_bus_ops bar_ops = { bar_read, bar_write };

/* All vectors are masked after reset (§6.8.2.9). */
static void clear_table(struct gw_msix *msix)
{
	memset(msix->table, 0, sizeof(msix->table));
	for (unsigned i = 0; i < GW_MSIX_MAX_VECTORS; i++)
		gw_put_le32(entry(msix, i) + PCI_MSIX_ENTRY_VECTOR_CTRL, PCI_MSIX_ENTRY_CTRL_MASKBIT);
	msix->pending = 0;
	msix->enabled = msix->masked = false;
}

static int add_capability(struct gw_msix *msix, unsigned bar, struct gw_error *err)
{
	uint8_t cap[CAP_SIZE] = { 0 };
	int at;

	gw_put_le16(cap + PCI_MSIX_FLAGS, (uint16_t)(msix->count - 1));
	gw_put_le32(cap + PCI_MSIX_TABLE, TABLE_OFFSET | bar);
	gw_put_le32(cap + PCI_MSIX_PBA, PBA_OFFSET | bar);
	at = gw_pci_add_cap(msix->dev, PCI_CAP_ID_MSIX, cap, sizeof(cap));
	if (at < 0)
		return gw_error_errno(err, at, "%s: no room for MSI-X", msix->name);
	msix->cap = (unsigned)at;
	gw_put_le16(gw_pci_wmask(msix->dev) + at + PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
	return gw_pci_add_bar(msix->dev, bar, BAR_SIZE, true, &bar_ops, msix, err);
}

int gw_msix_new(struct gw_pci_dev *dev, const struct gw_devhost *host, unsigned bar, unsigned vectors, const char *name,
		struct gw_msix **ret, struct gw_error *err)
{
	struct gw_msix *msix;
	int r = 0;

	if (vectors == 0 || vectors > GW_MSIX_MAX_VECTORS)
		return gw_error_set(err, EINVAL, "%s: %u interrupt vectors", name, vectors);
	msix = calloc(1, sizeof(*msix));
	if (!msix)
		return gw_error_set(err, ENOMEM, "out of memory");
	pthread_mutex_init(&msix->lock, NULL);
	msix->dev = dev;
	msix->host = *host;
	msix->name = strdup(name);
	if (!msix->name)
		r = gw_error_set(err, ENOMEM, "out of memory");
	clear_table(msix);
	for (; r == 0 && msix->count < vectors; msix->count += r == 0)
		r = host->ops->msi_new(host, &msix->vectors[msix->count].msi, err);
	if (r == 0)
		r = add_capability(msix, bar, err);
	if (r < 0) {
		gw_msix_free(msix);
		return r;
	}
	*ret = msix;
	return 0;
}

void gw_msix_free(struct gw_msix *msix)
{
	if (!msix)
		return;
	for (unsigned i = 0; i < msix->count; i++)
		msix->host.ops->msi_free(msix->vectors[i].msi);
	pthread_mutex_destroy(&msix->lock);
	free(msix->name);
	free(msix);
}

unsigned gw_msix_vectors(const struct gw_msix *msix)
{
	return msix->count;
}

void gw_msix_reset(struct gw_msix *msix)
{
	pthread_mutex_lock(&msix->lock);
	clear_table(msix);
	pthread_mutex_unlock(&msix->lock);
}

int gw_msix_save(struct gw_msix *msix, struct gw_state_writer *w, struct gw_error *err)
{
	int r;

	pthread_mutex_lock(&msix->lock);
	r = gw_state_put(w, &msix_state, msix->name, msix);
	pthread_mutex_unlock(&msix->lock);
	return r < 0 ? gw_error_errno(err, r, "cannot save %s", msix->name) : 0;
}

int gw_msix_load(struct gw_msix *msix, struct gw_state_reader *r, struct gw_error *err)
{
	int ret;

	pthread_mutex_lock(&msix->lock);
	ret = gw_state_get(r, &msix_state, msix->name, msix, err);
	msix->pending &= (1ull << msix->count) - 1;
	read_control(msix);
	update_all(msix);
	pthread_mutex_unlock(&msix->lock);
	return ret;
}

void gw_msix_resume(struct gw_msix *msix)
{
	pthread_mutex_lock(&msix->lock);
	commit(msix);
	deliver(msix);
	pthread_mutex_unlock(&msix->lock);
}
