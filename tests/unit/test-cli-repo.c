// SPDX-License-Identifier: Apache-2.0
/* godwit repo, each command as a process of its own on a repository in a directory. */
#include "cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/pki.h"
#include "cli-repo-bed.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"

/* ---- making and opening ---- */

static void making_one(void **state)
{
	struct cli_repo *f = *state;
	json_t *o = CLI_JSON(OK, "repo", "init", f->other, "--passphrase-file", f->other_pass, "--grace", "7200");
	char fingerprint[40], brief[160], third[160];

	assert_string_equal(cli_text_of(o, "repository"), f->other);
	assert_int_equal(strlen(cli_text_of(o, "id")), 32);
	snprintf(fingerprint, sizeof(fingerprint), "%s", cli_text_of(o, "fingerprint"));
	json_decref(o);
	o = CLI_JSON(OK, "repo", "stats", "-r", f->other, "--passphrase-file", f->other_pass, "--fingerprint", fingerprint);
	assert_string_equal(cli_text_of(o, "fingerprint"), fingerprint);
	assert_int_equal(cli_int_of(o, "grace_s"), 7200);
	json_decref(o);
	CLI_FAILS(CONFLICT, "is a repository already", "repo", "init", f->other);
	/* The wrong one is told by its fingerprint. */
	CLI_FAILS(LOCKED, "not the repository that is expected", "repo", "ls", f->t->url, "--fingerprint", fingerprint);
	CLI_FAILS(USAGE, "is no fingerprint", "repo", "ls", f->t->url, "--fingerprint", "12");
	snprintf(brief, sizeof(brief), "%s/brief", f->t->dir);
	cli_repo_secret(brief, "short\n");
	snprintf(third, sizeof(third), "file://%s/third", f->t->dir);
	CLI_FAILS(USAGE, "at least 8 bytes", "repo", "init", "--repo", third, "--passphrase-file", brief);
	CLI_FAILS(USAGE, "label", "repo", "init", third, "--label", "a\tb");
	CLI_FAILS(FAILED, "/dev/null/repo", "repo", "init", "file:///dev/null/repo");
	CLI_FAILS(NOT_FOUND, third, "repo", "ls", third);
	CLI_SAYS("made the repository", "repo", "init", "--repo", third, "--passphrase-file", f->other_pass);
}

static void what_opens_it(void **state)
{
	struct cli_repo *f = *state;
	struct cli_said s;
	char path[160];

	CLI_FAILS(LOCKED, "wrong passphrase", "repo", "ls", f->t->url, "--passphrase-file", f->bad_pass);
	CLI_FAILS(NOT_FOUND, "godwit repo init", "repo", "ls", f->other);
	CLI_FAILS(USAGE, "is no repository URL", "repo", "ls", "http://x/y");
	CLI_FAILS(USAGE, "GODWIT_REPO", "repo", "ls");
	CLI_FAILS(USAGE, "no/such/file", "repo", "ls", f->t->url, "--passphrase-file", "/no/such/file");
	CLI_FAILS(USAGE, "either a passphrase or a host's key", "repo", "ls", f->t->url, "--passphrase-file", "a", "--key-file", "b");
	snprintf(path, sizeof(path), "%s/lines", f->t->dir);
	cli_repo_secret(path, REPO_PASS "\nand more\n");
	CLI_FAILS(USAGE, "more than one line", "repo", "ls", f->t->url, "--passphrase-file", path);
	cli_repo_secret(path, "\n");
	CLI_FAILS(USAGE, "it is empty", "repo", "ls", f->t->url, "--passphrase-file", path);
	cli_repo_secret(path, REPO_PASS "\r\n");
	CLI_SAYS("SNAPSHOT", "repo", "ls", f->t->url, "--passphrase-file", path);
	unsetenv("GODWIT_REPO_PASSPHRASE_FILE");
	CLI_FAILS(USAGE, "no terminal to ask on", "repo", "ls", f->t->url);
	s = cli_run(REPO_PASS "\n", (const char *const[]){ "repo", "ls", f->t->url, "--passphrase-file", "-", NULL });
	assert_int_equal(s.status, OK);
	cli_said_release(&s);
	setenv("GODWIT_REPO", f->t->url, 1);
	setenv("GODWIT_REPO_PASSPHRASE_FILE", f->pass, 1);
	CLI_SAYS("SNAPSHOT", "repo", "ls");
	CLI_SAYS("\"snapshots\"", "--json", "repo", "--passphrase-file", f->pass, "-r", f->t->url, "ls");
	/* Said beats what is in the environment. */
	CLI_FAILS(NOT_FOUND, f->other, "repo", "ls", f->other);
	CLI_FAILS(USAGE, "one repository too many", "repo", "ls", f->other, f->other);
	setenv("AWS_ACCESS_KEY_ID", "some", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "thing", 1);
	CLI_FAILS(UNREACHABLE, "127.0.0.1:1", "repo", "ls", "s3://bucket/p?endpoint=http://127.0.0.1:1&retry=1");
	CLI_FAILS(USAGE, "\"bogus\" is none", "repo", "ls", "s3://bucket?bogus=1");
}

