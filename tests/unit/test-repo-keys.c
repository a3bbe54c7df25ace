// SPDX-License-Identifier: Apache-2.0
/* Making and opening repositories: passphrases, host keys, and configuration and key objects that somebody has changed. */
#include "cmocka-all.h"

#include <errno.h>
#include <openssl/ec.h>
#include <string.h>
#include <unistd.h>

#include "lib/buf.h"
#include "lib/io.h"
#include "lib/util.h"
#include "migrate/repo/coding.h"
#include "migrate/repo/object.h"
#include "repo-help.h"

static int try_open(const char *url, const struct gw_repo_secret *secret, struct gw_error *err)
{
	struct gw_repo *repo;
	int r = gw_repo_open(url, secret, &repo, err);

	if (r == 0)
		gw_repo_free(repo);
	return r;
}

static void passphrases(void **state)
{
	struct repo_test *t = *state;
	const struct gw_repo_secret right = { .passphrase = REPO_PASS }, wrong = { .passphrase = REPO_PASS "s" }, none = { 0 };
	const struct gw_repo_secret brief = { .passphrase = "brief" };
	struct gw_error err = GW_ERROR_INIT;
	char url[128];

	assert_int_equal(try_open(t->url, &right, &err), 0);
	assert_int_equal(try_open(t->url, &wrong, &err), -EKEYREJECTED);
	assert_non_null(strstr(err.msg, "wrong passphrase"));
	assert_int_equal(try_open(t->url, &none, &err), -EINVAL);
	assert_int_equal(gw_repo_init(t->url, &right, NULL, &err), -EEXIST);
	snprintf(url, sizeof(url), "file://%s/other", t->dir);
	assert_int_equal(try_open(url, &right, &err), -ENOENT);
	assert_int_equal(gw_repo_init(url, &brief, NULL, &err), -EINVAL);
	assert_int_equal(try_open(url, &right, &err), -ENOENT);
}

static void default_parameters(void **state)
{
	struct repo_test *t = *state;
	const struct gw_repo_secret right = { .passphrase = REPO_PASS };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_repo_key *keys;
	struct gw_repo *repo;
	char url[128];
	size_t n;

	snprintf(url, sizeof(url), "file://%s/other", t->dir);
	assert_int_equal(gw_repo_init(url, &right, NULL, &err), 0);
	assert_int_equal(gw_repo_open(url, &right, &repo, &err), 0);
	assert_int_equal(gw_repo_grace_s(repo), GW_REPO_DEFAULT_GRACE_S);
	assert_memory_not_equal(gw_repo_id(repo), gw_repo_id(t->repo), GW_REPO_ID_LEN);
	assert_memory_not_equal(gw_repo_fingerprint(repo), gw_repo_fingerprint(t->repo), GW_REPO_ID_LEN);
	assert_int_equal(gw_repo_list_keys(repo, &keys, &n, &err), 0);
	assert_int_equal(n, 1);
	assert_int_equal(keys[0].info.scrypt.n, 65536);
	free(keys);
	gw_repo_free(repo);
}

static void keys_come_and_go(void **state)
{
	struct repo_test *t = *state;
	EVP_PKEY *host = EVP_EC_gen("P-256"), *stranger = EVP_EC_gen("P-256"), *odd = EVP_EC_gen("P-384");
	const struct gw_repo_secret by_host = { .host = host }, by_stranger = { .host = stranger }, by_odd = { .host = odd };
	const struct gw_repo_secret by_pass = { .passphrase = REPO_PASS }, by_second = { .passphrase = "another one" };
	const struct gw_repo_params host_params = { .label = "host-a" }, second = { .label = "second", .scrypt = { 1024, 8, 1 } };
	const struct gw_repo_params excessive = { .scrypt = { 1u << 20, 32, 1 } };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_repo_key *keys;
	char name[48], host_name[48];
	size_t n;

	assert_int_equal(try_open(t->url, &by_host, &err), -EKEYREJECTED);
	assert_non_null(strstr(err.msg, "no key for this host"));
	assert_int_equal(gw_repo_add_key(t->repo, &by_host, &host_params, host_name, &err), 0);
	assert_int_equal(gw_repo_add_key(t->repo, &by_second, &second, name, &err), 0);
	assert_int_equal(gw_repo_add_key(t->repo, &by_odd, NULL, NULL, &err), -EINVAL);
	assert_int_equal(gw_repo_add_key(t->repo, &by_second, &excessive, NULL, &err), -EINVAL);
	assert_int_equal(try_open(t->url, &by_host, &err), 0);
	assert_int_equal(try_open(t->url, &by_stranger, &err), -EKEYREJECTED);
	assert_int_equal(try_open(t->url, &by_pass, &err), 0);
	assert_int_equal(try_open(t->url, &by_second, &err), 0);
	assert_int_equal(gw_repo_list_keys(t->repo, &keys, &n, &err), 0);
	assert_int_equal(n, 3);
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(keys[i].info.type == GW_KEY_HOST, strcmp(keys[i].name, host_name) == 0);
		if (keys[i].info.type == GW_KEY_HOST)
			assert_string_equal(keys[i].info.label, "host-a");
		else if (strcmp(keys[i].name, name))
			assert_int_equal(gw_repo_remove_key(t->repo, keys[i].name, &err), 0);
	}
	free(keys);
	assert_int_equal(try_open(t->url, &by_pass, &err), -EKEYREJECTED);
	assert_int_equal(gw_repo_remove_key(t->repo, name, &err), 0);
	assert_int_equal(gw_repo_remove_key(t->repo, name, &err), -ENOENT);
	assert_int_equal(gw_repo_remove_key(t->repo, host_name, &err), -EBUSY);
	assert_int_equal(try_open(t->url, &by_host, &err), 0);
	EVP_PKEY_free(host);
	EVP_PKEY_free(stranger);
	EVP_PKEY_free(odd);
}

