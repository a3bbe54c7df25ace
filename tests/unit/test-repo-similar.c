// SPDX-License-Identifier: Apache-2.0
/* Pages that are told against others which they resemble: how small they get, and that what they need stays as long as they do. */
#include "cmocka-all.h"

#include <errno.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/io.h"
#include "lib/util.h"
#include "migrate/repo/blob.h"
#include "migrate/repo/similar.h"
#include "repo-help.h"

#define PAGES 512ull
#define MEMORY (PAGES * GW_PAGE_SIZE)
#define SHIFT 192u /* bytes: no page is the same, nearly all pieces of 64 bytes are */

/* Hexadecimal digits: nothing repeats, and half of it can be compressed away. */
static void fill_text(uint8_t *memory, size_t len, uint64_t seed)
{
	for (size_t i = 0; i < len; i += 16) {
		char digits[17];

		snprintf(digits, sizeof(digits), "%016llx", (unsigned long long)(seed * 0x9e3779b97f4a7c15ull ^ (i + 1) * 0xbf58476d1ce4e5b9ull));
		memcpy(memory + i, digits, 16);
	}
}

static uint8_t *text_memory(uint64_t seed)
{
	uint8_t *memory = malloc(MEMORY);

	assert_non_null(memory);
	fill_text(memory, MEMORY, seed);
	return memory;
}

/* What another VM makes of the same. */
static uint8_t *shifted(const uint8_t *memory, uint64_t seed)
{
	uint8_t *other = malloc(MEMORY);

	assert_non_null(other);
	memcpy(other, memory + SHIFT, MEMORY - SHIFT);
	fill_text(other + MEMORY - SHIFT, SHIFT, seed);
	return other;
}

/* Of a snapshot, blobs that are told against others. What they save in bytes differs with how the others were compressed. */
static unsigned based_blobs(struct gw_repo *repo, const char *name)
{
	struct gw_error err = GW_ERROR_INIT;
	const struct gw_places *p;
	struct gw_snap *s;
	unsigned n = 0;

	assert_int_equal(gw_snap_open(repo, name, 0, &s, &err), 0);
	p = &gw_snap_manifest(s)->places;
	for (uint32_t i = 0; i < p->nsegments; i++) {
		for (uint32_t k = 0; k < p->segments[i].count; k++)
			n += p->segments[i].blobs[k].base.blobs > 0;
	}
	gw_snap_free(s);
	return n;
}

static void what_resembles_is_told_in_little(void **state)
{
	struct repo_test *t = *state;
	uint8_t *a = text_memory(1), *b = shifted(a, 2), *c = shifted(b, 3);
	struct gw_snap_info first, second, third;

	repo_save(t->repo, "a", a, PAGES, &first);
	repo_save(t->repo, "b", b, PAGES, &second);
	assert_int_equal(second.new_pages, PAGES);
	assert_true(second.new_bytes < first.new_bytes / 8);
	repo_reopen(t);
	/* A third one is told against the first: nothing is told against what is itself told so. */
	repo_save(t->repo, "c", c, PAGES, &third);
	assert_int_equal(third.new_pages, PAGES);
	assert_true(third.new_bytes < first.new_bytes / 8);
	/* What was stored in this way is found like all other pages. */
	repo_save(t->repo, "again", b, PAGES, &third);
	assert_int_equal(third.new_pages, 0);
	repo_reopen(t);
	repo_assert_holds(t->repo, "a", 0, a, PAGES);
	repo_assert_holds(t->repo, "b", 0, b, PAGES);
	repo_assert_holds(t->repo, "c", 0, c, PAGES);
	repo_assert_holds(t->repo, "again", 0, b, PAGES);
	repo_assert_clean(t->repo);
	free(a);
	free(b);
	free(c);
}

/* Every page alone, in any order, as a guest touches them. */
static void any_page_alone(void **state)
{
	struct repo_test *t = *state;
	uint8_t *a = text_memory(1), *b = shifted(a, 2), page[GW_PAGE_SIZE];
	struct gw_error err = GW_ERROR_INIT;
	struct gw_snap *s;

	repo_save(t->repo, "a", a, PAGES, NULL);
	repo_save(t->repo, "b", b, PAGES, NULL);
	assert_int_equal(gw_snap_open(t->repo, "b", 0, &s, &err), 0);
	for (uint64_t i = 0, at = 7; i < PAGES; i++, at = (at + 181) % PAGES) {
		assert_int_equal(gw_snap_read(s, at, 1, page, &err), 0);
		assert_memory_equal(page, b + at * GW_PAGE_SIZE, GW_PAGE_SIZE);
	}
	gw_snap_free(s);
	free(a);
	free(b);
}