static void command_lines(void **state)
{
	CLI_FAILS(USAGE, "a command is missing", "repo");
	CLI_FAILS(USAGE, "a command is missing", "repo", "key");
	CLI_FAILS(USAGE, "no command 'repo list'", "repo", "list");
	CLI_FAILS(USAGE, "no command 'repo key show'", "repo", "key", "show");
	CLI_FAILS(USAGE, "--read-data", "repo", "ls", "--read-data");
	CLI_FAILS(USAGE, "where to", "repo", "copy", "-r", "file:///x");
	CLI_FAILS(USAGE, "either --all or --keep-last", "repo", "rm", "web", "--all", "--keep-last", "1");
	CLI_FAILS(USAGE, "an argument is missing", "repo", "show");
	CLI_FAILS(USAGE, "too many", "repo", "show", "a", "b");
	CLI_FAILS(USAGE, "standard input", "repo", "key", "add", "--passphrase-file", "-", "--new-passphrase-file", "-");
	CLI_SAYS("prune", "repo", "--help");
	CLI_SAYS("--exclusive", "repo", "prune", "--help");
}

static void damaged_configuration(void **state)
{
	struct cli_repo *f = *state;
	char path[160], *data;
	json_t *o;
	size_t len;

	snprintf(path, sizeof(path), "%s/repo/config", f->t->dir);
	assert_int_equal(gw_read_file(path, 4096, &data, &len, NULL), 0);
	data[8] = 2;
	assert_int_equal(gw_write_file_atomic(path, data, len, 0600, NULL), 0);
	CLI_FAILS(FAILED, "a newer godwit made it", "repo", "ls", f->t->url);
	data[8] = 1;
	data[20] ^= 1;
	assert_int_equal(gw_write_file_atomic(path, data, len, 0600, NULL), 0);
	CLI_FAILS(DAMAGED, "config", "repo", "ls", f->t->url);
	o = CLI_JSON(DAMAGED, "repo", "ls", f->t->url);
	assert_int_equal(cli_int_of(json_object_get(o, "error"), "exit"), DAMAGED);
	assert_int_equal(cli_int_of(json_object_get(o, "error"), "errno"), EBADMSG);
	assert_non_null(strstr(cli_text_of(json_object_get(o, "error"), "message"), f->t->url));
	json_decref(o);
	free(data);
}

