// SPDX-License-Identifier: Apache-2.0
/* godwit repo stats: what the repository holds, and what that takes. */
#include <inttypes.h>
#include <string.h>

#include "agent/cli-repo.h"
#include "lib/parse.h"
#include "lib/util.h"

struct ratios {
	double shared;     /* content of all snapshots to what of it differs */
	double compressed; /* that to what it takes in packs */
	double whole;      /* content to all that is stored */
};

/* 0: there is nothing yet. */
static double ratio(uint64_t a, uint64_t b)
{
	return b ? (double)a / (double)b : 0;
}

static uint64_t stored_bytes(const struct gw_repo_stats *s)
{
	return s->pack_bytes + s->index_bytes + s->manifest_bytes;
}

static struct ratios ratios(const struct gw_repo_stats *s)
{
	uint64_t unique = s->used_pages * GW_PAGE_SIZE;

	return (struct ratios){ ratio(s->snapshot_bytes, unique), ratio(unique, s->used_bytes), ratio(s->snapshot_bytes, stored_bytes(s)) };
}

static void print_json(const struct gw_cli_repo *c, const struct gw_repo_stats *s, const char *id, const char *fingerprint)
{
	const struct ratios x = ratios(s);
	char url[512];
	json_t *o = json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:I}", "repository", gw_clean_text(c->url, url, sizeof(url)), "id", id,
			      "fingerprint", fingerprint, "grace_s", (json_int_t)gw_repo_grace_s(c->repo), "snapshots",
			      (json_int_t)s->snapshots, "logical_bytes", (json_int_t)s->snapshot_bytes, "unique_bytes",
			      (json_int_t)(s->used_pages * GW_PAGE_SIZE), "unique_stored_bytes", (json_int_t)s->used_bytes);
	json_t *more = json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:f,s:f}", "stored_bytes", (json_int_t)stored_bytes(s), "packs",
				 (json_int_t)s->packs, "pack_bytes", (json_int_t)s->pack_bytes, "garbage_bytes", (json_int_t)s->garbage_bytes,
				 "indexes", (json_int_t)s->indexes, "index_bytes", (json_int_t)s->index_bytes, "manifest_bytes",
				 (json_int_t)s->manifest_bytes, "dedup_ratio", x.shared, "compression_ratio", x.compressed, "ratio", x.whole);

	json_object_update(o, more);
	json_decref(more);
	gw_print_json(o, false);
}

static void print_text(const struct gw_cli_repo *c, const struct gw_repo_stats *s, const char *id, const char *fingerprint)
{
	const uint64_t sizes[] = { s->snapshot_bytes, s->used_pages * GW_PAGE_SIZE, s->used_bytes, stored_bytes(s), s->pack_bytes,
				   s->garbage_bytes,  s->index_bytes,		    s->manifest_bytes };
	const struct ratios x = ratios(s);
	char t[ARRAY_SIZE(sizes)][32];

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
		gw_format_size(sizes[i], t[i], sizeof(t[i]));
	printf("id           %s\nfingerprint  %s\ngrace        %u s\n", id, fingerprint, gw_repo_grace_s(c->repo));
	printf("snapshots    %" PRIu64 "\nlogical      %s in pages that are not zero\n", s->snapshots, t[0]);
	printf("unique       %s (%.2f : 1)\ncompressed   %s (%.2f : 1)\n", t[1], x.shared, t[2], x.compressed);
	printf("stored       %s (%.2f : 1 of logical)\n", t[3], x.whole);
	printf("packs        %" PRIu64 ", %s, of which %s are unused\n", s->packs, t[4], t[5]);
	printf("indexes      %" PRIu64 ", %s\nmanifests    %s\n", s->indexes, t[6], t[7]);
}

int gw_cli_repo_stats(struct gw_cli_repo *c, struct gw_error *err)
{
	char id[2 * GW_REPO_ID_LEN + 1], fingerprint[2 * GW_REPO_ID_LEN + 1];
	struct gw_repo_stats s;
	int r = gw_repo_stats(c->repo, &s, err);

	if (r < 0)
		return gw_cli_repo_failed(r, c->url, err);
	gw_format_hex(gw_repo_id(c->repo), GW_REPO_ID_LEN, id);
	gw_format_hex(gw_repo_fingerprint(c->repo), GW_REPO_ID_LEN, fingerprint);
	if (c->json)
		print_json(c, &s, id, fingerprint);
	else
		print_text(c, &s, id, fingerprint);
	return 0;
}
