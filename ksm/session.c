// SPDX-License-Identifier: Apache-2.0
/* A session with the daemon; see session.h. */
#include "ksm/session.h"

#include <errno.h>
#include <string.h>

#include "ksm/lineage.h"
#include "ksm/link.h"
#include "lib/clock.h"
#include "lib/util.h"
#include "proto/share.h"

#define MAX_THIN 64u /* chunks whose slots are told at once */
#define ANSWER_NS (10 * GW_NS_PER_SEC)

/* What the daemon knows of a chunk, and is to learn. */
struct news {
	uint32_t told;       /* last told + 1 */
	uint16_t told_slots; /* live ones when they were last told */
	int thin;            /* which of those that are being told, or -1 */
	bool emptying;       /* the daemon asked for it (REMAP) */
};

struct gw_session {
	struct gw_link *link;
	struct gw_ram *ram;
	struct gw_overlays *overlays;
	struct gw_merger *merger;
	uint8_t secret[GW_SHARE_SECRET_LEN];
	struct gw_share_hash reports[GW_SHARE_MAX_REPORT];
	unsigned count;
	unsigned ahead;    /* REPORTs without their DONE */
	bool welcome, synced;
	bool names;        /* the daemon knows FIND and OFFER */
	struct gw_lineage *lineage; /* NULL: memory is here */
	bool reported;     /* since the last SYNC */
	unsigned adopting; /* ADOPTs without answer */
	struct news *news; /* by chunk number */
	uint32_t news_room;
	bool emptying;     /* chunks are to be emptied, and the daemon waits to be told that they are */
};

static int gone(struct gw_error *err, int r)
{
	return gw_error_errno(err, r, "the page store's daemon cannot be told");
}

static int nonsense(struct gw_error *err, const char *what)
{
	return gw_error_set(err, EPROTO, "the page store's daemon %s", what);
}

static int on_welcome(struct gw_session *s, const struct gw_share_welcome *w, struct gw_error *err)
{
	if (s->welcome || w->version < GW_SHARE_VERSION_MIN || w->version > GW_SHARE_VERSION)
		return nonsense(err, "speaks another version");
	s->names = w->version >= 2;
	memcpy(s->secret, w->secret, sizeof(s->secret));
	s->welcome = true;
	return 0;
}

/* The bytes as they are now; the daemon looks whether they still have the hash. */
static int on_fetch(struct gw_session *s, const struct gw_link_message *m, struct gw_error *err)
{
	const struct gw_share_wanted *wanted = m->body;
	uint64_t pages[GW_SHARE_MAX_PAGES];
	const void *bytes[GW_SHARE_MAX_PAGES];
	unsigned n = 0;
	int r = 0;

	if (s->lineage)
		return nonsense(err, "asked for a page that was not reported");
	for (unsigned i = 0; i < m->head.count && r == 0; i++) {
		if (wanted[i].page >= gw_ram_pages(s->ram))
			return nonsense(err, "asked for a page beyond the guest's memory");
		pages[n] = wanted[i].page;
		bytes[n] = gw_ram_page(s->ram, wanted[i].page);
		if (++n == GW_SHARE_MAX_PAGES) {
			r = gw_link_send_pages(s->link, m->head.cookie, pages, bytes, n);
			n = 0;
		}
	}
	/* One that is not full ends the answer. */
	if (r == 0)
		r = gw_link_send_pages(s->link, m->head.cookie, pages, bytes, n);
	return r < 0 ? gone(err, r) : 0;
}

static int on_chunk(struct gw_session *s, struct gw_link_message *m, struct gw_error *err)
{
	const struct gw_share_chunk *c = m->body;
	int r;

	if (c->chunk == GW_SHARE_NO_CHUNK)
		return nonsense(err, "gave a chunk without a number");
	r = gw_overlays_add(s->overlays, c->chunk, m->fd, c->slots);

	m->fd = -1;
	return r < 0 ? gw_error_errno(err, r, "chunk %u of the page store's daemon", c->chunk) : 0;
}

