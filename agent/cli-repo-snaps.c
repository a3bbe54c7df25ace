// SPDX-License-Identifier: Apache-2.0
/* Snapshots by name, and as JSON; see cli-repo.h. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "agent/cli-repo.h"
#include "lib/parse.h"
#include "lib/util.h"

void gw_cli_snap_fill(struct gw_cli_snap *s, const struct gw_snap_info *info)
{
	memcpy(s->id, info->id, sizeof(s->id));
	memcpy(s->parent, info->parent, sizeof(s->parent));
	memcpy(s->origin, info->origin, sizeof(s->origin));
	memcpy(s->vm_id, info->vm_id, sizeof(s->vm_id));
	gw_clean_text(info->name, s->name, sizeof(s->name));
	gw_clean_text(info->vm, s->vm, sizeof(s->vm));
	gw_clean_text(info->host, s->host, sizeof(s->host));
	s->generation = info->generation;
	s->created_ns = info->created_ns;
	s->pages = info->pages;
	s->used = info->used;
	s->new_pages = info->new_pages;
	s->new_bytes = info->new_bytes;
}

/* An id, null when it is zero. */
static json_t *id_json(const uint8_t id[16])
{
	static const uint8_t none[16];
	char hex[33];

	if (!memcmp(id, none, sizeof(none)))
		return json_null();
	gw_format_hex(id, 16, hex);
	return json_string(hex);
}

json_t *gw_cli_snap_json(const struct gw_cli_snap *s)
{
	char snapshot[GW_SNAP_NAME + 24], created[32];

	snprintf(snapshot, sizeof(snapshot), "%s@%" PRIu64, s->name, s->generation);
	gw_format_utc(s->created_ns, created, sizeof(created));
	return json_pack("{s:s,s:s,s:I,s:o,s:s,s:s,s:I,s:s,s:o,s:s,s:o,s:o,s:I,s:I,s:I,s:I}", "snapshot", snapshot, "name", s->name,
			 "generation", (json_int_t)s->generation, "id", id_json(s->id), "object", s->object, "created", created,
			 "created_ns", (json_int_t)s->created_ns, "vm", s->vm, "vm_id", id_json(s->vm_id), "host", s->host, "parent",
			 id_json(s->parent), "origin", id_json(s->origin), "memory_bytes", (json_int_t)(s->pages * GW_PAGE_SIZE),
			 "used_bytes", (json_int_t)(s->used * GW_PAGE_SIZE), "new_pages", (json_int_t)s->new_pages, "new_bytes",
			 (json_int_t)s->new_bytes);
}

/* ---- lists ---- */

void gw_cli_snaps_release(struct gw_cli_snaps *l)
{
	for (size_t i = 0; i < l->count; i++)
		free(l->all[i].error);
	free(l->all);
	memset(l, 0, sizeof(*l));
}

static int add(void *self, const char *object, uint64_t size, const struct gw_snap_info *info, const struct gw_error *error)
{
	struct gw_cli_snaps *l = self;
	struct gw_cli_snap *s;

	if (l->count == l->cap) {
		size_t cap = GW_MAX(l->cap * 2, (size_t)64);

		s = reallocarray(l->all, cap, sizeof(*s));
		if (!s)
			return -ENOMEM;
		l->all = s;
		l->cap = cap;
	}
	s = &l->all[l->count];
	memset(s, 0, sizeof(*s));
	snprintf(s->object, sizeof(s->object), "%s", object);
	s->bytes = size;
	if (info) {
		gw_cli_snap_fill(s, info);
	} else {
		s->error = strdup(gw_error_text(error));
		if (!s->error)
			return -ENOMEM;
		gw_clean_text(s->error, s->error, strlen(s->error) + 1);
		if (gw_manifest_parse_name(object, &s->generation) < 0)
			s->generation = 0;
	}
	l->count++;
	return 0;
}

static int compare(const void *pa, const void *pb)
{
	const struct gw_cli_snap *a = pa, *b = pb;
	int d = (a->error != NULL) - (b->error != NULL);

	if (d == 0)
		d = strcmp(a->name, b->name);
	if (d == 0 && a->generation != b->generation)
		d = a->generation < b->generation ? -1 : 1;
	return d ?: strcmp(a->object, b->object);
}

int gw_cli_snaps_read(struct gw_repo *repo, const char *name, struct gw_cli_snaps *ret, struct gw_error *err)
{
	int r;

	memset(ret, 0, sizeof(*ret));
	r = gw_snap_list(repo, name, add, ret, err);
	if (r < 0) {
		if (r == -ENOMEM && !err->code)
			gw_error_set(err, ENOMEM, "out of memory");
		gw_cli_snaps_release(ret);
		return gw_cli_repo_failed(r, gw_repo_url(repo), err);
	}
	if (ret->count)
		qsort(ret->all, ret->count, sizeof(*ret->all), compare);
	return 0;
}

json_t *gw_cli_snaps_damaged(const struct gw_cli_snaps *l)
{
	json_t *all = json_array();

	for (size_t i = 0; i < l->count; i++) {
		if (l->all[i].error)
			json_array_append_new(all, json_pack("{s:s,s:s}", "object", l->all[i].object, "message", l->all[i].error));
	}
	return all;
}

/* ---- one of them ---- */

int gw_cli_snap_ref_parse(const char *text, struct gw_cli_snap_ref *ret, struct gw_error *err)
{
	const char *at = strchr(text, '@');
	size_t len = at ? (size_t)(at - text) : strlen(text);
	char name[GW_SNAP_NAME];
	uint64_t generation = 0;

	if (len >= sizeof(name))
		return gw_error_set(err, EINVAL, "the name of a snapshot has at most %zu characters", sizeof(name) - 1);
	memcpy(name, text, len);
	name[len] = '\0';
	if (gw_parse_name(name, "snapshot name", err) < 0 ||
	    (at && gw_parse_uint(at + 1, "generation", 1, UINT64_MAX, &generation, err) < 0))
		return -EINVAL;
	memcpy(ret->name, name, sizeof(name));
	ret->generation = generation;
	return 0;
}

int gw_cli_snap_open(struct gw_repo *repo, const char *text, struct gw_snap **ret, struct gw_error *err)
{
	struct gw_cli_snap_ref ref;
	int r = gw_cli_snap_ref_parse(text, &ref, err);

	if (r < 0)
		return r;
	r = gw_snap_open(repo, ref.name, ref.generation, ret, err);
	if (r == -ENOENT) {
		err->code = ESRCH;
		return -ESRCH;
	}
	return gw_cli_repo_failed(r, gw_repo_url(repo), err);
}
