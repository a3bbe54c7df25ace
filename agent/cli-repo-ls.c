// SPDX-License-Identifier: Apache-2.0
/* godwit repo ls: snapshots, a line each. */
#include <inttypes.h>
#include <string.h>

#include "agent/cli-repo.h"
#include "lib/parse.h"
#include "lib/util.h"

static void print_json(const struct gw_cli_repo *c, const struct gw_cli_snaps *l)
{
	json_t *list = json_array();
	char url[512];

	for (size_t i = 0; i < l->count; i++) {
		json_t *o = l->all[i].error ? NULL : gw_cli_snap_json(&l->all[i]);

		if (!o)
			continue;
		json_object_set_new(o, "manifest_bytes", json_integer((json_int_t)l->all[i].bytes));
		json_array_append_new(list, o);
	}
	gw_print_json(json_pack("{s:s,s:o,s:o}", "repository", gw_clean_text(c->url, url, sizeof(url)), "snapshots", list, "damaged",
				gw_cli_snaps_damaged(l)), false);
}

/* As what it is listed, else the beginning of its id. */
static void parent_cell(struct gw_table *t, const struct gw_cli_snaps *l, const uint8_t id[16])
{
	static const uint8_t none[16];
	char hex[9];

	if (!memcmp(id, none, sizeof(none))) {
		gw_table_cell(t, "-");
		return;
	}
	for (size_t i = 0; i < l->count; i++) {
		if (!l->all[i].error && !memcmp(l->all[i].id, id, 16)) {
			gw_table_cell(t, "%s@%" PRIu64, l->all[i].name, l->all[i].generation);
			return;
		}
	}
	gw_format_hex(id, 4, hex);
	gw_table_cell(t, "%s", hex);
}

static void size_cell(struct gw_table *t, uint64_t bytes)
{
	char text[32];

	gw_format_size(bytes, text, sizeof(text));
	gw_table_cell(t, "%s", text);
}

static void row(struct gw_table *t, const struct gw_cli_snaps *l, const struct gw_cli_snap *s)
{
	char created[32];

	gw_format_time(s->created_ns, created, sizeof(created));
	gw_table_cell(t, "%s@%" PRIu64, s->name, s->generation);
	gw_table_cell(t, "%s", *s->vm ? s->vm : "-");
	gw_table_cell(t, "%s", *s->host ? s->host : "-");
	gw_table_cell(t, "%s", created);
	size_cell(t, s->pages * GW_PAGE_SIZE);
	size_cell(t, s->used * GW_PAGE_SIZE);
	size_cell(t, s->new_bytes);
	parent_cell(t, l, s->parent);
}

static void print_text(const struct gw_cli_snaps *l)
{
	static const char *const header[] = { "SNAPSHOT", "VM", "HOST", "CREATED", "MEMORY", "USED", "NEW", "PARENT" };
	struct gw_table t = { .columns = ARRAY_SIZE(header) };

	for (size_t i = 0; i < ARRAY_SIZE(header); i++)
		gw_table_cell(&t, "%s", header[i]);
	for (size_t i = 0; i < l->count; i++) {
		if (!l->all[i].error)
			row(&t, l, &l->all[i]);
	}
	if (!t.failed)
		gw_table_print(&t);
	gw_table_release(&t);
	fflush(stdout);
	for (size_t i = 0; i < l->count; i++) {
		if (l->all[i].error)
			fprintf(stderr, "godwit: %s\n", l->all[i].error);
	}
}

int gw_cli_repo_list(struct gw_cli_repo *c, struct gw_error *err)
{
	gw_cleanup(gw_cli_snaps_release) struct gw_cli_snaps l = { 0 };
	int r = gw_cli_snaps_read(c->repo, c->nargs ? c->args[0] : NULL, &l, err);

	if (r < 0)
		return r;
	if (c->json)
		print_json(c, &l);
	else
		print_text(&l);
	for (size_t i = 0; i < l.count; i++) {
		if (l.all[i].error)
			c->status = GW_CLI_DAMAGED;
	}
	return 0;
}