/* The first VM's snapshot is removed: of its pages those stay that the second is told against, and are found where prune has moved them. */
static void bases_stay(void **state)
{
	struct repo_test *t = *state;
	uint8_t *a = text_memory(1), *b, *c;
	struct gw_error err = GW_ERROR_INIT;
	uint8_t *found = malloc(MEMORY);
	struct gw_snap *s;

	/* The second needs a little of each pack of the first. */
	b = text_memory(9);
	c = text_memory(11);
	for (size_t at = 0; at + 64 * GW_PAGE_SIZE <= MEMORY; at += 64 * GW_PAGE_SIZE) {
		memcpy(b + at, a + at + SHIFT, 16 * GW_PAGE_SIZE);
		memcpy(c + at, a + at + 2 * SHIFT, 16 * GW_PAGE_SIZE);
	}
	repo_save(t->repo, "a", a, PAGES, NULL);
	repo_save(t->repo, "b", b, PAGES, NULL);
	assert_true(based_blobs(t->repo, "b") >= PAGES / 64);
	assert_int_equal(gw_snap_open(t->repo, "b", 0, &s, &err), 0);
	repo_remove(t->repo, "a", 0);
	assert_true(repo_prune(t->repo, true).repacked_packs > 0);
	/* Opened before prune has moved them. */
	assert_int_equal(gw_snap_read(s, 0, PAGES, found, &err), 0);
	assert_memory_equal(found, b, MEMORY);
	gw_snap_free(s);
	assert_int_equal(repo_prune(t->repo, true).removed_packs, 0);
	repo_reopen(t);
	repo_assert_holds(t->repo, "b", 0, b, PAGES);
	repo_assert_clean(t->repo);
	/* What was moved is a base as before. */
	repo_save(t->repo, "c", c, PAGES, NULL);
	assert_true(based_blobs(t->repo, "c") >= PAGES / 64);
	repo_assert_holds(t->repo, "c", 0, c, PAGES);
	repo_remove(t->repo, "b", 0);
	repo_remove(t->repo, "c", 0);
	repo_prune(t->repo, true);
	assert_int_equal(repo_objects(t->repo, "packs/", (char(*)[96])found), 0);
	free(a);
	free(b);
	free(c);
	free(found);
}

/* Pages that nobody uses stay in a pack whose other pages are used, and their base goes: they are not to be found any more. */
static void what_has_lost_its_base_is_stored_again(void **state)
{
	struct repo_test *t = *state;
	uint8_t *a = text_memory(1), *b = text_memory(2), *rest = calloc(1, MEMORY);
	const uint64_t third = MEMORY / 3 / GW_PAGE_SIZE * GW_PAGE_SIZE;
	struct gw_snap_info info;

	memcpy(b, a + SHIFT, third);
	memcpy(rest + third, b + third, MEMORY - third);
	repo_save(t->repo, "a", a, PAGES, NULL);
	repo_save(t->repo, "b", b, PAGES, NULL);
	repo_save(t->repo, "rest", rest, PAGES, &info);
	assert_int_equal(info.new_pages, 0);
	repo_remove(t->repo, "a", 0);
	repo_remove(t->repo, "b", 0);
	assert_true(repo_prune(t->repo, true).removed_packs > 0);
	repo_reopen(t);
	repo_assert_clean(t->repo);
	repo_assert_holds(t->repo, "rest", 0, rest, PAGES);
	repo_save(t->repo, "b", b, PAGES, &info);
	assert_true(info.new_pages > 0);
	repo_reopen(t);
	repo_assert_holds(t->repo, "b", 0, b, PAGES);
	repo_assert_clean(t->repo);
	free(a);
	free(b);
	free(rest);
}

static void spoil(struct repo_test *t, const char *name, bool remove)
{
	char path[200], *data;
	size_t len;

	snprintf(path, sizeof(path), "%s/repo/%s", t->dir, name);
	assert_int_equal(gw_read_file(path, 64 << 20, &data, &len, NULL), 0);
	for (size_t i = 64; i < len; i += 256)
		data[i] ^= 4;
	if (remove)
		assert_int_equal(unlink(path), 0);
	else
		assert_int_equal(gw_write_file_atomic(path, data, len, 0600, NULL), 0);
	free(data);
}

