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
#define PLACE_PAGES 64u  /* at a time, of what was gathered */
#define PLACE_DIRECTLY 4u /* so many that lie in one blob are not gathered */
#define MAX_ZEROS (1u << 16) /* pages of zeros that are placed before the VM runs */
#define BACKGROUND_NICE 15
#define FIRST_BACKOFF (100 * GW_NS_PER_MS)
#define LONGEST_BACKOFF (5 * GW_NS_PER_SEC)

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

/* ---- fetching ---- */

/* What a fetch delivers. */
struct placing {
	struct gw_lazy *l;
	uint64_t first, count;
	int error; /* of placing, not of reading */
	bool urgent;       /* somebody waits */
	uint64_t first_ns; /* when the first were placed; 0: not yet */
	uint8_t *data;
	struct gw_lazy_share *share; /* NULL: memory is not shared */
	struct gw_lazy_huge *huge;   /* NULL: for those who wait */
	bool gathering;
};

void gw_lazy_note_placed(struct gw_lazy *l, uint64_t first, uint64_t count)
{
	bool waited;

	pthread_mutex_lock(&l->lock);
	waited = gw_lazy_placed(l, first, count);
	pthread_mutex_unlock(&l->lock);
	/* Placed, given back and touched again before it was noted: that fault was told before it could be told as one of zeros. */
	if (waited)
		(void)gw_uffd_wake(l->uffd, (uintptr_t)gw_ram_page(l->ram, first), count << GW_PAGE_SHIFT);
}

int gw_lazy_place(struct gw_lazy *l, uint64_t first, uint64_t count, const uint8_t *from)
{
	int r = 0;

	while (count > 0 && r == 0) {
		uint64_t n = GW_MIN(count, gw_ram_contiguous(l->ram, first));

		r = gw_uffd_copy(l->uffd, (uintptr_t)gw_ram_page(l->ram, first), from, n << GW_PAGE_SHIFT);
		if (r == 0)
			gw_lazy_note_placed(l, first, n);
		from += n << GW_PAGE_SHIFT;
		first += n;
		count -= n;
	}
	return r;
}

static int place_all(struct placing *p, uint64_t first, uint64_t count, const uint8_t *data)
{
	p->error = gw_lazy_place(p->l, first, count, data);
	if (p->first_ns == 0)
		p->first_ns = gw_now_ns();
	if (p->error == 0 && p->share)
		gw_lazy_share_placed(p->share, first, count, data);
	return p->error;
}

/* What was gathered. */
static int place(struct placing *p)
{
	uint64_t count = p->count;

	p->count = 0;
	return count > 0 && p->error == 0 ? place_all(p, p->first, count, p->data) : p->error;
}

/* Most come as whole blobs, and are placed from where they were decrypted; of pages that lie scattered those that follow one another are gathered. */
static int take_some(struct placing *p, uint64_t page, uint64_t count, const uint8_t *data)
{
	int r = p->huge ? gw_lazy_huge_take(p->huge, page, count, data) : 0;

	if (r != 0) {
		p->error = GW_MIN(r, 0);
		return p->error;
	}
	/* Who waits goes on as soon as the blob is there that has the page. */
	if (p->count && (page != p->first + p->count || p->count + count > PLACE_PAGES || p->urgent))
		r = place(p);
	if (r < 0 || count >= PLACE_DIRECTLY)
		return r ?: place_all(p, page, count, data);
	if (p->count == 0)
		p->first = page;
	memcpy(p->data + (p->count << GW_PAGE_SHIFT), data, count << GW_PAGE_SHIFT);
	p->count += count;
	return 0;
}

static int take_pages(void *self, uint64_t page, uint64_t count, const uint8_t *data)
{
	struct placing *p = self;
	int r = 0;

	if (p->gathering) {
		gw_lazy_share_gather(p->share, page, count, data);
		return 0;
	}
	for (uint64_t n; count > 0 && r == 0; page += n, count -= n, data += n << GW_PAGE_SHIFT) {
		n = GW_MIN(count, GW_LAZY_BLOCK_PAGES - page % GW_LAZY_BLOCK_PAGES);
		r = take_some(p, page, n, data);
	}
	return r;
}

