// SPDX-License-Identifier: Apache-2.0
/* A repository that another host keeps; see remote-bed.h. */
#include "cmocka-all.h"

#include <stdio.h>
#include <stdlib.h>

#include "lib/clock.h"
#include "remote-bed.h"

void remote_bed_make(struct remote_bed *b, uint64_t keep_free, repo_host_fn *fn, void *self)
{
	snprintf(b->dir, sizeof(b->dir), "/tmp/gw-test-remote-XXXXXX");
	assert_non_null(mkdtemp(b->dir));
	b->host = repo_host_new(b->dir, keep_free, fn, self);
	b->ticket = repo_host_ticket(b->host, "kept");
}

int remote_bed_end(struct remote_bed *b)
{
	char cmd[80];

	repo_host_free(b->host);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", b->dir);
	return system(cmd);
}

struct gw_bucket *remote_bed_open(const struct remote_bed *b, const char *url)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_bucket *bucket;

	if (gw_bucket_open_with(url, &b->ticket, false, &bucket, &err) < 0)
		fail_msg("%s", err.msg);
	return bucket;
}

uint64_t remote_patience(void)
{
	return gw_now_ns() + TEST_PATIENCE;
}