static void keys(void **state)
{
	struct cli_repo *f = *state;
	const struct gw_pki_request host = { .name = "host-a", .role = GW_ROLE_HOST, .days = 10 };
	const struct gw_pki_request stranger = { .name = "host-b", .role = GW_ROLE_HOST, .days = 10 };
	char pki[100], cert[160], key[160], strange[160], first[64], object[64];
	json_t *o, *list;

	snprintf(pki, sizeof(pki), "%s/pki", f->t->dir);
	snprintf(cert, sizeof(cert), "%s/host-a.crt", pki);
	snprintf(key, sizeof(key), "%s/host-a.key", pki);
	snprintf(strange, sizeof(strange), "%s/host-b.key", pki);
	assert_int_equal(gw_pki_init(pki, "godwit", 10, NULL), 0);
	assert_int_equal(gw_pki_issue(pki, pki, &host, NULL), 0);
	assert_int_equal(gw_pki_issue(pki, pki, &stranger, NULL), 0);
	CLI_FAILS(LOCKED, "no key for this host", "repo", "ls", f->t->url, "--key-file", key);
	o = CLI_JSON(OK, "repo", "key", "add", f->t->url, "--new-cert", cert);
	assert_string_equal(cli_text_of(o, "label"), "host-a");
	snprintf(object, sizeof(object), "%s", cli_text_of(o, "object"));
	json_decref(o);
	CLI_SAYS("SNAPSHOT", "repo", "ls", f->t->url, "--key-file", key);
	CLI_FAILS(LOCKED, "no key for this host", "repo", "ls", f->t->url, "--key-file", strange);
	CLI_FAILS(USAGE, "no private key", "repo", "ls", f->t->url, "--key-file", cert);
	CLI_FAILS(USAGE, "neither a certificate nor", "repo", "key", "add", f->t->url, "--new-cert", key);
	CLI_SAYS("can open", "repo", "key", "add", f->t->url, "--new-passphrase-file", f->other_pass, "--label", "second");
	CLI_SAYS("SNAPSHOT", "repo", "ls", f->t->url, "--passphrase-file", f->other_pass);
	CLI_SAYS("second", "repo", "key", "ls", f->t->url);
	o = CLI_JSON(OK, "repo", "key", "ls", f->t->url);
	list = json_object_get(o, "keys");
	assert_int_equal(json_array_size(list), 3);
	for (size_t i = 0; i < 3; i++) {
		const json_t *k = json_array_get(list, i);
		bool is_host = !strcmp(cli_text_of(k, "object"), object);

		assert_string_equal(cli_text_of(k, "type"), is_host ? "host" : "passphrase");
		assert_int_equal(json_is_null(json_object_get(k, "public_key_sha256")), !is_host);
		if (!strcmp(cli_text_of(k, "label"), "first"))
			snprintf(first, sizeof(first), "%s", cli_text_of(k, "object"));
	}
	json_decref(o);
	first[5 + 8] = '\0'; /* the beginning will do */
	CLI_SAYS("removed", "repo", "key", "rm", f->t->url, first);
	CLI_FAILS(LOCKED, "wrong passphrase", "repo", "ls", f->t->url);
	CLI_FAILS(NOT_FOUND, "no key", "repo", "key", "rm", f->t->url, first, "--key-file", key);
	CLI_FAILS(USAGE, "is no key", "repo", "key", "rm", f->t->url, "first", "--key-file", key);
	CLI_SAYS("removed", "repo", "key", "rm", f->t->url, object, "--passphrase-file", f->other_pass);
	o = CLI_JSON(OK, "repo", "key", "ls", f->t->url, "--passphrase-file", f->other_pass);
	list = json_object_get(o, "keys");
	assert_int_equal(json_array_size(list), 1);
	CLI_FAILS(CONFLICT, "the last key", "repo", "key", "rm", f->t->url, cli_text_of(json_array_get(list, 0), "object"), "--passphrase-file",
	      f->other_pass);
	json_decref(o);
}

/* ---- looking ---- */

/* The next generation, of which all but one page are as in the last. */
static void save_child(struct gw_repo *repo, const char *name)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap *parent;
	struct gw_snap_writer *w;
	uint8_t page[GW_PAGE_SIZE];

	assert_int_equal(gw_snap_open(repo, name, 0, &parent, &err), 0);
	w = repo_begin(repo, name, CLI_REPO_PAGES, parent);
	repo_fill_page(page, 5, 77);
	assert_int_equal(gw_snap_writer_pages(w, 5, 1, page), 0);
	assert_int_equal(gw_snap_writer_keep(w, 0, 5), 0);
	assert_int_equal(gw_snap_writer_keep(w, 6, CLI_REPO_PAGES - 6), 0);
	assert_int_equal(gw_snap_writer_commit(w, NULL, &err), 0);
	gw_snap_writer_free(w);
	gw_snap_free(parent);
}