/* With the lock held: how the read ended. */
static void note_read(struct gw_lazy *l, const struct gw_lazy_work *work, int r, const struct gw_error *err)
{
	bool was = l->stats.stalled;

	l->stats.stalled = r < 0;
	if (r < 0) {
		gw_lazy_unclaim(l, work);
		snprintf(l->stats.why, sizeof(l->stats.why), "%.250s", gw_error_text(err));
		l->backoff_ns = was ? GW_MIN(l->backoff_ns * 2, LONGEST_BACKOFF) : FIRST_BACKOFF;
		l->retry_ns = gw_now_ns() + l->backoff_ns;
	} else {
		l->stats.why[0] = '\0';
	}
	if (was != l->stats.stalled) {
		pthread_cond_broadcast(&l->work);
		pthread_cond_broadcast(&l->follow);
	}
	if (was != l->stats.stalled || l->stats.here >= l->stats.pages)
		pthread_cond_broadcast(&l->news);
}

/* With the lock held: nothing had to be read. What cannot be read stays so. */
static void note_found(struct gw_lazy *l)
{
	l->retry_ns = gw_now_ns();
	if (l->stats.here >= l->stats.pages)
		pthread_cond_broadcast(&l->news);
}

static void note_pace(struct gw_lazy *l, uint64_t first_ns, uint64_t all_ns)
{
	pthread_mutex_lock(&l->lock);
	gw_lazy_adapt(l, first_ns, all_ns);
	pthread_mutex_unlock(&l->lock);
}

static int fetch(struct placing *p, const struct gw_lazy_work *work, struct gw_error *err)
{
	uint64_t began = gw_now_ns();
	int r;

	p->count = 0;
	p->error = 0;
	p->first_ns = 0;
	p->urgent = work->fault;
	p->gathering = p->share && gw_lazy_share_gathers(p->share, work);
	if (p->huge)
		gw_lazy_huge_begin(p->huge, work);
	r = gw_snap_fetch(p->l->snap, work->ranges, work->count, take_pages, p, err);
	if (p->gathering)
		p->error = gw_lazy_share_give(p->share, r == 0);
	else if (r == 0)
		r = place(p);
	else if (p->huge && p->error == 0)
		p->error = gw_lazy_huge_end(p->huge);
	if (work->fault && r == 0 && p->first_ns > 0 && (work->pages >= work->window || work->window == GW_BLOB_PAGES))
		note_pace(p->l, p->first_ns - began, gw_now_ns() - began);
	return p->error ? gw_error_errno(err, p->error, "pages cannot be placed") : r;
}

/* With the lock held. While reads fail, one thread at a time tries, now and then. */
static bool next_read(struct gw_lazy *l, enum gw_lazy_for whom, struct gw_lazy_work *work)
{
	if (l->stats.stalled && gw_now_ns() < l->retry_ns)
		return false;
	/* However long reads take, somebody watches for faults: a page of zeros needs no read. */
	if (whom == GW_LAZY_FOR_FAULTS && l->fetching == GW_LAZY_FAULTERS - 1)
		return false;
	if (!gw_lazy_next(l, whom, work))
		return false;
	l->retry_ns = gw_now_ns() + LONGEST_BACKOFF;
	return true;
}

static void wait_work(struct gw_lazy *l, pthread_cond_t *cond)
{
	uint64_t now = gw_now_ns();
	uint64_t until = l->stats.stalled && l->retry_ns > now ? l->retry_ns : now + GW_NS_PER_SEC;
	struct timespec ts = { (time_t)(until / GW_NS_PER_SEC), (long)(until % GW_NS_PER_SEC) };

	pthread_cond_timedwait(cond, &l->lock, &ts);
}

