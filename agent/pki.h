// SPDX-License-Identifier: Apache-2.0
/*
 * Godwit's own small certificate authority: EC P-256, X.509 v3. A certificate says its role twice, in the subject's OU and
 * in the extended key usage: hosts are servers and clients to each other, clients (people's command lines) are clients only.
 */
#ifndef GW_AGENT_PKI_H
#define GW_AGENT_PKI_H

#include <openssl/x509.h>

#include "lib/error.h"

enum gw_role {
	GW_ROLE_NONE,
	GW_ROLE_CLIENT,
	GW_ROLE_HOST,
	GW_ROLE_LOCAL, /* on the agent's UNIX socket, no certificate */
};
const char *gw_role_name(enum gw_role role);

/* Makes DIR/ca.crt and DIR/ca.key (0600), and DIR if need be. -EEXIST when there is one. */
int gw_pki_init(const char *dir, const char *name, unsigned days, struct gw_error *err);

struct gw_pki_request {
	const char *name;         /* of host or client: CN, and a DNS name for hosts */
	enum gw_role role;
	const char *const *dns;   /* further names */
	unsigned ndns;
	const char *const *ip;    /* addresses */
	unsigned nip;
	int days;                 /* from now; negative for one that has expired (tests) */
};
/* Makes OUT/NAME.crt and OUT/NAME.key (0600), signed by the CA in `dir`. -EEXIST when there is one. */
int gw_pki_issue(const char *dir, const char *out, const struct gw_pki_request *req, struct gw_error *err);

/* What a verified certificate says. -EACCES with the reason when it is none of ours. `name` holds 64 bytes. */
int gw_pki_identify(X509 *cert, enum gw_role *role, char name[64], struct gw_error *err);

/* Sets err from OpenSSL's error queue, which it empties: "<formatted>: <OpenSSL's reason>". */
int gw_ssl_error(struct gw_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
