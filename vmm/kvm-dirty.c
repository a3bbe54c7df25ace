// SPDX-License-Identifier: Apache-2.0
/*
 * Written pages by KVM's dirty ring (KVM API, KVM_CAP_DIRTY_LOG_RING_ACQ_REL): each vCPU appends the pages it writes to a ring that is
 * shared with us. We take entries, give them back by a flag, and KVM_RESET_DIRTY_RINGS write-protects their pages again. What
 * was taken lands in `pending` and is handed out by the next sync.
 */
#include "vmm/kvm-dirty.h"

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/log.h"
#include "lib/util.h"
#include "vmm/memslots.h"
#include "vmm/vm.h"

/* 128 KiB a vCPU: full after 8,000 pages, so that full rings are rare between two syncs and a round of harvesting short. */
#define RING_ENTRIES 8192u
#define RING_BYTES (RING_ENTRIES * sizeof(struct kvm_dirty_gfn))

struct vcpu_ring {
	struct kvm_dirty_gfn *gfns; /* shared with KVM */
	uint32_t next;              /* free-running index of the entry to take */
};

struct gw_dirty_ring {
	int vm_fd;
	struct gw_ram *ram;
	uint32_t entries;        /* of each ring, a power of two */
	pthread_mutex_t lock;    /* all below */
	struct vcpu_ring rings[GW_MAX_CPUS];
	unsigned count;
	bool tracking;
	bool taken;              /* entries were taken, and their pages are not protected again yet */
	uint64_t *pending;       /* a bit for each page index */
	uint32_t writers;        /* rings that had entries since gw_dirty_ring_writers() */
	struct gw_ratelimit limit;
};

static int enable_ring(const struct gw_kvm *kvm, int vm_fd, uint32_t bytes)
{
	struct kvm_enable_cap cap = {
		.cap = kvm->caps.dirty_ring_acq_rel ? KVM_CAP_DIRTY_LOG_RING_ACQ_REL : KVM_CAP_DIRTY_LOG_RING,
		.args = { bytes },
	};

	return gw_kvm_ioctl(vm_fd, KVM_ENABLE_CAP, &cap);
}

int gw_dirty_ring_new(const struct gw_kvm *kvm, int vm_fd, struct gw_ram *ram, struct gw_dirty_ring **ret,
		      struct gw_error *err)
{
	struct gw_dirty_ring *ring;
	uint32_t bytes = RING_BYTES;
	int r;

	while (bytes > (uint32_t)kvm->caps.dirty_ring && bytes > GW_PAGE_SIZE)
		bytes /= 2;
	if (kvm->caps.dirty_ring < (int)bytes)
		return gw_error_set(err, ENOTSUP, "this host's KVM has no dirty ring");
	ring = calloc(1, sizeof(*ring));
	if (!ring)
		return gw_error_set(err, ENOMEM, "out of memory");
	ring->vm_fd = vm_fd;
	ring->ram = ram;
	ring->entries = bytes / sizeof(struct kvm_dirty_gfn);
	pthread_mutex_init(&ring->lock, NULL);
	ring->pending = calloc(gw_ram_bitmap_words(ram), sizeof(uint64_t));
	r = ring->pending ? enable_ring(kvm, vm_fd, bytes) : -ENOMEM;
	if (r < 0) {
		gw_dirty_ring_free(ring);
		return gw_error_errno(err, r, "cannot switch the dirty ring on");
	}
	*ret = ring;
	return 0;
}

void gw_dirty_ring_free(struct gw_dirty_ring *ring)
{
	if (!ring)
		return;
	for (unsigned i = 0; i < ring->count; i++)
		munmap(ring->rings[i].gfns, ring->entries * sizeof(struct kvm_dirty_gfn));
	pthread_mutex_destroy(&ring->lock);
	free(ring->pending);
	free(ring);
}

int gw_dirty_ring_add_vcpu(struct gw_dirty_ring *ring, int vcpu_fd, struct gw_error *err)
{
	const size_t size = ring->entries * sizeof(struct kvm_dirty_gfn);
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd,
		       (off_t)(KVM_DIRTY_LOG_PAGE_OFFSET * GW_PAGE_SIZE));

	if (p == MAP_FAILED)
		return gw_error_errno(err, errno, "cannot map a dirty ring");
	ring->rings[ring->count++].gfns = p;
	return 0;
}

static void note_page(struct gw_dirty_ring *ring, const struct kvm_dirty_gfn *gfn)
{
	unsigned count;
	const struct gw_ram_region *regions = gw_ram_regions(ring->ram, &count);
	uint64_t page;

	/* Slots are numbered as regions are; the upper half is the address space, 0 for ours. */
	if (gfn->slot >= count || gfn->offset >= regions[gfn->slot].size >> GW_PAGE_SHIFT)
		return;
	page = regions[gfn->slot].first_page + gfn->offset;
	ring->pending[page / 64] |= 1ull << (page % 64);
}

