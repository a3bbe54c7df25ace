// SPDX-License-Identifier: Apache-2.0
/*
 * DOC: pruning beside writers
 *
 * Nobody holds a lock. A pack that no snapshot uses is removed in two steps. Prune writes a mark that names it; who begins to write from then on does not
 * refer to it. A grace period later a prune looks at all snapshots again: if still none uses the pack it goes, else the mark goes. Writers that had begun
 * before the mark are either in that look or too late: they commit within half of a grace period or not at all (writer-commit.c). Packs, which their writer
 * may be about to index, are marked only when they are older than a grace period. All ages are told by the storage's clock alone: prune writes
 * an object to learn the time.
 *
 * A pack of which little is used is first copied, then marked: its blobs are then found in the new pack by the index, though manifests name the old.
 *
 * In what order things are written and removed, so that a prune may end at any point: new packs, index of them, mark; and a grace period later: indexes without
 * the marked packs, old indexes, packs, mark. What an end leaves is packs that no index knows, packs that are in two indexes, marks of packs that are gone:
 * none of which means anything, and the next prune removes it.
 */
#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/object.h"
#include "migrate/repo/prune-internal.h"

#define DEFAULT_WASTE 50u

struct pruning {
	struct gw_repo *repo;
	const struct gw_prune_params *params;
	struct gw_prune_result *result;
	struct gw_survey s;
	char probe[GW_OBJECT_NAME];  /* the mark that tells the time; "": none */
	uint64_t now_s;
	struct gw_pack_set ripe;     /* marked long enough ago */
	struct gw_pack_set gone;     /* to be removed now */
	struct gw_pack_set mark;     /* to be marked now */
	struct gw_pack_set repack;
};

static bool old_enough(const struct pruning *p, uint64_t modified_s)
{
	return p->params->exclusive || (p->now_s > modified_s && p->now_s - modified_s > gw_repo_grace_s(p->repo));
}

