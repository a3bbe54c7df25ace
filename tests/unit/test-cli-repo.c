// SPDX-License-Identifier: Apache-2.0
/* godwit repo, each command as a process of its own on a repository in a directory. */
#include "cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>

#include "agent/cli-repo.h"
#include "agent/pki.h"
#include "cli-process.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"
#include "repo-help.h"

#define PAGES 400ull

enum { OK, FAILED, USAGE, NOT_FOUND, CONFLICT, UNREACHABLE, DOUBT, CANCELLED, DAMAGED, LOCKED };

/* What a test needs to say on command lines. */
struct fixture {
	struct repo_test *t;
	char pass[128], other_pass[128], bad_pass[128]; /* files */
	char other[128];                                /* URL */
};

static void write_text(const char *path, const char *text)
{
	assert_int_equal(gw_write_file_atomic(path, text, strlen(text), 0600, NULL), 0);
}

static int setup_with(void **state, int (*setup)(void **))
{
	struct fixture *f = calloc(1, sizeof(*f));
	void *t;

	assert_int_equal(setup(&t), 0);
	f->t = t;
	snprintf(f->pass, sizeof(f->pass), "%s/pass", f->t->dir);
	snprintf(f->other_pass, sizeof(f->other_pass), "%s/other-pass", f->t->dir);
	snprintf(f->bad_pass, sizeof(f->bad_pass), "%s/bad-pass", f->t->dir);
	snprintf(f->other, sizeof(f->other), "file://%s/other", f->t->dir);
	write_text(f->pass, REPO_PASS "\n");
	write_text(f->other_pass, "another passphrase");
	write_text(f->bad_pass, "quite another\n");
	unsetenv("GODWIT_REPO");
	setenv("GODWIT_REPO_PASSPHRASE_FILE", f->pass, 1);
	*state = f;
	return 0;
}

static int setup(void **state)
{
	return setup_with(state, repo_setup);
}

static int setup_hasty(void **state)
{
	return setup_with(state, repo_setup_hasty);
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	void *t = f->t;

	free(f);
	return repo_teardown(&t);
}

/* Both were said: exit status, and some words of standard error. */
static void assert_fails(int status, const char *words, const char *const *argv)
{
	struct cli_said s = cli_expect(status, argv);

	if (!strstr(s.err, words))
		fail_msg("not told '%s': %s", words, s.err);
	cli_said_release(&s);
}
#define FAILS(status, words, ...) assert_fails(status, words, (const char *const[]){ __VA_ARGS__, NULL })

static void assert_says(const char *words, const char *const *argv)
{
	struct cli_said s = cli_expect(OK, argv);

	if (!strstr(s.out, words))
		fail_msg("not told '%s': %s", words, s.out);
	cli_said_release(&s);
}
#define SAYS(words, ...) assert_says(words, (const char *const[]){ __VA_ARGS__, NULL })

static const char *text_of(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	if (!s)
		fail_msg("no text '%s'", key);
	return s;
}

static int64_t int_of(const json_t *o, const char *key)
{
	assert_true(json_is_integer(json_object_get(o, key)));
	return json_integer_value(json_object_get(o, key));
}

static void save(struct gw_repo *repo, const char *name, unsigned seed, struct gw_snap_info *ret)
{
	uint8_t *memory = repo_memory(PAGES, seed);

	repo_save(repo, name, memory, PAGES, ret);
	free(memory);
}

/* The next generation, of which all but one page are as in the last. */
static void save_child(struct gw_repo *repo, const char *name)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap *parent;
	struct gw_snap_writer *w;
	uint8_t page[GW_PAGE_SIZE];

	assert_int_equal(gw_snap_open(repo, name, 0, &parent, &err), 0);
	w = repo_begin(repo, name, PAGES, parent);
	repo_fill_page(page, 5, 77);
	assert_int_equal(gw_snap_writer_pages(w, 5, 1, page), 0);
	assert_int_equal(gw_snap_writer_keep(w, 0, 5), 0);
	assert_int_equal(gw_snap_writer_keep(w, 6, PAGES - 6), 0);
	assert_int_equal(gw_snap_writer_commit(w, NULL, &err), 0);
	gw_snap_writer_free(w);
	gw_snap_free(parent);
}

/* Path of the first object of a folder whose name sorts at `nth`. */
static void object_path(struct fixture *f, const char *folder, size_t nth, char name[96], char path[256])
{
	char names[REPO_MAX_OBJECTS][96];

	assert_true(repo_objects(f->t->repo, folder, names) > nth);
	snprintf(name, 96, "%s", names[nth]);
	snprintf(path, 256, "%s/repo/%s", f->t->dir, name);
}

static void flip(const char *path, off_t at)
{
	gw_autofd fd = open(path, O_RDWR | O_CLOEXEC);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
}

