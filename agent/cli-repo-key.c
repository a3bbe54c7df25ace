// SPDX-License-Identifier: Apache-2.0
/* godwit repo init, and key: making a repository, and who can open it. */
#include <errno.h>
#include <string.h>

#include "agent/cli-repo.h"
#include "lib/clock.h"
#include "lib/parse.h"
#include "lib/util.h"

#define ID_DIGITS 32u
#define MIN_DIGITS 4u /* of an id's beginning that is said in its place */

/* Who makes it where; a label has no control characters. */
static void default_label(char *out, size_t size)
{
	const char *user = getenv("USER");
	char host[65] = "";

	gethostname(host, sizeof(host) - 1);
	snprintf(out, size, "%s@%s", user && *user ? user : "root", host);
	gw_clean_text(out, out, size);
}

static int check_label(const char *label, struct gw_error *err)
{
	char clean[GW_KEY_LABEL];

	if (!*label || strlen(label) >= sizeof(clean) || strcmp(gw_clean_text(label, clean, sizeof(clean)), label))
		return gw_error_set(err, EINVAL, "a label has 1 to %zu bytes and no control characters", sizeof(clean) - 1);
	return 0;
}

/* ---- init ---- */

static void print_made(const struct gw_cli_repo *c, const struct gw_repo *repo)
{
	char id[2 * GW_REPO_ID_LEN + 1], fingerprint[2 * GW_REPO_ID_LEN + 1], url[512];

	gw_format_hex(gw_repo_id(repo), GW_REPO_ID_LEN, id);
	gw_format_hex(gw_repo_fingerprint(repo), GW_REPO_ID_LEN, fingerprint);
	gw_clean_text(c->url, url, sizeof(url));
	if (c->json) {
		gw_print_json(json_pack("{s:s,s:s,s:s,s:I}", "repository", url, "id", id, "fingerprint", fingerprint, "grace_s",
					(json_int_t)gw_repo_grace_s(repo)), false);
		return;
	}
	printf("made the repository %s\nid           %s\nfingerprint  %s\n", url, id, fingerprint);
	printf("Without %s nobody can read what will be in it: there is no other way in.\n",
	       c->secret.passphrase ? "the passphrase" : "the host's key");
}

int gw_cli_repo_init(struct gw_cli_repo *c, struct gw_error *err)
{
	struct gw_repo_params params = { .grace_s = (uint32_t)c->grace_s };
	char label[GW_KEY_LABEL];
	int r;

	default_label(label, sizeof(label));
	params.label = c->label ?: label;
	r = check_label(params.label, err);
	if (r < 0)
		return r;
	c->secret.secret.fingerprint = NULL; /* of a repository that is there */
	r = gw_repo_init(c->url, &c->secret.secret, &params, err);
	if (r == -ENOENT)
		err->code = ESRCH;
	if (r == 0)
		r = gw_cli_repo_open(c->url, &c->secret.secret, &c->repo, err);
	if (r == 0)
		print_made(c, c->repo);
	return r == -ENOENT ? -ESRCH : r;
}

/* ---- key add ---- */

static int read_new(struct gw_cli_repo *c, struct gw_cli_secret *s, char name[64], struct gw_error *err)
{
	int r;

	if (!c->cert)
		return gw_cli_secret_read(&c->new_from, "New passphrase", c->url, true, s, err);
	r = gw_cli_public_key_read(c->cert, &s->host, name, err);
	s->secret.host = s->host;
	return r;
}

int gw_cli_repo_key_add(struct gw_cli_repo *c, struct gw_error *err)
{
	gw_cleanup(gw_cli_secret_release) struct gw_cli_secret s = { .host = NULL };
	char label[GW_KEY_LABEL], cn[64] = "", name[48], url[512];
	struct gw_repo_params params = { .label = c->label };
	int r;

	default_label(label, sizeof(label));
	r = c->label ? check_label(c->label, err) : 0;
	if (r == 0)
		r = read_new(c, &s, cn, err);
	if (!params.label)
		params.label = *cn ? gw_clean_text(cn, cn, sizeof(cn)) : label;
	if (r == 0)
		r = gw_repo_add_key(c->repo, &s.secret, &params, name, err);
	if (r < 0)
		return r;
	if (c->json)
		gw_print_json(json_pack("{s:s,s:s,s:s}", "repository", gw_clean_text(c->url, url, sizeof(url)), "object", name, "label",
					params.label), false);
	else
		printf("%s: %s can open the repository\n", name, c->cert ? params.label : "the new passphrase");
	return 0;
}

/* ---- key ls ---- */

