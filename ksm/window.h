// SPDX-License-Identifier: Apache-2.0
/*
 * The merge window: guest pages are exchanged for equal ones while everybody may go on writing them. The only place where sharing
 * changes what guest RAM maps, and the one that invariant 4 rests on (a merge never changes a byte).
 *
 * A window is a run of pages with which the same is done, or a few that lie side by side, so that nobody waits for more than that:
 *   1. write-protect it through a userfaultfd: writers of any kind now wait;
 *   2. leave out pages with I/O in flight: their writers have pinned the old page and do not see the protection;
 *   3. compare bytes (or, to leave an overlay, copy them); 4. map the equal runs; 5. let the window go and wake who waited.
 *
 * Whoever waits writes afterwards, into a copy of its own: the kernel breaks the sharing. Zero pages are
 * given back by mapping over them: when MADV_DONTNEED clears a page's entry, another thread may put a new page there and the kernel write it (a
 * device's read) before the processors' TLBs are flushed, and our threads would still see the old one. Faults wait for mmap().
 */
#ifndef GW_KSM_WINDOW_H
#define GW_KSM_WINDOW_H

#include <stdint.h>

#include "ksm/stall.h"
#include "ksm/written.h"
#include "lib/error.h"
#include "lib/ram/ram.h"

enum gw_window_op {
	GW_WINDOW_DROP,  /* give anonymous memory back: a page of zeros */
	GW_WINDOW_ANON,  /* a page of zeros in place of an overlay */
	GW_WINDOW_STORE, /* map the store's page */
	GW_WINDOW_AGAIN, /* it is mapped already: the page's own copy is given back */
	GW_WINDOW_KEEP,  /* move the page's own copy to anonymous memory, so that the overlay below it can go */
};

/* Pages page..page+count-1 are to become equal pages of the file, from `offset` on. */
struct gw_window_run {
	uint64_t page;
	uint32_t count;
	enum gw_window_op op;
	int fd;               /* STORE: borrowed; a sealed file */
	uint64_t offset;      /* STORE: bytes, a multiple of 4096 */
	const uint8_t *want;  /* the bytes, count pages, that must not change meanwhile; NULL: zeros */
};

struct gw_window_result {
	uint32_t merged;      /* pages */
	uint32_t differing;   /* they had changed, or never were equal */
	uint32_t busy;        /* I/O in flight */
	uint32_t mappings;    /* made: as many as that runs were mapped */
	uint32_t longest;     /* pages of a window */
	uint64_t held_ns;     /* the longest that a window was open: for how long a writer had to wait at most */
};

/* Told of every run that was exchanged, with the layout lock held; `from` is the index of its input run. */
typedef void gw_window_done_fn(void *self, unsigned from, uint64_t page, uint32_t count);

struct gw_window;

/*
 * Borrows ram, written (NULL: nobody tracks writes) and waits, to which how long each window was open is added. -EPERM, -ENOSYS and -EOPNOTSUPP
 * when no userfaultfd can be had that holds the kernel's own faults (root, CAP_SYS_PTRACE, access to /dev/userfaultfd, or
 * vm.unprivileged_userfaultfd=1).
 */
int gw_window_new(struct gw_ram *ram, struct gw_written *written, struct gw_stall *waits, struct gw_window **ret, struct gw_error *err);
void gw_window_free(struct gw_window *w);

/*
 * Exchanges the pages of `runs`: none overlapping, each of one region. Those that lie side by side share a window, of at most `most` pages. Takes the
 * layout lock for each window. 0, or -errno
 * when a window could not be set up or a mapping failed (-ENOMEM: too many mappings); what was done until then stays done and is told.
 * On any error the pages are writable again.
 */
int gw_window_merge(struct gw_window *w, const struct gw_window_run *runs, unsigned count, uint32_t most, gw_window_done_fn *done, void *self,
		    struct gw_window_result *ret, struct gw_error *err);

/* For tests that show what the protection is for: 0 normal, 1 no write protection, 2 I/O counters not looked at. */
void gw_window_break(struct gw_window *w, int how);

#endif