/* ---- making and opening ---- */

static void making_one(void **state)
{
	struct fixture *f = *state;
	json_t *o = CLI_JSON(OK, "repo", "init", f->other, "--passphrase-file", f->other_pass, "--grace", "7200");
	char fingerprint[40], brief[160], third[160];

	assert_string_equal(text_of(o, "repository"), f->other);
	assert_int_equal(strlen(text_of(o, "id")), 32);
	snprintf(fingerprint, sizeof(fingerprint), "%s", text_of(o, "fingerprint"));
	json_decref(o);
	o = CLI_JSON(OK, "repo", "stats", "-r", f->other, "--passphrase-file", f->other_pass, "--fingerprint", fingerprint);
	assert_string_equal(text_of(o, "fingerprint"), fingerprint);
	assert_int_equal(int_of(o, "grace_s"), 7200);
	json_decref(o);
	FAILS(CONFLICT, "is a repository already", "repo", "init", f->other);
	/* The wrong one is told by its fingerprint. */
	FAILS(LOCKED, "not the repository that is expected", "repo", "ls", f->t->url, "--fingerprint", fingerprint);
	FAILS(USAGE, "is no fingerprint", "repo", "ls", f->t->url, "--fingerprint", "12");
	snprintf(brief, sizeof(brief), "%s/brief", f->t->dir);
	write_text(brief, "short\n");
	snprintf(third, sizeof(third), "file://%s/third", f->t->dir);
	FAILS(USAGE, "at least 8 bytes", "repo", "init", "--repo", third, "--passphrase-file", brief);
	FAILS(USAGE, "label", "repo", "init", third, "--label", "a\tb");
	FAILS(FAILED, "/dev/null/repo", "repo", "init", "file:///dev/null/repo");
	FAILS(NOT_FOUND, third, "repo", "ls", third);
	SAYS("made the repository", "repo", "init", "--repo", third, "--passphrase-file", f->other_pass);
}

static void what_opens_it(void **state)
{
	struct fixture *f = *state;
	struct cli_said s;
	char path[160];

	FAILS(LOCKED, "wrong passphrase", "repo", "ls", f->t->url, "--passphrase-file", f->bad_pass);
	FAILS(NOT_FOUND, "godwit repo init", "repo", "ls", f->other);
	FAILS(USAGE, "is no repository URL", "repo", "ls", "http://x/y");
	FAILS(USAGE, "GODWIT_REPO", "repo", "ls");
	FAILS(USAGE, "no/such/file", "repo", "ls", f->t->url, "--passphrase-file", "/no/such/file");
	FAILS(USAGE, "either a passphrase or a host's key", "repo", "ls", f->t->url, "--passphrase-file", "a", "--key-file", "b");
	snprintf(path, sizeof(path), "%s/lines", f->t->dir);
	write_text(path, REPO_PASS "\nand more\n");
	FAILS(USAGE, "more than one line", "repo", "ls", f->t->url, "--passphrase-file", path);
	write_text(path, "\n");
	FAILS(USAGE, "it is empty", "repo", "ls", f->t->url, "--passphrase-file", path);
	write_text(path, REPO_PASS "\r\n");
	SAYS("SNAPSHOT", "repo", "ls", f->t->url, "--passphrase-file", path);
	unsetenv("GODWIT_REPO_PASSPHRASE_FILE");
	FAILS(USAGE, "no terminal to ask on", "repo", "ls", f->t->url);
	s = cli_run(REPO_PASS "\n", (const char *const[]){ "repo", "ls", f->t->url, "--passphrase-file", "-", NULL });
	assert_int_equal(s.status, OK);
	cli_said_release(&s);
	setenv("GODWIT_REPO", f->t->url, 1);
	setenv("GODWIT_REPO_PASSPHRASE_FILE", f->pass, 1);
	SAYS("SNAPSHOT", "repo", "ls");
	SAYS("\"snapshots\"", "--json", "repo", "--passphrase-file", f->pass, "-r", f->t->url, "ls");
	/* Said beats what is in the environment. */
	FAILS(NOT_FOUND, f->other, "repo", "ls", f->other);
	FAILS(USAGE, "one repository too many", "repo", "ls", f->other, f->other);
	setenv("AWS_ACCESS_KEY_ID", "some", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "thing", 1);
	FAILS(UNREACHABLE, "127.0.0.1:1", "repo", "ls", "s3://bucket/p?endpoint=http://127.0.0.1:1&retry=1");
	FAILS(USAGE, "\"bogus\" is none", "repo", "ls", "s3://bucket?bogus=1");
}

