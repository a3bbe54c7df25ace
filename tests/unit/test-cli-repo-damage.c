// SPDX-License-Identifier: Apache-2.0
/* godwit repo on what is damaged, and on what a hostile writer has put there: it names both, and shows nothing that a terminal would obey. */
#include "cmocka-all.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli-repo-bed.h"
#include "lib/util.h"

static void assert_problem(struct cli_repo *f, const char *object, bool read_data)
{
	const char *option = read_data ? "--read-data" : "-r";
	const json_t *problems;
	json_t *o = CLI_JSON(DAMAGED, "repo", "check", option, f->t->url);
	struct cli_said s;
	bool found = false;

	assert_false(json_is_true(json_object_get(o, "ok")));
	problems = json_object_get(o, "problems");
	for (size_t i = 0; i < json_array_size(problems); i++)
		found |= !strcmp(cli_text_of(json_array_get(problems, i), "object"), object);
	if (!found)
		fail_msg("%s is not named: %s", object, json_dumps(o, 0));
	json_decref(o);
	s = CLI_EXPECT(DAMAGED, "repo", "check", option, f->t->url);
	assert_non_null(strstr(s.out, object));
	assert_non_null(strstr(s.out, "found\n"));
	cli_said_release(&s);
}

static void checks(void **state)
{
	struct cli_repo *f = *state;
	char name[96], path[256];
	struct stat st;
	json_t *o;

	cli_repo_save(f->t->repo, "web", 1, NULL);
	o = CLI_JSON(OK, "repo", "check", f->t->url, "--read-data");
	assert_true(json_is_true(json_object_get(o, "ok")));
	assert_int_equal(cli_int_of(o, "read_pages"), CLI_REPO_PAGES * 5 / 8 + 1);
	assert_int_equal(cli_int_of(o, "snapshots"), 1);
	assert_int_equal(cli_int_of(o, "keys"), 1);
	json_decref(o);
	CLI_SAYS("no problem found", "repo", "check", f->t->url);
	/* A bit of a pack: found by reading alone. */
	cli_repo_object(f, "packs/", 0, name, path);
	assert_int_equal(stat(path, &st), 0);
	cli_repo_flip(path, st.st_size / 2);
	CLI_SAYS("pages were not read", "repo", "check", f->t->url);
	assert_problem(f, name, true);
	cli_repo_flip(path, st.st_size / 2);
	/* A shorter one, and then none. */
	assert_int_equal(truncate(path, st.st_size - 1), 0);
	assert_problem(f, name, false);
	assert_int_equal(unlink(path), 0);
	assert_problem(f, name, false);
	cli_repo_object(f, "index/", 0, name, path);
	cli_repo_flip(path, 90);
	assert_problem(f, name, false);
	CLI_FAILS(DAMAGED, name, "repo", "stats", f->t->url);
	CLI_FAILS(DAMAGED, "godwit repo check", "repo", "prune", f->t->url);
}

static void a_damaged_manifest(void **state)
{
	struct cli_repo *f = *state;
	char names[REPO_MAX_OBJECTS][96], path[256], object[96] = "";
	struct gw_snap *s;
	json_t *o;

	cli_repo_save(f->t->repo, "web", 1, NULL);
	cli_repo_save(f->t->repo, "web", 2, NULL);
	cli_repo_save(f->t->repo, "db", 2, NULL);
	assert_int_equal(repo_objects(f->t->repo, "snapshots/", names), 3);
	assert_int_equal(gw_snap_open(f->t->repo, "web", 1, &s, NULL), 0);
	snprintf(object, sizeof(object), "%s", gw_snap_object(s));
	gw_snap_free(s);
	snprintf(path, sizeof(path), "%s/repo/%s", f->t->dir, object);
	cli_repo_flip(path, 80);
	o = CLI_JSON(DAMAGED, "repo", "ls", f->t->url);
	assert_int_equal(json_array_size(json_object_get(o, "snapshots")), 2);
	assert_string_equal(cli_text_of(json_array_get(json_object_get(o, "damaged"), 0), "object"), object);
	json_decref(o);
	CLI_FAILS(DAMAGED, object, "repo", "ls", f->t->url);
	CLI_FAILS(DAMAGED, object, "repo", "show", f->t->url, "web@1");
	CLI_FAILS(DAMAGED, object, "repo", "prune", f->t->url, "--exclusive");
	/* The others are copied. */
	repo_init_url(f->other, 600);
	o = CLI_JSON(DAMAGED, "repo", "copy", f->t->url, f->other);
	assert_int_equal(json_array_size(json_object_get(o, "snapshots")), 3);
	json_decref(o);
	o = CLI_JSON(OK, "repo", "ls", f->other);
	assert_int_equal(json_array_size(json_object_get(o, "snapshots")), 2);
	json_decref(o);
	/* It does not go by itself: what is kept is what can be read. */
	CLI_SAYS("nothing to remove", "repo", "rm", f->t->url, "web", "--keep-last", "1");
	CLI_SAYS("web@1: would be removed", "repo", "rm", f->t->url, "web@1", "--dry-run");
	CLI_SAYS("removed", "repo", "rm", f->t->url, object);
	CLI_FAILS(NOT_FOUND, object, "repo", "rm", f->t->url, object);
	CLI_SAYS("no problem found", "repo", "check", f->t->url);
}

