// SPDX-License-Identifier: Apache-2.0
/* Memory that comes when it is touched: threads and faults. See lazy.h. */
#include "migrate/lazy.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/resource.h>

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/ram/uffd.h"
#include "lib/thread.h"
#include "lib/util.h"
#include "migrate/lazy-internal.h"
#include "migrate/repo/blob.h"
#include "migrate/repo/touch.h"

#define FAULTS_A_READ 32
#define MAX_ZEROS (1u << 16) /* pages of zeros that are placed before the VM runs */
#define BACKGROUND_NICE 15

/* ---- registration ---- */

static bool has_content(const struct gw_lazy *l, uint64_t first, uint64_t end)
{
	const struct gw_snap_run *run = gw_snap_run_at(l->snap, first);

	return run && run->page < end;
}

/* Runs of blocks with content: fewer mappings than blocks, and what is zero stays ordinary memory, in huge pages. */
static int register_region(struct gw_lazy *l, const struct gw_ram_region *r, struct gw_error *err)
{
	uint64_t pages = r->size >> GW_PAGE_SHIFT, from = 0, at = 0;
	int e = 0;

	while (at < pages && e == 0) {
		uint64_t end = GW_MIN(at + GW_LAZY_BLOCK_PAGES, pages);
		bool content = has_content(l, r->first_page + at, r->first_page + end);

		if (!content)
			from = end;
		if (content && (end == pages || !has_content(l, r->first_page + end, r->first_page + GW_MIN(end + GW_LAZY_BLOCK_PAGES, pages))))
			e = gw_uffd_register_missing(l->uffd, (uintptr_t)r->hva + (from << GW_PAGE_SHIFT), (end - from) << GW_PAGE_SHIFT);
		at = end;
	}
	return e < 0 ? gw_error_errno(err, e, "userfaultfd cannot hold guest memory") : 0;
}

static int register_ram(struct gw_lazy *l, struct gw_error *err)
{
	unsigned count;
	const struct gw_ram_region *regions = gw_ram_regions(l->ram, &count);
	int r = 0;

	l->uffd = gw_uffd_open(0);
	if (l->uffd < 0)
		return gw_error_errno(err, l->uffd, "no userfaultfd that holds the kernel's accesses (root, or /dev/userfaultfd, is needed)");
	for (unsigned i = 0; i < count && r == 0; i++)
		r = register_region(l, &regions[i], err);
	return r;
}

/* Who still waits is woken, and finds zeros where nothing was placed. */
static void unregister_ram(struct gw_lazy *l)
{
	unsigned count;
	const struct gw_ram_region *regions = gw_ram_regions(l->ram, &count);

	for (unsigned i = 0; i < count && l->uffd >= 0; i++)
		(void)gw_uffd_unregister(l->uffd, (uintptr_t)regions[i].hva, regions[i].size);
}

/* ---- faults ---- */

/* Index of the page at a host address; false: not of RAM. */
static bool find_page(const struct gw_lazy *l, uint64_t address, uint64_t *page)
{
	unsigned count;
	const struct gw_ram_region *regions = gw_ram_regions(l->ram, &count);

	for (unsigned i = 0; i < count; i++) {
		uint64_t start = (uintptr_t)regions[i].hva;

		if (address >= start && address - start < regions[i].size) {
			*page = regions[i].first_page + ((address - start) >> GW_PAGE_SHIFT);
			return true;
		}
	}
	return false;
}

/* With the lock held. A page of zeros is placed by who calls, without it. */
static bool take_fault(struct gw_lazy *l, uint64_t page)
{
	const struct gw_snap_run *run = gw_snap_run_at(l->snap, page);

	/* What was here and is missing was given back by the guest. */
	if (!run || run->page > page || gw_lazy_bit(l->here, page))
		return false;
	if (gw_lazy_want(l, page) < 0)
		gw_warn("loading: out of memory: a page that is waited for comes when its turn is");
	if (l->stats.stalled)
		pthread_cond_broadcast(&l->news);
	return true;
}