/* With the lock held: nothing to fetch now. */
static void idle(struct gw_lazy *l, bool faults)
{
	if (!faults) {
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

struct fetcher {
	struct gw_lazy *l;
	enum gw_lazy_for whom; /* and for nothing else */
};

/* What one thread needs. */
static void init_placing(struct placing *p, struct gw_lazy *l, enum gw_lazy_for whom)
{
	*p = (struct placing){ .l = l, .data = malloc(PLACE_PAGES << GW_PAGE_SHIFT) };
	if (l->lineage && gw_lazy_share_new(l, &p->share) < 0)
		p->share = NULL; /* it goes without */
	/* What is shared is mapped in small pages. */
	if (whom == GW_LAZY_FOR_NOBODY && !l->lineage && gw_lazy_huge_new(l, &p->huge) < 0)
		p->huge = NULL;
}

static void release_placing(struct placing *p)
{
	gw_lazy_share_free(p->share);
	gw_lazy_huge_free(p->huge);
	free(p->data);
}

/* With the lock held, which is given away meanwhile. */
static int fetch_unlocked(struct placing *p, struct gw_lazy_work *work)
{
	struct gw_error err = GW_ERROR_INIT;
	int r;

	pthread_mutex_unlock(&p->l->lock);
	if (p->share)
		gw_lazy_share_find(p->share, work);
	r = work->count ? fetch(p, work, &err) : 0;
	pthread_mutex_lock(&p->l->lock);
	if (work->count)
		note_read(p->l, work, r, &err);
	else
		note_found(p->l);
	return r;
}

static void *fetcher_main(void *arg)
{
	struct fetcher f = *(struct fetcher *)arg;
	bool faults = f.whom == GW_LAZY_FOR_FAULTS;
	struct gw_lazy *l = f.l;
	struct gw_lazy_work work;
	struct placing p;

	free(arg);
	init_placing(&p, l, f.whom);
	/* What nobody waits for yet leaves the processors to the VM; and who does that is in no hurry when somebody waits. */
	if (!faults)
		(void)setpriority(PRIO_PROCESS, (id_t)gettid(), BACKGROUND_NICE);
	pthread_mutex_lock(&l->lock);
	while (p.data && !l->quit) {
		if (!next_read(l, f.whom, &work)) {
			idle(l, faults);
			continue;
		}
		l->fetching += faults;
		/* Another takes the next fault, or watches for it. */
		if (faults && !l->watched)
			pthread_cond_signal(&l->follow);
		(void)fetch_unlocked(&p, &work);
		l->fetching -= faults;
	}
	pthread_mutex_unlock(&l->lock);
	release_placing(&p);
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
	struct gw_lazy *l = arg;
	struct gw_lazy_work work;
	struct placing p;
	int r = 0;

	init_placing(&p, l, GW_LAZY_FOR_START);
	place_zeros(l);
	pthread_mutex_lock(&l->lock);
	while (p.data && r == 0 && !l->quit && next_read(l, GW_LAZY_FOR_START, &work))
		r = fetch_unlocked(&p, &work);
	l->starting = false;
	pthread_cond_broadcast(&l->news);
	pthread_mutex_unlock(&l->lock);
	release_placing(&p);
	return NULL;
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

static int start_threads(struct gw_lazy *l, struct gw_error *err)
{
	int r = 0;

	while (r == 0 && l->nfetchers < GW_LAZY_FETCHERS) {
		struct fetcher *f = malloc(sizeof(*f));

		if (!f)
			return gw_error_set(err, ENOMEM, "out of memory");
		*f = (struct fetcher){ l, l->nfetchers < GW_LAZY_FAULTERS ? GW_LAZY_FOR_FAULTS : GW_LAZY_FOR_NOBODY };
		r = gw_thread_create(&l->fetchers[l->nfetchers], fetcher_main, f);
		if (r == 0)
			l->nfetchers++;
		else
			free(f);
	}
	return r < 0 ? gw_error_errno(err, r, "cannot start the threads that bring memory") : 0;
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
	l->patience = 1;
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
	if (r == 0)
		r = gw_thread_create(&l->fetchers[l->nfetchers], starter_main, l);
	l->nfetchers += r == 0;
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

static void join_fetchers(struct gw_lazy *l)
{
	uint64_t one = 1;

	pthread_mutex_lock(&l->lock);
	l->quit = true;
	pthread_cond_broadcast(&l->work);
	pthread_cond_broadcast(&l->follow);
	pthread_mutex_unlock(&l->lock);
	if (l->wake_fd >= 0)
		(void)!write(l->wake_fd, &one, sizeof(one));
	while (l->nfetchers > 0)
		pthread_join(l->fetchers[--l->nfetchers], NULL);
}

void gw_lazy_forget(struct gw_lazy *l)
{
	join_fetchers(l);
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
	join_fetchers(l);
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
