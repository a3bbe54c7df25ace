// SPDX-License-Identifier: Apache-2.0
/* What is read before there is a key: the configuration, and key objects. */
#include <openssl/ec.h>
#include <string.h>

#include "migrate/repo/config.h"
#include "migrate/repo/keyobject.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static EVP_PKEY *host;
	struct gw_repo_config config;
	struct gw_repo_keys keys;
	struct gw_error err = GW_ERROR_INIT;
	struct gw_key_info info;
	uint8_t key[GW_REPO_KEY_LEN];

	if (!host)
		host = EVP_EC_gen("P-256");
	memset(&keys, 1, sizeof(keys));
	if (gw_config_decode(data, size, &config, &err) == 0)
		gw_config_verify(data, &keys, &err);
	if (gw_key_parse("keys/x", data, size, &info, &err) == 0 && info.type == GW_KEY_HOST) {
		uint8_t copy[4096];

		if (size > sizeof(copy))
			return 0;
		/* As if it were for us: so its point is looked at. */
		memcpy(copy, data, size);
		gw_key_host_id(host, copy + 104);
		gw_key_unwrap_host("keys/x", copy, size, host, key, &err);
	}
	return 0;
}