static void take_faults(struct gw_lazy *l, const struct uffd_msg *msgs, size_t count)
{
	uint64_t page;
	bool wanted;

	for (size_t i = 0; i < count; i++) {
		if (msgs[i].event != UFFD_EVENT_PAGEFAULT || !find_page(l, msgs[i].arg.pagefault.address, &page))
			continue;
		pthread_mutex_lock(&l->lock);
		wanted = take_fault(l, page);
		pthread_mutex_unlock(&l->lock);
		if (!wanted && gw_uffd_zero(l->uffd, (uintptr_t)gw_ram_page(l->ram, page), GW_PAGE_SIZE) < 0)
			gw_warn("loading: a page of zeros cannot be placed");
	}
}

/* Waits for faults. Who comes back fetches, and another takes its place: no thread has to be woken between a fault and its fetch. */
static void watch(struct gw_lazy *l)
{
	struct pollfd p[2] = { { .fd = l->uffd, .events = POLLIN }, { .fd = l->wake_fd, .events = POLLIN } };
	struct uffd_msg msgs[FAULTS_A_READ];
	ssize_t n = 0;

	if (poll(p, 2, -1) > 0 && !p[1].revents)
		n = read(l->uffd, msgs, sizeof(msgs));
	take_faults(l, msgs, n > 0 ? (size_t)n / sizeof(msgs[0]) : 0);
}

/* ---- threads ---- */

static void wait_work(struct gw_lazy *l, pthread_cond_t *cond)
{
	uint64_t now = gw_now_ns();
	uint64_t until = l->stats.stalled && l->retry_ns > now ? l->retry_ns : now + GW_NS_PER_SEC;
	struct timespec ts = { (time_t)(until / GW_NS_PER_SEC), (long)(until % GW_NS_PER_SEC) };

	pthread_cond_timedwait(cond, &l->lock, &ts);
}

/* With the lock held: nothing to fetch now. */
static void idle(struct gw_lazy *l, enum gw_lazy_for whom)
{
	if (whom == GW_LAZY_FOR_NOBODY) {
		wait_work(l, &l->work);
	} else if (l->watched) {
		wait_work(l, &l->follow);
	} else {
		l->watched = true;
		pthread_mutex_unlock(&l->lock);
		watch(l);
		pthread_mutex_lock(&l->lock);
		l->watched = false;
	}
}

static void *fetcher_main(void *arg)
{
	struct gw_lazy_thread *t = arg;
	struct gw_lazy *l = t->l;
	int r;

	/* What nobody waits for yet leaves the processors to the VM; and who does that is in no hurry when somebody waits. */
	if (t->whom == GW_LAZY_FOR_NOBODY)
		(void)setpriority(PRIO_PROCESS, (id_t)gettid(), BACKGROUND_NICE);
	pthread_mutex_lock(&l->lock);
	while (!l->quit) {
		if (!gw_lazy_fetch_next(t->fetch, &r))
			idle(l, t->whom);
	}
	pthread_mutex_unlock(&l->lock);
	return NULL;
}

/* Of what is first, pages that are zero; not the zero page of all, as they are probably written. Somebody may have placed them by now. */
static void place_zeros(struct gw_lazy *l)
{
	static const uint8_t zeros[GW_PAGE_SIZE];
	unsigned placed = 0;

	for (size_t i = 0; i < l->first.count; i++) {
		uint64_t end = l->first.ranges[i].page + l->first.ranges[i].count;

		for (uint64_t page = l->first.ranges[i].page; page < end && placed < MAX_ZEROS; page++) {
			if (has_content(l, page, page + 1))
				continue;
			(void)gw_uffd_copy(l->uffd, (uintptr_t)gw_ram_page(l->ram, page), zeros, GW_PAGE_SIZE);
			placed++;
		}
	}
}

/* What cannot be read now comes with the rest. */
static void *starter_main(void *arg)
{
	struct gw_lazy_thread *t = arg;
	struct gw_lazy *l = t->l;
	int r = 0;

	place_zeros(l);
	pthread_mutex_lock(&l->lock);
	while (r == 0 && !l->quit && gw_lazy_fetch_next(t->fetch, &r))
		;
	l->starting = false;
	pthread_cond_broadcast(&l->news);
	pthread_mutex_unlock(&l->lock);
	return NULL;
}

/* 0 or -errno. */
static int start_thread(struct gw_lazy *l, enum gw_lazy_for whom)
{
	struct gw_lazy_thread *t = &l->threads[l->nthreads];
	int r;

	t->l = l;
	t->whom = whom;
	r = gw_lazy_fetch_new(l, whom, &t->fetch);
	if (r < 0)
		return r;
	r = gw_thread_create(&t->thread, whom == GW_LAZY_FOR_START ? starter_main : fetcher_main, t);
	if (r < 0)
		gw_lazy_fetch_free(t->fetch);
	else
		l->nthreads++;
	return r;
}

