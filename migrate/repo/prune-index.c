// SPDX-License-Identifier: Apache-2.0
/* Indexes without packs that are about to go; see prune-internal.h. */
#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/index.h"
#include "migrate/repo/object.h"
#include "migrate/repo/prune-internal.h"

#define MANY 16u                   /* small indexes, that are then joined */
#define SMALL (GW_INDEX_TARGET / 4)

struct rewriting {
	const struct gw_pack_set *gone;
	struct gw_index_builder builder;
	bool affected; /* the index lists a pack that goes */
	bool copy;
};

static enum gw_places_how want_none(void *self, const uint8_t id[16], uint64_t size)
{
	return GW_PLACES_SKIP;
}

/* A pack's part of a table is copied as it is. */
static int take_section(void *self, const uint8_t pack[16], const void *data, uint64_t len)
{
	struct rewriting *rw = self;

	if (gw_pack_set_has(rw->gone, pack)) {
		rw->affected = true;
		return 0;
	}
	if (!rw->copy)
		return 0;
	gw_enc_bytes(&rw->builder.enc, data, len);
	rw->builder.packs++;
	return rw->builder.enc.error;
}

static int scan(struct gw_survey *s, struct rewriting *rw, const char *name, bool copy, struct gw_error *err)
{
	gw_cleanup(gw_places_release) struct gw_places none = GW_PLACES_INIT;
	const struct gw_places_sink sink = { .wanted = want_none, .section = take_section, .self = rw, .has_digests = true };

	rw->copy = copy;
	rw->affected = false;
	return gw_index_read(gw_repo_bucket(s->repo), s->crypt, name, &none, &sink, err);
}

/* Which are to be exchanged. */
static int choose(struct gw_survey *s, struct rewriting *rw, bool *exchange, struct gw_error *err)
{
	size_t small = 0;

	for (size_t i = 0; i < s->indexes.count; i++)
		small += s->indexes.all[i].size < SMALL;
	for (size_t i = 0; i < s->indexes.count; i++) {
		uint8_t id[16];
		int r;

		if (gw_object_parse_name(s->indexes.all[i].name, "index", id) < 0)
			continue;
		exchange[i] = small > MANY && s->indexes.all[i].size < SMALL;
		if (exchange[i] || rw->gone->count == 0)
			continue;
		r = scan(s, rw, s->indexes.all[i].name, false, err);
		if (r == -ENOENT)
			continue;
		if (r < 0)
			return r;
		exchange[i] = rw->affected;
	}
	return 0;
}

static int rewrite(struct gw_survey *s, struct rewriting *rw, bool *exchange, struct gw_error *err)
{
	int r = 0;

	for (size_t i = 0; i < s->indexes.count && r == 0; i++) {
		if (!exchange[i])
			continue;
		r = scan(s, rw, s->indexes.all[i].name, true, err);
		/* Another prune has exchanged it, and its content is elsewhere. */
		if (r == -ENOENT) {
			exchange[i] = false;
			r = 0;
		}
		if (r == 0 && rw->builder.body.len >= GW_INDEX_TARGET)
			r = gw_index_write(&rw->builder, gw_repo_bucket(s->repo), s->crypt, NULL, err);
	}
	return r < 0 ? r : gw_index_write(&rw->builder, gw_repo_bucket(s->repo), s->crypt, NULL, err);
}

int gw_prune_indexes(struct gw_survey *s, const struct gw_pack_set *gone, struct gw_error *err)
{
	gw_autofree bool *exchange = calloc(s->indexes.count + 1, sizeof(*exchange));
	struct rewriting rw = { .gone = gone };
	int r;

	if (!exchange)
		return gw_error_set(err, ENOMEM, "out of memory");
	gw_index_builder_init(&rw.builder);
	r = choose(s, &rw, exchange, err);
	if (r == 0)
		r = rewrite(s, &rw, exchange, err);
	for (size_t i = 0; i < s->indexes.count && r == 0; i++) {
		if (exchange[i])
			r = gw_bucket_remove(gw_repo_bucket(s->repo), s->indexes.all[i].name, err);
	}
	gw_index_builder_release(&rw.builder);
	return r;
}
