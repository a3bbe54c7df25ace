// SPDX-License-Identifier: Apache-2.0
/*
 * Written pages by KVM's bitmap: KVM_GET_DIRTY_LOG, and KVM_CLEAR_DIRTY_LOG where KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 exists. With it a
 * page is told until it is cleared, and clearing (write protection) happens here in small steps that hold KVM's lock for
 * a short time; without it KVM_GET_DIRTY_LOG does all at once.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/kvm-dirty.h"
#include "vmm/memslots.h"

/* Pages protected by one KVM_CLEAR_DIRTY_LOG: 64 MiB. A multiple of 64, as KVM demands. */
#define CLEAR_PAGES 16384u

struct gw_dirty_bitmap {
	int vm_fd;
	struct gw_ram *ram;
	bool manual;     /* KVM_CLEAR_DIRTY_LOG is ours to call */
	bool tracking;
	uint64_t *words; /* for one slot at a time, large enough for any */
};

int gw_dirty_bitmap_new(const struct gw_kvm *kvm, int vm_fd, struct gw_ram *ram, struct gw_dirty_bitmap **ret,
			struct gw_error *err)
{
	/* INITIALLY_SET makes switching on cheap: no page is protected until it is cleared for the first time. */
	const int wanted = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
	struct kvm_enable_cap cap = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 };
	struct gw_dirty_bitmap *bm = calloc(1, sizeof(*bm));
	int r = 0;

	if (!bm)
		return gw_error_set(err, ENOMEM, "out of memory");
	bm->vm_fd = vm_fd;
	bm->ram = ram;
	bm->manual = kvm->caps.manual_dirty_protect & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
	bm->words = calloc(gw_ram_bitmap_words(ram) + 1, sizeof(uint64_t));
	if (!bm->words)
		r = -ENOMEM;
	if (r == 0 && bm->manual) {
		cap.args[0] = (uint64_t)(kvm->caps.manual_dirty_protect & wanted);
		r = gw_kvm_ioctl(vm_fd, KVM_ENABLE_CAP, &cap);
	}
	if (r < 0) {
		gw_dirty_bitmap_free(bm);
		return gw_error_errno(err, r, "cannot switch the dirty bitmap on");
	}
	*ret = bm;
	return 0;
}

void gw_dirty_bitmap_free(struct gw_dirty_bitmap *bm)
{
	if (!bm)
		return;
	free(bm->words);
	free(bm);
}

static bool any_set(const uint64_t *words, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (words[i])
			return true;
	}
	return false;
}

/* Protects the pages of `slot` whose bits are set in bm->words again. */
static int clear_slot(struct gw_dirty_bitmap *bm, uint32_t slot, uint64_t pages)
{
	for (uint64_t first = 0; first < pages; first += CLEAR_PAGES) {
		uint64_t count = GW_MIN((uint64_t)CLEAR_PAGES, pages - first);
		struct kvm_clear_dirty_log log = {
			.slot = slot,
			.first_page = first,
			.num_pages = (uint32_t)count,
			.dirty_bitmap = &bm->words[first / 64],
		};
		int r;

		if (!any_set(&bm->words[first / 64], (log.num_pages + 63) / 64))
			continue;
		r = gw_kvm_ioctl(bm->vm_fd, KVM_CLEAR_DIRTY_LOG, &log);
		if (r < 0)
			return r;
	}
	return 0;
}

/* ORs bm->words into `bitmap` at bit `first_page`. */
static void merge(const struct gw_dirty_bitmap *bm, uint64_t *bitmap, uint64_t first_page, uint64_t pages)
{
	unsigned shift = first_page % 64;

	for (uint64_t i = 0; i < (pages + 63) / 64; i++) {
		uint64_t w = bm->words[i];

		if (!w)
			continue;
		bitmap[first_page / 64 + i] |= w << shift;
		if (shift && w >> (64 - shift))
			bitmap[first_page / 64 + i + 1] |= w >> (64 - shift);
	}
}

/* `bitmap` NULL: forgets what is told. Without `clear`, where that is ours to call, the pages stay unprotected and are told again. */
static int take_slot(struct gw_dirty_bitmap *bm, uint32_t slot, const struct gw_ram_region *region, uint64_t *bitmap, bool clear)
{
	struct kvm_dirty_log log = { .slot = slot, .dirty_bitmap = bm->words };
	uint64_t pages = region->size >> GW_PAGE_SHIFT;
	int r;

	r = gw_kvm_ioctl(bm->vm_fd, KVM_GET_DIRTY_LOG, &log);
	if (r < 0)
		return r;
	/* Bits past the end mean nothing. */
	if (pages % 64)
		bm->words[pages / 64] &= (1ull << (pages % 64)) - 1;
	/* Protected again before anybody reads the pages: a write after that is told anew. */
	if (bm->manual && clear)
		r = clear_slot(bm, slot, pages);
	/* Even when that failed: what was told must not be lost. */
	if (bitmap)
		merge(bm, bitmap, region->first_page, pages);
	return r;
}

static int take_all(struct gw_dirty_bitmap *bm, uint64_t *bitmap, bool clear, struct gw_error *err)
{
	unsigned count;
	const struct gw_ram_region *regions = gw_ram_regions(bm->ram, &count);

	for (unsigned i = 0; i < count; i++) {
		int r = take_slot(bm, i, &regions[i], bitmap, clear);

		if (r < 0)
			return gw_error_errno(err, r, "cannot read the dirty bitmap");
	}
	return 0;
}

static void bitmap_stop(void *self)
{
	struct gw_dirty_bitmap *bm = self;

	if (!bm->tracking)
		return;
	(void)gw_memslots_set(bm->vm_fd, bm->ram, false, NULL);
	gw_ram_log_stop(bm->ram);
	bm->tracking = false;
}

static int bitmap_start(void *self, struct gw_error *err)
{
	struct gw_dirty_bitmap *bm = self;
	int r;

	bm->tracking = true;
	gw_ram_log_start(bm->ram);
	r = gw_memslots_set(bm->vm_fd, bm->ram, true, err);
	/* With INITIALLY_SET everything counts as written; the caller asked for writes from now on. */
	if (r == 0 && bm->manual)
		r = take_all(bm, NULL, true, err);
	if (r < 0)
		bitmap_stop(bm);
	return r;
}

static int bitmap_sync(void *self, uint64_t *bitmap, struct gw_error *err)
{
	struct gw_dirty_bitmap *bm = self;
	int r = take_all(bm, bitmap, true, err);

	(void)gw_ram_log_take(bm->ram, bitmap);
	return r;
}

static int bitmap_peek(void *self, uint64_t *bitmap, struct gw_error *err)
{
	struct gw_dirty_bitmap *bm = self;
	int r = bm->manual ? take_all(bm, bitmap, false, err) : -EOPNOTSUPP;

	gw_ram_log_peek(bm->ram, bitmap);
	return r;
}

const struct gw_dirty_ops gw_dirty_bitmap_ops = {
	.name = "kvm-bitmap",
	.start = bitmap_start,
	.sync = bitmap_sync,
	.peek = bitmap_peek,
	.stop = bitmap_stop,
};
