// SPDX-License-Identifier: Apache-2.0
/* godwit repo show: all that a snapshot's manifest tells. */
#include <inttypes.h>
#include <string.h>

#include "agent/cli-repo.h"
#include "lib/parse.h"
#include "lib/util.h"

static json_t *regions_json(const struct gw_snap_info *info)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < info->nregions; i++)
		json_array_append_new(list, json_pack("{s:I,s:I}", "gpa", (json_int_t)info->regions[i].gpa, "bytes",
						      (json_int_t)info->regions[i].size));
	return list;
}

static json_t *disks_json(const struct gw_snap_info *info)
{
	json_t *list = json_array();
	char disk[GW_SNAP_DISK];

	for (unsigned i = 0; i < info->ndisks; i++)
		json_array_append_new(list, json_string(gw_clean_text(info->disks[i], disk, sizeof(disk))));
	return list;
}

static json_t *parts_json(const struct gw_manifest *m)
{
	json_t *list = json_array();
	char name[sizeof(m->parts[0].name)];

	for (unsigned i = 0; i < m->nparts; i++)
		json_array_append_new(list, json_pack("{s:s,s:I}", "name", gw_clean_text(m->parts[i].name, name, sizeof(name)), "bytes",
						      (json_int_t)m->parts[i].len));
	return list;
}

static void print_json(const struct gw_cli_repo *c, const struct gw_cli_snap *s, const struct gw_manifest *m)
{
	json_t *o = gw_cli_snap_json(s);
	char url[512];

	json_object_set_new(o, "repository", json_string(gw_clean_text(c->url, url, sizeof(url))));
	json_object_set_new(o, "regions", regions_json(&m->info));
	json_object_set_new(o, "disks", disks_json(&m->info));
	json_object_set_new(o, "parts", parts_json(m));
	json_object_set_new(o, "packs", json_integer(m->places.npacks));
	json_object_set_new(o, "segments", json_integer(m->places.nsegments));
	json_object_set_new(o, "runs", json_integer((json_int_t)m->nruns));
	gw_print_json(o, false);
}

static void print_id(const char *what, const uint8_t id[16])
{
	static const uint8_t none[16];
	char hex[33];

	if (!memcmp(id, none, sizeof(none)))
		return;
	gw_format_hex(id, 16, hex);
	printf("%-10s %s\n", what, hex);
}

static void print_size(const char *what, uint64_t bytes, const char *more)
{
	char text[32];

	gw_format_size(bytes, text, sizeof(text));
	printf("%-10s %s%s\n", what, text, more);
}

static void print_layout(const struct gw_manifest *m)
{
	char text[GW_SNAP_DISK], size[32];

	for (unsigned i = 0; i < m->info.nregions; i++) {
		gw_format_size(m->info.regions[i].size, size, sizeof(size));
		printf("region     %s from 0x%" PRIx64 "\n", size, m->info.regions[i].gpa);
	}
	for (unsigned i = 0; i < m->info.ndisks; i++)
		printf("disk       %s\n", gw_clean_text(m->info.disks[i], text, sizeof(text)));
	for (unsigned i = 0; i < m->nparts; i++) {
		gw_format_size(m->parts[i].len, size, sizeof(size));
		printf("part       %s, %s\n", gw_clean_text(m->parts[i].name, text, sizeof(text)), size);
	}
}

static void print_text(const struct gw_cli_snap *s, const struct gw_manifest *m)
{
	char created[32], more[64];

	gw_format_time(s->created_ns, created, sizeof(created));
	printf("snapshot   %s@%" PRIu64 "\n", s->name, s->generation);
	print_id("id", s->id);
	printf("object     %s\n", s->object);
	printf("created    %s\n", created);
	printf("vm         %s\n", s->vm);
	print_id("vm id", s->vm_id);
	printf("host       %s\n", s->host);
	print_id("parent", s->parent);
	print_id("copy of", s->origin);
	print_size("memory", s->pages * GW_PAGE_SIZE, "");
	print_size("used", s->used * GW_PAGE_SIZE, " that are not zero");
	snprintf(more, sizeof(more), " stored for it, of %" PRIu64 " pages that were new", s->new_pages);
	print_size("new", s->new_bytes, more);
	printf("places     %u packs, %u segments, %" PRIu64 " runs of pages\n", m->places.npacks, m->places.nsegments, m->nruns);
	print_layout(m);
}

int gw_cli_repo_show(struct gw_cli_repo *c, struct gw_error *err)
{
	struct gw_cli_snap s = { .error = NULL };
	struct gw_snap *snap;
	int r = gw_cli_snap_open(c->repo, c->args[0], &snap, err);

	if (r < 0)
		return r;
	gw_cli_snap_fill(&s, gw_snap_info(snap));
	snprintf(s.object, sizeof(s.object), "%s", gw_snap_object(snap));
	if (c->json)
		print_json(c, &s, gw_snap_manifest(snap));
	else
		print_text(&s, gw_snap_manifest(snap));
	gw_snap_free(snap);
	return 0;
}
