// SPDX-License-Identifier: Apache-2.0
/* godwit repo check: what is damaged or missing, object by object. */
#include <inttypes.h>
#include <string.h>

#include "agent/cli-repo.h"
#include "lib/util.h"

struct checking {
	const struct gw_cli_repo *c;
	struct gw_cli_work work;
	json_t *problems;
};

/* The engine calls it for one at a time. */
static void problem(void *self, const char *object, const char *text)
{
	struct checking *k = self;
	char clean[GW_ERROR_MAX];

	gw_clean_text(text, clean, sizeof(clean));
	if (k->c->json) {
		json_array_append_new(k->problems, json_pack("{s:s,s:s}", "object", object, "message", clean));
		return;
	}
	gw_cli_work_clear(&k->work);
	printf("%s %s\n", object, clean);
	fflush(stdout);
}

static void print_json(const struct gw_cli_repo *c, const struct gw_repo_check_result *res, json_t *problems)
{
	char url[512];

	gw_print_json(json_pack("{s:s,s:b,s:b,s:I,s:I,s:I,s:I,s:I,s:I,s:O}", "repository", gw_clean_text(c->url, url, sizeof(url)), "ok",
				res->problems == 0, "read_data", c->read_data, "snapshots", (json_int_t)res->snapshots, "packs",
				(json_int_t)res->packs, "indexes", (json_int_t)res->indexes, "keys", (json_int_t)res->keys, "read_pages",
				(json_int_t)res->read_pages, "strays", (json_int_t)res->strays, "problems", problems), false);
}

static void print_text(const struct gw_cli_repo *c, const struct gw_repo_check_result *res)
{
	char read[64] = "pages were not read (--read-data does)", strays[64] = "";

	if (c->read_data)
		snprintf(read, sizeof(read), "%" PRIu64 " pages read and right", res->read_pages);
	if (res->strays)
		snprintf(strays, sizeof(strays), ", %" PRIu64 " objects that are none of a repository's", res->strays);
	printf("%" PRIu64 " snapshots, %" PRIu64 " packs, %" PRIu64 " indexes, %" PRIu64 " keys%s; %s\n", res->snapshots, res->packs,
	       res->indexes, res->keys, strays, read);
	if (res->problems == 0)
		printf("no problem found\n");
	else
		printf("%" PRIu64 " problem%s found\n", res->problems, res->problems == 1 ? "" : "s");
}

int gw_cli_repo_check(struct gw_cli_repo *c, struct gw_error *err)
{
	struct checking k = { .c = c };
	struct gw_repo_check_result result;
	const struct gw_repo_check_params params = { .read_data = c->read_data, .problem = problem, .self = &k, .upkeep = &k.work.upkeep };
	int r = gw_cli_work_begin(&k.work, c, "checking", NULL, err);

	if (r < 0)
		return r;
	k.problems = json_array();
	r = gw_repo_check(c->repo, &params, &result, err);
	gw_cli_work_end(&k.work);
	if (r < 0) {
		r = gw_cli_repo_failed(r, c->url, err);
	} else {
		if (c->json)
			print_json(c, &result, k.problems);
		else
			print_text(c, &result);
		c->status = result.problems ? GW_CLI_DAMAGED : GW_CLI_OK;
	}
	json_decref(k.problems);
	return r;
}
