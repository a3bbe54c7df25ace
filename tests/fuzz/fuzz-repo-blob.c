// SPDX-License-Identifier: Apache-2.0
/*
 * Blobs and envelopes: as the storage has them; and, sealed here by the right key, as somebody writes them who has it and compresses as he likes: the first
 * byte says how many pages there shall be, the second the codec.
 */
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"
#include "migrate/repo/blob.h"
#include "migrate/repo/object.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct gw_blob_coder *coder;
static struct gw_blob_key key;
static uint8_t *pages;
static uint8_t base_pages[2 * GW_PAGE_SIZE], base_aad[24];
static struct gw_blob_base base = { .ref = { { 1, 2 }, 5, 2 }, .pages = base_pages, .len = sizeof(base_pages) };

static void sealed_blob(const uint8_t *data, size_t size)
{
	unsigned count = data[0] % (GW_BLOB_MAX_PAGES + 1);
	uint8_t *blob = malloc(GW_BLOB_HEADER + size), nonce[GW_SEAL_NONCE];
	const bool has_base = data[1] == 3;
	const struct gw_span aad[] = { { blob, 16 }, { base_aad, has_base ? sizeof(base_aad) : 0 } };

	memset(blob, 0, GW_BLOB_HEADER);
	gw_put_le32(blob, 7);
	gw_put_le16(blob + 4, (uint16_t)count);
	blob[6] = data[1];
	memcpy(nonce, blob, 4);
	memcpy(nonce + 4, blob + 8, 8);
	gw_crypt_seal(gw_blob_coder_crypt(coder), key.key, nonce, aad, 2, data + 2, size - 2, blob + GW_BLOB_HEADER, blob + 16);
	gw_blob_open(coder, &key, 7, count, blob, GW_BLOB_HEADER + size - 2, has_base ? &base : NULL, pages);
	free(blob);
}

static void envelope(const uint8_t *data, size_t size)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_buf out = GW_BUF_INIT;

	gw_object_open(gw_blob_coder_crypt(coder), GW_OBJECT_INDEX, "index/x", data, size, 1 << 20, &out, &err);
	gw_buf_release(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!coder) {
		struct gw_repo_keys keys;

		memset(&keys, 1, sizeof(keys));
		gw_blob_coder_new(&keys, &coder);
		gw_blob_key_derive(coder, (const uint8_t *)"0123456789abcdef", &key);
		memcpy(base_aad, base.ref.segment, 16);
		gw_put_le32(base_aad + 16, base.ref.slot);
		gw_put_le32(base_aad + 20, base.ref.blobs);
		for (size_t i = 0; i < sizeof(base_pages); i++)
			base_pages[i] = (uint8_t)(i * i >> 3);
		pages = malloc(GW_BLOB_MAX_PAGES * GW_PAGE_SIZE);
	}
	if (size < 2)
		return 0;
	gw_blob_open(coder, &key, 7, 16, data, size, NULL, pages);
	gw_blob_open(coder, &key, 7, 16, data, size, &base, pages);
	envelope(data, size);
	sealed_blob(data, size);
	return 0;
}
