// SPDX-License-Identifier: Apache-2.0
/* The configuration object; see config.h. */
#include "migrate/repo/config.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>

#include "lib/bytes.h"
#include "migrate/repo/object.h"
#include "migrate/repo/repo.h"

/* Bytes after the prefix; what is not listed is zero. */
enum {
	OFF_ID = 16,      /* 16 bytes */
	OFF_CREATED = 32, /* u64 */
	OFF_GRACE = 40,   /* u32 */
	OFF_TAG = 48,     /* 32 bytes: HMAC-SHA256 of all before */
};

static int make_tag(const uint8_t *object, const struct gw_repo_keys *keys, uint8_t tag[32])
{
	unsigned len;

	return HMAC(EVP_sha256(), keys->config, GW_REPO_KEY_LEN, object, OFF_TAG, tag, &len) ? 0 : -EIO;
}

int gw_config_encode(const struct gw_repo_config *config, const struct gw_repo_keys *keys, uint8_t out[GW_CONFIG_LEN])
{
	memset(out, 0, GW_CONFIG_LEN);
	gw_object_prefix(out, GW_OBJECT_CONFIG, 0);
	memcpy(out + OFF_ID, config->id, GW_REPO_ID_LEN);
	gw_put_le64(out + OFF_CREATED, config->created_s);
	gw_put_le32(out + OFF_GRACE, config->grace_s);
	return make_tag(out, keys, out + OFF_TAG);
}

int gw_config_decode(const void *data, uint64_t len, struct gw_repo_config *ret, struct gw_error *err)
{
	const uint8_t *p = data;
	struct gw_repo_config c;
	uint8_t variant;
	int r = gw_object_check_prefix(data, len, GW_OBJECT_CONFIG, &variant, "config", err);

	if (r < 0)
		return r;
	if (len != GW_CONFIG_LEN || variant != 0 || gw_get_le32(p + OFF_GRACE + 4) != 0)
		return gw_object_damaged("config", err);
	memcpy(c.id, p + OFF_ID, GW_REPO_ID_LEN);
	c.created_s = gw_get_le64(p + OFF_CREATED);
	c.grace_s = gw_get_le32(p + OFF_GRACE);
	if (c.grace_s < GW_REPO_MIN_GRACE_S || c.grace_s > GW_REPO_MAX_GRACE_S)
		return gw_object_damaged("config", err);
	*ret = c;
	return 0;
}

int gw_config_verify(const void *data, const struct gw_repo_keys *keys, struct gw_error *err)
{
	uint8_t tag[32];

	if (make_tag(data, keys, tag) < 0)
		return gw_error_set(err, EIO, "config cannot be checked");
	return CRYPTO_memcmp(tag, (const uint8_t *)data + OFF_TAG, sizeof(tag)) == 0 ? 0 : gw_object_damaged("config", err);
}
