// SPDX-License-Identifier: Apache-2.0
/* The merge window; see window.h. */
#include "ksm/window.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/clock.h"
#include "lib/ram/uffd.h"
#include "lib/util.h"

/* Of one window: each is a call to map it, and whoever writes to the window waits for all. */
#define MAX_RUNS 4u

struct gw_window {
	struct gw_ram *ram;
	struct gw_written *written;
	struct gw_stall *waits;
	int uffd;
	bool urgent; /* the thread may be made so */
	int broken; /* tests only */
};

int gw_window_new(struct gw_ram *ram, struct gw_written *written, struct gw_stall *waits, struct gw_window **ret, struct gw_error *err)
{
	struct gw_window *w;
	int fd = gw_uffd_open(GW_UFFD_WP_SHMEM);

	if (fd == -EINVAL)
		return gw_error_set(err, EOPNOTSUPP, "the kernel's userfaultfd cannot write-protect guest memory over the store's files (Linux 5.19)");
	if (fd == -ENOSYS)
		return gw_error_set(err, ENOSYS, "the kernel has no userfaultfd (CONFIG_USERFAULTFD), without which no page is exchanged safely");
	if (fd < 0)
		return gw_error_errno(err, fd, "no userfaultfd that holds the kernel's writes (run as root, allow /dev/userfaultfd, or set "
					       "vm.unprivileged_userfaultfd=1)");
	w = calloc(1, sizeof(*w));
	if (!w) {
		close(fd);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	w->ram = ram;
	w->written = written;
	w->waits = waits;
	w->uffd = fd;
	/* Whoever has been given another policy keeps it. */
	w->urgent = sched_getscheduler(0) == SCHED_OTHER;
	*ret = w;
	return 0;
}

void gw_window_free(struct gw_window *w)
{
	if (!w)
		return;
	close(w->uffd);
	free(w);
}

void gw_window_break(struct gw_window *w, int how)
{
	w->broken = how;
}

/* Whether the page holds what page `at` of the run is to be. */
static bool equal(const uint8_t *page, const uint8_t *want, uint32_t at)
{
	return want ? memcmp(page, want + ((size_t)at << GW_PAGE_SHIFT), GW_PAGE_SIZE) == 0 : gw_page_is_zero(page);
}

/* A copy beside, put in place of the page in one step: nobody sees anything else in between. */
static int keep(uint8_t *hva, size_t len)
{
	uint8_t *copy = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int r;

	if (copy == MAP_FAILED)
		return -errno;
	memcpy(copy, hva, len);
	gw_ram_advise(copy, len);
	if (mremap(copy, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, hva) != MAP_FAILED)
		return 0;
	r = -errno;
	munmap(copy, len);
	return r;
}

static int map_store(const struct gw_window_run *run, uint32_t at, uint8_t *hva, size_t len)
{
	off_t offset = (off_t)(run->offset + ((uint64_t)at << GW_PAGE_SHIFT));

	if (mmap(hva, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, run->fd, offset) == MAP_FAILED)
		return -errno;
	return 0;
}

static int exchange(const struct gw_window_run *run, uint32_t at, uint32_t count, uint8_t *hva)
{
	size_t len = (size_t)count << GW_PAGE_SHIFT;

	switch (run->op) {
	case GW_WINDOW_AGAIN:
		return madvise(hva, len, MADV_DONTNEED) < 0 ? -errno : 0;
	case GW_WINDOW_KEEP:
		return keep(hva, len);
	case GW_WINDOW_DROP:
	case GW_WINDOW_ANON:
		return gw_ram_map_anonymous(hva, len);
	case GW_WINDOW_STORE:
	default:
		return map_store(run, at, hva, len);
	}
}

/* The exchange leaves how many mappings there are, and what lies below the page, as they were. */
static bool in_place(const struct gw_window_run *run)
{
	return run->op == GW_WINDOW_DROP || run->op == GW_WINDOW_AGAIN;
}

struct pass {
	struct gw_window *w;
	const struct gw_window_run *runs;
	uint32_t most;
	gw_window_done_fn *done;
	void *self;
	struct gw_window_result result;
};

/* Whether below the page is what the run was built for; a discard (the balloon's) may have put fresh memory in place of an overlay. */
static bool as_expected(const struct gw_ram *ram, const struct gw_window_run *run, uint32_t at)
{
	bool backed = gw_ram_is_backed(ram, run->page + at);

	return run->op == GW_WINDOW_STORE || backed == (run->op != GW_WINDOW_DROP);
}

/* The pages of run i that are equal and idle, in as few pieces as they come in. */
static int merge_run(struct pass *p, unsigned i)
{
	const struct gw_window_run *run = &p->runs[i];
	uint8_t *hva = gw_ram_page(p->w->ram, run->page);
	uint32_t from = 0;

	for (uint32_t k = 0; k <= run->count; k++) {
		bool ok = false;
		int r;

		if (k < run->count) {
			if (gw_ram_io_busy(p->w->ram, run->page + k) && p->w->broken != 2)
				p->result.busy++;
			else if (!as_expected(p->w->ram, run, k) ||
				 (run->op != GW_WINDOW_KEEP && !equal(hva + ((size_t)k << GW_PAGE_SHIFT), run->want, k)))
				p->result.differing++;
			else
				ok = true;
		}
		if (ok)
			continue;
		if (k > from) {
			r = exchange(run, from, k - from, hva + ((size_t)from << GW_PAGE_SHIFT));
			if (r < 0)
				return r;
			p->result.merged += k - from;
			p->result.mappings += !in_place(run);
			if (!in_place(run))
				gw_ram_set_backed(p->w->ram, run->page + from, k - from, run->op == GW_WINDOW_STORE);
			p->done(p->self, i, run->page + from, k - from);
		}
		from = k + 1;
	}
	return 0;
}

/*
 * While a window is open its thread is not to be preempted: whoever writes there waits for it. Where that is not allowed (CAP_SYS_NICE,
 * RLIMIT_RTPRIO) it goes without.
 */
static void hurry(struct gw_window *w, bool on)
{
	const struct sched_param param = { .sched_priority = on ? sched_get_priority_min(SCHED_FIFO) : 0 };

	if (w->urgent)
		w->urgent = sched_setscheduler(0, on ? SCHED_FIFO : SCHED_OTHER, &param) == 0;
}

/* How many runs from i on lie side by side, of one window then. *pages: of all of them. */
static unsigned side_by_side(const struct pass *p, unsigned i, unsigned count, uint32_t *pages)
{
	const struct gw_window_run *run = &p->runs[i];
	uint64_t most = GW_MIN((uint64_t)p->most, gw_ram_contiguous(p->w->ram, run->page));
	unsigned n = 1;

	*pages = run->count;
	while (i + n < count && n < MAX_RUNS && run[n].page == run->page + *pages && *pages + run[n].count <= most)
		*pages += run[n++].count;
	return n;
}

/* Pages that lie in between have no part in it: others are not held for it, and they go on being tracked. */
static int run_window(struct pass *p, unsigned i, unsigned n, uint32_t pages)
{
	struct gw_window *w = p->w;
	uintptr_t start = (uintptr_t)gw_ram_page(w->ram, p->runs[i].page);
	uint64_t len = (uint64_t)pages << GW_PAGE_SHIFT;
	uint32_t merged = p->result.merged, mappings = p->result.mappings;
	bool again = false;
	uint64_t began, held;
	int r = 0;

	gw_ram_layout_lock(w->ram);
	hurry(w, true);
	began = gw_now_ns();
	/* Memory belongs to one userfaultfd at a time. */
	if (w->written)
		r = gw_written_disarm(w->written, start, len);
	r = r ?: gw_uffd_register(w->uffd, start, len);
	if (r == 0 && w->broken != 1)
		r = gw_uffd_protect(w->uffd, start, len);
	for (unsigned k = i; k < i + n && r == 0; k++) {
		r = merge_run(p, k);
		again |= p->runs[k].op == GW_WINDOW_AGAIN;
	}
	/* What was mapped over all of it is not registered. Mapping over a protected page wakes nobody, nor does letting it go. */
	if (again || p->result.merged - merged < pages)
		gw_uffd_unregister(w->uffd, start, len);
	gw_uffd_wake(w->uffd, start, len);
	if (w->written)
		gw_written_arm(w->written, start, len);
	held = gw_now_ns() - began;
	hurry(w, false);
	/* As all of RAM is (gw_ram_advise()). */
	if (p->result.mappings > mappings)
		(void)madvise((void *)start, len, MADV_DONTDUMP);
	gw_ram_layout_unlock(w->ram);
	gw_stall_add(w->waits, held);
	p->result.held_ns = GW_MAX(p->result.held_ns, held);
	p->result.longest = GW_MAX(p->result.longest, pages);
	return r;
}

int gw_window_merge(struct gw_window *w, const struct gw_window_run *runs, unsigned count, uint32_t most, gw_window_done_fn *done, void *self,
		    struct gw_window_result *ret, struct gw_error *err)
{
	struct pass p = { .w = w, .runs = runs, .most = most, .done = done, .self = self };
	uint32_t pages = 0;
	unsigned i = 0, n;
	int r = 0;

	for (n = 0; i + n < count && r == 0;) {
		i += n;
		n = side_by_side(&p, i, count, &pages);
		r = run_window(&p, i, n, pages);
	}
	*ret = p.result;
	return r < 0 ? gw_error_errno(err, r, "merge window of %u pages at page %llu%s", pages, (unsigned long long)runs[i].page,
				      r == -ENOMEM ? ", too many mappings (vm.max_map_count)" : "")
		     : 0;
}