/* Our writer takes no such names; a host that was taken over has the key, and writes what it likes. */
static void put_hostile_manifest(struct gw_repo *repo)
{
	struct gw_manifest m = { .info = { .id = "0123456789abcde", .name = "web", .generation = 1, .vm = "vm\xc2\x9d" "0;title",
					   .host = "\xe2\x80\xaetsoh\xfe", .pages = CLI_REPO_PAGES, .nregions = 1, .ndisks = 2,
					   .regions = { { 0, CLI_REPO_PAGES * GW_PAGE_SIZE } }, .disks = { "\xc2\x9b" "2Jdisk", "\xff\xff" } },
				 .places = GW_PLACES_INIT };
	gw_autobuf buf = GW_BUF_INIT;
	struct gw_crypt *crypt;
	char object[GW_SNAP_OBJECT];

	assert_int_equal(gw_crypt_new(gw_repo_keys(repo), &crypt), 0);
	assert_int_equal(gw_manifest_set_part(&m, "state", "x", 1), 0);
	assert_int_equal(gw_manifest_name(crypt, &m.info, object), 0);
	assert_int_equal(gw_manifest_seal(crypt, &m, object, &buf, NULL), 0);
	assert_int_equal(gw_object_put(gw_repo_bucket(repo), object, buf.data, buf.len, NULL), 0);
	gw_manifest_release(&m);
	gw_crypt_free(crypt);
}

static void hostile_names(void **state)
{
	struct cli_repo *f = *state;
	const struct gw_repo_params label = { .label = "la\xc2\x9b" "bel\x90", .scrypt = { 1024, 8, 1 } };
	const struct gw_repo_secret secret = { .passphrase = "of somebody else" };
	static const char *const commands[][2] = { { "ls", "" }, { "show", "web" }, { "key", "ls" } };
	struct gw_error err = GW_ERROR_INIT;
	struct cli_said s;
	json_t *o;

	put_hostile_manifest(f->t->repo);
	assert_int_equal(gw_repo_add_key(f->t->repo, &secret, &label, NULL, &err), 0);
	setenv("GODWIT_REPO", f->t->url, 1);
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		const char *const argv[] = { "repo", commands[i][0], *commands[i][1] ? commands[i][1] : NULL, NULL };

		s = cli_expect(OK, argv);
		for (const char *p = s.out; *p; p++) {
			if ((unsigned char)*p >= 0x80 || ((unsigned char)*p < 0x20 && *p != '\n') || *p == 0x7f)
				fail_msg("byte 0x%02x: %s", (unsigned char)*p, s.out);
		}
		cli_said_release(&s);
	}
	o = CLI_JSON(OK, "repo", "ls");
	assert_string_equal(cli_text_of(json_array_get(json_object_get(o, "snapshots"), 0), "vm"), "vm?0;title");
	assert_string_equal(cli_text_of(json_array_get(json_object_get(o, "snapshots"), 0), "host"), "?tsoh?");
	json_decref(o);
	o = CLI_JSON(OK, "repo", "show", "web");
	assert_string_equal(json_string_value(json_array_get(json_object_get(o, "disks"), 1)), "??");
	json_decref(o);
	o = CLI_JSON(OK, "repo", "key", "ls");
	assert_int_equal(json_array_size(json_object_get(o, "keys")), 2);
	json_decref(o);
	/* What somebody said himself. */
	s = CLI_EXPECT(NOT_FOUND, "repo", "ls", "file:///no/\x1b[31m");
	assert_null(strchr(s.err, 0x1b));
	cli_said_release(&s);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, cli_repo_setup, cli_repo_teardown)
int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(checks),
		T(a_damaged_manifest),
		T(hostile_names),
	};

	if (cli_is_child(argc, argv))
		return cli_child(argc, argv);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
