// SPDX-License-Identifier: Apache-2.0
/* The configuration object of a repository: in the clear, since it is read before there is a key, and authenticated once there is. */
#ifndef GW_MIGRATE_REPO_CONFIG_H
#define GW_MIGRATE_REPO_CONFIG_H

#include <stdint.h>

#include "lib/error.h"
#include "migrate/repo/crypt.h"

#define GW_CONFIG_LEN 80u

struct gw_repo_config {
	uint8_t id[GW_REPO_ID_LEN];
	uint64_t created_s; /* since 1970 */
	uint32_t grace_s;   /* prune leaves alone what is younger */
};

/* 0 or -EIO. */
int gw_config_encode(const struct gw_repo_config *config, const struct gw_repo_keys *keys, uint8_t out[GW_CONFIG_LEN]);
/* Not to be trusted before gw_config_verify() of the same bytes, which gw_config_decode() has taken. */
int gw_config_decode(const void *data, uint64_t len, struct gw_repo_config *ret, struct gw_error *err);
int gw_config_verify(const void *data, const struct gw_repo_keys *keys, struct gw_error *err);

#endif
