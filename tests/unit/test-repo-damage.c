// SPDX-License-Identifier: Apache-2.0
/*
 * What somebody does who controls the storage: objects of every kind are changed, cut off, exchanged, replayed and removed. Each time a reader gets right pages or
 * an error, and a check names the object.
 */
#include "cmocka-all.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/io.h"
#include "lib/util.h"
#include "migrate/repo/upkeep.h"
#include "repo-help.h"

#define PAGES 1000ull

struct object {
	char name[96], path[200];
	char *data;
	size_t len;
};

static void path_of(struct repo_test *t, const char *name, char path[200])
{
	snprintf(path, 200, "%s/repo/%s", t->dir, name);
}

static struct object load(struct repo_test *t, const char *name)
{
	struct object o;

	snprintf(o.name, sizeof(o.name), "%s", name);
	path_of(t, name, o.path);
	assert_int_equal(gw_read_file(o.path, 64 << 20, &o.data, &o.len, NULL), 0);
	return o;
}

static void store(const struct object *o, const void *data, size_t len)
{
	assert_int_equal(gw_write_file_atomic(o->path, data, len, 0600, NULL), 0);
}

/* The first object below a folder. */
static struct object first_of(struct repo_test *t, const char *folder)
{
	static char names[REPO_MAX_OBJECTS][96];

	assert_true(repo_objects(t->repo, folder, names) > 0);
	return load(t, names[0]);
}

static void assert_found(struct repo_test *t, const char *name, const char *what)
{
	char all[REPO_PROBLEMS];

	if (repo_problems(t->repo, all) == 0)
		fail_msg("%s: %s was not found", name, what);
	if (!strstr(all, name))
		fail_msg("%s: %s: told as '%s'", name, what, all);
}

/* Reads with the object as it is: right pages, or an error that names it. */
static void read_all(struct repo_test *t, const struct object *o, const uint8_t *memory, bool must_fail)
{
	struct gw_error err = GW_ERROR_INIT;
	int r = repo_try_read(t->repo, "web", 0, memory, PAGES, &err);

	if (r == 0 && !must_fail)
		return;
	if (r == 0)
		fail_msg("%s: it was read all the same", o->name);
	if (!strstr(err.msg, o->name) || (r != -EBADMSG && r != -ENOENT && r != -EPROTONOSUPPORT))
		fail_msg("%s: %d %s", o->name, r, err.msg);
}

/* Flips bits all over the object, and cuts it off at several lengths. `needed`: reading fails each time. */
static void flip_and_cut(struct repo_test *t, const char *folder, const uint8_t *memory, bool needed)
{
	struct object o = first_of(t, folder);
	const size_t step = GW_MAX(o.len / 61, (size_t)1);

	for (size_t at = 0; at < o.len; at += step) {
		o.data[at] ^= 0x20;
		store(&o, o.data, o.len);
		read_all(t, &o, memory, needed && at >= 32);
		if (at % (4 * step) == 0)
			assert_found(t, o.name, "a flipped bit");
		o.data[at] ^= 0x20;
	}
	for (size_t len = 0; len < o.len; len += GW_MAX(o.len / 7, (size_t)1)) {
		store(&o, o.data, len);
		read_all(t, &o, memory, needed && len < o.len / 2);
		assert_found(t, o.name, "a cut");
	}
	store(&o, o.data, o.len - 1);
	read_all(t, &o, memory, needed);
	assert_found(t, o.name, "the last byte's absence");
	o.data = realloc(o.data, o.len + 1);
	o.data[o.len] = 0;
	store(&o, o.data, o.len + 1);
	read_all(t, &o, memory, false);
	assert_found(t, o.name, "another byte at the end");
	store(&o, o.data, o.len);
	repo_assert_clean(t->repo);
	free(o.data);
}

static void flipped_and_cut(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);

	repo_save(t->repo, "web", memory, PAGES, NULL);
	flip_and_cut(t, "packs/", memory, true);
	flip_and_cut(t, "index/", memory, false);
	flip_and_cut(t, "snapshots/", memory, true);
	free(memory);
}

static void removed(void **state)
{
	static const char *const folders[] = { "packs/", "index/" };
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);

	repo_save(t->repo, "web", memory, PAGES, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(folders); i++) {
		struct object o = first_of(t, folders[i]);
		char all[REPO_PROBLEMS];

		assert_int_equal(unlink(o.path), 0);
		read_all(t, &o, memory, i == 0);
		assert_true(repo_problems(t->repo, all) > 0);
		assert_non_null(strstr(all, i == 0 ? o.name : "an index object is missing"));
		store(&o, o.data, o.len);
		repo_assert_clean(t->repo);
		free(o.data);
	}
	free(memory);
}