/* A base that is damaged or missing is named by who needs it and by a check, and no base for a writer. */
static void a_base_is_damaged(void **state)
{
	struct repo_test *t = *state;
	uint8_t *a = text_memory(1), *b = shifted(a, 2), *c = shifted(b, 3);
	char packs[REPO_MAX_OBJECTS][96], all[REPO_PROBLEMS];
	struct gw_error err = GW_ERROR_INIT;
	size_t n;

	repo_save(t->repo, "a", a, PAGES, NULL);
	n = repo_objects(t->repo, "packs/", packs);
	repo_save(t->repo, "b", b, PAGES, NULL);
	for (size_t i = 0; i < n; i++)
		spoil(t, packs[i], false);
	assert_int_equal(repo_try_read(t->repo, "b", 0, b, PAGES, &err), -EBADMSG);
	assert_non_null(strstr(err.msg, "is damaged"));
	assert_true(repo_problems(t->repo, all) > 0);
	for (size_t i = 0; i < n; i++)
		assert_non_null(strstr(all, packs[i]));
	repo_save(t->repo, "c", c, PAGES, NULL);
	assert_int_equal(based_blobs(t->repo, "c"), 0);
	repo_assert_holds(t->repo, "c", 0, c, PAGES);
	for (size_t i = 0; i < n; i++)
		spoil(t, packs[i], true);
	assert_int_equal(repo_try_read(t->repo, "b", 0, b, PAGES, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "packs/"));
	assert_true(repo_problems(t->repo, all) > 0);
	for (size_t i = 0; i < n; i++)
		assert_non_null(strstr(all, packs[i]));
	free(a);
	free(b);
	free(c);
}

/* A manifest that names other bases than the index does: it is named, and nothing is pruned while it is there. */
static void the_index_and_a_snapshot_differ(void **state)
{
	struct repo_test *t = *state;
	uint8_t *a = text_memory(1), *b = shifted(a, 2);
	const struct gw_prune_params params = { .exclusive = true };
	gw_autobuf object = GW_BUF_INIT;
	struct gw_error err = GW_ERROR_INIT;
	char name[GW_SNAP_OBJECT], all[REPO_PROBLEMS];
	struct gw_bucket_piece piece;
	struct gw_prune_result result;
	struct gw_crypt *crypt;
	struct gw_manifest m;
	struct gw_snap *s;
	uint32_t i = 0;

	repo_save(t->repo, "a", a, PAGES, NULL);
	repo_save(t->repo, "b", b, PAGES, NULL);
	assert_int_equal(gw_snap_open(t->repo, "b", 0, &s, &err), 0);
	m = *gw_snap_manifest(s);
	while (!m.places.segments[i].blobs[0].base.blobs)
		i++;
	/* Another blob of the same segment, which the manifest knows as well: that of the last one. */
	m.places.segments[i].blobs[0].base = m.places.segments[i].blobs[m.places.segments[i].count - 1].base;
	m.info.generation++;
	assert_int_equal(gw_crypt_new(gw_repo_keys(t->repo), &crypt), 0);
	assert_int_equal(gw_manifest_name(crypt, &m.info, name), 0);
	assert_int_equal(gw_manifest_seal(crypt, &m, name, &object, &err), 0);
	piece = (struct gw_bucket_piece){ object.data, object.len };
	assert_int_equal(gw_bucket_put(gw_repo_bucket(t->repo), name, &piece, 1, GW_BUCKET_IF_ABSENT, &err), 0);
	assert_int_equal(repo_problems(t->repo, all), 1);
	assert_true(strstr(all, name) && strstr(all, "contradict"));
	assert_int_equal(gw_repo_prune(t->repo, &params, &result, &err), -EBADMSG);
	assert_non_null(strstr(err.msg, "contradict"));
	assert_int_equal(gw_snap_remove(t->repo, name, &err), 0);
	repo_assert_clean(t->repo);
	gw_crypt_free(crypt);
	gw_snap_free(s);
	free(a);
	free(b);
}

/* ---- blobs ---- */

struct sealing {
	struct gw_blob_coder *coder;
	struct gw_blob_key key;
	uint8_t *base, *pages, *out, *blob;
	uint8_t digests[16 * GW_PAGE_DIGEST_LEN];
	struct gw_blob_base with;
};

