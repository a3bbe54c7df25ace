// SPDX-License-Identifier: Apache-2.0
/* Guest RAM; see ram.h. */
#include "lib/ram/ram.h"

#include <errno.h>
#include <pthread.h>
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
	uint16_t *io;      /* requests in flight a page; atomic */
	uint64_t *io_ended; /* one bit a page; atomic */
	pthread_mutex_t layout;
	uint64_t *backed;  /* one bit a page; written under layout */
};

/* Both are advice: kernels without THP refuse it, and core dumps work all the same. */
void gw_ram_advise(void *p, size_t size)
{
	(void)madvise(p, size, MADV_HUGEPAGE);
	(void)madvise(p, size, MADV_DONTDUMP);
}

int gw_ram_map_anonymous(uint8_t *hva, size_t len)
{
	if (mmap(hva, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -errno;
	gw_ram_advise(hva, len);
	return 0;
}

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
	gw_ram_advise(r->hva, size);
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
	pthread_mutex_init(&ram->layout, NULL);
	r = add_region(ram, 0, GW_MIN(size, hole_start), err);
	if (r == 0 && size > hole_start)
		r = add_region(ram, hole_end, size - hole_start, err);
	if (r == 0) {
		ram->log = calloc(gw_ram_bitmap_words(ram), sizeof(uint64_t));
		ram->backed = calloc(gw_ram_bitmap_words(ram), sizeof(uint64_t));
		ram->io_ended = calloc(gw_ram_bitmap_words(ram), sizeof(uint64_t));
		ram->io = calloc(ram->pages, sizeof(*ram->io));
		if (!ram->log || !ram->backed || !ram->io || !ram->io_ended)
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
	pthread_mutex_destroy(&ram->layout);
	free(ram->log);
	free(ram->backed);
	free(ram->io);
	free(ram->io_ended);
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

/* Page indexes of a range of RAM; false when it is none. */
static bool page_range(const struct gw_ram *ram, uint64_t gpa, uint64_t len, uint64_t *first, uint64_t *last)
{
	const struct gw_ram_region *r = find_gpa(ram, gpa, len);

	if (!r)
		return false;
	*first = r->first_page + ((gpa - r->gpa) >> GW_PAGE_SHIFT);
	*last = r->first_page + ((gpa - r->gpa + len - 1) >> GW_PAGE_SHIFT);
	return true;
}

void gw_ram_io_begin(struct gw_ram *ram, uint64_t gpa, uint64_t len)
{
	uint64_t page, last;

	/* Sequentially consistent: either the merger sees the count, or the request's pages are pinned after it has protected them. */
	if (page_range(ram, gpa, len, &page, &last)) {
		for (; page <= last; page++)
			__atomic_fetch_add(&ram->io[page], 1, __ATOMIC_SEQ_CST);
	}
}

void gw_ram_io_end(struct gw_ram *ram, uint64_t gpa, uint64_t len)
{
	uint64_t page, last;

	if (page_range(ram, gpa, len, &page, &last)) {
		for (; page <= last; page++) {
			__atomic_fetch_or(&ram->io_ended[page / 64], 1ull << (page % 64), __ATOMIC_RELAXED);
			__atomic_fetch_sub(&ram->io[page], 1, __ATOMIC_RELEASE);
		}
	}
}

void gw_ram_io_take(struct gw_ram *ram, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	for (uint64_t page = first; page < first + count; page++) {
		uint64_t *word = &ram->io_ended[page / 64], bit = 1ull << (page % 64);

		if (!__atomic_load_n(word, __ATOMIC_RELAXED)) {
			page |= 63; /* nothing in all of this word */
			continue;
		}
		if (__atomic_load_n(word, __ATOMIC_RELAXED) & bit) {
			__atomic_fetch_and(word, ~bit, __ATOMIC_ACQUIRE);
			bitmap[(page - first) / 64] |= 1ull << ((page - first) % 64);
		}
	}
}

bool gw_ram_io_busy(const struct gw_ram *ram, uint64_t index)
{
	return __atomic_load_n(&ram->io[index], __ATOMIC_SEQ_CST) != 0;
}

void gw_ram_layout_lock(struct gw_ram *ram)
{
	pthread_mutex_lock(&ram->layout);
}

void gw_ram_layout_unlock(struct gw_ram *ram)
{
	pthread_mutex_unlock(&ram->layout);
}

const uint64_t *gw_ram_backed(const struct gw_ram *ram)
{
	return ram->backed;
}

bool gw_ram_is_backed(const struct gw_ram *ram, uint64_t index)
{
	return __atomic_load_n(&ram->backed[index / 64], __ATOMIC_RELAXED) >> (index % 64) & 1;
}

void gw_ram_set_backed(struct gw_ram *ram, uint64_t index, uint64_t count, bool backed)
{
	for (; count > 0; index++, count--) {
		uint64_t bit = 1ull << (index % 64);

		/* Others read the words meanwhile, never two write them. */
		if (backed)
			__atomic_store_n(&ram->backed[index / 64], ram->backed[index / 64] | bit, __ATOMIC_RELAXED);
		else
			__atomic_store_n(&ram->backed[index / 64], ram->backed[index / 64] & ~bit, __ATOMIC_RELAXED);
	}
}

bool gw_page_is_zero(const void *page)
{
	const uint64_t *p = page;
	uint64_t any = p[0] | p[511];

	/* Most pages that are not zero show it in their first line. */
	for (int i = 0; i < 512 && any == 0; i += 16) {
		for (int k = 0; k < 16; k++)
			any |= p[i + k];
	}
	return any == 0;
}

/* Frees pages [index, index + count), all backed or none. */
static int free_pages(struct gw_ram *ram, uint64_t index, uint64_t count, bool backed)
{
	uint8_t *hva = gw_ram_page(ram, index);
	size_t len = (size_t)count << GW_PAGE_SHIFT;
	int r;

	if (!backed)
		return madvise(hva, len, MADV_DONTNEED) < 0 ? -errno : 0;
	/* Without what was written to it a page of a file would show the file's content again. */
	r = gw_ram_map_anonymous(hva, len);
	if (r == 0)
		gw_ram_set_backed(ram, index, count, false);
	return r;
}

/* The only place that frees pages of guest RAM for the guest. */
int gw_ram_discard(struct gw_ram *ram, uint64_t gpa, uint64_t len)
{
	uint64_t first, last, count;
	int r = 0;

	if ((gpa | len) % GW_PAGE_SIZE)
		return -EINVAL;
	if (!page_range(ram, gpa, len, &first, &last))
		return -EFAULT;
	gw_ram_layout_lock(ram);
	for (; first <= last && r == 0; first += count) {
		bool backed = gw_ram_is_backed(ram, first);

		for (count = 1; first + count <= last && gw_ram_is_backed(ram, first + count) == backed; count++)
			;
		r = free_pages(ram, first, count, backed);
	}
	gw_ram_layout_unlock(ram);
	/*
	 * Marked after, as any write is. A migration that took a mark made before could still read the old content, and nothing would tell it of
	 * the discard; now what it read before the discard is told by this mark, and what it reads after it are the zeros.
	 */
	gw_ram_mark_dirty(ram, gpa, len);
	return r;
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
