// SPDX-License-Identifier: Apache-2.0
/* godwit repo prune: removes what no snapshot uses. */
#include <inttypes.h>
#include <string.h>

#include "agent/cli-repo.h"
#include "lib/util.h"

static void print_json(const struct gw_cli_repo *c, const struct gw_prune_result *p)
{
	char url[512];

	gw_print_json(json_pack("{s:s,s:b,s:b,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "repository", gw_clean_text(c->url, url, sizeof(url)),
				"dry_run", c->dry_run, "exclusive", c->exclusive, "removed_packs", (json_int_t)p->removed_packs,
				"removed_bytes", (json_int_t)p->removed_bytes, "marked_packs", (json_int_t)p->marked_packs, "marked_bytes",
				(json_int_t)p->marked_bytes, "repacked_packs", (json_int_t)p->repacked_packs, "repacked_bytes",
				(json_int_t)p->repacked_bytes, "recent_packs", (json_int_t)p->recent_packs, "grace_s",
				(json_int_t)gw_repo_grace_s(c->repo)), false);
}

static void print_packs(const char *what, uint64_t packs, uint64_t bytes, const char *more)
{
	char size[32];

	gw_format_size(bytes, size, sizeof(size));
	printf("%-10s %" PRIu64 " packs, %s%s\n", what, packs, size, more);
}

static void print_text(const struct gw_cli_repo *c, const struct gw_prune_result *p)
{
	char later[96];

	if (c->dry_run)
		printf("nothing was changed; this would be done:\n");
	print_packs("removed", p->removed_packs, p->removed_bytes, "");
	if (p->marked_packs) {
		snprintf(later, sizeof(later), ", to be removed by a prune %.1f hours after they were marked",
			 (double)gw_repo_grace_s(c->repo) / 3600);
		print_packs("marked", p->marked_packs, p->marked_bytes, later);
	}
	if (p->repacked_packs)
		print_packs("rewritten", p->repacked_packs, p->repacked_bytes, " of which are still used");
	if (p->recent_packs)
		printf("%-10s %" PRIu64 " packs that no snapshot uses, too young to tell whether one will\n", "left", p->recent_packs);
}

int gw_cli_repo_prune(struct gw_cli_repo *c, struct gw_error *err)
{
	struct gw_cli_work work;
	struct gw_prune_params params = { .exclusive = c->exclusive, .dry_run = c->dry_run, .waste_percent = (unsigned)c->waste_percent,
					  .upkeep = &work.upkeep };
	struct gw_prune_result result;
	int r = gw_cli_work_begin(&work, c, "pruning", NULL, err);

	if (r < 0)
		return r;
	r = gw_repo_prune(c->repo, &params, &result, err);
	gw_cli_work_end(&work);
	if (r < 0)
		return gw_cli_repo_failed(r, c->url, err);
	if (c->json)
		print_json(c, &result);
	else
		print_text(c, &result);
	return 0;
}
