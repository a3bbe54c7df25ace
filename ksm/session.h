// SPDX-License-Identifier: Apache-2.0
/*
 * One session of a VM with the page-store daemon (proto/share.h): reports hashes, answers for bytes, and turns the daemon's orders into work for
 * the merger. Every function that returns an int says 0, or -errno when the session is over; `err` then tells why.
 */
#ifndef GW_KSM_SESSION_H
#define GW_KSM_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "ksm/merge.h"
#include "ksm/overlays.h"
#include "lib/error.h"
#include "lib/ram/ram.h"
#include "proto/share.h"

struct gw_lineage;
struct gw_session;

/*
 * Takes fd; borrows the others. Greets the daemon and offers it the chunks that the VM already maps. -ETIMEDOUT after 10 s without an answer,
 * -EPIPE, -EPROTO.
 */
int gw_session_new(int fd, struct gw_ram *ram, struct gw_overlays *overlays, struct gw_merger *merger, struct gw_session **ret,
		   struct gw_error *err);
void gw_session_free(struct gw_session *s);
int gw_session_fd(const struct gw_session *s); /* for poll() */
const uint8_t *gw_session_secret(const struct gw_session *s); /* GW_SHARE_SECRET_LEN bytes to hash with */

/* Reports a page; packets leave as they fill, and with gw_session_flush(). Handles what comes in while the daemon lags behind. */
int gw_session_report(struct gw_session *s, uint64_t page, uint64_t low, uint64_t high, struct gw_error *err);
int gw_session_flush(struct gw_session *s, struct gw_error *err);
/* Handles what has come in, waiting at most timeout_ms (0: not at all) for a first packet, and carries out the orders. */
int gw_session_handle(struct gw_session *s, int timeout_ms, struct gw_error *err);
/* The end of a pass: flushes and has the daemon send what follows from what was reported since the last; returns when it has. */
int gw_session_sync(struct gw_session *s, struct gw_error *err);
/*
 * Tells the daemon how many pages lie unbroken over each chunk where that changed, and which slots of thin ones; lets go of chunks under no page,
 * and has broken pages leave those that the daemon wants emptied.
 */
int gw_session_tell_live(struct gw_session *s, struct gw_error *err);

/*
 * While memory comes (ksm/lineage.h): answers go to `l`, orders are left undone, and a request for bytes is nonsense. NULL: it is here. These do not
 * wait: -EAGAIN when the socket is full, -EPIPE.
 */
bool gw_session_has_names(const struct gw_session *s); /* else the daemon is of a version before them */
void gw_session_set_lineage(struct gw_session *s, struct gw_lineage *l);
int gw_session_find(struct gw_session *s, uint32_t cookie, const struct gw_share_find *names, unsigned count);
/* A chunk without id, a name for each of its slots. */
int gw_session_offer(struct gw_session *s, uint32_t chunk, const struct gw_share_named *names);

/* Chunks are to be emptied: their memory is freed once the daemon is told again. */
bool gw_session_emptying(const struct gw_session *s);

#endif
