// SPDX-License-Identifier: Apache-2.0
/* Checking that a repository is whole: every object that another one needs, and what each of them says of itself. See upkeep.h. */
#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/check-internal.h"
#include "migrate/repo/object.h"

void gw_check_problem(void *checking, const char *object, const char *text)
{
	struct checking *c = checking;
	size_t len = strlen(object);

	/* Errors begin with the object's name, which is told apart here. */
	if (strncmp(text, object, len) == 0 && text[len] == ' ')
		text += len + 1;
	pthread_mutex_lock(&c->lock);
	c->result->problems++;
	if (c->params->problem)
		c->params->problem(c->params->self, object, text);
	pthread_mutex_unlock(&c->lock);
}

static int check_key(struct checking *c, const char *name, struct gw_error *err)
{
	gw_autobuf buf = GW_BUF_INIT;
	struct gw_error one = GW_ERROR_INIT;
	struct gw_key_info info;
	int r = gw_bucket_read(gw_repo_bucket(c->repo), name, GW_KEY_MAX_OBJECT, &buf, &one);

	if (r == -ENOENT)
		return 0;
	if (r == -EFBIG)
		r = gw_object_damaged(name, &one);
	if (r == 0)
		r = gw_key_parse(name, buf.data, buf.len, &info, &one);
	if (r == 0 && memcmp(info.repository, gw_repo_id(c->repo), GW_REPO_ID_LEN))
		r = gw_error_set(&one, EBADMSG, "%s is of another repository", name);
	c->result->keys++;
	if (r == -EBADMSG || r == -EPROTONOSUPPORT) {
		gw_check_problem(c, name, one.msg);
		return 0;
	}
	return r < 0 ? gw_error_set(err, r, "%s", gw_error_text(&one)) : 0;
}

/* Keys, and objects that nobody of us put there. */
static int check_names(struct checking *c, struct gw_error *err)
{
	gw_cleanup(gw_listing_release) struct gw_listing all = { 0 };
	static const char *const folders[] = { "packs", "index", "marks" };
	int r = gw_listing_read(gw_repo_bucket(c->repo), "", &all, err);

	for (size_t i = 0; i < all.count && r == 0; i++) {
		const char *name = all.all[i].name;
		bool known = strcmp(name, "config") == 0;
		uint64_t generation;
		uint8_t id[16];

		for (size_t k = 0; k < ARRAY_SIZE(folders); k++)
			known |= gw_object_parse_name(name, folders[k], id) == 0;
		known |= gw_manifest_parse_name(name, &generation) == 0;
		if (gw_object_parse_name(name, "keys", id) == 0)
			r = check_key(c, name, err);
		else if (!known)
			c->result->strays++;
	}
	return r;
}

int gw_repo_check(struct gw_repo *repo, const struct gw_repo_check_params *params, struct gw_repo_check_result *ret, struct gw_error *err)
{
	gw_cleanup(gw_survey_release) struct gw_survey s = { 0 };
	struct gw_repo_check_result result = { 0 };
	struct checking c = { .repo = repo, .params = params, .result = &result };
	const struct gw_survey_sink sink = { .problem = gw_check_problem, .self = &c };
	int r;

	pthread_mutex_init(&c.lock, NULL);
	r = check_names(&c, err);
	if (r == 0)
		r = gw_survey_make(repo, &sink, params->upkeep, &s, err);
	if (r == 0) {
		result.snapshots = s.snapshots;
		result.packs = s.packs.count;
		result.indexes = s.indexes.count;
	}
	if (r == 0 && params->read_data)
		r = gw_check_data(&c, &s, err);
	pthread_mutex_destroy(&c.lock);
	if (r == 0)
		*ret = result;
	return r;
}