/* Whether the slots are of a chunk that is held: *chunk, or false when it was let go of meanwhile. */
static int find_slots(struct gw_session *s, uint32_t id, uint32_t slot, uint32_t count, uint32_t *chunk, struct gw_error *err)
{
	*chunk = gw_overlays_find(s->overlays, id);
	if (*chunk != GW_OVERLAYS_NONE && (count == 0 || slot + count > gw_overlays_slots(s->overlays, *chunk)))
		return nonsense(err, "named a slot beyond its chunk");
	return 0;
}

static int on_merge(struct gw_session *s, const struct gw_link_message *m, struct gw_error *err)
{
	const struct gw_share_merge *o = m->body;
	uint64_t pages = gw_ram_pages(s->ram);

	for (unsigned i = 0; i < m->head.count; i++) {
		uint32_t chunk;
		int r = find_slots(s, o[i].chunk, o[i].slot, o[i].count, &chunk, err);

		if (r < 0)
			return r;
		if (o[i].page >= pages || o[i].count > pages - o[i].page)
			return nonsense(err, "named a page beyond the guest's memory");
		if (chunk != GW_OVERLAYS_NONE)
			gw_merger_store(s->merger, o[i].page, o[i].count, chunk, o[i].slot);
		else /* it was let go of while this was on its way */
			gw_merger_look_again(s->merger, o[i].page, o[i].count);
	}
	return 0;
}

/* Pages that lie over the named slots go to the others. */
static void remap(struct gw_session *s, const struct gw_share_remap *o, uint32_t from, uint32_t to)
{
	struct gw_overlays_run r;

	for (uint64_t p = 0; gw_overlays_next(s->overlays, p, &r); p = r.page + r.count) {
		uint32_t first = GW_MAX(r.slot, (uint32_t)o->from_slot), end = GW_MIN(r.slot + r.count, (uint32_t)o->from_slot + o->count);

		if (r.chunk == from && first < end)
			gw_merger_store(s->merger, r.page + (first - r.slot), end - first, to, o->to_slot + (first - o->from_slot));
	}
}

static int make_room(struct gw_session *s, uint32_t chunks)
{
	struct news *news;

	if (chunks <= s->news_room)
		return 0;
	news = reallocarray(s->news, chunks, sizeof(*news));
	if (!news)
		return -ENOMEM;
	memset(news + s->news_room, 0, (chunks - s->news_room) * sizeof(*news));
	s->news = news;
	s->news_room = chunks;
	return 0;
}

static int on_remap(struct gw_session *s, const struct gw_link_message *m, struct gw_error *err)
{
	const struct gw_share_remap *o = m->body;

	/* What was ordered before is to lie where it is moved from. */
	gw_merger_run(s->merger);
	for (unsigned i = 0; i < m->head.count; i++) {
		uint32_t from, to;
		int r = find_slots(s, o[i].from_chunk, o[i].from_slot, o[i].count, &from, err);

		if (r == 0)
			r = find_slots(s, o[i].to_chunk, o[i].to_slot, o[i].count, &to, err);
		if (r < 0)
			return r;
		if (from == GW_OVERLAYS_NONE || to == GW_OVERLAYS_NONE)
			continue;
		remap(s, &o[i], from, to);
		if (make_room(s, from + 1) == 0)
			s->news[from].emptying = true;
		s->emptying = true;
	}
	return 0;
}

static int on_adopted(struct gw_session *s, const struct gw_share_adopted *a, struct gw_error *err)
{
	int r;

	if (s->adopting == 0 || a->chunk >= gw_overlays_chunks(s->overlays) || gw_overlays_slots(s->overlays, a->chunk) == 0)
		return nonsense(err, "adopted a chunk that it was not offered");
	s->adopting--;
	r = gw_overlays_set_id(s->overlays, a->chunk, a->now) < 0 ? nonsense(err, "gave two chunks one number") : 0;
	if (r == 0 && s->lineage)
		gw_lineage_adopted(s->lineage, a->chunk, a->now != GW_SHARE_NO_CHUNK);
	return r;
}