static void command_lines(void **state)
{
	FAILS(USAGE, "a command is missing", "repo");
	FAILS(USAGE, "a command is missing", "repo", "key");
	FAILS(USAGE, "no command 'repo list'", "repo", "list");
	FAILS(USAGE, "no command 'repo key show'", "repo", "key", "show");
	FAILS(USAGE, "--read-data", "repo", "ls", "--read-data");
	FAILS(USAGE, "where to", "repo", "copy", "-r", "file:///x");
	FAILS(USAGE, "either --all or --keep-last", "repo", "rm", "web", "--all", "--keep-last", "1");
	FAILS(USAGE, "an argument is missing", "repo", "show");
	FAILS(USAGE, "too many", "repo", "show", "a", "b");
	FAILS(USAGE, "standard input", "repo", "key", "add", "--passphrase-file", "-", "--new-passphrase-file", "-");
	SAYS("prune", "repo", "--help");
	SAYS("--exclusive", "repo", "prune", "--help");
}

static void damaged_configuration(void **state)
{
	struct fixture *f = *state;
	char path[160], *data;
	json_t *o;
	size_t len;

	snprintf(path, sizeof(path), "%s/repo/config", f->t->dir);
	assert_int_equal(gw_read_file(path, 4096, &data, &len, NULL), 0);
	data[8] = 2;
	assert_int_equal(gw_write_file_atomic(path, data, len, 0600, NULL), 0);
	FAILS(FAILED, "a newer godwit made it", "repo", "ls", f->t->url);
	data[8] = 1;
	data[20] ^= 1;
	assert_int_equal(gw_write_file_atomic(path, data, len, 0600, NULL), 0);
	FAILS(DAMAGED, "config", "repo", "ls", f->t->url);
	o = CLI_JSON(DAMAGED, "repo", "ls", f->t->url);
	assert_int_equal(int_of(json_object_get(o, "error"), "exit"), DAMAGED);
	assert_int_equal(int_of(json_object_get(o, "error"), "errno"), EBADMSG);
	assert_non_null(strstr(text_of(json_object_get(o, "error"), "message"), f->t->url));
	json_decref(o);
	free(data);
}

static void keys(void **state)
{
	struct fixture *f = *state;
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
	FAILS(LOCKED, "no key for this host", "repo", "ls", f->t->url, "--key-file", key);
	o = CLI_JSON(OK, "repo", "key", "add", f->t->url, "--new-cert", cert);
	assert_string_equal(text_of(o, "label"), "host-a");
	snprintf(object, sizeof(object), "%s", text_of(o, "object"));
	json_decref(o);
	SAYS("SNAPSHOT", "repo", "ls", f->t->url, "--key-file", key);
	FAILS(LOCKED, "no key for this host", "repo", "ls", f->t->url, "--key-file", strange);
	FAILS(USAGE, "no private key", "repo", "ls", f->t->url, "--key-file", cert);
	FAILS(USAGE, "neither a certificate nor", "repo", "key", "add", f->t->url, "--new-cert", key);
	SAYS("can open", "repo", "key", "add", f->t->url, "--new-passphrase-file", f->other_pass, "--label", "second");
	SAYS("SNAPSHOT", "repo", "ls", f->t->url, "--passphrase-file", f->other_pass);
	SAYS("second", "repo", "key", "ls", f->t->url);
	o = CLI_JSON(OK, "repo", "key", "ls", f->t->url);
	list = json_object_get(o, "keys");
	assert_int_equal(json_array_size(list), 3);
	for (size_t i = 0; i < 3; i++) {
		const json_t *k = json_array_get(list, i);
		bool is_host = !strcmp(text_of(k, "object"), object);

		assert_string_equal(text_of(k, "type"), is_host ? "host" : "passphrase");
		assert_int_equal(json_is_null(json_object_get(k, "public_key_sha256")), !is_host);
		if (!strcmp(text_of(k, "label"), "first"))
			snprintf(first, sizeof(first), "%s", text_of(k, "object"));
	}
	json_decref(o);
	first[5 + 8] = '\0'; /* the beginning will do */
	SAYS("removed", "repo", "key", "rm", f->t->url, first);
	FAILS(LOCKED, "wrong passphrase", "repo", "ls", f->t->url);
	FAILS(NOT_FOUND, "no key", "repo", "key", "rm", f->t->url, first, "--key-file", key);
	FAILS(USAGE, "is no key", "repo", "key", "rm", f->t->url, "first", "--key-file", key);
	SAYS("removed", "repo", "key", "rm", f->t->url, object, "--passphrase-file", f->other_pass);
	o = CLI_JSON(OK, "repo", "key", "ls", f->t->url, "--passphrase-file", f->other_pass);
	list = json_object_get(o, "keys");
	assert_int_equal(json_array_size(list), 1);
	FAILS(CONFLICT, "the last key", "repo", "key", "rm", f->t->url, text_of(json_array_get(list, 0), "object"), "--passphrase-file",
	      f->other_pass);
	json_decref(o);
}

