// SPDX-License-Identifier: Apache-2.0
/*
 * TLS 1.3 for one connection of a move, or to a repository: no certificates, the move's or ticket's secret as external pre-shared key with (EC)DHE
 * (RFC 8446 §2.2, psk_dhe_ke). The key's identity names the move and the channel, so that connections cannot be swapped.
 */
#ifndef GW_MIGRATE_TLS_H
#define GW_MIGRATE_TLS_H

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "migrate/wire.h"

#define GW_MOVE_SECRET_LEN 32

struct gw_tls_key {
	uint8_t secret[GW_MOVE_SECRET_LEN];
	char identity[96];
	const char *what; /* "move" */
	bool unknown; /* set when the client named another identity */
};

/* Fills key for channel `number` (0 = control) of a move, or of what `what` (at most 16 bytes, borrowed) calls it. */
void gw_tls_key_init(struct gw_tls_key *key, const char *what, const uint8_t secret[GW_MOVE_SECRET_LEN], const uint8_t move_id[16],
		     unsigned number);

/*
 * Shakes hands over `w` and returns the session, which borrows both `w` and `key`. Errors tell a person whether the secret, the
 * identity or the connection was wrong.
 */
int gw_tls_handshake(struct gw_wire *w, struct gw_tls_key *key, bool client, SSL **ret, struct gw_error *err);

/* The TLS 1.3 suites that this process prefers, best first, found by measuring each for about a millisecond, once. */
const char *gw_tls_suites(void);

#endif
