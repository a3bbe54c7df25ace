// SPDX-License-Identifier: Apache-2.0
/* HMAC-SHA256 (RFC 2104, FIPS 180-4) of pages side by side; see lanes.h. */
#include "migrate/repo/lanes.h"

#include <errno.h>
#include <intel-ipsec-mb.h>
#include <openssl/crypto.h>
#include <string.h>

#include "lib/late.h"
#include "lib/util.h"

#define FUNCTIONS(F)                                                              \
	F(unsigned, imb_get_version, (void), ())                                  \
	F(IMB_MGR *, alloc_mb_mgr, (uint64_t flags), (flags))                     \
	F(void, free_mb_mgr, (IMB_MGR * mgr), (mgr))                              \
	F(void, init_mb_mgr_auto, (IMB_MGR * mgr, IMB_ARCH *arch), (mgr, arch))

GW_LATE_LIBRARY(FUNCTIONS, FUNCTIONS, "libIPSec_MB.so.1")

#define SHA256_BLOCK 64

struct gw_lanes {
	IMB_MGR *mgr;
	/* The hash's state after the first block of the inner and of the outer hash, which follow from the key alone. */
	uint8_t inner[IMB_SHA256_DIGEST_SIZE_IN_BYTES] __attribute__((aligned(16)));
	uint8_t outer[IMB_SHA256_DIGEST_SIZE_IN_BYTES] __attribute__((aligned(16)));
};

static void first_block(struct gw_lanes *l, const uint8_t key[GW_REPO_KEY_LEN], uint8_t pad, uint8_t *state)
{
	uint8_t block[SHA256_BLOCK];

	memset(block, pad, sizeof(block));
	for (unsigned i = 0; i < GW_REPO_KEY_LEN; i++)
		block[i] ^= key[i];
	IMB_SHA256_ONE_BLOCK(l->mgr, block, state);
	OPENSSL_cleanse(block, sizeof(block));
}

/* With neither AVX2 nor SHA instructions four lanes are slower than OpenSSL's one. */
static bool gains(const IMB_MGR *mgr)
{
	const uint64_t tested = IMB_FEATURE_SELF_TEST | IMB_FEATURE_SELF_TEST_PASS;

	return (mgr->features & (IMB_FEATURE_AVX2 | IMB_FEATURE_SHANI)) && (mgr->features & tested) == tested;
}

int gw_lanes_new(const uint8_t key[GW_REPO_KEY_LEN], struct gw_lanes **ret)
{
	struct gw_lanes *l;

	/* Programs are made for one version: what they share with it are structures, not only functions. */
	if (load(NULL) < 0 || imb_get_version() != IMB_VERSION_NUM)
		return -ENOENT;
	l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	l->mgr = alloc_mb_mgr(0);
	if (l->mgr)
		init_mb_mgr_auto(l->mgr, NULL);
	if (!l->mgr || !gains(l->mgr)) {
		gw_lanes_free(l);
		return -ENOENT;
	}
	first_block(l, key, 0x36, l->inner);
	first_block(l, key, 0x5c, l->outer);
	*ret = l;
	return 0;
}

void gw_lanes_free(struct gw_lanes *l)
{
	if (!l)
		return;
	if (l->mgr)
		free_mb_mgr(l->mgr);
	OPENSSL_cleanse(l, sizeof(*l));
	free(l);
}

static IMB_JOB *submit(struct gw_lanes *l, const uint8_t *page, uint8_t *digest)
{
	IMB_JOB *job = IMB_GET_NEXT_JOB(l->mgr);

	*job = (IMB_JOB){
		.cipher_mode = IMB_CIPHER_NULL,
		.cipher_direction = IMB_DIR_ENCRYPT,
		.chain_order = IMB_ORDER_HASH_CIPHER,
		.hash_alg = IMB_AUTH_HMAC_SHA_256,
		.src = page,
		.msg_len_to_hash_in_bytes = GW_PAGE_SIZE,
		.auth_tag_output = digest,
		.auth_tag_output_len_in_bytes = GW_PAGE_DIGEST_LEN,
		.u.HMAC = { ._hashed_auth_key_xor_ipad = l->inner, ._hashed_auth_key_xor_opad = l->outer },
	};
	return IMB_SUBMIT_JOB(l->mgr);
}

int gw_lanes_digests(struct gw_lanes *l, const void *pages, unsigned count, uint8_t (*out)[GW_PAGE_DIGEST_LEN])
{
	unsigned done = 0;
	IMB_JOB *job;

	for (unsigned i = 0; i < count; i++) {
		job = submit(l, (const uint8_t *)pages + (size_t)i * GW_PAGE_SIZE, out[i]);
		done += job && job->status == IMB_STATUS_COMPLETED;
	}
	while ((job = IMB_FLUSH_JOB(l->mgr)))
		done += job->status == IMB_STATUS_COMPLETED;
	return done == count ? 0 : -EIO;
}