/* ---- looking ---- */

static void lists(void **state)
{
	struct fixture *f = *state;
	json_t *o, *list, *first, *second;

	SAYS("SNAPSHOT", "repo", "ls", f->t->url);
	save(f->t->repo, "web", 1, NULL);
	save_child(f->t->repo, "web");
	save(f->t->repo, "db", 2, NULL);
	o = CLI_JSON(OK, "repo", "ls", f->t->url);
	list = json_object_get(o, "snapshots");
	assert_int_equal(json_array_size(list), 3);
	assert_int_equal(json_array_size(json_object_get(o, "damaged")), 0);
	assert_string_equal(text_of(json_array_get(list, 0), "snapshot"), "db@1");
	first = json_array_get(list, 1);
	second = json_array_get(list, 2);
	assert_string_equal(text_of(second, "snapshot"), "web@2");
	assert_string_equal(text_of(second, "name"), "web");
	assert_int_equal(int_of(second, "generation"), 2);
	assert_string_equal(text_of(second, "vm"), "web-1");
	assert_string_equal(text_of(second, "host"), "host-a");
	assert_string_equal(text_of(second, "parent"), text_of(first, "id"));
	assert_true(json_is_null(json_object_get(first, "parent")));
	assert_true(json_is_null(json_object_get(first, "origin")));
	assert_int_equal(int_of(second, "memory_bytes"), PAGES * GW_PAGE_SIZE);
	assert_int_equal(int_of(second, "used_bytes"), PAGES * 6 / 8 * GW_PAGE_SIZE);
	assert_int_equal(int_of(second, "new_pages"), 1);
	assert_true(int_of(second, "new_bytes") < 8192 && int_of(first, "new_bytes") > 100000);
	assert_int_equal(strlen(text_of(second, "created")), strlen("2026-01-31T12:00:00Z"));
	json_decref(o);
	o = CLI_JSON(OK, "repo", "ls", f->t->url, "db");
	assert_int_equal(json_array_size(json_object_get(o, "snapshots")), 1);
	json_decref(o);
	SAYS("  web@1\n", "repo", "ls", f->t->url);
	SAYS("1.6 MiB", "repo", "ls", f->t->url);
	FAILS(USAGE, "snapshot name", "repo", "ls", f->t->url, "no@name");
}

static void shows(void **state)
{
	struct fixture *f = *state;
	json_t *o;

	save(f->t->repo, "web", 1, NULL);
	save_child(f->t->repo, "web");
	o = CLI_JSON(OK, "repo", "show", f->t->url, "web@1");
	assert_string_equal(text_of(o, "snapshot"), "web@1");
	assert_string_equal(text_of(o, "repository"), f->t->url);
	assert_int_equal(int_of(json_array_get(json_object_get(o, "regions"), 1), "gpa"), 1ll << 32);
	assert_string_equal(json_string_value(json_array_get(json_object_get(o, "disks"), 0)), "root.qcow2");
	assert_string_equal(text_of(json_array_get(json_object_get(o, "parts"), 0), "name"), "state");
	assert_int_equal(int_of(json_array_get(json_object_get(o, "parts"), 0), "bytes"), 9);
	assert_true(int_of(o, "packs") > 0);
	json_decref(o);
	SAYS("snapshot   web@2", "repo", "show", f->t->url, "web");
	SAYS("disk       nbd://store/data", "repo", "show", f->t->url, "web");
	FAILS(NOT_FOUND, "no generation 7 of web", "repo", "show", f->t->url, "web@7");
	FAILS(NOT_FOUND, "no snapshot db", "repo", "show", f->t->url, "db");
	FAILS(USAGE, "generation", "repo", "show", f->t->url, "web@0");
	FAILS(USAGE, "snapshot name", "repo", "show", f->t->url, "../x");
}

static void figures(void **state)
{
	struct fixture *f = *state;
	json_t *o = CLI_JSON(OK, "repo", "stats", f->t->url);

	assert_int_equal(int_of(o, "snapshots"), 0);
	assert_true(json_real_value(json_object_get(o, "ratio")) == 0);
	json_decref(o);
	save(f->t->repo, "web", 1, NULL);
	save(f->t->repo, "db", 1, NULL);
	o = CLI_JSON(OK, "repo", "stats", f->t->url);
	assert_int_equal(int_of(o, "snapshots"), 2);
	assert_int_equal(int_of(o, "logical_bytes"), 2 * PAGES * 6 / 8 * GW_PAGE_SIZE);
	assert_int_equal(int_of(o, "unique_bytes"), (PAGES * 5 / 8 + 1) * GW_PAGE_SIZE);
	assert_int_equal(int_of(o, "garbage_bytes"), 0);
	assert_int_equal(int_of(o, "stored_bytes"), int_of(o, "pack_bytes") + int_of(o, "index_bytes") + int_of(o, "manifest_bytes"));
	assert_true(json_real_value(json_object_get(o, "dedup_ratio")) > 2.3);
	assert_true(json_real_value(json_object_get(o, "compression_ratio")) > 1.1);
	json_decref(o);
	SAYS("snapshots    2", "repo", "stats", f->t->url);
}

