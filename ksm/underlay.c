// SPDX-License-Identifier: Apache-2.0
/* What lies under pages, in runs; see underlay.h. */
#include "ksm/underlay.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "lib/util.h"

#define PIECE GW_UNDERLAY_PIECE

struct run {
	uint16_t first, count; /* pages of the piece */
	uint32_t place;
};

struct piece {
	struct run *run; /* by `first` */
	uint16_t count, room;
};

struct gw_underlay {
	uint64_t pages;
	uint64_t room; /* runs there is room for, over all pieces */
	struct piece *piece;
};

static uint64_t pieces(const struct gw_underlay *u)
{
	return (u->pages + PIECE - 1) / PIECE;
}

int gw_underlay_new(uint64_t pages, struct gw_underlay **ret)
{
	struct gw_underlay *u = calloc(1, sizeof(*u));

	if (u) {
		u->pages = pages;
		u->piece = calloc(pieces(u), sizeof(*u->piece));
	}
	if (!u || !u->piece) {
		gw_underlay_free(u);
		return -ENOMEM;
	}
	*ret = u;
	return 0;
}

void gw_underlay_free(struct gw_underlay *u)
{
	if (!u)
		return;
	for (uint64_t i = 0; u->piece && i < pieces(u); i++)
		free(u->piece[i].run);
	free(u->piece);
	free(u);
}

/* The run that page `at` lies in, or the first behind it. */
static unsigned find(const struct piece *p, unsigned at)
{
	unsigned low = 0, high = p->count;

	while (low < high) {
		unsigned mid = (low + high) / 2;

		if (p->run[mid].first + p->run[mid].count <= at)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

uint32_t gw_underlay_at(const struct gw_underlay *u, uint64_t page)
{
	const struct piece *p = &u->piece[page / PIECE];
	unsigned at = page % PIECE, i = find(p, at);

	return i < p->count && p->run[i].first <= at ? p->run[i].place + at - p->run[i].first : GW_UNDERLAY_NONE;
}

struct gw_underlay_run gw_underlay_next(const struct gw_underlay *u, uint64_t from)
{
	unsigned at = from % PIECE;

	for (uint64_t n = from / PIECE; n < pieces(u); n++, at = 0) {
		unsigned i = find(&u->piece[n], at);

		if (i < u->piece[n].count) {
			const struct run *r = &u->piece[n].run[i];

			return (struct gw_underlay_run){ n * PIECE + r->first, r->count, r->place };
		}
	}
	return (struct gw_underlay_run){ .page = u->pages };
}

/* Room for its runs and some more, up to the PIECE that there can be. */
static int resize(struct gw_underlay *u, struct piece *p)
{
	unsigned room = GW_MIN(p->count + p->count / 4u + 2, PIECE);
	struct run *run = realloc(p->run, room * sizeof(*run));

	if (!run)
		return -ENOMEM;
	u->room = u->room + room - p->room;
	p->run = run;
	p->room = (uint16_t)room;
	return 0;
}

static void take_out(struct gw_underlay *u, struct piece *p, unsigned i)
{
	memmove(&p->run[i], &p->run[i + 1], (p->count - i - 1u) * sizeof(*p->run));
	if (--p->count * 2u < p->room)
		(void)resize(u, p);
}

static int put_in(struct gw_underlay *u, struct piece *p, unsigned i, struct run r)
{
	if (p->count == p->room && resize(u, p) < 0)
		return -ENOMEM;
	memmove(&p->run[i + 1], &p->run[i], (p->count - i) * sizeof(*p->run));
	p->run[i] = r;
	p->count++;
	return 0;
}

static bool follows(const struct run *a, const struct run *b)
{
	return a->first + a->count == b->first && a->place + a->count == b->place;
}

static int set_piece(struct gw_underlay *u, struct piece *p, struct run r)
{
	unsigned i = find(p, r.first);
	bool before = i > 0 && follows(&p->run[i - 1], &r), behind = i < p->count && follows(&r, &p->run[i]);

	if (before)
		p->run[i - 1].count = (uint16_t)(p->run[i - 1].count + r.count + (behind ? p->run[i].count : 0));
	if (before && behind)
		take_out(u, p, i);
	else if (behind)
		p->run[i] = (struct run){ r.first, (uint16_t)(r.count + p->run[i].count), r.place };
	else if (!before)
		return put_in(u, p, i, r);
	return 0;
}

static int clear_piece(struct gw_underlay *u, struct piece *p, unsigned from, unsigned end)
{
	unsigned i = find(p, from);

	while (i < p->count && p->run[i].first < end) {
		struct run *r = &p->run[i];
		unsigned run_end = r->first + r->count;

		if (run_end > end) {
			struct run rest = { (uint16_t)end, (uint16_t)(run_end - end), r->place + end - r->first };

			if (r->first >= from) {
				*r = rest;
				break;
			}
			if (put_in(u, p, i + 1, rest) < 0)
				return -ENOMEM;
			r = &p->run[i];
		}
		if (r->first >= from) {
			take_out(u, p, i);
		} else {
			r->count = (uint16_t)(from - r->first);
			i++;
		}
	}
	return 0;
}

int gw_underlay_set(struct gw_underlay *u, uint64_t page, uint32_t count, uint32_t place)
{
	while (count > 0) {
		uint32_t n = GW_MIN(count, PIECE - (uint32_t)(page % PIECE));

		if (set_piece(u, &u->piece[page / PIECE], (struct run){ (uint16_t)(page % PIECE), (uint16_t)n, place }) < 0)
			return -ENOMEM;
		page += n;
		place += n;
		count -= n;
	}
	return 0;
}

int gw_underlay_clear(struct gw_underlay *u, uint64_t page, uint32_t count)
{
	while (count > 0) {
		uint32_t n = GW_MIN(count, PIECE - (uint32_t)(page % PIECE));

		if (clear_piece(u, &u->piece[page / PIECE], page % PIECE, page % PIECE + n) < 0)
			return -ENOMEM;
		page += n;
		count -= n;
	}
	return 0;
}

uint64_t gw_underlay_memory(const struct gw_underlay *u)
{
	return sizeof(*u) + pieces(u) * sizeof(*u->piece) + u->room * sizeof(struct run);
}
