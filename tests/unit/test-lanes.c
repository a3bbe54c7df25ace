// SPDX-License-Identifier: Apache-2.0
/* Digests of many pages at once are those of one after the other, and those of RFC 2104's definition. */
#include "cmocka-all.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdlib.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/lanes.h"

#define PAGES 70u

static struct gw_repo_keys keys;

static uint8_t *random_pages(void)
{
	uint8_t *pages = malloc(PAGES * GW_PAGE_SIZE);
	uint64_t state = 1;

	assert_non_null(pages);
	for (size_t i = 0; i < PAGES * GW_PAGE_SIZE; i++) {
		state = state * 6364136223846793005ull + 1442695040888963407ull;
		pages[i] = (uint8_t)(state >> 56);
	}
	return pages;
}

static void assert_digest(const uint8_t *page, const uint8_t digest[GW_PAGE_DIGEST_LEN])
{
	uint8_t right[32];

	assert_non_null(HMAC(EVP_sha256(), keys.pages, sizeof(keys.pages), page, GW_PAGE_SIZE, right, NULL));
	assert_memory_equal(digest, right, GW_PAGE_DIGEST_LEN);
}

/* Any number of them: lanes that are not all full, and what was left in them from before. */
static void any_number_at_once(void **state)
{
	uint8_t *pages = random_pages(), digests[PAGES + 1][GW_PAGE_DIGEST_LEN];
	struct gw_crypt *c;

	assert_int_equal(gw_crypt_new(&keys, &c), 0);
	for (unsigned count = 0; count <= PAGES; count++) {
		memset(digests, 0xee, sizeof(digests));
		assert_int_equal(gw_crypt_digests(c, pages, count, digests), 0);
		for (unsigned i = 0; i < count; i++)
			assert_digest(pages + i * GW_PAGE_SIZE, digests[i]);
		/* And not a byte beyond. */
		for (unsigned i = 0; i < GW_PAGE_DIGEST_LEN; i++)
			assert_int_equal(digests[count][i], 0xee);
	}
	gw_crypt_free(c);
	free(pages);
}

static void each_key_has_lanes_of_its_own(void **state)
{
	uint8_t *pages = random_pages(), one[PAGES][GW_PAGE_DIGEST_LEN], other[PAGES][GW_PAGE_DIGEST_LEN];
	uint8_t key[GW_REPO_KEY_LEN];
	struct gw_lanes *a, *b;

	if (gw_lanes_new(keys.pages, &a) < 0)
		skip();
	memset(key, 0xa5, sizeof(key));
	assert_int_equal(gw_lanes_new(key, &b), 0);
	assert_int_equal(gw_lanes_digests(a, pages, PAGES, one), 0);
	assert_int_equal(gw_lanes_digests(b, pages, PAGES, other), 0);
	for (unsigned i = 0; i < PAGES; i++) {
		assert_digest(pages + i * GW_PAGE_SIZE, one[i]);
		assert_memory_not_equal(one[i], other[i], GW_PAGE_DIGEST_LEN);
	}
	gw_lanes_free(a);
	gw_lanes_free(b);
	free(pages);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_number_at_once),
		cmocka_unit_test(each_key_has_lanes_of_its_own),
	};

	for (unsigned i = 0; i < sizeof(keys.pages); i++)
		keys.pages[i] = (uint8_t)(i * 7 + 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