/* ---- damage ---- */

static void assert_problem(struct fixture *f, const char *object, bool read_data)
{
	const char *option = read_data ? "--read-data" : "-r";
	const json_t *problems;
	json_t *o = CLI_JSON(DAMAGED, "repo", "check", option, f->t->url);
	struct cli_said s;
	bool found = false;

	assert_false(json_is_true(json_object_get(o, "ok")));
	problems = json_object_get(o, "problems");
	for (size_t i = 0; i < json_array_size(problems); i++)
		found |= !strcmp(text_of(json_array_get(problems, i), "object"), object);
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
	struct fixture *f = *state;
	char name[96], path[256];
	struct stat st;
	json_t *o;

	save(f->t->repo, "web", 1, NULL);
	o = CLI_JSON(OK, "repo", "check", f->t->url, "--read-data");
	assert_true(json_is_true(json_object_get(o, "ok")));
	assert_int_equal(int_of(o, "read_pages"), PAGES * 5 / 8 + 1);
	assert_int_equal(int_of(o, "snapshots"), 1);
	assert_int_equal(int_of(o, "keys"), 1);
	json_decref(o);
	SAYS("no problem found", "repo", "check", f->t->url);
	/* A bit of a pack: found by reading alone. */
	object_path(f, "packs/", 0, name, path);
	assert_int_equal(stat(path, &st), 0);
	flip(path, st.st_size / 2);
	SAYS("pages were not read", "repo", "check", f->t->url);
	assert_problem(f, name, true);
	flip(path, st.st_size / 2);
	/* A shorter one, and then none. */
	assert_int_equal(truncate(path, st.st_size - 1), 0);
	assert_problem(f, name, false);
	assert_int_equal(unlink(path), 0);
	assert_problem(f, name, false);
	object_path(f, "index/", 0, name, path);
	flip(path, 90);
	assert_problem(f, name, false);
	FAILS(DAMAGED, name, "repo", "stats", f->t->url);
	FAILS(DAMAGED, "godwit repo check", "repo", "prune", f->t->url);
}

static void a_damaged_manifest(void **state)
{
	struct fixture *f = *state;
	char names[REPO_MAX_OBJECTS][96], path[256], object[96] = "";
	struct gw_snap *s;
	json_t *o;

	save(f->t->repo, "web", 1, NULL);
	save(f->t->repo, "web", 2, NULL);
	save(f->t->repo, "db", 2, NULL);
	assert_int_equal(repo_objects(f->t->repo, "snapshots/", names), 3);
	assert_int_equal(gw_snap_open(f->t->repo, "web", 1, &s, NULL), 0);
	snprintf(object, sizeof(object), "%s", gw_snap_object(s));
	gw_snap_free(s);
	snprintf(path, sizeof(path), "%s/repo/%s", f->t->dir, object);
	flip(path, 80);
	o = CLI_JSON(DAMAGED, "repo", "ls", f->t->url);
	assert_int_equal(json_array_size(json_object_get(o, "snapshots")), 2);
	assert_string_equal(text_of(json_array_get(json_object_get(o, "damaged"), 0), "object"), object);
	json_decref(o);
	FAILS(DAMAGED, object, "repo", "ls", f->t->url);
	FAILS(DAMAGED, object, "repo", "show", f->t->url, "web@1");
	FAILS(DAMAGED, object, "repo", "prune", f->t->url, "--exclusive");
	/* The others are copied. */
	repo_init_url(f->other, 600);
	o = CLI_JSON(DAMAGED, "repo", "copy", f->t->url, f->other);
	assert_int_equal(json_array_size(json_object_get(o, "snapshots")), 3);
	json_decref(o);
	o = CLI_JSON(OK, "repo", "ls", f->other);
	assert_int_equal(json_array_size(json_object_get(o, "snapshots")), 2);
	json_decref(o);
	/* It does not go by itself: what is kept is what can be read. */
	SAYS("nothing to remove", "repo", "rm", f->t->url, "web", "--keep-last", "1");
	SAYS("web@1: would be removed", "repo", "rm", f->t->url, "web@1", "--dry-run");
	SAYS("removed", "repo", "rm", f->t->url, object);
	FAILS(NOT_FOUND, object, "repo", "rm", f->t->url, object);
	SAYS("no problem found", "repo", "check", f->t->url);
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
	struct fixture *f = *state;
	json_t *o;

	for (unsigned i = 1; i <= 5; i++)
		save(f->t->repo, "web", i, NULL);
	save(f->t->repo, "db", 9, NULL);
	FAILS(USAGE, "web has 5 generations", "repo", "rm", f->t->url, "web");
	/* All or nothing, as far as it can be known before. */
	FAILS(NOT_FOUND, "no generation 9 of web", "repo", "rm", f->t->url, "web@1", "web@9");
	FAILS(NOT_FOUND, "no snapshot www", "repo", "rm", f->t->url, "www");
	FAILS(USAGE, "about a name", "repo", "rm", f->t->url, "web@1", "--all");
	o = CLI_JSON(OK, "repo", "rm", f->t->url, "web", "--all", "--dry-run");
	assert_int_equal(json_array_size(json_object_get(o, "removed")), 5);
	assert_true(json_is_true(json_object_get(o, "dry_run")));
	json_decref(o);
	assert_int_equal(snapshots_of(f->t->url), 6);
	o = CLI_JSON(OK, "repo", "rm", f->t->url, "web", "--keep-last", "3");
	assert_int_equal(json_array_size(json_object_get(o, "removed")), 2);
	assert_string_equal(text_of(json_array_get(json_object_get(o, "removed"), 0), "snapshot"), "web@1");
	assert_string_equal(text_of(json_array_get(json_object_get(o, "removed"), 1), "snapshot"), "web@2");
	json_decref(o);
	SAYS("web@4: removed\n", "repo", "rm", f->t->url, "web@4", "db", "web@4");
	SAYS("nothing to remove", "repo", "rm", f->t->url, "web", "--keep-last", "3");
	SAYS("web@5: removed\n", "repo", "rm", f->t->url, "web", "--all");
	assert_int_equal(snapshots_of(f->t->url), 0);
}