/* Whoever knows a host's public key can make a repository that it opens: the fingerprint tells. */
static void a_repository_in_the_place_of_another(void **state)
{
	struct repo_test *t = *state;
	EVP_PKEY *host = EVP_EC_gen("P-256");
	struct gw_repo_secret by_host = { .host = host, .fingerprint = gw_repo_fingerprint(t->repo) };
	struct gw_error err = GW_ERROR_INIT;
	char url[128];

	assert_int_equal(gw_repo_add_key(t->repo, &by_host, NULL, NULL, &err), 0);
	assert_int_equal(try_open(t->url, &by_host, &err), 0);
	snprintf(url, sizeof(url), "file://%s/other", t->dir);
	assert_int_equal(gw_repo_init(url, &by_host, NULL, &err), 0);
	assert_int_equal(try_open(url, &by_host, &err), -EKEYREJECTED);
	assert_non_null(strstr(err.msg, "not the repository that is expected"));
	by_host.fingerprint = NULL;
	assert_int_equal(try_open(url, &by_host, &err), 0);
	EVP_PKEY_free(host);
}

/* Every byte of the two objects that are read before there is a key. */
static void no_byte_can_be_changed(struct repo_test *t, const char *object, const struct gw_repo_secret *secret)
{
	char path[200], *data;
	size_t len;

	snprintf(path, sizeof(path), "%s/repo/%s", t->dir, object);
	assert_int_equal(gw_read_file(path, 4096, &data, &len, NULL), 0);
	for (size_t i = 0; i <= len; i++) {
		struct gw_error err = GW_ERROR_INIT;
		int r;

		if (i < len)
			data[i] ^= 0x10;
		assert_int_equal(gw_write_file_atomic(path, data, i == len ? len - 1 : len, 0600, NULL), 0);
		r = try_open(t->url, secret, &err);
		if (r != -EBADMSG && r != -EKEYREJECTED && r != -EPROTONOSUPPORT)
			fail_msg("byte %zu of %s: %d %s", i, object, r, err.msg);
		if (strcmp(object, "config") == 0 && i != len && !strstr(err.msg, "config"))
			fail_msg("byte %zu of config: %s", i, err.msg);
		if (i < len)
			data[i] ^= 0x10;
	}
	assert_int_equal(gw_write_file_atomic(path, data, len, 0600, NULL), 0);
	assert_int_equal(try_open(t->url, secret, NULL), 0);
	free(data);
}

static void changed_objects_are_found(void **state)
{
	struct repo_test *t = *state;
	EVP_PKEY *host = EVP_EC_gen("P-256");
	const struct gw_repo_secret by_host = { .host = host }, by_pass = { .passphrase = REPO_PASS };
	struct gw_error err = GW_ERROR_INIT;
	char names[REPO_MAX_OBJECTS][96], host_name[48];

	assert_int_equal(repo_objects(t->repo, "keys/", names), 1);
	no_byte_can_be_changed(t, "config", &by_pass);
	no_byte_can_be_changed(t, names[0], &by_pass);
	assert_int_equal(gw_repo_add_key(t->repo, &by_host, NULL, host_name, &err), 0);
	no_byte_can_be_changed(t, host_name, &by_host);
	EVP_PKEY_free(host);
}

static void newer_versions_are_told(void **state)
{
	struct repo_test *t = *state;
	const struct gw_repo_secret right = { .passphrase = REPO_PASS };
	struct gw_error err = GW_ERROR_INIT;
	char path[200], *data;
	size_t len;

	snprintf(path, sizeof(path), "%s/repo/config", t->dir);
	assert_int_equal(gw_read_file(path, 4096, &data, &len, NULL), 0);
	data[8] = 2;
	assert_int_equal(gw_write_file_atomic(path, data, len, 0600, NULL), 0);
	assert_int_equal(try_open(t->url, &right, &err), -EPROTONOSUPPORT);
	assert_non_null(strstr(err.msg, "version 2"));
	free(data);
}

