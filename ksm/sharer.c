// SPDX-License-Identifier: Apache-2.0
/* The sharing thread of one VM; see sharer.h. */
#include "ksm/sharer.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <xxhash.h>

#include "ksm/known.h"
#include "ksm/lineage.h"
#include "ksm/session.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/thread.h"
#include "lib/util.h"
#include "proto/share.h"

#define DEFAULT_CPU_PERCENT 25u
#define NICE 5 /* as the kernel's ksmd */
#define DEFAULT_INTERVAL_NS (45 * GW_NS_PER_SEC)
#define MAX_BACKOFF 8u
#define SETTLE_NS (GW_NS_PER_SEC / 2)
#define SETTLE_MAX_NS (2 * GW_NS_PER_SEC)
#define BLOCK 512u                /* pages between two looks at budget and messages */
#define SPAN (16u * BLOCK)        /* pages whose writes are asked for at once */
#define UNTRACKED "each pass reads all memory that is not shared: the kernel cannot tell what was written (PAGEMAP_SCAN, Linux 6.7)"
#define MAPPING_BYTES 260u        /* of the kernel: vm_area_struct, its place in the maple tree, half an anon_vma_chain */

struct gw_sharer {
	struct gw_ram *ram;
	struct gw_sharer_config config;
	pthread_t thread;
	bool started;
	int wake;                      /* eventfd: something below has changed */

	/* the thread's own */
	struct gw_pagemap *map;
	struct gw_written *written;
	struct gw_overlays *overlays;
	struct gw_merger *merger;
	struct gw_session *session;    /* NULL: detached */
	uint64_t sessions;             /* that there were */
	uint64_t *zeroed;              /* pages given back as zeros */
	bool full;                     /* the next pass is the session's first */
	uint64_t hashed;               /* pages, ever */
	unsigned backoff;
	uint64_t budget_since_ns, budget_cpu_ns;

	struct gw_known *known;        /* image_only */
	struct gw_lineage *lineage;    /* config.loading */
	bool loading;                  /* no pass yet */
	bool inherited;                /* the next pass is the first after loading: what was mapped is reported, too */

	pthread_mutex_t lock;          /* of what follows */
	bool stop;
	bool loaded;
	unsigned paused;
	int fresh;                     /* socket of a new session, or -1 */
	struct gw_sharer_stats stats;
	uint64_t pass_end_ns;
};