static int start_threads(struct gw_lazy *l, struct gw_error *err)
{
	int r = 0;

	while (r == 0 && l->nthreads < GW_LAZY_FETCHERS)
		r = start_thread(l, l->nthreads < GW_LAZY_FAULTERS ? GW_LAZY_FOR_FAULTS : GW_LAZY_FOR_NOBODY);
	return r < 0 ? gw_error_errno(err, r, "cannot start the threads that bring memory") : 0;
}

/* Who waits returns. */
static void join_threads(struct gw_lazy *l)
{
	uint64_t one = 1;

	pthread_mutex_lock(&l->lock);
	l->quit = true;
	pthread_cond_broadcast(&l->work);
	pthread_cond_broadcast(&l->follow);
	pthread_mutex_unlock(&l->lock);
	if (l->wake_fd >= 0)
		(void)!write(l->wake_fd, &one, sizeof(one));
	while (l->nthreads > 0) {
		struct gw_lazy_thread *t = &l->threads[--l->nthreads];

		pthread_join(t->thread, NULL);
		gw_lazy_fetch_free(t->fetch);
	}
}

/* ---- life ---- */

static uint64_t count_content(struct gw_snap *snap)
{
	uint64_t n, pages = 0;
	const struct gw_snap_run *runs = gw_snap_runs(snap, &n);

	for (uint64_t i = 0; i < n; i++)
		pages += runs[i].count;
	return pages;
}

static void init_conds(struct gw_lazy *l)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&l->work, &attr);
	pthread_cond_init(&l->follow, &attr);
	pthread_cond_init(&l->news, &attr);
	pthread_condattr_destroy(&attr);
}

int gw_lazy_new(struct gw_ram *ram, struct gw_snap *snap, struct gw_lineage *lineage, struct gw_lazy **ret, struct gw_error *err)
{
	struct gw_lazy *l = calloc(1, sizeof(*l));
	size_t words = gw_ram_bitmap_words(ram);
	int r = 0;

	if (!l)
		return gw_error_set(err, ENOMEM, "out of memory");
	l->ram = ram;
	l->snap = snap;
	l->lineage = lineage;
	l->uffd = -1;
	l->window = GW_BLOB_PAGES;
	l->patience = GW_LAZY_FIRST_PATIENCE;
	l->stride = GW_LAZY_MIN_PAGES;
	pthread_mutex_init(&l->lock, NULL);
	init_conds(l);
	l->stats.pages = count_content(snap);
	l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->here = calloc(words, sizeof(uint64_t));
	l->claimed = calloc(words, sizeof(uint64_t));
	l->wanted = calloc(words, sizeof(uint64_t));
	if (!l->here || !l->claimed || !l->wanted || l->wake_fd < 0 || (lineage && gw_lazy_gift_new(l) < 0))
		r = gw_error_set(err, ENOMEM, "out of memory");
	r = r ?: register_ram(l, err);
	r = r ?: start_threads(l, err);
	if (r < 0) {
		gw_lazy_free(l);
		return r;
	}
	*ret = l;
	return 0;
}

/*
 * Clones of one snapshot often come to a host together. What one has brought the others find in the page store, so each begins somewhere else: side by side
 * all would read and decrypt the same.
 */
static uint64_t begin_at(const struct gw_lazy *l)
{
	uint64_t pages = gw_ram_pages(l->ram), any = 0;

	return l->lineage && getrandom(&any, sizeof(any), 0) == sizeof(any) ? GW_ALIGN_DOWN(any % pages, GW_LAZY_PAGES) : 0;
}

int gw_lazy_background(struct gw_lazy *l, const struct gw_snap_range *order, size_t count)
{
	int r;

	pthread_mutex_lock(&l->lock);
	r = gw_lazy_order_set(&l->order, order, count);
	if (r == 0) {
		l->cursor = begin_at(l);
		l->background = true;
		pthread_cond_broadcast(&l->work);
	}
	pthread_mutex_unlock(&l->lock);
	return r;
}