static void lists(void **state)
{
	struct cli_repo *f = *state;
	json_t *o, *list, *first, *second;

	CLI_SAYS("SNAPSHOT", "repo", "ls", f->t->url);
	cli_repo_save(f->t->repo, "web", 1, NULL);
	save_child(f->t->repo, "web");
	cli_repo_save(f->t->repo, "db", 2, NULL);
	o = CLI_JSON(OK, "repo", "ls", f->t->url);
	list = json_object_get(o, "snapshots");
	assert_int_equal(json_array_size(list), 3);
	assert_int_equal(json_array_size(json_object_get(o, "damaged")), 0);
	assert_string_equal(cli_text_of(json_array_get(list, 0), "snapshot"), "db@1");
	first = json_array_get(list, 1);
	second = json_array_get(list, 2);
	assert_string_equal(cli_text_of(second, "snapshot"), "web@2");
	assert_string_equal(cli_text_of(second, "name"), "web");
	assert_int_equal(cli_int_of(second, "generation"), 2);
	assert_string_equal(cli_text_of(second, "vm"), "web-1");
	assert_string_equal(cli_text_of(second, "host"), "host-a");
	assert_string_equal(cli_text_of(second, "parent"), cli_text_of(first, "id"));
	assert_true(json_is_null(json_object_get(first, "parent")));
	assert_true(json_is_null(json_object_get(first, "origin")));
	assert_int_equal(cli_int_of(second, "memory_bytes"), CLI_REPO_PAGES * GW_PAGE_SIZE);
	assert_int_equal(cli_int_of(second, "used_bytes"), CLI_REPO_PAGES * 6 / 8 * GW_PAGE_SIZE);
	assert_int_equal(cli_int_of(second, "new_pages"), 1);
	assert_true(cli_int_of(second, "new_bytes") < 8192 && cli_int_of(first, "new_bytes") > 100000);
	assert_int_equal(strlen(cli_text_of(second, "created")), strlen("2026-01-31T12:00:00Z"));
	json_decref(o);
	o = CLI_JSON(OK, "repo", "ls", f->t->url, "db");
	assert_int_equal(json_array_size(json_object_get(o, "snapshots")), 1);
	json_decref(o);
	CLI_SAYS("  web@1\n", "repo", "ls", f->t->url);
	CLI_SAYS("1.6 MiB", "repo", "ls", f->t->url);
	CLI_FAILS(USAGE, "snapshot name", "repo", "ls", f->t->url, "no@name");
}

static void shows(void **state)
{
	struct cli_repo *f = *state;
	json_t *o;

	cli_repo_save(f->t->repo, "web", 1, NULL);
	save_child(f->t->repo, "web");
	o = CLI_JSON(OK, "repo", "show", f->t->url, "web@1");
	assert_string_equal(cli_text_of(o, "snapshot"), "web@1");
	assert_string_equal(cli_text_of(o, "repository"), f->t->url);
	assert_int_equal(cli_int_of(json_array_get(json_object_get(o, "regions"), 1), "gpa"), 1ll << 32);
	assert_string_equal(json_string_value(json_array_get(json_object_get(o, "disks"), 0)), "root.qcow2");
	assert_string_equal(cli_text_of(json_array_get(json_object_get(o, "parts"), 0), "name"), "state");
	assert_int_equal(cli_int_of(json_array_get(json_object_get(o, "parts"), 0), "bytes"), 9);
	assert_true(cli_int_of(o, "packs") > 0);
	json_decref(o);
	CLI_SAYS("snapshot   web@2", "repo", "show", f->t->url, "web");
	CLI_SAYS("disk       nbd://store/data", "repo", "show", f->t->url, "web");
	CLI_FAILS(NOT_FOUND, "no generation 7 of web", "repo", "show", f->t->url, "web@7");
	CLI_FAILS(NOT_FOUND, "no snapshot db", "repo", "show", f->t->url, "db");
	CLI_FAILS(USAGE, "generation", "repo", "show", f->t->url, "web@0");
	CLI_FAILS(USAGE, "snapshot name", "repo", "show", f->t->url, "../x");
}

static void figures(void **state)
{
	struct cli_repo *f = *state;
	json_t *o = CLI_JSON(OK, "repo", "stats", f->t->url);

	assert_int_equal(cli_int_of(o, "snapshots"), 0);
	assert_true(json_real_value(json_object_get(o, "ratio")) == 0);
	json_decref(o);
	cli_repo_save(f->t->repo, "web", 1, NULL);
	cli_repo_save(f->t->repo, "db", 1, NULL);
	o = CLI_JSON(OK, "repo", "stats", f->t->url);
	assert_int_equal(cli_int_of(o, "snapshots"), 2);
	assert_int_equal(cli_int_of(o, "logical_bytes"), 2 * CLI_REPO_PAGES * 6 / 8 * GW_PAGE_SIZE);
	assert_int_equal(cli_int_of(o, "unique_bytes"), (CLI_REPO_PAGES * 5 / 8 + 1) * GW_PAGE_SIZE);
	assert_int_equal(cli_int_of(o, "garbage_bytes"), 0);
	assert_int_equal(cli_int_of(o, "stored_bytes"), cli_int_of(o, "pack_bytes") + cli_int_of(o, "index_bytes") + cli_int_of(o, "manifest_bytes"));
	assert_true(json_real_value(json_object_get(o, "dedup_ratio")) > 2.3);
	assert_true(json_real_value(json_object_get(o, "compression_ratio")) > 1.1);
	json_decref(o);
	CLI_SAYS("snapshots    2", "repo", "stats", f->t->url);
}

