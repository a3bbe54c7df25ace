// SPDX-License-Identifier: Apache-2.0
/*
 * The page-store daemon of this host, godwit-ksmd: started when it is first needed, asked over a socket pair, started again with a
 * growing pause when it died. It ends when its socket closes, so that none outlives its agent. Functions may wait for
 * it, a few seconds at most; one that does not answer is killed. Any thread.
 */
#ifndef GW_AGENT_SHARE_DAEMON_H
#define GW_AGENT_SHARE_DAEMON_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/events.h"
#include "lib/error.h"
#include "proto/share.pb-c.h"

struct gw_share_daemon;

struct gw_share_daemon_info {
	pid_t pid;        /* 0: none runs */
	unsigned starts;
	char reason[256]; /* why none runs, as far as known */
};

/* Does not start it yet. `program` and `events` are borrowed. */
int gw_share_daemon_new(const char *program, struct gw_events *events, struct gw_share_daemon **ret, struct gw_error *err);
/* Ends it. NULL is fine. */
void gw_share_daemon_free(struct gw_share_daemon *d);

/*
 * Whether to attach a client now whose session is with the daemon of that number (0: with none): that one is dead, and another runs or may be
 * started. Does not wait: false while somebody asks the daemon.
 */
bool gw_share_daemon_due(struct gw_share_daemon *d, unsigned number);
/* Gives the daemon, started if need be, a client whose end of a socket pair is fd (borrowed). *number is its own. */
int gw_share_daemon_attach(struct gw_share_daemon *d, const Godwit__ShareAttach *attach, int fd, unsigned *number,
			   struct gw_error *err);
/* Its figures; *ret is owned (godwit__share_reply__free_unpacked). -ESRCH: none runs. */
int gw_share_daemon_stats(struct gw_share_daemon *d, Godwit__ShareReply **ret, struct gw_error *err);
void gw_share_daemon_info(struct gw_share_daemon *d, struct gw_share_daemon_info *ret);

#endif