static void sealing_init(struct sealing *s)
{
	struct gw_repo_keys keys;

	memset(s, 0, sizeof(*s));
	memset(&keys, 7, sizeof(keys));
	assert_int_equal(gw_blob_coder_new(&keys, &s->coder), 0);
	assert_int_equal(gw_blob_key_derive(s->coder, (const uint8_t *)"0123456789abcdef", &s->key), 0);
	s->base = malloc(32 * GW_PAGE_SIZE);
	s->pages = malloc(16 * GW_PAGE_SIZE);
	s->out = malloc(16 * GW_PAGE_SIZE);
	s->blob = malloc(GW_BLOB_MAX_LEN);
	fill_text(s->base, 32 * GW_PAGE_SIZE, 5);
	memcpy(s->pages, s->base + 5000, 16 * GW_PAGE_SIZE);
	s->with = (struct gw_blob_base){ { "another segment", 48, 2 }, s->base, 32 * GW_PAGE_SIZE };
}

static void sealing_release(struct sealing *s)
{
	gw_blob_coder_free(s->coder);
	free(s->base);
	free(s->pages);
	free(s->out);
	free(s->blob);
}

static void a_blob_is_bound_to_its_base(void **state)
{
	struct gw_blob_base other;
	struct sealing s;
	int len;

	sealing_init(&s);
	len = gw_blob_seal(s.coder, &s.key, 3, s.pages, 16, s.digests, GW_BLOB_FAST, &s.with, s.blob);
	assert_true(len > 0 && len < 1000);
	assert_true(gw_blob_has_base(s.blob));
	assert_int_equal(gw_blob_open(s.coder, &s.key, 3, 16, s.blob, (uint64_t)len, &s.with, s.out), 0);
	assert_memory_equal(s.out, s.pages, 16 * GW_PAGE_SIZE);
	assert_int_equal(gw_blob_verify(s.coder, &s.key, 3, 16, s.blob, (uint64_t)len, &s.with.ref), 0);
	assert_int_equal(gw_blob_open(s.coder, &s.key, 3, 16, s.blob, (uint64_t)len, NULL, s.out), -EBADMSG);
	assert_int_equal(gw_blob_verify(s.coder, &s.key, 3, 16, s.blob, (uint64_t)len, NULL), -EBADMSG);
	for (unsigned i = 0; i < 3; i++) {
		other = s.with;
		other.ref.segment[15] ^= i == 0;
		other.ref.slot += i == 1;
		other.ref.blobs -= i == 2;
		assert_int_equal(gw_blob_open(s.coder, &s.key, 3, 16, s.blob, (uint64_t)len, &other, s.out), -EBADMSG);
		assert_int_equal(gw_blob_verify(s.coder, &s.key, 3, 16, s.blob, (uint64_t)len, &other.ref), -EBADMSG);
	}
	/* And what has none is not opened with one. */
	len = gw_blob_seal(s.coder, &s.key, 4, s.pages, 16, s.digests, GW_BLOB_SMALL, NULL, s.blob);
	assert_false(gw_blob_has_base(s.blob));
	assert_int_equal(gw_blob_open(s.coder, &s.key, 4, 16, s.blob, (uint64_t)len, &s.with, s.out), -EBADMSG);
	assert_int_equal(gw_blob_open(s.coder, &s.key, 4, 16, s.blob, (uint64_t)len, NULL, s.out), 0);
	assert_memory_equal(s.out, s.pages, 16 * GW_PAGE_SIZE);
	sealing_release(&s);
}

/* ---- manifests ---- */

/* Whether a manifest is accepted whose second segment has one blob with such a base; the first has blobs at slots 0 and 16, or the second of them at another. */
static int decode_with(struct gw_base_ref base, uint32_t second_number, bool first_is_based)
{
	static const uint8_t one[16] = "segment one", two[16] = "segment two";
	struct gw_manifest m = { .places = GW_PLACES_INIT }, back = { .places = GW_PLACES_INIT };
	struct gw_blob_place b = { .len = 500, .pages = 16, .offset = GW_PACK_HEADER };
	gw_autobuf body = GW_BUF_INIT;
	uint32_t segment;
	int r;

	assert_int_equal(gw_places_add_pack(&m.places, two, 10000, &b.pack), 0);
	assert_int_equal(gw_places_add_segment(&m.places, one, &segment), 0);
	b.base = first_is_based ? base : (struct gw_base_ref){ { 0 }, 0, 0 };
	assert_int_equal(gw_places_add_blob(&m.places, segment, &b, false), 0);
	b.number = second_number;
	b.slot = 16 * second_number;
	b.offset += b.len;
	assert_int_equal(gw_places_add_blob(&m.places, segment, &b, false), 0);
	assert_int_equal(gw_places_add_segment(&m.places, two, &segment), 0);
	b.base = base;
	b.number = b.slot = 0;
	b.offset += b.len;
	assert_int_equal(gw_places_add_blob(&m.places, segment, &b, false), 0);
	assert_int_equal(gw_manifest_encode_body(&m, &body), 0);
	r = gw_manifest_decode_body(body.data, body.len, &back);
	if (r == 0)
		assert_memory_equal(&gw_places_at(&back.places, segment, 0)->base, &base, sizeof(base));
	gw_manifest_release(&m);
	gw_manifest_release(&back);
	return r;
}