/* One of a kind in the place of another, within a repository and between two. */
static void exchanged(void **state)
{
	static const char *const folders[] = { "packs/", "index/", "snapshots/" };
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1), *later = repo_memory(PAGES, 2);

	repo_save(t->repo, "web", later, PAGES, NULL);
	repo_save(t->repo, "web", memory, PAGES, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(folders); i++) {
		char names[REPO_MAX_OBJECTS][96];
		size_t n = repo_objects(t->repo, folders[i], names);
		struct object a, b, any;

		assert_true(n >= 2);
		a = load(t, names[0]);
		b = load(t, names[n - 1]);
		store(&a, b.data, b.len);
		store(&b, a.data, a.len);
		any = b;
		snprintf(any.name, sizeof(any.name), "%s", folders[i]); /* either may be told */
		read_all(t, &any, memory, i == 2);
		assert_found(t, a.name, "an exchange");
		assert_found(t, folders[i], "an exchange");
		store(&a, a.data, a.len);
		store(&b, b.data, b.len);
		repo_assert_clean(t->repo);
		free(a.data);
		free(b.data);
	}
	free(memory);
	free(later);
}

/* Blobs of one pack change places; those of the same length are nearly everywhere, since random pages do not shrink. */
static void blobs_are_exchanged(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = malloc(PAGES * GW_PAGE_SIZE);
	const size_t blob = 32 + 16 * GW_PAGE_SIZE;
	struct object o;
	char *swapped;

	for (uint64_t i = 0; i < PAGES; i++)
		repo_fill_page(memory + i * GW_PAGE_SIZE, i * 8 + 5, 1);
	repo_save(t->repo, "web", memory, PAGES, NULL);
	o = first_of(t, "packs/");
	assert_true(o.len >= 32 + 2 * blob);
	swapped = malloc(o.len);
	memcpy(swapped, o.data, o.len);
	memcpy(swapped + 32, o.data + 32 + blob, blob);
	memcpy(swapped + 32 + blob, o.data + 32, blob);
	store(&o, swapped, o.len);
	read_all(t, &o, memory, true);
	assert_found(t, o.name, "exchanged blobs");
	/* The number in the clear is part of what is sealed. */
	memcpy(swapped + 32, o.data + 32, 4);
	memcpy(swapped + 32 + blob, o.data + 32 + blob, 4);
	store(&o, swapped, o.len);
	read_all(t, &o, memory, true);
	assert_found(t, o.name, "exchanged blobs with their numbers put right");
	free(swapped);
	free(o.data);
	free(memory);
}

/* An older generation under a newer one's name, or under one that was never written. */
static void replayed(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1), *later = repo_memory(PAGES, 2);
	char names[REPO_MAX_OBJECTS][96], path[200];
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap *s;
	struct object a, b;

	repo_save(t->repo, "web", memory, PAGES, NULL);
	repo_save(t->repo, "web", later, PAGES, NULL);
	assert_int_equal(repo_objects(t->repo, "snapshots/", names), 2);
	a = load(t, names[0]);
	b = load(t, names[1]);
	store(&b, a.data, a.len);
	read_all(t, &b, later, true);
	assert_found(t, b.name, "a replay");
	store(&b, b.data, b.len);
	/* Generation 3, which is the first again. */
	path_of(t, a.name, path);
	path[strlen(path) - 18] = '3';
	assert_int_equal(gw_write_file_atomic(path, a.data, a.len, 0600, NULL), 0);
	assert_int_equal(gw_snap_open(t->repo, "web", 0, &s, &err), -EBADMSG);
	assert_int_equal(gw_snap_open(t->repo, "web", 3, &s, &err), -EBADMSG);
	assert_int_equal(gw_snap_open(t->repo, "web", 2, &s, &err), 0);
	gw_snap_free(s);
	assert_found(t, "snapshots/", "a replay under a new name");
	/* Both parts are of real manifests, that do not belong together. */
	assert_int_equal(unlink(path), 0);
	uint32_t head_a, head_b;
	memcpy(&head_a, a.data + 12, 4);
	memcpy(&head_b, b.data + 12, 4);
	char *mixed = malloc(head_b + a.len);
	memcpy(mixed, b.data, head_b);
	memcpy(mixed + head_b, a.data + head_a, a.len - head_a);
	store(&b, mixed, head_b + a.len - head_a);
	read_all(t, &b, later, true);
	free(mixed);
	free(a.data);
	free(b.data);
	free(memory);
	free(later);
}

static int count_bad(void *self, const char *object, uint64_t size, const struct gw_snap_info *info, const struct gw_error *error)
{
	unsigned *counts = self;

	counts[info ? 0 : 1]++;
	if (!info)
		assert_non_null(strstr(error->msg, object));
	return 0;
}

