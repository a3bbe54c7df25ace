// SPDX-License-Identifier: Apache-2.0
/*
 * Kernels and initrds on this host: their digests, remembered by the file's identity, and the store of those that came with a
 * move (STATE/boot/SHA256), so that a VM can boot again where its own paths hold nothing or something else.
 */
#ifndef GW_AGENT_BOOTFILE_H
#define GW_AGENT_BOOTFILE_H

#include <stdbool.h>
#include <stdint.h>

#include "agent/agent.h"

#define GW_SHA256_LEN 32
#define GW_BOOT_FILE_MAX (2ull << 30) /* bytes */

/* Digest and size of the regular file at `path`. */
int gw_bootfile_digest(struct gw_agent *a, const char *path, uint8_t digest[GW_SHA256_LEN], uint64_t *size,
		       struct gw_error *err);
void gw_bootfile_cache_free(struct gw_agent *a);

/*
 * A local file with this digest: `path` itself, or one of the store. *ret is its path (owned), or NULL when it has to be
 * sent.
 */
int gw_bootfile_locate(struct gw_agent *a, const char *path, const uint8_t digest[GW_SHA256_LEN], char **ret,
		       struct gw_error *err);

/* A file that arrives. */
struct gw_bootfile_in;
int gw_bootfile_begin(struct gw_agent *a, const uint8_t digest[GW_SHA256_LEN], uint64_t size, struct gw_bootfile_in **ret,
		      struct gw_error *err);
/* Pieces come in order. */
int gw_bootfile_piece(struct gw_bootfile_in *in, uint64_t offset, const void *data, size_t len, struct gw_error *err);
/* Checks size and digest, stores durably; *path is owned. */
int gw_bootfile_finish(struct gw_bootfile_in *in, char **path, struct gw_error *err);
/* Drops it; after finish as well. Takes NULL. */
void gw_bootfile_free(struct gw_bootfile_in *in);

/* Removes stored files that no VM uses. */
void gw_bootfile_sweep(struct gw_agent *a);

#endif