static json_t *key_json(const struct gw_repo_key *k)
{
	char label[GW_KEY_LABEL], created[32], host[65];
	bool is_host = k->info.type == GW_KEY_HOST;

	gw_format_utc(k->info.created_s * GW_NS_PER_SEC, created, sizeof(created));
	gw_format_hex(k->info.host, 32, host);
	return json_pack("{s:s,s:s,s:s,s:s,s:s?,s:I}", "object", k->name, "type", is_host ? "host" : "passphrase", "label",
			 gw_clean_text(k->info.label, label, sizeof(label)), "created", created, "public_key_sha256", is_host ? host : NULL,
			 "scrypt_n", (json_int_t)k->info.scrypt.n);
}

static void print_keys(const struct gw_repo_key *keys, size_t count)
{
	static const char *const header[] = { "KEY", "TYPE", "CREATED", "LABEL" };
	struct gw_table t = { .columns = ARRAY_SIZE(header) };

	for (size_t i = 0; i < ARRAY_SIZE(header); i++)
		gw_table_cell(&t, "%s", header[i]);
	for (size_t i = 0; i < count; i++) {
		char label[GW_KEY_LABEL], created[32];

		gw_format_time(keys[i].info.created_s * GW_NS_PER_SEC, created, sizeof(created));
		gw_table_cell(&t, "%s", keys[i].name + strlen("keys/"));
		gw_table_cell(&t, "%s", keys[i].info.type == GW_KEY_HOST ? "host" : "passphrase");
		gw_table_cell(&t, "%s", created);
		gw_table_cell(&t, "%s", gw_clean_text(keys[i].info.label, label, sizeof(label)));
	}
	if (!t.failed)
		gw_table_print(&t);
	gw_table_release(&t);
}

int gw_cli_repo_key_list(struct gw_cli_repo *c, struct gw_error *err)
{
	struct gw_repo_key *keys;
	char url[512];
	size_t count;
	int r = gw_repo_list_keys(c->repo, &keys, &count, err);

	if (r < 0)
		return gw_cli_repo_failed(r, c->url, err);
	if (c->json) {
		json_t *list = json_array();

		for (size_t i = 0; i < count; i++)
			json_array_append_new(list, key_json(&keys[i]));
		gw_print_json(json_pack("{s:s,s:o}", "repository", gw_clean_text(c->url, url, sizeof(url)), "keys", list), false);
	} else {
		print_keys(keys, count);
	}
	free(keys);
	return 0;
}

/* ---- key rm ---- */

/* The key whose id begins so. A whole one is taken as it is: it may be damaged, and is then in no list. */
static int find_key(struct gw_cli_repo *c, const char *said, char name[48], struct gw_error *err)
{
	const char *id = !strncmp(said, "keys/", 5) ? said + 5 : said;
	struct gw_repo_key *keys;
	size_t count, found = 0;
	int r;

	if (strlen(id) < MIN_DIGITS || strlen(id) > ID_DIGITS || strspn(id, "0123456789abcdef") != strlen(id))
		return gw_error_set(err, EINVAL, "'%s' is no key: 'godwit repo key ls' tells them", said);
	if (strlen(id) == ID_DIGITS) {
		snprintf(name, 48, "keys/%s", id);
		return 0;
	}
	r = gw_repo_list_keys(c->repo, &keys, &count, err);
	if (r < 0)
		return gw_cli_repo_failed(r, c->url, err);
	for (size_t i = 0; i < count; i++) {
		if (strncmp(keys[i].name + 5, id, strlen(id)))
			continue;
		snprintf(name, 48, "%s", keys[i].name);
		found++;
	}
	free(keys);
	if (found == 0)
		return gw_error_set(err, ESRCH, "there is no key %s in %s", said, c->url);
	return found == 1 ? 0 : gw_error_set(err, EINVAL, "%zu keys begin with %s", found, said);
}

int gw_cli_repo_key_remove(struct gw_cli_repo *c, struct gw_error *err)
{
	char name[48], url[512];
	int r = find_key(c, c->args[0], name, err);

	if (r < 0)
		return r;
	r = gw_repo_remove_key(c->repo, name, err);
	if (r == -ENOENT)
		return gw_error_set(err, ESRCH, "there is no key %s in %s", c->args[0], c->url);
	if (r < 0)
		return gw_cli_repo_failed(r, c->url, err);
	if (c->json)
		gw_print_json(json_pack("{s:s,s:s}", "repository", gw_clean_text(c->url, url, sizeof(url)), "removed", name), false);
	else
		printf("%s removed. Whoever has opened the repository with it may still know what opens it: to be safe from them, "
		       "'godwit repo copy' to a new one\n", name);
	return 0;
}