int gw_lazy_start(struct gw_lazy *l, const struct gw_snap_range *first, size_t count)
{
	int r;

	pthread_mutex_lock(&l->lock);
	/* It may have been forgotten by now. */
	r = l->first.ranges || l->quit ? -EBUSY : gw_lazy_order_set(&l->first, first, count);
	r = r ?: start_thread(l, GW_LAZY_FOR_START);
	l->starting = r == 0;
	pthread_mutex_unlock(&l->lock);
	return r;
}

void gw_lazy_await_start(struct gw_lazy *l, uint64_t deadline_ns)
{
	struct timespec ts = { (time_t)(deadline_ns / GW_NS_PER_SEC), (long)(deadline_ns % GW_NS_PER_SEC) };
	int r = 0;

	pthread_mutex_lock(&l->lock);
	while (l->starting && r != ETIMEDOUT)
		r = pthread_cond_timedwait(&l->news, &l->lock, &ts);
	pthread_mutex_unlock(&l->lock);
}

uint64_t gw_lazy_here(struct gw_lazy *l, uint64_t first, uint64_t count)
{
	uint64_t n = 0;

	pthread_mutex_lock(&l->lock);
	while (n < count && (gw_lazy_bit(l->here, first + n) || !has_content(l, first + n, first + n + 1)))
		n++;
	pthread_mutex_unlock(&l->lock);
	return n;
}

/* With the lock held. */
static bool stands_still(const struct gw_lazy *l)
{
	return l->stats.stalled && l->stats.waiting > 0;
}

bool gw_lazy_wait(struct gw_lazy *l, bool stalled, uint64_t deadline_ns)
{
	struct timespec ts = { (time_t)(deadline_ns / GW_NS_PER_SEC), (long)(deadline_ns % GW_NS_PER_SEC) };
	bool all;

	pthread_mutex_lock(&l->lock);
	while (l->stats.here < l->stats.pages && stands_still(l) == stalled && !l->nudged) {
		if (pthread_cond_timedwait(&l->news, &l->lock, &ts) == ETIMEDOUT)
			break;
	}
	all = l->stats.here >= l->stats.pages;
	l->nudged = false;
	pthread_mutex_unlock(&l->lock);
	return all;
}

void gw_lazy_nudge(struct gw_lazy *l)
{
	pthread_mutex_lock(&l->lock);
	l->nudged = true;
	pthread_cond_broadcast(&l->news);
	pthread_mutex_unlock(&l->lock);
}

void gw_lazy_stats(struct gw_lazy *l, struct gw_lazy_stats *ret)
{
	pthread_mutex_lock(&l->lock);
	*ret = l->stats;
	pthread_mutex_unlock(&l->lock);
}

int gw_lazy_touched(struct gw_lazy *l, struct gw_buf *out)
{
	struct gw_snap_range *all;
	int r = -ENOMEM;

	pthread_mutex_lock(&l->lock);
	all = malloc((l->order.count + l->ntouched + 1) * sizeof(*all));
	if (all) {
		size_t n = 0;

		for (size_t i = 0; i < l->order.count; i++)
			all[n++] = l->order.ranges[i];
		for (size_t i = 0; i < l->ntouched && n < GW_LAZY_MAX_TOUCHED; i++)
			all[n++] = l->touched[i];
		r = gw_touch_encode(all, n, out);
	}
	pthread_mutex_unlock(&l->lock);
	free(all);
	return r;
}

void gw_lazy_all_here(struct gw_lazy *l)
{
	if (l->gift)
		gw_lazy_share_flush(l);
}

void gw_lazy_forget(struct gw_lazy *l)
{
	join_threads(l);
	unregister_ram(l);
	pthread_mutex_lock(&l->lock);
	l->stats.here = l->stats.pages;
	l->stats.stalled = false;
	pthread_cond_broadcast(&l->news);
	pthread_mutex_unlock(&l->lock);
}

void gw_lazy_free(struct gw_lazy *l)
{
	if (!l)
		return;
	join_threads(l);
	unregister_ram(l);
	gw_closep(&l->uffd);
	gw_closep(&l->wake_fd);
	pthread_cond_destroy(&l->work);
	pthread_cond_destroy(&l->follow);
	pthread_cond_destroy(&l->news);
	pthread_mutex_destroy(&l->lock);
	gw_lazy_gift_free(l);
	free(l->here);
	free(l->claimed);
	free(l->wanted);
	free(l->faults.pages);
	free(l->order.ranges);
	free(l->first.ranges);
	free(l->touched);
	free(l);
}