static void prunes(void **state)
{
	struct fixture *f = *state;
	char before[REPO_MAX_OBJECTS][96], after[REPO_MAX_OBJECTS][96];
	uint8_t *memory = repo_memory(PAGES, 2);
	json_t *o;
	size_t n;

	save(f->t->repo, "web", 1, NULL);
	repo_save(f->t->repo, "db", memory, PAGES, NULL);
	SAYS("db@1: removed", "repo", "rm", f->t->url, "db");
	n = repo_objects(f->t->repo, "", before);
	o = CLI_JSON(OK, "repo", "prune", f->t->url);
	assert_true(int_of(o, "recent_packs") > 0);
	assert_int_equal(int_of(o, "removed_packs"), 0);
	json_decref(o);
	SAYS("nothing was changed", "repo", "prune", f->t->url, "--exclusive", "--dry-run");
	o = CLI_JSON(OK, "repo", "prune", f->t->url, "--exclusive", "--dry-run");
	assert_true(int_of(o, "removed_packs") > 0);
	json_decref(o);
	assert_int_equal(repo_objects(f->t->repo, "", after), n);
	assert_memory_equal(before, after, n * sizeof(before[0]));
	/* In two steps, beside writers. */
	repo_age(f->t, "packs/", 700);
	SAYS("marked", "repo", "prune", f->t->url);
	repo_age(f->t, "marks/", 700);
	o = CLI_JSON(OK, "repo", "prune", f->t->url);
	assert_true(int_of(o, "removed_packs") > 0);
	json_decref(o);
	assert_true(repo_objects(f->t->repo, "", after) < n);
	SAYS("no problem found", "repo", "check", f->t->url, "--read-data");
	free(memory);
}

