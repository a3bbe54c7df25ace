// SPDX-License-Identifier: Apache-2.0
/*
 * One connection of a client to the repositories in a folder of this host (ticket.h): a thread's work from the handshake to the end. The client is hostile
 * until shown otherwise, as far as its ticket does not say: names, lengths and times are bounded here, memory is a piece of an object, and what the objects
 * hold is sealed by clients and never looked at.
 */
#ifndef GW_MIGRATE_REPO_SERVE_H
#define GW_MIGRATE_REPO_SERVE_H

#include "lib/error.h"
#include "migrate/repo/ticket.h"

struct gw_serve_config {
	const char *host;      /* this one's name, for messages */
	const char *directory; /* that has a folder for each repository */
	const uint8_t *key;    /* GW_TICKET_KEY_LEN bytes */
	uint64_t keep_free;    /* bytes that must stay free in the directory's file system */
	int wake_fd;           /* readable: every connection is to end */
};

/* Makes the folder of the repository. 0 or -errno. */
int gw_serve_create(const struct gw_serve_config *c, const char *name, struct gw_error *err);
/* -ENOENT, with what to do about it, when it is not there. */
int gw_serve_find(const struct gw_serve_config *c, const char *name, struct gw_error *err);

struct gw_serving;
/*
 * After the preamble: the client shows that it has the ticket's secret. Takes fd, also on failure. `c` is borrowed until gw_serving_free().
 */
int gw_serve_accept(const struct gw_serve_config *c, int fd, const uint8_t preamble[GW_TICKET_PREAMBLE], uint64_t deadline_ns,
		    struct gw_serving **ret, struct gw_error *err);
/* Whose ticket it is. */
const struct gw_ticket *gw_serving_ticket(const struct gw_serving *s);
/* Answers requests until the client goes, or misbehaves: -EPROTO and the like then say so, 0 for what may happen. */
int gw_serving_run(struct gw_serving *s);
void gw_serving_free(struct gw_serving *s);

#endif
