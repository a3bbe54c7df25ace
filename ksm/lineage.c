// SPDX-License-Identifier: Apache-2.0
/* Memory that is loaded and shared from the first instant; see lineage.h. */
#include "ksm/lineage.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "ksm/chunk.h"
#include "lib/clock.h"
#include "lib/util.h"

#define PATIENCE_NS GW_NS_PER_SEC
#define URGENT_NS (GW_NS_PER_SEC / 2)
#define FIRST_PAUSE_NS (2 * GW_NS_PER_SEC)
#define LONGEST_PAUSE_NS (60 * GW_NS_PER_SEC)

/* One that waits for the daemon's word, on its own stack. */
struct asking {
	struct asking *next;
	enum gw_share_type type; /* FIND, OFFER */
	uint32_t number;         /* the FIND's cookie, the OFFER's chunk */
	unsigned asked;          /* names */
	struct gw_lineage_found *found;
	unsigned count;
	int result;              /* -EINPROGRESS: no word yet */
};

struct gw_lineage {
	struct gw_ram *ram;
	uint32_t budget, max_chunks;
	pthread_mutex_t lock; /* all below, and the overlays and the session while there is one */
	pthread_cond_t word;
	struct gw_overlays *overlays;
	struct gw_session *session;
	bool known; /* whether there is one */
	struct asking *asking;
	uint32_t next_cookie;
	uint64_t pause_ns, not_before_ns; /* after one that was not answered */
	uint32_t mappings;
	uint64_t *mapped; /* a bit a page */
};

int gw_lineage_new(struct gw_ram *ram, struct gw_overlays *overlays, uint32_t mappings, struct gw_lineage **ret)
{
	struct gw_lineage *l = calloc(1, sizeof(*l));
	pthread_condattr_t attr;
	struct rlimit files;

	if (l)
		l->mapped = calloc(gw_ram_bitmap_words(ram), sizeof(*l->mapped));
	if (!l || !l->mapped) {
		free(l);
		return -ENOMEM;
	}
	l->ram = ram;
	l->overlays = overlays;
	/* The rest is for what is found equal later, and what splits. */
	l->budget = mappings - mappings / 4;
	/* The process has other uses for descriptors. */
	l->max_chunks = getrlimit(RLIMIT_NOFILE, &files) == 0 ? (uint32_t)GW_MIN(files.rlim_cur / 2, (rlim_t)GW_OVERLAYS_MAX_CHUNKS) : 0;
	pthread_mutex_init(&l->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&l->word, &attr);
	pthread_condattr_destroy(&attr);
	*ret = l;
	return 0;
}

void gw_lineage_free(struct gw_lineage *l)
{
	if (!l)
		return;
	pthread_cond_destroy(&l->word);
	pthread_mutex_destroy(&l->lock);
	free(l->mapped);
	free(l);
}

/* ---- the daemon's word ---- */

void gw_lineage_begin(struct gw_lineage *l, struct gw_session *session)
{
	pthread_mutex_lock(&l->lock);
	gw_session_set_lineage(session, l);
	l->session = session;
	l->known = true;
	pthread_cond_broadcast(&l->word);
	pthread_mutex_unlock(&l->lock);
}

static void answer(struct gw_lineage *l, struct asking *a, int result)
{
	a->result = result;
	pthread_cond_broadcast(&l->word);
}

void gw_lineage_end(struct gw_lineage *l)
{
	pthread_mutex_lock(&l->lock);
	if (l->session)
		gw_session_set_lineage(l->session, NULL);
	l->session = NULL;
	l->known = true;
	pthread_cond_broadcast(&l->word);
	for (struct asking *a = l->asking; a; a = a->next)
		answer(l, a, -EPIPE);
	pthread_mutex_unlock(&l->lock);
}

int gw_lineage_handle(struct gw_lineage *l, struct gw_error *err)
{
	int r = 0;

	pthread_mutex_lock(&l->lock);
	if (l->session)
		r = gw_session_handle(l->session, 0, err);
	pthread_mutex_unlock(&l->lock);
	return r;
}

static struct asking *find_asking(const struct gw_lineage *l, enum gw_share_type type, uint32_t number)
{
	struct asking *a = l->asking;

	while (a && (a->type != type || a->number != number || a->result != -EINPROGRESS))
		a = a->next;
	return a;
}