/* Whoever has the repository's key can write a manifest: no chain of bases, none that is not there. */
static void bases_are_checked(void **state)
{
	const struct gw_base_ref good = { "segment one", 0, 2 };
	struct gw_base_ref bad = good;

	assert_int_equal(decode_with(good, 1, false), 0);
	assert_int_equal(decode_with((struct gw_base_ref){ "segment one", 16, 1 }, 1, false), 0);
	assert_int_equal(decode_with(good, 2, false), -EBADMSG);
	assert_int_equal(decode_with((struct gw_base_ref){ "segment one", 16, 2 }, 1, false), -EBADMSG);
	assert_int_equal(decode_with((struct gw_base_ref){ "segment one", 8, 1 }, 1, false), -EBADMSG);
	assert_int_equal(decode_with((struct gw_base_ref){ "segment one", 0, 3 }, 1, false), -EBADMSG);
	assert_int_equal(decode_with((struct gw_base_ref){ "segment two", 0, 1 }, 1, false), -EBADMSG);
	assert_int_equal(decode_with(good, 1, true), -EBADMSG);
	bad.segment[3] ^= 1;
	assert_int_equal(decode_with(bad, 1, false), -EBADMSG);
}

/* ---- hooks ---- */

static void the_most_alike_is_found(void **state)
{
	uint8_t *memory = text_memory(3), hooks[GW_BLOB_MAX_HOOKS * GW_HOOK_LEN];
	const size_t blob = 16 * GW_PAGE_SIZE;
	struct gw_similar_blobs found;
	struct gw_similar *s;
	unsigned n;

	assert_int_equal(gw_similar_new(&s), 0);
	assert_false(gw_similar_find(s, hooks, 0, &found));
	for (uint32_t i = 0; i < PAGES / 16; i++) {
		n = gw_hooks_of(memory + i * blob, blob, hooks);
		assert_true(n > 8 && n <= GW_BLOB_MAX_HOOKS);
		assert_int_equal(gw_similar_add(s, i / 8, i % 8 * 16, 16, hooks, n), 0);
	}
	/* Two thirds of the fourth and the rest of the fifth: both, in their order. */
	n = gw_hooks_of(memory + 3 * blob + blob / 3 / 64 * 64, blob, hooks);
	assert_true(gw_similar_find(s, hooks, n, &found));
	assert_int_equal(found.segment, 0);
	assert_int_equal(found.slot, 48);
	assert_int_equal(found.blobs, 2);
	n = gw_hooks_of(memory + 4 * blob - blob / 3 / 64 * 64, blob, hooks);
	assert_true(gw_similar_find(s, hooks, n, &found));
	assert_int_equal(found.slot, 48);
	assert_int_equal(found.blobs, 2);
	/* The eighth is the last of its segment. */
	n = gw_hooks_of(memory + 7 * blob + blob / 3 / 64 * 64, blob, hooks);
	assert_true(gw_similar_find(s, hooks, n, &found));
	assert_int_equal(found.slot, 112);
	assert_int_equal(found.blobs, 1);
	fill_text(memory, blob, 77);
	n = gw_hooks_of(memory, blob, hooks);
	assert_false(gw_similar_find(s, hooks, n, &found));
	/* Zeros tell nothing, and a piece that comes again and again tells it once. */
	memset(memory, 0, blob);
	assert_int_equal(gw_hooks_of(memory, blob, hooks), 0);
	for (unsigned i = 0; i < 256; i++) {
		memset(memory, (int)i, blob);
		assert_true(gw_hooks_of(memory, blob, hooks) <= 1);
	}
	gw_similar_free(s);
	free(memory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(what_resembles_is_told_in_little, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(any_page_alone, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(bases_stay, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(what_has_lost_its_base_is_stored_again, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(a_base_is_damaged, repo_setup, repo_teardown),
		cmocka_unit_test_setup_teardown(the_index_and_a_snapshot_differ, repo_setup, repo_teardown),
		cmocka_unit_test(a_blob_is_bound_to_its_base),
		cmocka_unit_test(bases_are_checked),
		cmocka_unit_test(the_most_alike_is_found),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