/* One bad manifest does not hide the others; prune does nothing while it does not know what that one uses. */
static void a_bad_manifest_among_good_ones(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);
	const struct gw_prune_params params = { .exclusive = true };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_prune_result result;
	unsigned counts[2] = { 0 };
	struct object o;

	repo_save(t->repo, "web", memory, PAGES, NULL);
	repo_save(t->repo, "db", memory, PAGES, NULL);
	o = first_of(t, "snapshots/");
	o.data[100] ^= 1;
	store(&o, o.data, o.len);
	assert_int_equal(gw_snap_list(t->repo, NULL, count_bad, counts, &err), 0);
	assert_int_equal(counts[0], 1);
	assert_int_equal(counts[1], 1);
	assert_int_equal(gw_repo_prune(t->repo, &params, &result, &err), -EBADMSG);
	assert_non_null(strstr(err.msg, o.name));
	free(o.data);
	free(memory);
}

/* Objects that no reader of a snapshot needs. A prune that cannot read a mark does nothing. */
static void keys_and_marks(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);
	const struct gw_prune_params params = { 0 };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_prune_result result;
	static const char *const folders[] = { "keys/", "marks/" };
	struct gw_snap *s;

	repo_save(t->repo, "web", memory, PAGES, NULL);
	repo_save(t->repo, "db", memory, PAGES / 2, NULL);
	assert_int_equal(gw_snap_open(t->repo, "web", 0, &s, &err), 0);
	assert_int_equal(gw_snap_remove(t->repo, gw_snap_object(s), &err), 0);
	gw_snap_free(s);
	repo_age(t, "packs/", 700);
	assert_int_equal(gw_repo_prune(t->repo, &params, &result, &err), 0);
	assert_true(result.marked_packs > 0);
	for (size_t i = 0; i < ARRAY_SIZE(folders); i++) {
		struct object o = first_of(t, folders[i]), other;

		for (size_t at = 0; at < (i == 0 ? 32 : o.len); at += 5) {
			o.data[at] ^= 4;
			store(&o, o.data, o.len);
			assert_found(t, o.name, "a flipped bit");
			if (i == 1)
				assert_true(gw_repo_prune(t->repo, &params, &result, &err) < 0);
			o.data[at] ^= 4;
		}
		store(&o, o.data, o.len / 2);
		assert_found(t, o.name, "a cut");
		other = first_of(t, "index/");
		store(&o, other.data, other.len);
		assert_found(t, o.name, "an exchange");
		store(&o, o.data, o.len);
		repo_assert_clean(t->repo);
		free(o.data);
		free(other.data);
	}
	repo_assert_holds(t->repo, "db", 0, memory, PAGES / 2);
	free(memory);
}

/* Nothing is taken over from a parent whose pack is gone; and pages of a pack that is gone or cut off are stored again. */
static void what_is_lost_is_not_referred_to(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap_writer *w;
	struct gw_snap_info info;
	struct gw_snap *parent;
	struct object o;

	repo_save(t->repo, "web", memory, PAGES, NULL);
	assert_int_equal(gw_snap_open(t->repo, "web", 0, &parent, &err), 0);
	o = first_of(t, "packs/");
	assert_int_equal(unlink(o.path), 0);
	w = repo_begin(t->repo, "web", PAGES, parent);
	assert_int_equal(gw_snap_writer_keep(w, 0, PAGES), 0);
	assert_int_equal(gw_snap_writer_commit(w, NULL, &err), -ENOENT);
	assert_non_null(strstr(err.msg, o.name));
	gw_snap_writer_free(w);
	gw_snap_free(parent);
	repo_save(t->repo, "web", memory, PAGES, &info);
	assert_true(info.new_pages > 0);
	repo_assert_holds(t->repo, "web", 2, memory, PAGES);
	free(o.data);
	free(memory);
}

/* No page and no name is in the storage in the clear. */
static void nothing_is_in_the_clear(void **state)
{
	struct repo_test *t = *state;
	uint8_t *memory = repo_memory(PAGES, 1);
	static const char *const words[] = { "of memory 1", "xxxxxxxx", "secret-name", "web-1", "host-a", "root.qcow2", "registers" };
	static const char *const folders[] = { "packs/", "index/", "snapshots/" };

	repo_save(t->repo, "secret-name", memory, PAGES, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(folders); i++) {
		char names[REPO_MAX_OBJECTS][96];
		size_t n = repo_objects(t->repo, folders[i], names);

		for (size_t k = 0; k < n; k++) {
			struct object o = load(t, names[k]);

			for (size_t w = 0; w < ARRAY_SIZE(words); w++) {
				assert_null(memmem(o.data, o.len, words[w], strlen(words[w])));
				assert_null(strstr(o.name, words[w]));
			}
			free(o.data);
		}
	}
	free(memory);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, repo_setup, repo_teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(flipped_and_cut),
		T(removed),
		T(exchanged),
		T(blobs_are_exchanged),
		T(replayed),
		T(a_bad_manifest_among_good_ones),
		T(keys_and_marks),
		T(what_is_lost_is_not_referred_to),
		T(nothing_is_in_the_clear),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