static void copies(void **state)
{
	struct fixture *f = *state;
	uint8_t *memory = repo_memory(PAGES, 2);
	struct gw_repo *other;
	json_t *o, *first;
	char name[96], path[256];

	save(f->t->repo, "web", 1, NULL);
	repo_save(f->t->repo, "web", memory, PAGES, NULL);
	json_decref(CLI_JSON(OK, "repo", "init", f->other, "--passphrase-file", f->other_pass));
	FAILS(LOCKED, f->other, "repo", "copy", f->t->url, "--to", f->other);
	o = CLI_JSON(OK, "repo", "copy", f->t->url, "--to", f->other, "--to-passphrase-file", f->other_pass, "web@2");
	first = json_array_get(json_object_get(o, "snapshots"), 0);
	assert_true(json_is_true(json_object_get(first, "copied")));
	assert_string_equal(text_of(first, "snapshot"), "web@2");
	assert_string_equal(text_of(first, "as"), "web@2");
	json_decref(o);
	SAYS("web@2: is there already as web@2", "repo", "copy", f->t->url, f->other, "--to-passphrase-file", f->other_pass);
	o = CLI_JSON(OK, "repo", "ls", f->other, "--passphrase-file", f->other_pass);
	assert_int_equal(json_array_size(json_object_get(o, "snapshots")), 2);
	first = json_array_get(json_object_get(o, "snapshots"), 0);
	assert_int_equal(strlen(text_of(first, "origin")), 32);
	json_decref(o);
	const struct gw_repo_secret secret = { .passphrase = "another passphrase" };
	assert_int_equal(gw_repo_open(f->other, &secret, &other, NULL), 0);
	repo_assert_holds(other, "web", 2, memory, PAGES);
	gw_repo_free(other);
	FAILS(USAGE, "the same repository", "repo", "copy", f->t->url, f->t->url);
	FAILS(NOT_FOUND, "no snapshot db", "repo", "copy", f->t->url, f->other, "db", "--to-passphrase-file", f->other_pass);
	/* A pack that is gone is damage of that snapshot. */
	save(f->t->repo, "db", 7, NULL);
	for (size_t i = repo_objects(f->t->repo, "packs/", (char[REPO_MAX_OBJECTS][96]){ { 0 } }); i-- > 0;) {
		object_path(f, "packs/", i, name, path);
		assert_int_equal(unlink(path), 0);
	}
	FAILS(DAMAGED, "packs/", "repo", "copy", f->t->url, f->other, "db", "--to-passphrase-file", f->other_pass);
	free(memory);
}

/* ---- hostile content ---- */

