// SPDX-License-Identifier: Apache-2.0
/*
 * Guest RAM: regions of private anonymous memory at guest-physical addresses, range-checked access, and the log of pages
 * that the VMM's own devices wrote. Pages are numbered through all regions in address order ("page index", 0 to
 * gw_ram_pages() - 1, no number for a hole), so that bitmaps and the stream need not know of holes.
 */
#ifndef GW_LIB_RAM_RAM_H
#define GW_LIB_RAM_RAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "lib/error.h"

#define GW_RAM_MAX_REGIONS 4

struct gw_ram;

/* One region; all three values are multiples of 4096. */
struct gw_ram_region {
	uint64_t gpa;
	uint64_t size;       /* bytes */
	uint8_t *hva;
	uint64_t first_page; /* page index of the first page */
};

/*
 * Maps `size` bytes (a multiple of 4096) as one region at 0 up to `hole_start` and a second at `hole_end`: the hole below 4 GiB for
 * PCI and APIC. MAP_NORESERVE: what the guest never touches costs nothing. Fails with -ENOMEM.
 */
int gw_ram_new(uint64_t size, uint64_t hole_start, uint64_t hole_end, struct gw_ram **ret, struct gw_error *err);
void gw_ram_free(struct gw_ram *ram);

const struct gw_ram_region *gw_ram_regions(const struct gw_ram *ram, unsigned *count);
uint64_t gw_ram_size(const struct gw_ram *ram);  /* bytes, holes not counted */
uint64_t gw_ram_pages(const struct gw_ram *ram); /* number of page indexes */

/* Host address of [gpa, gpa + len), or NULL when any byte of it is not RAM of one region. len 0 is never valid. */
void *gw_ram_ptr(const struct gw_ram *ram, uint64_t gpa, uint64_t len);
/* Copies; -EFAULT when the range is not RAM. gw_ram_write() marks the pages dirty. */
int gw_ram_read(const struct gw_ram *ram, uint64_t gpa, void *data, uint64_t len);
int gw_ram_write(struct gw_ram *ram, uint64_t gpa, const void *data, uint64_t len);

/* Page index <-> guest-physical address and host address. -1 (UINT64_MAX) when gpa is not RAM. index must be in range. */
uint64_t gw_ram_index(const struct gw_ram *ram, uint64_t gpa);
uint64_t gw_ram_gpa(const struct gw_ram *ram, uint64_t index);
void *gw_ram_page(const struct gw_ram *ram, uint64_t index);
/* How many pages from `index` on are adjacent in guest and host address space (to the end of its region). */
uint64_t gw_ram_contiguous(const struct gw_ram *ram, uint64_t index);

/*
 * Device write log. A device that wrote guest RAM (itself, or the kernel for it: read(2), io_uring) calls
 * gw_ram_mark_dirty() after the write and before the guest can learn of it. Cheap when logging is off. Ranges that are
 * not RAM are ignored.
 */
void gw_ram_mark_dirty(struct gw_ram *ram, uint64_t gpa, uint64_t len);
void gw_ram_log_start(struct gw_ram *ram);
void gw_ram_log_stop(struct gw_ram *ram);
/* ORs the log into `bitmap` (gw_ram_pages() bits, 64-bit words) and clears it. Returns how many bits were newly set in `bitmap`. */
uint64_t gw_ram_log_take(struct gw_ram *ram, uint64_t *bitmap);
/* The same without taking: a later take tells them again. */
void gw_ram_log_peek(struct gw_ram *ram, uint64_t *bitmap);

/*
 * In-flight I/O. Whoever lets the kernel write guest RAM behind the page tables (O_DIRECT, io_uring, anything that pins pages) calls
 * gw_ram_io_begin() before it submits and gw_ram_io_end() after the last byte has arrived. A page that is busy is not replaced by another
 * copy of its content: bytes written to the old copy would be lost. Ranges that are not RAM are ignored.
 */
void gw_ram_io_begin(struct gw_ram *ram, uint64_t gpa, uint64_t len);
void gw_ram_io_end(struct gw_ram *ram, uint64_t gpa, uint64_t len);
/* Whether I/O is in flight for the page. Pairs with gw_ram_io_begin(): ask after the page was write-protected. */
bool gw_ram_io_busy(const struct gw_ram *ram, uint64_t index);
/*
 * ORs into `bitmap` (bit 0 for page `first`) those of `count` pages for which I/O has ended since the last call: page tables do not tell what
 * was written to pinned pages.
 */
void gw_ram_io_take(struct gw_ram *ram, uint64_t first, uint64_t count, uint64_t *bitmap);

/*
 * Backed pages map a file (an overlay of the page store) in place of anonymous memory: giving such a page back by MADV_DONTNEED would
 * bring the file's content back. One bit a page; changed only with the layout lock held, which whoever maps or unmaps guest RAM holds.
 */
void gw_ram_layout_lock(struct gw_ram *ram);
void gw_ram_layout_unlock(struct gw_ram *ram);
const uint64_t *gw_ram_backed(const struct gw_ram *ram);
/* Huge pages, and no part in core dumps: how guest RAM is advised. */
void gw_ram_advise(void *p, size_t size);
/* Maps fresh anonymous memory, advised like the rest of guest RAM, over [hva, hva + len). 0 or -errno. Under the layout lock. */
int gw_ram_map_anonymous(uint8_t *hva, size_t len);
bool gw_ram_is_backed(const struct gw_ram *ram, uint64_t index);
void gw_ram_set_backed(struct gw_ram *ram, uint64_t index, uint64_t count, bool backed);

/* True when all 4096 bytes are zero. The page may change meanwhile: the answer then holds for no moment. */
bool gw_page_is_zero(const void *page);

/* 64-bit words that a bitmap over all pages needs. */
static inline size_t gw_ram_bitmap_words(const struct gw_ram *ram)
{
	return (size_t)((gw_ram_pages(ram) + 63) / 64);
}

/*
 * Gives the pages of [gpa, gpa + len) back to the host; the guest finds zeros there. That is a write, and is in the log when this returns: before
 * the guest is told. -EINVAL unless gpa and len are multiples of 4096, -EFAULT unless all of it is RAM of one region; nothing is freed then.
 * Other errors are the host's, and leave each page as it was or freed.
 */
int gw_ram_discard(struct gw_ram *ram, uint64_t gpa, uint64_t len);

/* 128-bit digest over all RAM (XXH3-128 of every page in index order): equality of two hosts' copies. */
void gw_ram_digest(const struct gw_ram *ram, uint8_t digest[16]);

#endif
