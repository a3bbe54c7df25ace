// SPDX-License-Identifier: Apache-2.0
/*
 * The repositories that this host keeps for others (migrate/repo/ticket.h): who may use one is decided where a ticket is asked for, by certificate; connections
 * with tickets come to the data port. Each has a thread, a few buffers, and one request at a time; their number is bounded, of one ticket and of all.
 */
#ifndef GW_AGENT_REPOSITORIES_H
#define GW_AGENT_REPOSITORIES_H

#include "agent/agent.h"
#include "migrate/repo/serve.h"

/* By [repositories]; makes the folder, and at the first time the key of tickets. */
int gw_repositories_new(struct gw_agent *a, struct gw_repositories **ret, struct gw_error *err);
void gw_repositories_free(struct gw_repositories *r);

/* r NULL: this host keeps none, which the error says. Address and port are the caller's to fill in. -ENOENT. */
int gw_repositories_ticket(struct gw_repositories *r, const char *host, const char *name, bool create, struct gw_ticket *ret, struct gw_error *err);

/*
 * A connection, of whose preamble `len` bytes are there: takes fd. NULL: it was dropped. gw_repositories_run() serves the connection to its end, and frees it.
 */
struct gw_serving *gw_repositories_accept(struct gw_repositories *r, int fd, const uint8_t *begin, size_t len, uint64_t deadline_ns);
void gw_repositories_run(struct gw_repositories *r, struct gw_serving *s);

#endif