static int dispatch(struct gw_session *s, struct gw_link_message *m, struct gw_error *err)
{
	if ((m->head.type == GW_SHARE_WELCOME) == s->welcome)
		return nonsense(err, "spoke out of turn");
	switch (m->head.type) {
	case GW_SHARE_WELCOME:
		return on_welcome(s, m->body, err);
	case GW_SHARE_DONE:
		if (s->ahead == 0)
			return nonsense(err, "has done more than it was told");
		s->ahead--;
		return 0;
	case GW_SHARE_FETCH:
		return on_fetch(s, m, err);
	case GW_SHARE_CHUNK:
		return on_chunk(s, m, err);
	case GW_SHARE_MERGE:
		/* No window may open over memory that another userfaultfd holds. Orders may be left undone. */
		return s->lineage ? 0 : on_merge(s, m, err);
	case GW_SHARE_REMAP:
		return s->lineage ? 0 : on_remap(s, m, err);
	case GW_SHARE_SYNCED:
		s->synced = true;
		return 0;
	case GW_SHARE_FOUND:
		if (s->lineage)
			gw_lineage_found(s->lineage, m->head.cookie, m->body, m->head.count);
		return 0;
	default: /* the link lets nothing else through */
		return on_adopted(s, m->body, err);
	}
}

int gw_session_handle(struct gw_session *s, int timeout_ms, struct gw_error *err)
{
	struct gw_link_message m;
	int r;

	while ((r = gw_link_receive(s->link, timeout_ms, &m, err)) > 0) {
		r = dispatch(s, &m, err);
		gw_closep(&m.fd);
		if (r < 0)
			break;
		timeout_ms = 0;
	}
	/* What was ordered before the session broke is as good as ever: bytes are compared. */
	gw_merger_run(s->merger);
	return r;
}

/* Handles packets until the condition holds, 10 s at most from one packet to the next. */
#define HANDLE_UNTIL(s, condition, err) \
	({ \
		uint64_t hu_end = gw_now_ns() + ANSWER_NS; \
		int hu_r = 0; \
		while (!(condition) && hu_r == 0) { \
			if (gw_now_ns() > hu_end) \
				hu_r = gw_error_set((err), ETIMEDOUT, "the page store's daemon does not answer"); \
			else \
				hu_r = gw_session_handle((s), 100, (err)); \
		} \
		hu_r; \
	})

static int adopt_all(struct gw_session *s, struct gw_error *err)
{
	gw_overlays_forget_ids(s->overlays);
	for (uint32_t c = 0; c < gw_overlays_chunks(s->overlays); c++) {
		struct gw_share_adopt a = { .chunk = c, .pages = gw_overlays_pages(s->overlays, c) };
		int r;

		if (gw_overlays_slots(s->overlays, c) == 0)
			continue;
		r = gw_link_send(s->link, GW_SHARE_ADOPT, 0, &a, 1, gw_overlays_fd(s->overlays, c));
		if (r < 0)
			return gone(err, r);
		s->adopting++;
		r = HANDLE_UNTIL(s, s->adopting < 64, err);
		if (r < 0)
			return r;
	}
	return HANDLE_UNTIL(s, s->adopting == 0, err);
}

int gw_session_new(int fd, struct gw_ram *ram, struct gw_overlays *overlays, struct gw_merger *merger, struct gw_session **ret,
		   struct gw_error *err)
{
	struct gw_share_hello hello = { GW_SHARE_VERSION_MIN, GW_SHARE_VERSION, gw_ram_pages(ram) };
	struct gw_session *s = calloc(1, sizeof(*s));
	int r;

