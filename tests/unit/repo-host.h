// SPDX-License-Identifier: Apache-2.0
/* A host that keeps repositories for others, on loopback in threads of the test: as migrate/repo/serve.c serves them, or as a test does, well or badly. */
#ifndef GW_TESTS_UNIT_REPO_HOST_H
#define GW_TESTS_UNIT_REPO_HOST_H

#include "migrate/channel.h"
#include "migrate/repo/serve.h"

/* The server's part of connection number `nth` (from 1 on), after the handshake; it is closed when this returns. Called by several threads at once. */
typedef void repo_host_fn(void *self, struct gw_channel *ch, unsigned nth);

struct repo_host;

/* fn NULL: real repositories, in folders below `directory`. Fails the test when it cannot. */
struct repo_host *repo_host_new(const char *directory, uint64_t keep_free, repo_host_fn *fn, void *self);
void repo_host_free(struct repo_host *h);
/* It dies, with all of its connections, and begins anew at the same port. */
void repo_host_stop(struct repo_host *h);
void repo_host_start(struct repo_host *h);
/* A ticket for `name`, which is made; and a client's connection by hand, after the handshake. */
struct gw_ticket repo_host_ticket(struct repo_host *h, const char *name);
struct gw_channel *repo_host_connect(struct repo_host *h, const struct gw_ticket *t);
/* Connections so far that had a ticket. */
unsigned repo_host_connections(const struct repo_host *h);

#endif
