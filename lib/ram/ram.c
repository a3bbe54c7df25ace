// SPDX-License-Identifier: Apache-2.0
/* Guest RAM; see ram.h. */
#include "lib/ram/ram.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

#include "lib/util.h"

struct gw_ram {
	struct gw_ram_region regions[GW_RAM_MAX_REGIONS];
	unsigned count;
	uint64_t pages;
	uint64_t *log;     /* one bit a page; written with atomic OR by device threads */
	bool logging;      /* atomic */
};

static int add_region(struct gw_ram *ram, uint64_t gpa, uint64_t size, struct gw_error *err)
{
	struct gw_ram_region *r = &ram->regions[ram->count];
	void *p;

	/* Aligned to 2 MiB on both sides, so that KVM can map huge pages: guest and host address agree modulo 2 MiB. */
	const uint64_t huge = 2ull << 20;

	p = mmap(NULL, size + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return gw_error_errno(err, errno, "cannot map %llu MiB of guest memory", (unsigned long long)(size >> 20));
	r->hva = (uint8_t *)GW_ALIGN_UP((uintptr_t)p, huge);
	if (r->hva > (uint8_t *)p)
		munmap(p, (size_t)(r->hva - (uint8_t *)p));
	if (huge - (size_t)(r->hva - (uint8_t *)p) > 0)
		munmap(r->hva + size, huge - (size_t)(r->hva - (uint8_t *)p));
	/* Both are advice: kernels without THP refuse it, and core dumps work all the same. */
	(void)madvise(r->hva, size, MADV_HUGEPAGE);
	(void)madvise(r->hva, size, MADV_DONTDUMP);
	r->gpa = gpa;
	r->size = size;
	r->first_page = ram->pages;
	ram->pages += size >> GW_PAGE_SHIFT;
	ram->count++;
	return 0;
}

int gw_ram_new(uint64_t size, uint64_t hole_start, uint64_t hole_end, struct gw_ram **ret, struct gw_error *err)
{
	struct gw_ram *ram;
	int r;

	if (size == 0 || size % GW_PAGE_SIZE)
		return gw_error_set(err, EINVAL, "guest memory of %llu bytes is not a multiple of 4 KiB",
				    (unsigned long long)size);
	ram = calloc(1, sizeof(*ram));
	if (!ram)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = add_region(ram, 0, GW_MIN(size, hole_start), err);
	if (r == 0 && size > hole_start)
		r = add_region(ram, hole_end, size - hole_start, err);
	if (r == 0) {
		ram->log = calloc(gw_ram_bitmap_words(ram), sizeof(uint64_t));
		if (!ram->log)
			r = gw_error_set(err, ENOMEM, "out of memory");
	}
	if (r < 0) {
		gw_ram_free(ram);
		return r;
	}
	*ret = ram;
	return 0;
}

void gw_ram_free(struct gw_ram *ram)
{
	if (!ram)
		return;
	for (unsigned i = 0; i < ram->count; i++)
		munmap(ram->regions[i].hva, ram->regions[i].size);
	free(ram->log);
	free(ram);
}

const struct gw_ram_region *gw_ram_regions(const struct gw_ram *ram, unsigned *count)
{
	*count = ram->count;
	return ram->regions;
}

uint64_t gw_ram_size(const struct gw_ram *ram)
{
	return ram->pages << GW_PAGE_SHIFT;
}

uint64_t gw_ram_pages(const struct gw_ram *ram)
{
	return ram->pages;
}

static const struct gw_ram_region *find_gpa(const struct gw_ram *ram, uint64_t gpa, uint64_t len)
{
	for (unsigned i = 0; i < ram->count; i++) {
		const struct gw_ram_region *r = &ram->regions[i];

		if (gpa >= r->gpa && gpa - r->gpa < r->size)
			return len > 0 && len <= r->size - (gpa - r->gpa) ? r : NULL;
	}
	return NULL;
}

void *gw_ram_ptr(const struct gw_ram *ram, uint64_t gpa, uint64_t len)
{
	const struct gw_ram_region *r = find_gpa(ram, gpa, len);

	return r ? r->hva + (gpa - r->gpa) : NULL;
}

int gw_ram_read(const struct gw_ram *ram, uint64_t gpa, void *data, uint64_t len)
{
	const void *p = gw_ram_ptr(ram, gpa, len);

	if (!p)
		return -EFAULT;
	memcpy(data, p, len);
	return 0;
}

int gw_ram_write(struct gw_ram *ram, uint64_t gpa, const void *data, uint64_t len)
{
	void *p = gw_ram_ptr(ram, gpa, len);

	if (!p)
		return -EFAULT;
	memcpy(p, data, len);
	gw_ram_mark_dirty(ram, gpa, len);
	return 0;
}

uint64_t gw_ram_index(const struct gw_ram *ram, uint64_t gpa)
{
	const struct gw_ram_region *r = find_gpa(ram, gpa, 1);

	return r ? r->first_page + ((gpa - r->gpa) >> GW_PAGE_SHIFT) : UINT64_MAX;
}

static const struct gw_ram_region *find_index(const struct gw_ram *ram, uint64_t index)
{
	unsigned i = ram->count - 1;

	while (i > 0 && index < ram->regions[i].first_page)
		i--;
	return &ram->regions[i];
}

uint64_t gw_ram_gpa(const struct gw_ram *ram, uint64_t index)
{
	const struct gw_ram_region *r = find_index(ram, index);

	return r->gpa + ((index - r->first_page) << GW_PAGE_SHIFT);
}

void *gw_ram_page(const struct gw_ram *ram, uint64_t index)
{
	const struct gw_ram_region *r = find_index(ram, index);

	return r->hva + ((index - r->first_page) << GW_PAGE_SHIFT);
}

uint64_t gw_ram_contiguous(const struct gw_ram *ram, uint64_t index)
{
	const struct gw_ram_region *r = find_index(ram, index);

	return r->first_page + (r->size >> GW_PAGE_SHIFT) - index;
}

void gw_ram_mark_dirty(struct gw_ram *ram, uint64_t gpa, uint64_t len)
{
	const struct gw_ram_region *r;
	uint64_t page, last;

	/*
	 * Pairs with the fence in gw_ram_log_start(). Either this sees that logging is on, or whoever started it sees the data
	 * when it reads the page; without the fence the load may pass the device's own stores.
	 */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&ram->logging, __ATOMIC_RELAXED))
		return;
	r = find_gpa(ram, gpa, len);
	if (!r)
		return;
	page = r->first_page + ((gpa - r->gpa) >> GW_PAGE_SHIFT);
	last = r->first_page + ((gpa - r->gpa + len - 1) >> GW_PAGE_SHIFT);
	for (; page <= last; page++)
		__atomic_fetch_or(&ram->log[page / 64], 1ull << (page % 64), __ATOMIC_RELEASE);
}

