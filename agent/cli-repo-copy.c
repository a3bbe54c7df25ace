// SPDX-License-Identifier: Apache-2.0
/* godwit repo copy: snapshots to another repository. One that is damaged does not keep back the others. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "agent/cli-repo.h"
#include "lib/util.h"

struct copying {
	struct gw_cli_repo *c;
	struct gw_repo *to;
	json_t *list;     /* of what has become of each */
	unsigned nth, of; /* for the bar */
};

static void tell(struct copying *k, const char *snapshot, const struct gw_snap_info *there, bool copied, const char *failure)
{
	char as[GW_SNAP_NAME + 24], name[GW_SNAP_NAME], clean[GW_ERROR_MAX];

	if (failure) {
		gw_clean_text(failure, clean, sizeof(clean));
		json_array_append_new(k->list, json_pack("{s:s,s:b,s:n,s:s}", "snapshot", snapshot, "copied", 0, "as", "error", clean));
		fprintf(stderr, "godwit: %s: %s\n", snapshot, clean);
		return;
	}
	snprintf(as, sizeof(as), "%s@%" PRIu64, gw_clean_text(there->name, name, sizeof(name)), there->generation);
	json_array_append_new(k->list, json_pack("{s:s,s:b,s:s,s:n}", "snapshot", snapshot, "copied", copied, "as", as, "error"));
	if (!k->c->json)
		printf("%s: %s as %s\n", snapshot, copied ? "copied" : "is there already", as);
	fflush(stdout);
}

/* Damage is told, and the copying goes on: 0. */
static int damaged(struct copying *k, int r, const char *snapshot, struct gw_error *err)
{
	if (r != -EBADMSG)
		return r;
	tell(k, snapshot, NULL, false, gw_error_text(err));
	k->c->status = GW_CLI_DAMAGED;
	return 0;
}

/* Takes the snapshot. */
static int copy(struct copying *k, struct gw_snap *snap, struct gw_error *err)
{
	const struct gw_snap_info *info = gw_snap_info(snap);
	gw_autofree struct gw_snap_info *there = calloc(1, sizeof(*there));
	char snapshot[GW_SNAP_NAME + 24], what[160], name[GW_SNAP_NAME];
	struct gw_cli_work work;
	int r;

	snprintf(snapshot, sizeof(snapshot), "%s@%" PRIu64, gw_clean_text(info->name, name, sizeof(name)), info->generation);
	snprintf(what, sizeof(what), "%u of %u, %s", k->nth, k->of, snapshot);
	r = there ? gw_cli_work_begin(&work, k->c, what, k->to, err) : gw_error_set(err, ENOMEM, "out of memory");
	if (r == 0) {
		r = gw_repo_copy(snap, k->to, &work.upkeep, there, err);
		gw_cli_work_end(&work);
	}
	gw_snap_free(snap);
	if (r < 0)
		return damaged(k, gw_cli_repo_failed(r, k->c->url, err), snapshot, err);
	tell(k, snapshot, there, r == 0, NULL);
	return 0;
}

static int copy_named(struct copying *k, struct gw_error *err)
{
	int r = 0;

	k->of = k->c->nargs;
	for (k->nth = 1; k->nth <= k->of && r == 0; k->nth++) {
		const char *arg = k->c->args[k->nth - 1];
		struct gw_snap *snap;

		r = gw_cli_snap_open(k->c->repo, arg, &snap, err);
		r = r == 0 ? copy(k, snap, err) : damaged(k, r, arg, err);
	}
	return r;
}

/* Older generations first, so that they keep their numbers. */
static int copy_all(struct copying *k, struct gw_error *err)
{
	gw_cleanup(gw_cli_snaps_release) struct gw_cli_snaps l = { 0 };
	int r = gw_cli_snaps_read(k->c->repo, NULL, &l, err);

	k->of = (unsigned)l.count;
	for (size_t i = 0; i < l.count && r == 0; i++) {
		const char *object = l.all[i].object;
		struct gw_snap *snap;

		k->nth = (unsigned)i + 1;
		r = gw_snap_open_object(k->c->repo, object, &snap, err);
		if (r == -ENOENT) /* removed since it was listed */
			r = 0;
		else if (r == 0)
			r = copy(k, snap, err);
		else
			r = damaged(k, gw_cli_repo_failed(r, k->c->url, err), object, err);
	}
	return r;
}

static int open_other(struct gw_cli_repo *c, struct gw_repo **ret, struct gw_error *err)
{
	const struct gw_cli_secret_from *from = &c->to_from;
	gw_cleanup(gw_cli_secret_release) struct gw_cli_secret other = { .host = NULL };
	struct gw_cli_secret *secret = from->passphrase_file || from->key_file ? &other : &c->secret;
	int r;

	/* What has opened the one may open the other, whose fingerprint is its own. */
	if (secret == &other)
		r = gw_cli_secret_read(from, "Passphrase", c->to, false, secret, err);
	else
		r = gw_cli_secret_expect(secret, from->fingerprint, err);
	r = r ?: gw_cli_repo_reach(c, c->to, false, secret, err);
	return r ?: gw_cli_repo_open(c->to, &secret->secret, ret, err);
}

int gw_cli_repo_copy(struct gw_cli_repo *c, struct gw_error *err)
{
	struct copying k = { .c = c };
	char from[512], to[512];
	int r = open_other(c, &k.to, err);

	if (r < 0)
		return r;
	if (!memcmp(gw_repo_id(c->repo), gw_repo_id(k.to), GW_REPO_ID_LEN)) {
		gw_repo_free(k.to);
		return gw_error_set(err, EINVAL, "%s and %s are the same repository", c->url, c->to);
	}
	k.list = json_array();
	r = c->nargs ? copy_named(&k, err) : copy_all(&k, err);
	/* Also of a failure: what has been copied is there. */
	if (c->json && (r == 0 || json_array_size(k.list)))
		gw_print_json(json_pack("{s:s,s:s,s:O}", "repository", gw_clean_text(c->url, from, sizeof(from)), "to",
					gw_clean_text(c->to, to, sizeof(to)), "snapshots", k.list), false);
	json_decref(k.list);
	gw_repo_free(k.to);
	return r;
}
