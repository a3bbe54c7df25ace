// SPDX-License-Identifier: Apache-2.0
/* Grants: only the host that suspended the VM can give one, nobody can change one, and it says one thing alone. */
#include "cmocka-all.h"

#include <errno.h>
#include <ftw.h>
#include <string.h>

#include "agent/chan.h"
#include "agent/grant.h"
#include "agent/pki.h"
#include "lib/io.h"
#include "lib/util.h"

static char dir[64], other[80];
static uint8_t id[16] = "a snapshot's id.", another[16] = "another one's id";

static void issue(const char *pki, const char *name, enum gw_role role, int days)
{
	const struct gw_pki_request req = { .name = name, .role = role, .days = days };

	assert_int_equal(gw_pki_issue(pki, pki, &req, NULL), 0);
}

static int setup(void **state)
{
	snprintf(dir, sizeof(dir), "/tmp/gwt-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(other, sizeof(other), "%s/other", dir);
	assert_int_equal(gw_pki_init(dir, "test", 10, NULL), 0);
	assert_int_equal(gw_pki_init(other, "someone else", 10, NULL), 0);
	issue(dir, "h1", GW_ROLE_HOST, 5);
	issue(dir, "h2", GW_ROLE_HOST, 5);
	issue(dir, "h4", GW_ROLE_HOST, -1);
	issue(dir, "ann", GW_ROLE_CLIENT, 5);
	issue(other, "h1", GW_ROLE_HOST, 5);
	return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static int teardown(void **state)
{
	return nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static SSL_CTX *tls(const char *pki, const char *name)
{
	char ca[100], cert[100], key[100];
	SSL_CTX *ctx = NULL;

	snprintf(ca, sizeof(ca), "%s/ca.crt", pki);
	snprintf(cert, sizeof(cert), "%s/%s.crt", pki, name);
	snprintf(key, sizeof(key), "%s/%s.key", pki, name);
	assert_int_equal(gw_tls_new(ca, cert, key, false, &ctx, NULL), 0);
	return ctx;
}

static Godwit__GrantTerms terms(const char *from)
{
	Godwit__GrantTerms t = GODWIT__GRANT_TERMS__INIT;

	t.vm = (char *)"web";
	t.from = (char *)from;
	t.to = (char *)"h2";
	t.snapshot = (ProtobufCBinaryData){ sizeof(id), id };
	t.epoch = 7;
	return t;
}

/* What h2 says of a grant that `signer` of `pki` gives. */
static int given(const char *pki, const char *signer, const Godwit__GrantTerms *said, const Godwit__GrantTerms *want, const char *why)
{
	SSL_CTX *theirs = tls(pki, signer), *ours = tls(dir, "h2");
	struct gw_error err = GW_ERROR_INIT;
	gw_autobuf grant = GW_BUF_INIT;
	uint64_t epoch = 0;
	int r;

	assert_int_equal(gw_grant_sign(theirs, said, &grant, NULL), 0);
	r = gw_grant_check(ours, (ProtobufCBinaryData){ grant.len, grant.data }, want, &epoch, &err);
	assert_int_equal(epoch, r == 0 ? said->epoch : 0);
	if (r < 0 && !strstr(gw_error_text(&err), why))
		fail_msg("%s", gw_error_text(&err));
	SSL_CTX_free(theirs);
	SSL_CTX_free(ours);
	return r;
}

static void the_host_that_suspended_it_gives_it(void **state)
{
	const Godwit__GrantTerms want = terms("h1"), forged = terms("h2"), old = terms("h4");

	assert_int_equal(given(dir, "h1", &want, &want, ""), 0);
	assert_int_equal(given(dir, "h2", &want, &want, "given by host h2"), -EACCES);
	assert_int_equal(given(dir, "h1", &forged, &want, "contradicts"), -EPROTO);
	assert_int_equal(given(dir, "ann", &want, &want, "given by client ann"), -EACCES);
	assert_int_equal(given(dir, "h4", &old, &old, "expired"), -EACCES);
	assert_int_equal(given(other, "h1", &want, &want, "certificate is refused"), -EACCES);
}

static void it_says_one_thing_alone(void **state)
{
	const Godwit__GrantTerms want = terms("h1");
	Godwit__GrantTerms said = want;

	said.to = (char *)"h3";
	assert_int_equal(given(dir, "h1", &said, &want, "for host h3, and this is h2"), -EACCES);
	said = want;
	said.vm = (char *)"db";
	assert_int_equal(given(dir, "h1", &said, &want, "for VM db"), -EACCES);
	said = want;
	said.snapshot.data = another;
	assert_int_equal(given(dir, "h1", &said, &want, "another snapshot"), -EACCES);
	said.snapshot = (ProtobufCBinaryData){ 15, id };
	assert_int_equal(given(dir, "h1", &said, &want, "another snapshot"), -EACCES);
	said = want;
	said.epoch = 0;
	assert_int_equal(given(dir, "h1", &said, &want, "contradicts"), -EPROTO);
}

/* Cut off anywhere, or with any one bit flipped: refused. */
static void changed_it_is_refused(void **state)
{
	SSL_CTX *theirs = tls(dir, "h1"), *ours = tls(dir, "h2");
	const Godwit__GrantTerms want = terms("h1");
	gw_autobuf grant = GW_BUF_INIT;
	uint64_t epoch = 0;

	assert_int_equal(gw_grant_sign(theirs, &want, &grant, NULL), 0);
	for (size_t i = 0; i < grant.len; i++) {
		gw_autofree uint8_t *cut = malloc(i + 1);

		memcpy(cut, grant.data, i);
		assert_true(gw_grant_check(ours, (ProtobufCBinaryData){ i, cut }, &want, &epoch, NULL) < 0);
		grant.data[i] ^= (uint8_t)(1 << i % 8);
		assert_true(gw_grant_check(ours, (ProtobufCBinaryData){ grant.len, grant.data }, &want, &epoch, NULL) < 0);
		grant.data[i] ^= (uint8_t)(1 << i % 8);
	}
	assert_int_equal(epoch, 0);
	assert_int_equal(gw_grant_check(ours, (ProtobufCBinaryData){ grant.len, grant.data }, &want, &epoch, NULL), 0);
	SSL_CTX_free(theirs);
	SSL_CTX_free(ours);
}

/* The terms of one with the signature, or the certificate, of another. */
static void parts_do_not_mix(void **state)
{
	SSL_CTX *h1 = tls(dir, "h1"), *h2 = tls(dir, "h2");
	const Godwit__GrantTerms want = terms("h1");
	Godwit__GrantTerms said = want;
	gw_autobuf a = GW_BUF_INIT, b = GW_BUF_INIT, c = GW_BUF_INIT;
	Godwit__Grant *one, *two, mixed;
	uint64_t epoch = 0;

	said.to = (char *)"h3";
	assert_int_equal(gw_grant_sign(h1, &said, &a, NULL) ?: gw_grant_sign(h2, &want, &b, NULL), 0);
	one = godwit__grant__unpack(NULL, a.len, a.data);
	two = godwit__grant__unpack(NULL, b.len, b.data);
	for (unsigned i = 0; i < 2; i++) {
		mixed = i ? *two : *one;
		if (i)
			mixed.certificate = one->certificate;
		else
			mixed.terms = two->terms;
		c.len = 0;
		assert_non_null(gw_buf_reserve(&c, godwit__grant__get_packed_size(&mixed)));
		c.len = godwit__grant__pack(&mixed, c.data);
		assert_int_equal(gw_grant_check(h2, (ProtobufCBinaryData){ c.len, c.data }, &want, &epoch, NULL), -EACCES);
	}
	godwit__grant__free_unpacked(one, NULL);
	godwit__grant__free_unpacked(two, NULL);
	SSL_CTX_free(h1);
	SSL_CTX_free(h2);
}

static void as_text_it_is_the_same(void **state)
{
	SSL_CTX *h1 = tls(dir, "h1");
	const Godwit__GrantTerms want = terms("h1");
	gw_autobuf grant = GW_BUF_INIT, again = GW_BUF_INIT;
	gw_autofree char *text = NULL;
	char path[100], ca[100];

	snprintf(path, sizeof(path), "%s/grant", dir);
	snprintf(ca, sizeof(ca), "%s/ca.crt", dir);
	assert_int_equal(gw_grant_sign(h1, &want, &grant, NULL), 0);
	assert_int_equal(gw_grant_print((ProtobufCBinaryData){ grant.len, grant.data }, &text, NULL), 0);
	assert_int_equal(gw_write_file_atomic(path, text, strlen(text), 0600, NULL), 0);
	assert_int_equal(gw_grant_read(path, &again, NULL), 0);
	assert_int_equal(again.len, grant.len);
	assert_memory_equal(again.data, grant.data, grant.len);
	assert_int_equal(gw_grant_read(ca, &again, NULL), -EINVAL);
	assert_int_equal(gw_write_file_atomic(path, text, strlen(text) / 2, 0600, NULL), 0);
	assert_int_equal(gw_grant_read(path, &again, NULL), -EINVAL);
	SSL_CTX_free(h1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_host_that_suspended_it_gives_it),
		cmocka_unit_test(it_says_one_thing_alone),
		cmocka_unit_test(changed_it_is_refused),
		cmocka_unit_test(parts_do_not_mix),
		cmocka_unit_test(as_text_it_is_the_same),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