/* Our writer takes no such names; a host that was taken over has the key, and writes what it likes. */
static void put_hostile_manifest(struct gw_repo *repo)
{
	struct gw_manifest m = { .info = { .id = "0123456789abcde", .name = "web", .generation = 1, .vm = "vm\xc2\x9d" "0;title",
					   .host = "\xe2\x80\xaetsoh\xfe", .pages = PAGES, .nregions = 1, .ndisks = 2,
					   .regions = { { 0, PAGES * GW_PAGE_SIZE } }, .disks = { "\xc2\x9b" "2Jdisk", "\xff\xff" } },
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
	struct fixture *f = *state;
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
	assert_string_equal(text_of(json_array_get(json_object_get(o, "snapshots"), 0), "vm"), "vm?0;title");
	assert_string_equal(text_of(json_array_get(json_object_get(o, "snapshots"), 0), "host"), "?tsoh?");
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

/* ---- side by side ---- */

#define ROUNDS 4

static void prune_beside_ls(void **state)
{
	struct fixture *f = *state;
	uint8_t *keep = repo_memory(PAGES, 100);

	repo_save(f->t->repo, "keep", keep, PAGES, NULL);
	for (unsigned round = 0; round < ROUNDS; round++) {
		static const char *const commands[] = { "prune", "ls", "prune", "ls", "check", "stats" };
		struct cli_process p[ARRAY_SIZE(commands)];

		repo_age(f->t, "packs/", 10);
		repo_age(f->t, "marks/", 10);
		for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
			p[i] = cli_start(NULL, (const char *const[]){ "repo", commands[i], f->t->url, "--json", NULL });
		/* And a writer, whose last generation but one goes. */
		save(f->t->repo, "web", round, NULL);
		if (round)
			SAYS("removed", "repo", "rm", f->t->url, "web", "--keep-last", "1");
		for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
			struct cli_said s = cli_wait(&p[i]);
			json_t *o = json_loads(s.out, 0, NULL);

			if (s.status != OK || !o)
				fail_msg("%s: %d, %s%s", commands[i], s.status, s.out, s.err);
			json_decref(o);
			cli_said_release(&s);
		}
	}
	SAYS("no problem found", "repo", "check", f->t->url, "--read-data");
	repo_assert_holds(f->t->repo, "keep", 1, keep, PAGES);
	free(keep);
}

/* ---- at a terminal ---- */

/* Reads what appears there until it holds `words`, or all. */
static void read_until(int tty, const char *words, char *all, size_t size)
{
	size_t n = strlen(all);

	while (!words || !strstr(all, words)) {
		struct pollfd fd = { tty, POLLIN, 0 };
		ssize_t got = poll(&fd, 1, 30000) > 0 ? read(tty, all + n, size - n - 1) : -1;

		if (got <= 0)
			break; /* EIO: it is gone */
		n += (size_t)got;
		all[n] = '\0';
	}
	if (words && !strstr(all, words))
		fail_msg("no '%s': %s", words, all);
}

static void type(int tty, const char *keys_typed)
{
	assert_int_equal(write(tty, keys_typed, strlen(keys_typed)), strlen(keys_typed));
}

static bool has_echo(int tty)
{
	struct termios t;

	assert_int_equal(tcgetattr(tty, &t), 0);
	return t.c_lflag & ECHO;
}

static int typed(const char *const *argv, const char *first, const char *second, char *all, size_t size)
{
	struct cli_process p = cli_start_on_tty(argv);
	struct cli_said s;

	all[0] = '\0';
	read_until(p.tty, "assphrase of", all, size);
	read_until(p.tty, ": ", all, size);
	assert_false(has_echo(p.tty));
	type(p.tty, first);
	if (second) {
		read_until(p.tty, "same again of", all, size);
		type(p.tty, second);
	}
	read_until(p.tty, NULL, all, size);
	s = cli_wait(&p);
	cli_said_release(&s);
	close(p.tty);
	return s.status;
}

static void typed_passphrases(void **state)
{
	struct fixture *f = *state;
	const char *const ls[] = { "repo", "ls", f->t->url, NULL }, *const init[] = { "repo", "init", f->other, NULL };
	const char *const check[] = { "repo", "check", "--read-data", f->t->url, NULL };
	char all[8192];

	save(f->t->repo, "web", 1, NULL);
	unsetenv("GODWIT_REPO_PASSPHRASE_FILE");
	assert_int_equal(typed(ls, REPO_PASS "\n", NULL, all, sizeof(all)), OK);
	assert_non_null(strstr(all, "web@1"));
	assert_null(strstr(all, REPO_PASS));
	assert_int_equal(typed(ls, "something else\n", NULL, all, sizeof(all)), LOCKED);
	assert_int_equal(typed(ls, "\n", NULL, all, sizeof(all)), USAGE);
	assert_int_equal(typed(ls, "\x03", NULL, all, sizeof(all)), CANCELLED);
	assert_int_equal(typed(init, "one of them\n", "the other\n", all, sizeof(all)), USAGE);
	assert_non_null(strstr(all, "differ"));
	assert_int_equal(typed(init, "both of them\n", "both of them\n", all, sizeof(all)), OK);
	assert_int_equal(typed(ls, REPO_PASS "\n", NULL, all, sizeof(all)), OK);
	/* A bar is drawn, and taken away. */
	assert_int_equal(typed(check, REPO_PASS "\n", NULL, all, sizeof(all)), OK);
	assert_non_null(strstr(all, "\r\x1b[K"));
	assert_non_null(strstr(all, "no problem found"));
}

/* The terminal is as it was, whatever ends it. */
static void echo_comes_back(void **state)
{
	struct fixture *f = *state;
	const char *const ls[] = { "repo", "ls", f->t->url, NULL };
	struct cli_process p;
	struct cli_said s;
	char all[4096] = "";
	int slave;

	unsetenv("GODWIT_REPO_PASSPHRASE_FILE");
	p = cli_start_on_tty(ls);
	slave = open(ptsname(p.tty), O_RDWR | O_NOCTTY | O_CLOEXEC); /* keeps it there */
	assert_true(slave >= 0);
	read_until(p.tty, ": ", all, sizeof(all));
	assert_false(has_echo(slave));
	assert_int_equal(kill(p.pid, SIGTERM), 0);
	s = cli_wait(&p);
	assert_int_equal(s.status, CANCELLED);
	assert_true(has_echo(slave));
	cli_said_release(&s);
	close(slave);
	close(p.tty);
}

/* Ctrl-C while something takes long. */
static void cancelling(void **state)
{
	struct fixture *f = *state;
	struct gw_cli_repo c = { .repo = f->t->repo, .json = true };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_repo_check_result result;
	const struct gw_repo_check_params params = { .read_data = true };
	struct gw_cli_work work;
	uint64_t until = gw_now_ns() + 20 * GW_NS_PER_SEC;

	assert_int_equal(gw_cli_work_begin(&work, &c, "test", NULL, &err), 0);
	assert_int_equal(kill(getpid(), SIGINT), 0);
	while (!atomic_load(&work.upkeep.stop) && gw_now_ns() < until)
		usleep(1000);
	assert_true(atomic_load(&work.upkeep.stop));
	gw_cli_work_end(&work);
	assert_int_equal(gw_repo_check(f->t->repo, &params, &result, &err), -ECANCELED);
	assert_int_equal(gw_cli_repo_failed(-ECANCELED, f->t->url, &err), -ECANCELED);
	assert_string_equal(err.msg, "cancelled");
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
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
		T(checks),
		T(a_damaged_manifest),
		T(removes),
		T(prunes),
		T(copies),
		T(hostile_names),
		cmocka_unit_test_setup_teardown(prune_beside_ls, setup_hasty, teardown),
		T(typed_passphrases),
		T(echo_comes_back),
		T(cancelling),
	};

	if (cli_is_child(argc, argv))
		return cli_child(argc, argv);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
