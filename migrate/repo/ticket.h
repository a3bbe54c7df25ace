// SPDX-License-Identifier: Apache-2.0
/*
 * DOC: repositories that another host keeps, godwit://HOST/NAME
 *
 * The agent of HOST keeps named buckets in a folder, and serves them at its data port. Who wants to use one asks that agent for a ticket, over TLS with
 * certificates on both sides; whoever has a ticket opens connections of its own, TLS 1.3 with the ticket's secret as external PSK, until it expires. So a VMM,
 * which holds no host's key, needs no more than the ticket that its agent hands it with the repository key, no agent is in the way of the data, and a
 * connection that was lost, or a server that was restarted, is connected to again by the same ticket.
 *
 * The server keeps no list of tickets: the secret is a MAC, under a key that only the server has, of what the connection begins with in the clear,
 *   8 bytes "GWDREPO1", 16 bytes id, u64 seconds since 1970 at which it expires, 64 bytes name of the repository, filled up with zeros.
 *
 *   ticket.c         this: URLs, tickets, the beginning of a connection
 *   remote.c         frames on a connection (proto/repository.proto), for both sides
 *   bucket-remote.c  the client: a bucket (bucket.h)
 *   serve.c          the server: one connection, on a bucket in a directory
 */
#ifndef GW_MIGRATE_REPO_TICKET_H
#define GW_MIGRATE_REPO_TICKET_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "proto/repository.pb-c.h"

#define GW_TICKET_ID_LEN 16
#define GW_TICKET_SECRET_LEN 32
#define GW_TICKET_KEY_LEN 32
#define GW_TICKET_NAME 64

struct gw_ticket {
	char host[256];            /* "": there is no ticket */
	char address[256];
	uint16_t port;
	char name[GW_TICKET_NAME];
	uint8_t id[GW_TICKET_ID_LEN];
	uint64_t expires_s;        /* since 1970, by the server's clock */
	uint8_t secret[GW_TICKET_SECRET_LEN];
};

struct gw_ticket_url {
	char host[280];            /* as agents and command lines take it: NAME[:PORT] or NAME@ADDRESS[:PORT] */
	char name[GW_TICKET_NAME];
	unsigned retry_s;          /* so long after the first failure, failing is final */
};
/* Whether it is one of godwit://. */
bool gw_ticket_is_url(const char *url);
/* godwit://HOST/NAME[?retry=SECONDS]. -EINVAL. */
int gw_ticket_parse_url(const char *url, struct gw_ticket_url *ret, struct gw_error *err);

/* A message as it came, checked. -EPROTO. */
int gw_ticket_read(const Godwit__RepositoryTicket *m, struct gw_ticket *ret, struct gw_error *err);
/* For sending: borrows from `t`. */
void gw_ticket_write(const struct gw_ticket *t, Godwit__RepositoryTicket *m);

/* ---- of the server ---- */

/* A ticket for the repository `name`, good for a week; host, address and port are the caller's to fill in. 0 or -EIO. */
int gw_ticket_make(const uint8_t key[GW_TICKET_KEY_LEN], const char *name, struct gw_ticket *ret);
/* The secret that a ticket of this id, time and name has. 0 or -EIO. */
int gw_ticket_secret(const uint8_t key[GW_TICKET_KEY_LEN], struct gw_ticket *t);

#define GW_TICKET_PREAMBLE 96
#define GW_TICKET_MAGIC 8 /* bytes that tell it from what else arrives at the data port */
bool gw_ticket_is_preamble(const uint8_t *raw);
void gw_ticket_encode(const struct gw_ticket *t, uint8_t raw[GW_TICKET_PREAMBLE]);
/* Id, time and name. -EPROTO for anything that is none. */
int gw_ticket_decode(const uint8_t raw[GW_TICKET_PREAMBLE], struct gw_ticket *ret);

#endif