/* ---- changing ---- */

static size_t snapshots_of(const char *url)
{
	json_t *o = CLI_JSON(OK, "repo", "ls", url);
	size_t n = json_array_size(json_object_get(o, "snapshots"));

	json_decref(o);
	return n;
}

static void removes(void **state)
{
	struct cli_repo *f = *state;
	json_t *o;

	for (unsigned i = 1; i <= 5; i++)
		cli_repo_save(f->t->repo, "web", i, NULL);
	cli_repo_save(f->t->repo, "db", 9, NULL);
	CLI_FAILS(USAGE, "web has 5 generations", "repo", "rm", f->t->url, "web");
	/* All or nothing, as far as it can be known before. */
	CLI_FAILS(NOT_FOUND, "no generation 9 of web", "repo", "rm", f->t->url, "web@1", "web@9");
	CLI_FAILS(NOT_FOUND, "no snapshot www", "repo", "rm", f->t->url, "www");
	CLI_FAILS(USAGE, "about a name", "repo", "rm", f->t->url, "web@1", "--all");
	o = CLI_JSON(OK, "repo", "rm", f->t->url, "web", "--all", "--dry-run");
	assert_int_equal(json_array_size(json_object_get(o, "removed")), 5);
	assert_true(json_is_true(json_object_get(o, "dry_run")));
	json_decref(o);
	assert_int_equal(snapshots_of(f->t->url), 6);
	o = CLI_JSON(OK, "repo", "rm", f->t->url, "web", "--keep-last", "3");
	assert_int_equal(json_array_size(json_object_get(o, "removed")), 2);
	assert_string_equal(cli_text_of(json_array_get(json_object_get(o, "removed"), 0), "snapshot"), "web@1");
	assert_string_equal(cli_text_of(json_array_get(json_object_get(o, "removed"), 1), "snapshot"), "web@2");
	json_decref(o);
	CLI_SAYS("web@4: removed\n", "repo", "rm", f->t->url, "web@4", "db", "web@4");
	CLI_SAYS("nothing to remove", "repo", "rm", f->t->url, "web", "--keep-last", "3");
	CLI_SAYS("web@5: removed\n", "repo", "rm", f->t->url, "web", "--all");
	assert_int_equal(snapshots_of(f->t->url), 0);
}

static void prunes(void **state)
{
	struct cli_repo *f = *state;
	char before[REPO_MAX_OBJECTS][96], after[REPO_MAX_OBJECTS][96];
	uint8_t *memory = repo_memory(CLI_REPO_PAGES, 2);
	json_t *o;
	size_t n;

	cli_repo_save(f->t->repo, "web", 1, NULL);
	repo_save(f->t->repo, "db", memory, CLI_REPO_PAGES, NULL);
	CLI_SAYS("db@1: removed", "repo", "rm", f->t->url, "db");
	n = repo_objects(f->t->repo, "", before);
	o = CLI_JSON(OK, "repo", "prune", f->t->url);
	assert_true(cli_int_of(o, "recent_packs") > 0);
	assert_int_equal(cli_int_of(o, "removed_packs"), 0);
	json_decref(o);
	CLI_SAYS("nothing was changed", "repo", "prune", f->t->url, "--exclusive", "--dry-run");
	o = CLI_JSON(OK, "repo", "prune", f->t->url, "--exclusive", "--dry-run");
	assert_true(cli_int_of(o, "removed_packs") > 0);
	json_decref(o);
	assert_int_equal(repo_objects(f->t->repo, "", after), n);
	assert_memory_equal(before, after, n * sizeof(before[0]));
	/* In two steps, beside writers. */
	repo_age(f->t, "packs/", 700);
	CLI_SAYS("marked", "repo", "prune", f->t->url);
	repo_age(f->t, "marks/", 700);
	o = CLI_JSON(OK, "repo", "prune", f->t->url);
	assert_true(cli_int_of(o, "removed_packs") > 0);
	json_decref(o);
	assert_true(repo_objects(f->t->repo, "", after) < n);
	CLI_SAYS("no problem found", "repo", "check", f->t->url, "--read-data");
	free(memory);
}