void gw_lineage_found(struct gw_lineage *l, uint32_t cookie, const struct gw_share_found *found, unsigned count)
{
	struct asking *a = find_asking(l, GW_SHARE_FIND, cookie);

	/* One that nobody waits for any more, or nonsense. */
	if (!a)
		return;
	for (unsigned i = 0; i < count; i++) {
		uint32_t chunk = gw_overlays_find(l->overlays, found[i].chunk);
		struct gw_lineage_found *last = a->count ? &a->found[a->count - 1] : NULL;

		if (found[i].index >= a->asked || (last && found[i].index <= last->index) || chunk == GW_OVERLAYS_NONE ||
		    found[i].slot >= gw_overlays_slots(l->overlays, chunk))
			continue;
		a->found[a->count] = (struct gw_lineage_found){ .index = found[i].index, .chunk = chunk, .slot = found[i].slot };
		memcpy(a->found[a->count++].proof, found[i].proof, GW_SHARE_PROOF_LEN);
	}
	answer(l, a, 0);
}

void gw_lineage_adopted(struct gw_lineage *l, uint32_t chunk, bool adopted)
{
	struct asking *a = find_asking(l, GW_SHARE_OFFER, chunk);

	if (!adopted)
		gw_overlays_drop(l->overlays, chunk); /* nothing was mapped of it */
	if (a)
		answer(l, a, adopted ? 0 : -EEXIST);
}

static struct timespec to_timespec(uint64_t ns)
{
	return (struct timespec){ (time_t)(ns / GW_NS_PER_SEC), (long)(ns % GW_NS_PER_SEC) };
}

void gw_lineage_await(struct gw_lineage *l)
{
	uint64_t until = gw_now_ns() + URGENT_NS;
	const struct timespec ts = to_timespec(until);

	pthread_mutex_lock(&l->lock);
	while (!l->known && gw_now_ns() < until)
		pthread_cond_timedwait(&l->word, &l->lock, &ts);
	pthread_mutex_unlock(&l->lock);
}

/* With the lock held. */
static bool ready(const struct gw_lineage *l)
{
	return l->session && gw_session_has_names(l->session) && gw_now_ns() >= l->not_before_ns &&
	       gw_overlays_chunks(l->overlays) < l->max_chunks;
}

bool gw_lineage_ready(struct gw_lineage *l)
{
	bool is;

	pthread_mutex_lock(&l->lock);
	is = ready(l);
	pthread_mutex_unlock(&l->lock);
	return is;
}

/* With the lock held. */
static int await(struct gw_lineage *l, struct asking *a, uint64_t patience_ns)
{
	uint64_t until = gw_now_ns() + patience_ns;
	const struct timespec ts = to_timespec(until);
	struct asking **p = &l->asking;

	a->next = l->asking;
	l->asking = a;
	a->result = -EINPROGRESS;
	while (a->result == -EINPROGRESS && gw_now_ns() < until)
		pthread_cond_timedwait(&l->word, &l->lock, &ts);
	while (*p != a)
		p = &(*p)->next;
	*p = a->next;
	if (a->result != -EINPROGRESS) {
		l->pause_ns = 0;
		return a->result;
	}
	if (gw_now_ns() >= l->not_before_ns) {
		l->pause_ns = l->pause_ns ? GW_MIN(2 * l->pause_ns, LONGEST_PAUSE_NS) : FIRST_PAUSE_NS;
		l->not_before_ns = gw_now_ns() + l->pause_ns;
	}
	return -ETIMEDOUT;
}

/* ---- the loader ---- */

unsigned gw_lineage_find(struct gw_lineage *l, const struct gw_share_find *names, unsigned count, bool urgent, struct gw_lineage_found *ret)
{
	struct asking a = { .type = GW_SHARE_FIND, .asked = count, .found = ret };
	int r = -EPIPE;

	pthread_mutex_lock(&l->lock);
	a.number = ++l->next_cookie;
	if (ready(l))
		r = gw_session_find(l->session, a.number, names, count);
	if (r == 0)
		r = await(l, &a, urgent ? URGENT_NS : PATIENCE_NS);
	pthread_mutex_unlock(&l->lock);
	return r == 0 ? a.count : 0;
}

static void *map_slots(struct gw_lineage *l, uint32_t chunk, uint32_t slot, uint32_t count, void *at, int prot, int flags)
{
	return mmap(at, (size_t)count << GW_PAGE_SHIFT, prot, flags, gw_overlays_fd(l->overlays, chunk), (off_t)slot << GW_PAGE_SHIFT);
}

const uint8_t *gw_lineage_view(struct gw_lineage *l, uint32_t chunk, uint32_t slot, uint32_t count)
{
	void *p;

	pthread_mutex_lock(&l->lock);
	p = map_slots(l, chunk, slot, count, NULL, PROT_READ, MAP_SHARED | MAP_POPULATE);
	pthread_mutex_unlock(&l->lock);
	return p == MAP_FAILED ? NULL : p;
}