	if (!s) {
		close(fd);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	s->ram = ram;
	s->overlays = overlays;
	s->merger = merger;
	r = gw_link_new(fd, &s->link);
	if (r == 0)
		r = gw_link_send(s->link, GW_SHARE_HELLO, 0, &hello, 1, -1);
	r = r < 0 ? gone(err, r) : HANDLE_UNTIL(s, s->welcome, err);
	if (r == 0)
		r = adopt_all(s, err);
	if (r < 0) {
		gw_session_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

void gw_session_free(struct gw_session *s)
{
	if (!s)
		return;
	gw_link_free(s->link);
	free(s->news);
	free(s);
}

int gw_session_fd(const struct gw_session *s)
{
	return gw_link_fd(s->link);
}

const uint8_t *gw_session_secret(const struct gw_session *s)
{
	return s->secret;
}

bool gw_session_has_names(const struct gw_session *s)
{
	return s->names;
}

void gw_session_set_lineage(struct gw_session *s, struct gw_lineage *l)
{
	s->lineage = l;
}

int gw_session_find(struct gw_session *s, uint32_t cookie, const struct gw_share_find *names, unsigned count)
{
	return gw_link_post(s->link, GW_SHARE_FIND, cookie, names, count, -1);
}

int gw_session_offer(struct gw_session *s, uint32_t chunk, const struct gw_share_named *names)
{
	int r = gw_link_post(s->link, GW_SHARE_OFFER, chunk, names, gw_overlays_slots(s->overlays, chunk), gw_overlays_fd(s->overlays, chunk));

	s->adopting += r == 0;
	return r;
}

int gw_session_flush(struct gw_session *s, struct gw_error *err)
{
	int r;

	if (s->count == 0)
		return 0;
	r = HANDLE_UNTIL(s, s->ahead < GW_SHARE_REPORTS_AHEAD, err);
	if (r == 0) {
		r = gw_link_send(s->link, GW_SHARE_REPORT, 0, s->reports, s->count, -1);
		if (r < 0)
			return gone(err, r);
		s->ahead++;
		s->count = 0;
		s->reported = true;
	}
	return r;
}

int gw_session_report(struct gw_session *s, uint64_t page, uint64_t low, uint64_t high, struct gw_error *err)
{
	s->reports[s->count++] = (struct gw_share_hash){ page, low, high };
	return s->count == GW_SHARE_MAX_REPORT ? gw_session_flush(s, err) : 0;
}

/* When it returns, orders for every chunk that has come are carried out. */
static int await_orders(struct gw_session *s, struct gw_error *err)
{
	int r;

	s->reported = s->synced = false;
	r = gw_link_send(s->link, GW_SHARE_SYNC, 0, NULL, 0, -1);
	return r < 0 ? gone(err, r) : HANDLE_UNTIL(s, s->synced, err);
}

int gw_session_sync(struct gw_session *s, struct gw_error *err)
{
	int r = gw_session_flush(s, err);

	/* The daemon is not woken for nothing. */
	return r < 0 || !s->reported ? r : await_orders(s, err);
}

static uint32_t live_pages(const struct gw_session *s, uint32_t chunk)
{
	return gw_overlays_pages(s->overlays, chunk) - gw_overlays_broken(s->overlays, chunk);
}

/* Broken pages over a chunk that is to be emptied leave it. */
static void leave_emptying(struct gw_session *s)
{
	bool any = false;

	for (uint32_t c = 0; c < s->news_room && !any; c++)
		any = s->news[c].emptying && gw_overlays_broken(s->overlays, c) > 0;
	for (uint64_t p = 0; any && p < gw_ram_pages(s->ram); p++) {
		uint32_t chunk, slot;

		if (gw_overlays_is_broken(s->overlays, p) && gw_overlays_at(s->overlays, p, &chunk, &slot) && s->news[chunk].emptying)
			gw_merger_leave(s->merger, p, 1);
	}
	gw_merger_run(s->merger);
}

static bool any_unused(const struct gw_session *s)
{
	for (uint32_t c = 0; c < gw_overlays_chunks(s->overlays); c++) {
		if (gw_overlays_slots(s->overlays, c) > 0 && gw_overlays_pages(s->overlays, c) == 0)
			return true;
	}
	return false;
}

static bool thin(const struct gw_session *s, uint32_t chunk)
{
	uint32_t live = live_pages(s, chunk);

	return live > 0 && live * 4 < gw_overlays_slots(s->overlays, chunk);
}

/* Which slots of thin chunks are live, for the daemon to join them: again when half of what it knows is gone; some chunks a time. */
static int tell_slots(struct gw_session *s, struct gw_error *err)
{
	struct gw_share_slots slots[MAX_THIN] = { 0 };
	struct gw_overlays_run run;
	uint32_t chosen[MAX_THIN];
	unsigned n = 0;
	int r;

	for (uint32_t c = 0; c < gw_overlays_chunks(s->overlays) && n < MAX_THIN; c++) {
		struct news *news = &s->news[c];

		news->thin = -1;
		if (!thin(s, c) || gw_overlays_id(s->overlays, c) == GW_OVERLAYS_NONE ||
		    (news->told_slots && live_pages(s, c) * 2u >= news->told_slots))
			continue;
		chosen[n] = c;
		slots[n].chunk = gw_overlays_id(s->overlays, c);
		news->thin = (int)n++;
	}
	for (uint64_t p = 0; n > 0 && gw_overlays_next(s->overlays, p, &run); p = run.page + run.count) {
		for (uint32_t i = 0; s->news[run.chunk].thin >= 0 && i < run.count; i++)
			if (!gw_overlays_is_broken(s->overlays, run.page + i))
				slots[s->news[run.chunk].thin].live[(run.slot + i) / 64] |= 1ull << ((run.slot + i) % 64);
	}
	if (n == 0)
		return 0;
	r = gw_link_send(s->link, GW_SHARE_SLOTS, 0, slots, n, -1);
	if (r < 0)
		return gone(err, r);
	for (unsigned i = 0; i < n; i++) {
		s->news[chosen[i]].told_slots = (uint16_t)live_pages(s, chosen[i]);
		s->news[chosen[i]].thin = -1;
	}
	return 0;
}

bool gw_session_emptying(const struct gw_session *s)
{
	return s->emptying;
}

int gw_session_tell_live(struct gw_session *s, struct gw_error *err)
{
	struct gw_share_live entries[GW_SHARE_MAX_RUNS];
	uint32_t chunks;
	unsigned n = 0;
	int r = 0;

	/* One that has just come is not let go of before its orders are here. */
	if (any_unused(s))
		r = await_orders(s, err);
	if (r < 0)
		return r;
	chunks = gw_overlays_chunks(s->overlays);
	if (make_room(s, chunks) < 0)
		return 0; /* told the next time */
	s->emptying = false;
	leave_emptying(s);
	for (uint32_t c = 0; c < chunks && r == 0; c++) {
		bool unused = gw_overlays_pages(s->overlays, c) == 0;
		/* 0 says that the descriptor is closed: a chunk under broken pages only counts as one. */
		uint32_t id, live = unused ? 0 : GW_MAX(live_pages(s, c), 1u);

		if (gw_overlays_slots(s->overlays, c) == 0)
			continue;
		id = gw_overlays_id(s->overlays, c);
		if (unused)
			gw_overlays_drop(s->overlays, c);
		if (id != GW_OVERLAYS_NONE && s->news[c].told != live + 1)
			entries[n++] = (struct gw_share_live){ id, live };
		s->news[c].told = live + 1;
		if (unused)
			s->news[c] = (struct news){ 0 };
		if (n == GW_SHARE_MAX_RUNS) {
			r = gw_link_send(s->link, GW_SHARE_LIVE, 0, entries, n, -1);
			n = 0;
		}
	}
	if (n > 0 && r == 0)
		r = gw_link_send(s->link, GW_SHARE_LIVE, 0, entries, n, -1);
	return r < 0 ? gone(err, r) : tell_slots(s, err);
}