void gw_ram_log_start(struct gw_ram *ram)
{
	__atomic_store_n(&ram->logging, true, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* see gw_ram_mark_dirty() */
}

void gw_ram_log_stop(struct gw_ram *ram)
{
	__atomic_store_n(&ram->logging, false, __ATOMIC_SEQ_CST);
	/* A device that saw logging still on may set a bit meanwhile: it is left for the next start, where it does no harm. */
	for (size_t i = 0; i < gw_ram_bitmap_words(ram); i++)
		__atomic_store_n(&ram->log[i], 0, __ATOMIC_RELAXED);
}

uint64_t gw_ram_log_take(struct gw_ram *ram, uint64_t *bitmap)
{
	size_t words = gw_ram_bitmap_words(ram);
	uint64_t fresh = 0;

	for (size_t i = 0; i < words; i++) {
		uint64_t bits;

		if (!__atomic_load_n(&ram->log[i], __ATOMIC_RELAXED))
			continue;
		bits = __atomic_exchange_n(&ram->log[i], 0, __ATOMIC_ACQUIRE);
		fresh += (uint64_t)__builtin_popcountll(bits & ~bitmap[i]);
		bitmap[i] |= bits;
	}
	return fresh;
}

void gw_ram_log_peek(struct gw_ram *ram, uint64_t *bitmap)
{
	size_t words = gw_ram_bitmap_words(ram);

	for (size_t i = 0; i < words; i++)
		bitmap[i] |= __atomic_load_n(&ram->log[i], __ATOMIC_ACQUIRE);
}

void gw_ram_digest(const struct gw_ram *ram, uint8_t digest[16])
{
	XXH3_state_t *state = XXH3_createState();
	XXH128_canonical_t out;

	memset(digest, 0, 16);
	if (!state)
		return;
	XXH3_128bits_reset(state);
	for (unsigned i = 0; i < ram->count; i++)
		XXH3_128bits_update(state, ram->regions[i].hva, ram->regions[i].size);
	XXH128_canonicalFromHash(&out, XXH3_128bits_digest(state));
	XXH3_freeState(state);
	memcpy(digest, out.digest, 16);
}
