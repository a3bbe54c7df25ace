// SPDX-License-Identifier: Apache-2.0
/* A repository that another host keeps, on loopback in threads of the test, and a client's ticket for it. */
#ifndef GW_TESTS_UNIT_REMOTE_BED_H
#define GW_TESTS_UNIT_REMOTE_BED_H

#include "migrate/repo/bucket-internal.h"
#include "repo-host.h"

struct remote_bed {
	char dir[64]; /* of the host's repositories */
	struct repo_host *host;
	struct gw_ticket ticket; /* for the repository "kept" */
};

/* As for repo_host_new(). Fails the test when it cannot. */
void remote_bed_make(struct remote_bed *b, uint64_t keep_free, repo_host_fn *fn, void *self);
/* 0, or the status of the command that removes the directory. */
int remote_bed_end(struct remote_bed *b);
/* Fails the test when it cannot. */
struct gw_bucket *remote_bed_open(const struct remote_bed *b, const char *url);
/* The time until which a test waits. */
uint64_t remote_patience(void);

#endif
