// SPDX-License-Identifier: Apache-2.0
/* godwit repo rm: first all that is meant is found, then it is removed. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "agent/cli-repo.h"
#include "lib/util.h"

/* What goes. */
struct victims {
	struct victim {
		char object[GW_SNAP_OBJECT];
		char snapshot[GW_SNAP_NAME + 24]; /* "": known by its object alone */
	} *all;
	size_t count;
};

static void victims_release(struct victims *v)
{
	free(v->all);
}

static int add(struct victims *v, const char *object, const char *name, uint64_t generation, struct gw_error *err)
{
	struct victim *more;

	for (size_t i = 0; i < v->count; i++) { /* said twice */
		if (!strcmp(v->all[i].object, object))
			return 0;
	}
	more = reallocarray(v->all, v->count + 1, sizeof(*more));
	if (!more)
		return gw_error_set(err, ENOMEM, "out of memory");
	v->all = more;
	more = &v->all[v->count++];
	memset(more, 0, sizeof(*more));
	snprintf(more->object, sizeof(more->object), "%.*s", GW_SNAP_OBJECT - 1, object);
	if (name)
		snprintf(more->snapshot, sizeof(more->snapshot), "%s@%" PRIu64, name, generation);
	return 0;
}

/* One that cannot be read has no name that could be trusted, yet lies in the folder of this one. */
static int add_listed(struct victims *v, const struct gw_cli_snap *s, const char *name, struct gw_error *err)
{
	return add(v, s->object, name, s->generation, err);
}

/* All but the last `keep` of those that can be read, which are before the others in the list; with 0 all. */
static int add_all(struct victims *v, const struct gw_cli_snaps *l, const char *name, uint64_t keep, struct gw_error *err)
{
	uint64_t readable = 0;
	int r = 0;

	for (size_t i = 0; i < l->count; i++)
		readable += l->all[i].error == NULL;
	for (size_t i = 0; i < l->count && r == 0; i++) {
		if (keep == 0 || i + keep < readable)
			r = add_listed(v, &l->all[i], name, err);
	}
	return r;
}

static int add_one(struct victims *v, const struct gw_cli_snaps *l, const struct gw_cli_snap_ref *ref, struct gw_error *err)
{
	const struct gw_cli_snap *found = NULL;

	for (size_t i = 0; i < l->count; i++) {
		if (ref->generation && l->all[i].generation != ref->generation)
			continue;
		if (found && !ref->generation)
			return gw_error_set(err, EINVAL, "%s has %zu generations: say which (%s@GENERATION), --keep-last N or --all", ref->name,
					    l->count, ref->name);
		if (found) /* two took it at the same time */
			return gw_error_set(err, EINVAL, "%s@%" PRIu64 " is two snapshots: say which object, %s or %s", ref->name,
					    ref->generation, found->object, l->all[i].object);
		found = &l->all[i];
	}
	if (!found)
		return gw_error_set(err, ESRCH, "there is no generation %" PRIu64 " of %s", ref->generation, ref->name);
	return add_listed(v, found, ref->name, err);
}

static int find(struct gw_cli_repo *c, const char *arg, struct victims *v, struct gw_error *err)
{
	gw_cleanup(gw_cli_snaps_release) struct gw_cli_snaps l = { 0 };
	struct gw_cli_snap_ref ref;
	uint64_t generation;
	int r;

	if (gw_manifest_parse_name(arg, &generation) == 0)
		return add(v, arg, NULL, generation, err);
	r = gw_cli_snap_ref_parse(arg, &ref, err);
	if (r == 0 && ref.generation && (c->all || c->keep_last))
		return gw_error_set(err, EINVAL, "--all and --keep-last are about a name, and '%s' is one generation", arg);
	if (r == 0)
		r = gw_cli_snaps_read(c->repo, ref.name, &l, err);
	if (r < 0)
		return r;
	if (l.count == 0)
		return gw_error_set(err, ESRCH, "there is no snapshot %s in %s", ref.name, c->url);
	return c->all || c->keep_last ? add_all(v, &l, ref.name, c->keep_last, err) : add_one(v, &l, &ref, err);
}

static int remove_one(struct gw_cli_repo *c, const struct victim *v, json_t *list, struct gw_error *err)
{
	const char *name = v->snapshot[0] ? v->snapshot : v->object;
	int r = c->dry_run ? 0 : gw_snap_remove(c->repo, v->object, err);

	if (r == -ENOENT)
		return gw_error_set(err, ESRCH, "there is no %s in %s", name, c->url);
	if (r < 0)
		return gw_cli_repo_failed(r, c->url, err);
	json_array_append_new(list, json_pack("{s:s?,s:s}", "snapshot", v->snapshot[0] ? v->snapshot : NULL, "object", v->object));
	if (!c->json)
		printf("%s: %s\n", name, c->dry_run ? "would be removed" : "removed");
	return 0;
}

int gw_cli_repo_remove(struct gw_cli_repo *c, struct gw_error *err)
{
	gw_cleanup(victims_release) struct victims v = { 0 };
	json_t *list = json_array();
	char url[512];
	int r = 0;

	for (unsigned i = 0; i < c->nargs && r == 0; i++)
		r = find(c, c->args[i], &v, err);
	for (size_t i = 0; i < v.count && r == 0; i++)
		r = remove_one(c, &v.all[i], list, err);
	/* Also of a failure: what is gone already. */
	if (c->json && (r == 0 || json_array_size(list)))
		gw_print_json(json_pack("{s:s,s:b,s:O}", "repository", gw_clean_text(c->url, url, sizeof(url)), "dry_run", c->dry_run,
					"removed", list), false);
	else if (!c->json && r == 0 && v.count == 0)
		printf("nothing to remove\n");
	json_decref(list);
	return r;
}