static void copies(void **state)
{
	struct cli_repo *f = *state;
	uint8_t *memory = repo_memory(CLI_REPO_PAGES, 2);
	struct gw_repo *other;
	json_t *o, *first;
	char name[96], path[256];

	cli_repo_save(f->t->repo, "web", 1, NULL);
	repo_save(f->t->repo, "web", memory, CLI_REPO_PAGES, NULL);
	json_decref(CLI_JSON(OK, "repo", "init", f->other, "--passphrase-file", f->other_pass));
	CLI_FAILS(LOCKED, f->other, "repo", "copy", f->t->url, "--to", f->other);
	o = CLI_JSON(OK, "repo", "copy", f->t->url, "--to", f->other, "--to-passphrase-file", f->other_pass, "web@2");
	first = json_array_get(json_object_get(o, "snapshots"), 0);
	assert_true(json_is_true(json_object_get(first, "copied")));
	assert_string_equal(cli_text_of(first, "snapshot"), "web@2");
	assert_string_equal(cli_text_of(first, "as"), "web@2");
	json_decref(o);
	CLI_SAYS("web@2: is there already as web@2", "repo", "copy", f->t->url, f->other, "--to-passphrase-file", f->other_pass);
	o = CLI_JSON(OK, "repo", "ls", f->other, "--passphrase-file", f->other_pass);
	assert_int_equal(json_array_size(json_object_get(o, "snapshots")), 2);
	first = json_array_get(json_object_get(o, "snapshots"), 0);
	assert_int_equal(strlen(cli_text_of(first, "origin")), 32);
	json_decref(o);
	const struct gw_repo_secret secret = { .passphrase = "another passphrase" };
	assert_int_equal(gw_repo_open(f->other, &secret, &other, NULL), 0);
	repo_assert_holds(other, "web", 2, memory, CLI_REPO_PAGES);
	gw_repo_free(other);
	CLI_FAILS(USAGE, "the same repository", "repo", "copy", f->t->url, f->t->url);
	CLI_FAILS(NOT_FOUND, "no snapshot db", "repo", "copy", f->t->url, f->other, "db", "--to-passphrase-file", f->other_pass);
	/* A pack that is gone is damage of that snapshot. */
	cli_repo_save(f->t->repo, "db", 7, NULL);
	for (size_t i = repo_objects(f->t->repo, "packs/", (char[REPO_MAX_OBJECTS][96]){ { 0 } }); i-- > 0;) {
		cli_repo_object(f, "packs/", i, name, path);
		assert_int_equal(unlink(path), 0);
	}
	CLI_FAILS(DAMAGED, "packs/", "repo", "copy", f->t->url, f->other, "db", "--to-passphrase-file", f->other_pass);
	free(memory);
}

/* ---- side by side ---- */

#define ROUNDS 4

static void prune_beside_ls(void **state)
{
	struct cli_repo *f = *state;
	uint8_t *keep = repo_memory(CLI_REPO_PAGES, 100);

	repo_save(f->t->repo, "keep", keep, CLI_REPO_PAGES, NULL);
	for (unsigned round = 0; round < ROUNDS; round++) {
		static const char *const commands[] = { "prune", "ls", "prune", "ls", "check", "stats" };
		struct cli_process p[ARRAY_SIZE(commands)];

		repo_age(f->t, "packs/", 10);
		repo_age(f->t, "marks/", 10);
		for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
			p[i] = cli_start(NULL, (const char *const[]){ "repo", commands[i], f->t->url, "--json", NULL });
		/* And a writer, whose last generation but one goes. */
		cli_repo_save(f->t->repo, "web", round, NULL);
		if (round)
			CLI_SAYS("removed", "repo", "rm", f->t->url, "web", "--keep-last", "1");
		for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
			struct cli_said s = cli_wait(&p[i]);
			json_t *o = json_loads(s.out, 0, NULL);

			if (s.status != OK || !o)
				fail_msg("%s: %d, %s%s", commands[i], s.status, s.out, s.err);
			json_decref(o);
			cli_said_release(&s);
		}
	}
	CLI_SAYS("no problem found", "repo", "check", f->t->url, "--read-data");
	repo_assert_holds(f->t->repo, "keep", 1, keep, CLI_REPO_PAGES);
	free(keep);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, cli_repo_setup, cli_repo_teardown)
int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(making_one),
		T(what_opens_it),
		T(command_lines),
		T(damaged_configuration),
		T(keys),
		T(lists),
		T(shows),
		T(figures),
		T(removes),
		T(prunes),
		T(copies),
		cmocka_unit_test_setup_teardown(prune_beside_ls, cli_repo_setup_hasty, cli_repo_teardown),
	};

	if (cli_is_child(argc, argv))
		return cli_child(argc, argv);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
