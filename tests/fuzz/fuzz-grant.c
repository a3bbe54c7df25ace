// SPDX-License-Identifier: Apache-2.0
/*
 * Grants: bytes that nobody signed are never taken for one; terms that the right host did sign are taken only when they say what is wanted.
 */
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/chan.h"
#include "agent/grant.h"
#include "agent/pki.h"
#include "lib/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static SSL_CTX *host;

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static void make_host(void)
{
	const struct gw_pki_request req = { .name = "h1", .role = GW_ROLE_HOST, .days = 5 };
	char dir[] = "/tmp/gwt-XXXXXX", ca[40], cert[40], key[40];

	if (!mkdtemp(dir))
		abort();
	snprintf(ca, sizeof(ca), "%s/ca.crt", dir);
	snprintf(cert, sizeof(cert), "%s/h1.crt", dir);
	snprintf(key, sizeof(key), "%s/h1.key", dir);
	if (gw_pki_init(dir, "fuzz", 10, NULL) < 0 || gw_pki_issue(dir, dir, &req, NULL) < 0 || gw_tls_new(ca, cert, key, false, &host, NULL) < 0)
		abort();
	nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	Godwit__GrantTerms want = GODWIT__GRANT_TERMS__INIT, *said;
	struct gw_error err = GW_ERROR_INIT;
	gw_autobuf grant = GW_BUF_INIT;
	uint64_t epoch = 0;
	bool same;

	if (!host)
		make_host();
	want.vm = (char *)"v";
	want.from = (char *)"h1";
	want.to = (char *)"h2";
	want.snapshot = (ProtobufCBinaryData){ 16, (uint8_t *)"0123456789abcdef" };
	if (gw_grant_check(host, (ProtobufCBinaryData){ size, (uint8_t *)data }, &want, &epoch, &err) == 0)
		abort();
	said = godwit__grant_terms__unpack(NULL, size, data);
	if (!said)
		return 0;
	same = said->epoch && !strcmp(said->vm, "v") && !strcmp(said->from, "h1") && !strcmp(said->to, "h2") && said->snapshot.len == 16 &&
	       !memcmp(said->snapshot.data, want.snapshot.data, 16);
	if (gw_grant_sign(host, said, &grant, &err) < 0)
		abort();
	if (gw_grant_check(host, (ProtobufCBinaryData){ grant.len, grant.data }, &want, &epoch, &err) == 0 && !(same && epoch == said->epoch))
		abort();
	godwit__grant_terms__free_unpacked(said, NULL);
	return 0;
}