/* Takes what is in one ring. */
static void take(struct gw_dirty_ring *ring, struct vcpu_ring *v)
{
	for (unsigned i = 0; i < ring->entries; i++) {
		struct kvm_dirty_gfn *gfn = &v->gfns[v->next & (ring->entries - 1)];

		/* Acquire: KVM writes the entry before its flag. Release: it re-uses the entry when it sees ours. */
		if (__atomic_load_n(&gfn->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
			break;
		note_page(ring, gfn);
		__atomic_store_n(&gfn->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		v->next++;
		ring->taken = true;
	}
}

/* Takes all rings' entries; under the lock. */
static void take_all(struct gw_dirty_ring *ring)
{
	for (unsigned i = 0; i < ring->count; i++) {
		uint32_t before = ring->rings[i].next;

		take(ring, &ring->rings[i]);
		if (ring->rings[i].next != before)
			ring->writers |= 1u << i;
	}
}

/* And has their pages protected again, with those that were taken before. */
static int harvest(struct gw_dirty_ring *ring)
{
	int r;

	take_all(ring);
	if (!ring->taken)
		return 0;
	r = gw_kvm_ioctl_value(ring->vm_fd, KVM_RESET_DIRTY_RINGS, 0);
	if (r < 0)
		return r;
	ring->taken = false;
	return 0;
}

void gw_dirty_ring_full(struct gw_dirty_ring *ring)
{
	int r;

	if (!ring)
		return;
	pthread_mutex_lock(&ring->lock);
	r = harvest(ring);
	pthread_mutex_unlock(&ring->lock);
	if (r < 0)
		gw_warn_limited(&ring->limit, "cannot reset the dirty rings: errno %d", -r);
}

uint32_t gw_dirty_ring_writers(struct gw_dirty_ring *ring)
{
	uint32_t writers;

	pthread_mutex_lock(&ring->lock);
	take_all(ring);
	writers = ring->writers;
	ring->writers = 0;
	pthread_mutex_unlock(&ring->lock);
	return writers;
}

static int ring_start(void *self, struct gw_error *err)
{
	struct gw_dirty_ring *ring = self;
	int r;

	pthread_mutex_lock(&ring->lock);
	/* What an earlier tracking left behind is of no interest. */
	r = harvest(ring);
	memset(ring->pending, 0, gw_ram_bitmap_words(ring->ram) * sizeof(uint64_t));
	if (r < 0)
		gw_error_errno(err, r, "cannot reset the dirty rings");
	else
		r = gw_memslots_set(ring->vm_fd, ring->ram, true, err);
	if (r == 0)
		gw_ram_log_start(ring->ram);
	ring->tracking = r == 0;
	pthread_mutex_unlock(&ring->lock);
	if (r < 0)
		(void)gw_memslots_set(ring->vm_fd, ring->ram, false, NULL);
	return r;
}

static int ring_sync(void *self, uint64_t *bitmap, struct gw_error *err)
{
	struct gw_dirty_ring *ring = self;
	size_t words = gw_ram_bitmap_words(ring->ram);
	int r;

	pthread_mutex_lock(&ring->lock);
	r = harvest(ring);
	if (r == 0) {
		for (size_t i = 0; i < words; i++) {
			bitmap[i] |= ring->pending[i];
			ring->pending[i] = 0;
		}
		(void)gw_ram_log_take(ring->ram, bitmap);
	}
	pthread_mutex_unlock(&ring->lock);
	return r < 0 ? gw_error_errno(err, r, "cannot reset the dirty rings") : 0;
}

static int ring_peek(void *self, uint64_t *bitmap, struct gw_error *err)
{
	struct gw_dirty_ring *ring = self;
	size_t words = gw_ram_bitmap_words(ring->ram);

	pthread_mutex_lock(&ring->lock);
	take_all(ring);
	for (size_t i = 0; i < words; i++)
		bitmap[i] |= ring->pending[i];
	gw_ram_log_peek(ring->ram, bitmap);
	pthread_mutex_unlock(&ring->lock);
	return 0;
}

static void ring_stop(void *self)
{
	struct gw_dirty_ring *ring = self;

	pthread_mutex_lock(&ring->lock);
	if (ring->tracking) {
		(void)gw_memslots_set(ring->vm_fd, ring->ram, false, NULL);
		gw_ram_log_stop(ring->ram);
		(void)harvest(ring);
		ring->tracking = false;
	}
	pthread_mutex_unlock(&ring->lock);
}

const struct gw_dirty_ops gw_dirty_ring_ops = {
	.name = "kvm-ring",
	.start = ring_start,
	.sync = ring_sync,
	.peek = ring_peek,
	.stop = ring_stop,
};
