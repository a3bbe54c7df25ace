// SPDX-License-Identifier: Apache-2.0
/*
 * A grant: the word of the host that has suspended a VM that this is another host's now, signed, for a host that cannot ask for it. Whoever carries it can neither
 * change it nor use it: it names VM, snapshot, epoch and the one host that it is good for. Written down by the granting host's journal first
 * (gw_suspend_release()); what keeps it from being used twice is told by resume.h.
 */
#ifndef GW_AGENT_GRANT_H
#define GW_AGENT_GRANT_H

#include <openssl/ssl.h>

#include "lib/buf.h"
#include "lib/error.h"
#include "proto/agent.pb-c.h"

#define GW_GRANT_MAX 16384u /* bytes of one */

/* By the certificate and key of `tls`, which are those of host terms->from. Packed, appended to `out`. */
int gw_grant_sign(SSL_CTX *tls, const Godwit__GrantTerms *terms, struct gw_buf *out, struct gw_error *err);
/*
 * Whether it was signed by host want->from, by a certificate of the CA of `tls`, and says just what is wanted but for the epoch, which goes to *epoch. -EACCES: it
 * does not; -EPROTO: it is none.
 */
int gw_grant_check(SSL_CTX *tls, ProtobufCBinaryData grant, const Godwit__GrantTerms *want, uint64_t *epoch, struct gw_error *err);

/* As text, for files and terminals: PEM (RFC 7468). *ret is owned. */
int gw_grant_print(ProtobufCBinaryData grant, char **ret, struct gw_error *err);
/* From a file, or standard input ("-"). */
int gw_grant_read(const char *path, struct gw_buf *out, struct gw_error *err);

#endif