static void varints(void **state)
{
	static const uint64_t values[] = { 0, 1, 127, 128, 300, UINT32_MAX, 1ull << 63, UINT64_MAX };
	static const uint8_t bad[][11] = {
		{ 0x80 }, { 0x80, 0x00 }, { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02 },
	};
	static const size_t bad_len[] = { 1, 2, 10 };

	for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
		gw_autobuf buf = GW_BUF_INIT;
		struct gw_enc e = { .buf = &buf };
		struct gw_dec d;

		gw_enc_varint(&e, values[i]);
		gw_enc_signed(&e, (int64_t)values[i]);
		gw_enc_signed(&e, -(int64_t)(values[i] / 2));
		d = (struct gw_dec){ buf.data, buf.data + buf.len, false };
		assert_true(gw_dec_varint(&d) == values[i]);
		assert_true(gw_dec_signed(&d) == (int64_t)values[i]);
		assert_true(gw_dec_signed(&d) == -(int64_t)(values[i] / 2));
		assert_false(d.bad || d.p != d.end);
		assert_int_equal(gw_dec_u8(&d), 0);
		assert_true(d.bad);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct gw_dec d = { bad[i], bad[i] + bad_len[i], false };

		assert_int_equal(gw_dec_varint(&d), 0);
		assert_true(d.bad);
	}
}

/* An envelope opens under its own name and kind alone, and no two of one content are alike. */
static void envelopes(void **state)
{
	struct repo_test *t = *state;
	gw_autobuf a = GW_BUF_INIT;
	gw_autobuf b = GW_BUF_INIT;
	gw_autobuf out = GW_BUF_INIT;
	struct gw_error err = GW_ERROR_INIT;
	struct gw_crypt *c;

	assert_int_equal(gw_crypt_new(gw_repo_keys(t->repo), &c), 0);
	assert_int_equal(gw_object_seal(c, GW_OBJECT_INDEX, "index/1", "content", 7, &a, &err), 0);
	assert_int_equal(gw_object_seal(c, GW_OBJECT_INDEX, "index/1", "content", 7, &b, &err), 0);
	assert_int_equal(a.len, b.len);
	assert_memory_not_equal(a.data + 24, b.data + 24, 32);
	assert_memory_not_equal(a.data + 72, b.data + 72, 7);
	assert_int_equal(gw_object_open(c, GW_OBJECT_INDEX, "index/2", a.data, a.len, 100, &out, &err), -EBADMSG);
	assert_non_null(strstr(err.msg, "index/2"));
	assert_int_equal(gw_object_open(c, GW_OBJECT_MARK, "index/1", a.data, a.len, 100, &out, &err), -EBADMSG);
	assert_int_equal(gw_object_open(c, GW_OBJECT_INDEX, "index/1", a.data, a.len, 6, &out, &err), -EBADMSG);
	for (size_t i = 0; i < a.len; i++) {
		a.data[i] ^= 1;
		assert_true(gw_object_open(c, GW_OBJECT_INDEX, "index/1", a.data, a.len, 100, &out, &err) < 0);
		a.data[i] ^= 1;
		assert_int_equal(gw_object_open(c, GW_OBJECT_INDEX, "index/1", a.data, i, 100, &out, &err), -EBADMSG);
	}
	assert_int_equal(out.len, 0);
	assert_int_equal(gw_object_open(c, GW_OBJECT_INDEX, "index/1", a.data, a.len, 7, &out, &err), 0);
	assert_memory_equal(out.data, "content", 7);
	/* Put twice, as when an answer was lost. */
	assert_int_equal(gw_object_put(gw_repo_bucket(t->repo), "index/1", a.data, a.len, &err), 0);
	assert_int_equal(gw_object_put(gw_repo_bucket(t->repo), "index/1", a.data, a.len, &err), 0);
	assert_int_equal(gw_object_put(gw_repo_bucket(t->repo), "index/1", b.data, b.len, &err), -EEXIST);
	assert_int_equal(gw_object_put(gw_repo_bucket(t->repo), "index/1", a.data, a.len - 1, &err), -EEXIST);
	gw_crypt_free(c);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, repo_setup, repo_teardown)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(passphrases),
		T(default_parameters),
		T(keys_come_and_go),
		T(a_repository_in_the_place_of_another),
		T(changed_objects_are_found),
		T(newer_versions_are_told),
		cmocka_unit_test(varints),
		T(envelopes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