void gw_lineage_unview(const uint8_t *view, uint32_t count)
{
	munmap((void *)view, (size_t)count << GW_PAGE_SHIFT);
}

/* A sealed file of the bytes: its descriptor, or -errno. */
static int fill(const void *bytes, unsigned count)
{
	struct iovec pages[GW_SHARE_CHUNK_PAGES];
	struct gw_chunk *k;
	int fd, r = gw_chunk_new(&k);

	if (r < 0)
		return r;
	for (unsigned i = 0; i < count; i++)
		pages[i] = (struct iovec){ (uint8_t *)bytes + ((size_t)i << GW_PAGE_SHIFT), GW_PAGE_SIZE };
	r = gw_chunk_append(k, pages, count) ?: gw_chunk_seal(k);
	fd = gw_steal_fd(&k->fd);
	gw_chunk_unref(k);
	if (r < 0)
		close(fd);
	return r < 0 ? r : fd;
}

int gw_lineage_offer(struct gw_lineage *l, const void *bytes, const struct gw_share_named *names, unsigned count, uint32_t *chunk)
{
	struct asking a = { .type = GW_SHARE_OFFER };
	int fd = fill(bytes, count), r;

	if (fd < 0)
		return fd;
	pthread_mutex_lock(&l->lock);
	if (!ready(l)) {
		close(fd);
		r = -EPIPE;
	} else {
		r = gw_overlays_add(l->overlays, GW_OVERLAYS_NONE, fd, count);
	}
	if (r >= 0) {
		a.number = (uint32_t)r;
		r = gw_session_offer(l->session, a.number, names);
		if (r < 0)
			gw_overlays_drop(l->overlays, a.number);
		else if (chunk)
			r = await(l, &a, PATIENCE_NS);
	}
	pthread_mutex_unlock(&l->lock);
	if (r == 0 && chunk)
		*chunk = a.number;
	return r;
}

/* The kernel joins mappings that follow one another in memory and in a chunk. */
static bool joins(const struct gw_lineage *l, uint64_t page, uint32_t count, uint32_t chunk, uint32_t slot)
{
	uint32_t c, s;

	return (page > 0 && slot > 0 && gw_overlays_at(l->overlays, page - 1, &c, &s) && c == chunk && s == slot - 1) ||
	       (page + count < gw_ram_pages(l->ram) && gw_overlays_at(l->overlays, page + count, &c, &s) && c == chunk && s == slot + count);
}

int gw_lineage_map(struct gw_lineage *l, uint64_t page, uint32_t count, uint32_t chunk, uint32_t slot)
{
	uint8_t *hva = gw_ram_page(l->ram, page);
	unsigned more;
	void *p;

	pthread_mutex_lock(&l->lock);
	more = joins(l, page, count, chunk, slot) ? 0 : 2;
	if (!l->session || l->mappings + more > l->budget) {
		pthread_mutex_unlock(&l->lock);
		return -ENOSPC;
	}
	gw_ram_layout_lock(l->ram);
	p = map_slots(l, chunk, slot, count, hva, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED);
	if (p != MAP_FAILED) {
		(void)madvise(hva, (size_t)count << GW_PAGE_SHIFT, MADV_DONTDUMP);
		gw_ram_set_backed(l->ram, page, count, true);
		gw_overlays_set(l->overlays, page, count, chunk, slot);
	}
	gw_ram_layout_unlock(l->ram);
	if (p != MAP_FAILED) {
		l->mappings += more;
		for (uint64_t i = page; i < page + count; i++)
			l->mapped[i / 64] |= 1ull << (i % 64);
	}
	pthread_mutex_unlock(&l->lock);
	return p == MAP_FAILED ? -ENOSPC : 0;
}

/* ---- what came of it ---- */

bool gw_lineage_has(const struct gw_lineage *l, uint64_t page)
{
	return l->mapped[page / 64] >> (page % 64) & 1;
}

uint64_t gw_lineage_pages(struct gw_lineage *l)
{
	uint64_t n = 0;
	uint32_t chunk, slot;

	pthread_mutex_lock(&l->lock);
	for (uint64_t p = 0; p < gw_ram_pages(l->ram); p++) {
		if (l->mapped[p / 64] == 0)
			p |= 63;
		else
			n += gw_lineage_has(l, p) && gw_overlays_at(l->overlays, p, &chunk, &slot) && !gw_overlays_is_broken(l->overlays, p);
	}
	pthread_mutex_unlock(&l->lock);
	return n;
}