/* The storage's time: when it says that an object was put just now. */
static int ask_time(struct pruning *p, struct gw_error *err)
{
	gw_cleanup(gw_listing_release) struct gw_listing l = { 0 };
	const struct gw_pack_set none = { 0 };
	const struct gw_listed *e;
	struct gw_crypt *c = NULL;
	int r;

	if (p->params->exclusive)
		return 0;
	if (gw_crypt_new(gw_repo_keys(p->repo), &c) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_mark_write(gw_repo_bucket(p->repo), c, &none, p->probe, err);
	gw_crypt_free(c);
	if (r == 0)
		r = gw_listing_read(gw_repo_bucket(p->repo), p->probe, &l, err);
	if (r < 0)
		return r;
	e = gw_listing_find(&l, p->probe);
	if (!e)
		return gw_error_set(err, EIO, "%s was put, and is not listed", p->probe);
	p->now_s = e->modified_s;
	return 0;
}

static bool is_ripe(const struct pruning *p, const struct gw_listed *mark)
{
	uint8_t id[16];

	return gw_object_parse_name(mark->name, "marks", id) == 0 && strcmp(mark->name, p->probe) && old_enough(p, mark->modified_s);
}

static int find_ripe(struct pruning *p, struct gw_error *err)
{
	for (size_t i = 0; i < p->s.marks.count; i++) {
		int r;

		if (!is_ripe(p, &p->s.marks.all[i]))
			continue;
		r = gw_mark_read(gw_repo_bucket(p->repo), p->s.crypt, p->s.marks.all[i].name, &p->ripe, err);
		if (r < 0 && r != -ENOENT)
			return r;
	}
	gw_pack_set_sort(&p->ripe);
	return 0;
}

static bool wasteful(const struct pruning *p, uint64_t size, uint64_t used)
{
	unsigned percent = p->params->waste_percent ?: DEFAULT_WASTE;

	return size > used + GW_PACK_HEADER && (size - used - GW_PACK_HEADER) * 100 >= size * percent;
}

static uint64_t used_bytes(const struct pruning *p, const uint8_t pack[16])
{
	uint32_t n = gw_places_find_pack(&p->s.places, pack);

	return n == GW_NO_PLACE ? 0 : p->s.pack_used[n];
}

/* What becomes of a pack. Returns the set that it belongs to, NULL: it stays. */
static struct gw_pack_set *judge(struct pruning *p, const struct gw_listed *e, const uint8_t id[16])
{
	uint64_t used = used_bytes(p, id);
	bool marked = gw_pack_set_has(&p->s.marked, id);

	if (used == 0 && (p->params->exclusive || gw_pack_set_has(&p->ripe, id)))
		return &p->gone;
	if (used == 0 && marked) {
		p->result->marked_packs++;
		p->result->marked_bytes += e->size;
		return NULL;
	}
	if (!old_enough(p, e->modified_s)) {
		p->result->recent_packs += used == 0;
		return NULL;
	}
	if (used == 0)
		return &p->mark;
	return !marked && wasteful(p, e->size, used) ? &p->repack : NULL;
}

static int decide(struct pruning *p)
{
	for (size_t i = 0; i < p->s.packs.count; i++) {
		const struct gw_listed *e = &p->s.packs.all[i];
		struct gw_pack_set *set;
		uint8_t id[16];

		if (gw_object_parse_name(e->name, "packs", id) < 0)
			continue;
		set = judge(p, e, id);
		if (!set)
			continue;
		if (gw_pack_set_add(set, id) < 0)
			return -ENOMEM;
		if (set == &p->gone) {
			p->result->removed_packs++;
			p->result->removed_bytes += e->size;
		} else if (set == &p->mark) {
			p->result->marked_packs++;
			p->result->marked_bytes += e->size;
		}
	}
	gw_pack_set_sort(&p->gone);
	gw_pack_set_sort(&p->repack);
	return 0;
}

/* Afterwards nobody needs the old ones: they go as others do that nobody uses. */
static int repack(struct pruning *p, struct gw_error *err)
{
	struct gw_pack_set *to = p->params->exclusive ? &p->gone : &p->mark;
	int r = 0;

	if (p->repack.count == 0)
		return 0;
	if (!p->params->dry_run)
		r = gw_prune_repack(&p->s, &p->repack, p->params->upkeep, &p->result->repacked_bytes, err);
	for (size_t i = 0; i < p->repack.count && r == 0; i++) {
		uint64_t size = gw_survey_pack(&p->s, p->repack.ids[i])->size;

		if (gw_pack_set_add(to, p->repack.ids[i]) < 0)
			r = gw_error_set(err, ENOMEM, "out of memory");
		p->result->repacked_packs++;
		if (p->params->dry_run)
			p->result->repacked_bytes += used_bytes(p, p->repack.ids[i]);
		*(p->params->exclusive ? &p->result->removed_packs : &p->result->marked_packs) += 1;
		*(p->params->exclusive ? &p->result->removed_bytes : &p->result->marked_bytes) += size;
	}
	gw_pack_set_sort(to);
	return r;
}

static int remove_packs(struct pruning *p, struct gw_error *err)
{
	int r = gw_prune_indexes(&p->s, &p->gone, err);

	for (size_t i = 0; i < p->gone.count && r == 0; i++) {
		char name[GW_OBJECT_NAME];

		gw_object_name(name, "packs", p->gone.ids[i]);
		r = gw_bucket_remove(gw_repo_bucket(p->repo), name, err);
	}
	for (size_t i = 0; i < p->s.marks.count && r == 0; i++) {
		if (is_ripe(p, &p->s.marks.all[i]))
			r = gw_bucket_remove(gw_repo_bucket(p->repo), p->s.marks.all[i].name, err);
	}
	return r;
}

static int prune(struct pruning *p, struct gw_error *err)
{
	char name[GW_OBJECT_NAME];
	int r = ask_time(p, err);

	if (r == 0)
		r = gw_survey_make(p->repo, NULL, p->params->upkeep, &p->s, err);
	if (r == 0)
		r = find_ripe(p, err);
	if (r == 0 && decide(p) < 0)
		r = gw_error_set(err, ENOMEM, "out of memory");
	if (r == 0)
		r = repack(p, err);
	if (r < 0 || p->params->dry_run)
		return r;
	if (p->mark.count)
		r = gw_mark_write(gw_repo_bucket(p->repo), p->s.crypt, &p->mark, name, err);
	if (r == 0)
		r = remove_packs(p, err);
	return r;
}

int gw_repo_prune(struct gw_repo *repo, const struct gw_prune_params *params, struct gw_prune_result *ret, struct gw_error *err)
{
	struct gw_prune_result result = { 0 };
	struct pruning p = { .repo = repo, .params = params, .result = &result };
	int r = prune(&p, err);

	if (p.probe[0])
		gw_bucket_remove(gw_repo_bucket(repo), p.probe, NULL);
	gw_survey_release(&p.s);
	gw_pack_set_release(&p.ripe);
	gw_pack_set_release(&p.gone);
	gw_pack_set_release(&p.mark);
	gw_pack_set_release(&p.repack);
	if (r == 0)
		*ret = result;
	return r;
}