static uint64_t cpu_ns(void)
{
	return gw_clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

static void wake(struct gw_sharer *s)
{
	uint64_t one = 1;

	if (write(s->wake, &one, sizeof(one)) < 0)
		return; /* full: awake already */
}

static void set_reason(struct gw_sharer *s, const char *reason)
{
	pthread_mutex_lock(&s->lock);
	snprintf(s->stats.reason, sizeof(s->stats.reason), "%s", reason);
	pthread_mutex_unlock(&s->lock);
}

/* What of this host keeps the VM from sharing more, or makes it dearer. */
static void tell_limit(const struct gw_sharer *s, char *limit, size_t size)
{
	const struct gw_merger_stats *m = gw_merger_stats(s->merger);
	uint32_t budget = gw_merger_budget(s->merger);

	limit[0] = '\0';
	if (*m->refusal)
		snprintf(limit, size, "%s", m->refusal);
	else if (m->over_budget > 0 && (uint64_t)m->mappings * 4 + 8 > (uint64_t)budget * 3)
		snprintf(limit, size, "%u of the %u mappings that it may take are in use, and %llu pages were left out (vm.max_map_count)", m->mappings,
			 budget, (unsigned long long)m->over_budget);
	else if (!gw_written_tracks(s->written))
		snprintf(limit, size, "%s", UNTRACKED);
}

/* Publishes the counters that others read. */
static void publish(struct gw_sharer *s)
{
	const struct gw_merger_stats *m = gw_merger_stats(s->merger);

	pthread_mutex_lock(&s->lock);
	tell_limit(s, s->stats.limit, sizeof(s->stats.limit));
	s->stats.attached = s->session != NULL;
	s->stats.hashed_pages = s->hashed;
	s->stats.merged_pages = m->store_pages;
	s->stats.again_pages = m->again_pages;
	s->stats.differing_pages = m->differing;
	s->stats.busy_pages = m->busy;
	s->stats.over_budget_pages = m->over_budget;
	s->stats.failed_pages = m->failed;
	s->stats.mappings = m->mappings;
	s->stats.windows = m->windows;
	s->stats.stall_p50_ns = gw_stall_quantile(&m->stall, 500);
	s->stats.stall_p99_ns = gw_stall_quantile(&m->stall, 990);
	s->stats.stall_max_ns = m->stall.max_ns;
	s->stats.cpu_ns = cpu_ns();
	s->stats.metadata_bytes = gw_overlays_memory(s->overlays) + (uint64_t)m->mappings * MAPPING_BYTES +
				  2 * gw_ram_bitmap_words(s->ram) * sizeof(uint64_t);
	pthread_mutex_unlock(&s->lock);
}

/* The daemon is gone or talks nonsense: what is shared stays. */
static void detach(struct gw_sharer *s, const struct gw_error *why)
{
	gw_info("sharing: %s; what is shared stays so", gw_error_text(why));
	if (s->loading)
		gw_lineage_end(s->lineage);
	gw_session_free(s->session);
	s->session = NULL;
	set_reason(s, gw_error_text(why));
	publish(s);
}

/* Waits for something to be written to `wake`. */
static void sleep_until_woken(struct gw_sharer *s)
{
	struct pollfd p = { .fd = s->wake, .events = POLLIN };
	uint64_t n;

	poll(&p, 1, -1);
	if (read(s->wake, &n, sizeof(n)) < 0)
		return;
}

/* A new session takes the place of the old one. */
static void begin_session(struct gw_sharer *s, int fd)
{
	struct gw_error err = GW_ERROR_INIT;

	/* The first while loading: nobody else uses overlays yet. */
	gw_session_free(s->session);
	s->session = NULL;
	s->sessions++;
	s->full = true;
	if (gw_session_new(fd, s->ram, s->overlays, s->merger, &s->session, &err) < 0)
		detach(s, &err);
	else
		set_reason(s, "");
	publish(s);
	if (s->loading && s->session)
		gw_lineage_begin(s->lineage, s->session);
}

static void end_loading(struct gw_sharer *s)
{
	gw_lineage_end(s->lineage);
	s->loading = false;
	s->inherited = true;
	gw_merger_mapped(s->merger);
}

/* Waits while paused, and takes up a new session. False when the thread is to end. */
static bool may_work(struct gw_sharer *s)
{
	bool stop, paused, loaded;
	int fd;

	do {
		pthread_mutex_lock(&s->lock);
		stop = s->stop;
		loaded = s->loaded;
		paused = s->paused > 0 && !stop;
		/* Chunks that are mapped while memory comes are not offered to another daemon before it is here. */
		fd = paused || (s->loading && !loaded && s->sessions > 0) ? -1 : gw_steal_fd(&s->fresh);
		pthread_mutex_unlock(&s->lock);
		if (paused)
			sleep_until_woken(s);
	} while (paused);
	if (s->loading && loaded)
		end_loading(s);
	if (fd >= 0)
		begin_session(s, fd);
	return !stop;
}

/* Waits for messages, for a change of `wake`, or until `until_ns`, whatever comes first, and handles what came. False when the thread is to end. */
static bool handle_until(struct gw_sharer *s, uint64_t until_ns)
{
	struct gw_error err = GW_ERROR_INIT;
	struct pollfd p[2] = { { .fd = s->wake, .events = POLLIN }, { .fd = s->session ? gw_session_fd(s->session) : -1, .events = POLLIN } };
	uint64_t n;

	poll(p, 2, gw_ms_until(until_ns));
	if (p[0].revents && read(s->wake, &n, sizeof(n)) < 0)
		n = 0;
	if (!may_work(s))
		return false;
	if (s->session && p[1].revents && (s->loading ? gw_lineage_handle(s->lineage, &err) : gw_session_handle(s->session, 0, &err)) < 0)
		detach(s, &err);
	return true;
}

/* Sleeps off what the thread took beyond its share of a processor. False when it is to end. */
static bool pace(struct gw_sharer *s)
{
	uint64_t now = gw_now_ns(), cpu = cpu_ns();
	uint64_t due = s->budget_since_ns + (cpu - s->budget_cpu_ns) * 100 / s->config.cpu_percent;

	while (due > gw_now_ns() + 2 * GW_NS_PER_MS) {
		if (!handle_until(s, due))
			return false;
	}
	/* Idle time is not saved up. */
	if (due + GW_NS_PER_SEC / 10 < now) {
		s->budget_since_ns = now;
		s->budget_cpu_ns = cpu;
	}
	return may_work(s);
}

static uint64_t count_bits(const uint64_t *words, size_t n)
{
	uint64_t bits = 0;

	for (size_t i = 0; i < n; i++)
		bits += (uint64_t)__builtin_popcountll(words[i]);
	return bits;
}

static void note_zero(struct gw_sharer *s, uint64_t page)
{
	s->zeroed[page / 64] |= 1ull << (page % 64);
	gw_merger_zero(s->merger, page, 1);
}

/* Before any of them is exchanged again. */
static void note_broken(struct gw_sharer *s, uint64_t first, uint64_t count, const uint64_t *told)
{
	for (uint64_t i = 0; i < count; i++) {
		if (told[i / 64] == 0)
			i |= 63;
		else if (told[i / 64] >> (i % 64) & 1)
			gw_overlays_break(s->overlays, first + i);
	}
}

/* One page that was written: zeros go, the rest is reported. */
static int look_at(struct gw_sharer *s, uint64_t page, struct gw_error *err)
{
	const void *bytes = gw_ram_page(s->ram, page);
	XXH128_hash_t h;

	if (gw_page_is_zero(bytes)) {
		note_zero(s, page);
		return 0;
	}
	s->zeroed[page / 64] &= ~(1ull << (page % 64));
	if (s->known && !gw_known_has(s->known, bytes))
		return 0;
	h = XXH3_128bits_withSecret(bytes, GW_PAGE_SIZE, gw_session_secret(s->session), GW_SHARE_SECRET_LEN);
	s->hashed++;
	return gw_session_report(s->session, page, h.low64, h.high64, err);
}

/* False when the pass cannot go on. */
static bool scan_block(struct gw_sharer *s, uint64_t first, uint64_t count, const uint64_t *wanted, struct gw_error *err)
{
	for (uint64_t i = 0; i < count; i++) {
		if (!(wanted[i / 64] >> (i % 64))) {
			i |= 63;
			continue;
		}
		if ((wanted[i / 64] >> (i % 64) & 1) && look_at(s, first + i, err) < 0)
			return false;
	}
	gw_merger_run(s->merger);
	return gw_session_handle(s->session, 0, err) == 0;
}

/* What was mapped while it was loaded is known to the store by its name alone; that others have the same content is found by its hash. */
static void add_inherited(const struct gw_sharer *s, uint64_t first, uint64_t count, uint64_t *wanted)
{
	uint32_t chunk, slot;

	for (uint64_t i = 0; i < count; i++)
		if (gw_lineage_has(s->lineage, first + i) && gw_overlays_at(s->overlays, first + i, &chunk, &slot))
			wanted[i / 64] |= 1ull << (i % 64);
}

/* False when it cannot go on: an error, the end of the thread, or another session, which knows nothing of what was reported so far. */
static bool scan(struct gw_sharer *s, struct gw_error *err)
{
	uint64_t pages = gw_ram_pages(s->ram), session = s->sessions;

	for (uint64_t at = 0; at < pages;) {
		uint64_t span = GW_MIN((uint64_t)SPAN, gw_ram_contiguous(s->ram, at));
		uint64_t wanted[SPAN / 64] = { 0 };
		int r = gw_written_take(s->written, at, span, s->full, wanted);

		if (r < 0) {
			gw_error_errno(err, r, "cannot ask which pages were written");
			return false;
		}
		note_broken(s, at, span, wanted);
		if (s->inherited)
			add_inherited(s, at, span, wanted);
		for (uint64_t i = 0; i < span; i += BLOCK) {
			if (count_bits(&wanted[i / 64], BLOCK / 64) == 0)
				continue;
			if (!scan_block(s, at + i, GW_MIN((uint64_t)BLOCK, span - i), &wanted[i / 64], err) || !pace(s) || !s->session || s->sessions != session)
				return false;
		}
		at += span;
	}
	return gw_session_sync(s->session, err) == 0;
}

/* What the guest gave away since (gw_ram_discard()) lies over nothing any more. */
static void forget_discarded(struct gw_sharer *s)
{
	uint64_t pages = gw_ram_pages(s->ram);

	if (count_bits(gw_ram_backed(s->ram), gw_ram_bitmap_words(s->ram)) == gw_overlays_pages(s->overlays, GW_OVERLAYS_NONE))
		return;
	for (uint64_t p = 0; p < pages; p++) {
		if (!gw_ram_is_backed(s->ram, p))
			gw_overlays_clear(s->overlays, p, 1);
	}
}

/* Counts what is shared and what is broken now. */
static void take_stock(struct gw_sharer *s)
{
	uint64_t chunks = 0, lineage;
	uint32_t pages, broken;

	for (uint32_t c = 0; c < gw_overlays_chunks(s->overlays); c++)
		chunks += gw_overlays_slots(s->overlays, c) > 0;
	gw_merger_count_mappings(s->merger);
	pages = gw_overlays_pages(s->overlays, GW_OVERLAYS_NONE);
	broken = gw_overlays_broken(s->overlays, GW_OVERLAYS_NONE);
	lineage = s->lineage ? gw_lineage_pages(s->lineage) : 0;
	pthread_mutex_lock(&s->lock);
	s->stats.zero_pages = count_bits(s->zeroed, gw_ram_bitmap_words(s->ram));
	s->stats.shared_pages = pages - broken;
	s->stats.broken_pages = broken;
	s->stats.lineage_pages = lineage;
	s->stats.chunks = chunks;
	pthread_mutex_unlock(&s->lock);
}

/* Tells the daemon what is still in use of its chunks. */
static void tell_live(struct gw_sharer *s)
{
	struct gw_error err = GW_ERROR_INIT;

	forget_discarded(s);
	if (gw_session_tell_live(s->session, &err) < 0)
		detach(s, &err);
}

static uint64_t saved_so_far(const struct gw_sharer *s)
{
	const struct gw_merger_stats *m = gw_merger_stats(s->merger);

	return m->store_pages + m->zero_pages + m->again_pages;
}

static void pass(struct gw_sharer *s)
{
	struct gw_error err = GW_ERROR_INIT;
	uint64_t began = gw_now_ns(), before = saved_so_far(s);

	s->budget_since_ns = began;
	s->budget_cpu_ns = cpu_ns();
	if (!scan(s, &err)) {
		if (err.code && s->session)
			detach(s, &err);
		return;
	}
	s->full = s->inherited = false;
	gw_merger_settle(s->merger);
	tell_live(s);
	take_stock(s);
	s->backoff = saved_so_far(s) > before ? 1 : GW_MIN(s->backoff * 2, MAX_BACKOFF);
	pthread_mutex_lock(&s->lock);
	s->stats.passes++;
	s->stats.pass_ns = gw_now_ns() - began;
	s->pass_end_ns = gw_now_ns();
	pthread_mutex_unlock(&s->lock);
	publish(s);
}

/* What others' passes and ends led to here is given back before our own next pass, at `due`: once it has come to rest, or some time later. */
static void settle(struct gw_sharer *s, uint64_t due)
{
	uint64_t last = gw_now_ns() + SETTLE_MAX_NS, now, rest;

	do {
		rest = gw_now_ns() + SETTLE_NS;
		if (!handle_until(s, GW_MIN(rest, due)) || !s->session || s->full)
			return;
		now = gw_now_ns();
		if (now >= due)
			return; /* the pass does the same */
	} while (now < rest && now < last);
	gw_merger_settle(s->merger);
	if (gw_session_emptying(s->session))
		tell_live(s);
	take_stock(s);
	publish(s);
}

static void *share(void *arg)
{
	struct gw_sharer *s = arg;
	uint64_t due = 0;

	pthread_setname_np(pthread_self(), "share");
	/* Of this thread alone, on Linux. Nobody waits for what it does but while a window is open (ksm/window.c). */
	(void)setpriority(PRIO_PROCESS, 0, NICE);
	while (may_work(s)) {
		if (!s->session || s->loading) {
			handle_until(s, UINT64_MAX);
			continue;
		}
		if (s->full || gw_now_ns() >= due) {
			pass(s);
			due = gw_now_ns() + s->config.interval_ns * s->backoff;
		} else if (gw_merger_settle_due(s->merger) || gw_session_emptying(s->session)) {
			settle(s, due);
		} else {
			handle_until(s, due);
		}
	}
	return NULL;
}

static int allocate(struct gw_sharer *s, struct gw_error *err)
{
	struct gw_merger_limits limits = { .stall_ns = s->config.stall_ns, .mappings = s->config.mappings };
	uint64_t pages = gw_ram_pages(s->ram);
	int r;

	s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->zeroed = calloc(gw_ram_bitmap_words(s->ram), sizeof(uint64_t));
	if (s->wake < 0 || !s->zeroed || (s->config.image_only && gw_known_new(pages, &s->known) < 0))
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_pagemap_new(&s->map);
	if (r < 0)
		return gw_error_errno(err, r, "/proc/self/pagemap");
	if (gw_written_new(s->ram, s->map, s->loading, &s->written) < 0 || gw_overlays_new(pages, &s->overlays) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_merger_new(s->ram, s->map, s->written, s->overlays, &limits, &s->merger, err);
	if (r == 0 && s->loading && gw_lineage_new(s->ram, s->overlays, gw_merger_budget(s->merger), &s->lineage) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	return r;
}

int gw_sharer_new(struct gw_ram *ram, const struct gw_sharer_config *config, struct gw_sharer **ret, struct gw_error *err)
{
	struct gw_sharer *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return gw_error_set(err, ENOMEM, "out of memory");
	s->ram = ram;
	s->config = *config;
	s->loading = config->loading;
	if (s->config.cpu_percent == 0)
		s->config.cpu_percent = DEFAULT_CPU_PERCENT;
	if (s->config.interval_ns == 0)
		s->config.interval_ns = DEFAULT_INTERVAL_NS;
	s->fresh = -1;
	s->wake = -1;
	s->backoff = 1;
	pthread_mutex_init(&s->lock, NULL);
	r = allocate(s, err);
	if (r == 0) {
		s->stats.pages = gw_ram_pages(ram);
		s->stats.image_only = config->image_only;
		s->stats.tracks = gw_written_tracks(s->written);
		s->stats.mappings_budget = gw_merger_budget(s->merger);
		set_reason(s, "no page store yet");
		tell_limit(s, s->stats.limit, sizeof(s->stats.limit));
		if (!s->stats.tracks)
			gw_warn("sharing: %s", UNTRACKED);
		r = gw_thread_create(&s->thread, share, s);
		s->started = r == 0;
		if (r < 0)
			gw_error_errno(err, r, "cannot start the sharing thread");
	}
	if (r < 0) {
		gw_sharer_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

void gw_sharer_free(struct gw_sharer *s)
{
	if (!s)
		return;
	if (s->started) {
		pthread_mutex_lock(&s->lock);
		s->stop = true;
		pthread_mutex_unlock(&s->lock);
		gw_merger_quit(s->merger);
		wake(s);
		pthread_join(s->thread, NULL);
	}
	gw_session_free(s->session);
	gw_lineage_free(s->lineage);
	gw_merger_free(s->merger);
	gw_overlays_free(s->overlays);
	gw_written_free(s->written);
	gw_pagemap_free(s->map);
	gw_known_free(s->known);
	gw_closep(&s->fresh);
	gw_closep(&s->wake);
	free(s->zeroed);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

void gw_sharer_attach(struct gw_sharer *s, int fd)
{
	pthread_mutex_lock(&s->lock);
	gw_closep(&s->fresh);
	s->fresh = fd;
	pthread_mutex_unlock(&s->lock);
	wake(s);
}

struct gw_lineage *gw_sharer_lineage(struct gw_sharer *s)
{
	return s->lineage;
}

void gw_sharer_loaded(struct gw_sharer *s)
{
	struct gw_sharer_stats now;

	gw_sharer_stats(s, &now);
	pthread_mutex_lock(&s->lock);
	/* Until the first pass has counted anew. */
	if (s->lineage && !s->loaded) {
		s->stats.lineage_pages = now.lineage_pages;
		s->stats.shared_pages = now.shared_pages;
	}
	s->loaded = true;
	pthread_mutex_unlock(&s->lock);
	wake(s);
}

void gw_sharer_pause(struct gw_sharer *s)
{
	pthread_mutex_lock(&s->lock);
	s->paused++;
	pthread_mutex_unlock(&s->lock);
	gw_merger_hold(s->merger);
}

void gw_sharer_resume(struct gw_sharer *s)
{
	gw_merger_release(s->merger);
	pthread_mutex_lock(&s->lock);
	s->paused--;
	pthread_mutex_unlock(&s->lock);
	wake(s);
}

void gw_sharer_disk_read(struct gw_sharer *s, uint64_t gpa, uint64_t len)
{
	uint64_t first = GW_ALIGN_UP(gpa, GW_PAGE_SIZE), end = GW_ALIGN_DOWN(gpa + len, GW_PAGE_SIZE);

	for (; s->known && first < end; first += GW_PAGE_SIZE) {
		const void *page = gw_ram_ptr(s->ram, first, GW_PAGE_SIZE);

		if (page)
			gw_known_add(s->known, page);
	}
}

void gw_sharer_stats(struct gw_sharer *s, struct gw_sharer_stats *ret)
{
	bool loading;

	pthread_mutex_lock(&s->lock);
	*ret = s->stats;
	loading = s->lineage && !s->loaded;
	ret->pass_age_ns = s->stats.passes ? gw_now_ns() - s->pass_end_ns : 0;
	pthread_mutex_unlock(&s->lock);
	if (loading)
		ret->lineage_pages = ret->shared_pages = gw_lineage_pages(s->lineage);
}
