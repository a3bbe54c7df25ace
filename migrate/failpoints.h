// SPDX-License-Identifier: Apache-2.0
/* The failpoints of moves, of saving and of loading (lib/failpoint.h), in the order in which one that succeeds visits them. */
#ifndef GW_MIGRATE_FAILPOINTS_H
#define GW_MIGRATE_FAILPOINTS_H

/* Source. */
#define GW_FP_SRC_CONNECT "move-src-connect"                   /* before the TLS handshakes */
#define GW_FP_SRC_HELLO "move-src-hello"                       /* channels are up, HELLO has not left */
#define GW_FP_SRC_COPY "move-src-copy"                         /* dirty tracking is on, round 1 has begun */
#define GW_FP_SRC_ROUND "move-src-round"                       /* a round has ended and been acknowledged */
#define GW_FP_SRC_STOP "move-src-stop"                         /* the VM has just been stopped */
#define GW_FP_SRC_STATE "move-src-state"                       /* last pages are on their way, STATE has not left */
#define GW_FP_SRC_READY "move-src-ready"                       /* READY has come, nothing is decided */
#define GW_FP_SRC_COMMIT_JOURNALLED "move-src-commit-journalled" /* COMMITTING is durable, COMMIT has not left */
#define GW_FP_SRC_COMMIT_SENT "move-src-commit-sent"           /* COMMIT has left, no answer yet; an error here loses the channel */
#define GW_FP_SRC_RUNNING "move-src-running"                   /* RUNNING has come, RELEASED is not written */

/* Destination. */
#define GW_FP_DST_CONNECT "move-dst-connect"                   /* before the TLS handshakes */
#define GW_FP_DST_HELLO "move-dst-hello"                       /* HELLO was accepted and INCOMING journalled, no answer sent */
#define GW_FP_DST_COPY "move-dst-copy"                         /* before the first page of a channel is taken */
#define GW_FP_DST_STATE "move-dst-state"                       /* STATE and all pages are here, nothing loaded */
#define GW_FP_DST_READY_SENT "move-dst-ready-sent"             /* READY has left */
#define GW_FP_DST_COMMIT_RECEIVED "move-dst-commit-received"   /* COMMIT is here, nothing journalled */
#define GW_FP_DST_OWNER_JOURNALLED "move-dst-owner-journalled" /* OWNER is durable, no vCPU has run */
#define GW_FP_DST_STARTED "move-dst-started"                   /* vCPUs run, RUNNING has not left */
#define GW_FP_DST_RUNNING_SENT "move-dst-running-sent"         /* RUNNING has left */

/* Saving to a repository. */
#define GW_FP_SAVE_OPENED "save-opened"       /* the repository's index is read, no page copied */
#define GW_FP_SAVE_ROUND "save-round"         /* a round that was not the last has ended */
#define GW_FP_SAVE_STOPPED "save-stopped"     /* the VM has just been stopped */
#define GW_FP_SAVE_STATE "save-state"         /* last pages and state are with the writer */
#define GW_FP_SAVE_COMMITTED "save-committed" /* the manifest is durable and read back, SUSPENDED not written */
#define GW_FP_SAVE_SUSPENDED "save-suspended" /* SUSPENDED is durable, nobody was told */

/* Loading from one. */
#define GW_FP_LOAD_OPENED "load-opened"       /* the manifest is read */
#define GW_FP_LOAD_STATE "load-state"         /* device state is loaded, OWNER not written */
#define GW_FP_LOAD_OWNED "load-owned"         /* OWNER is durable, no vCPU has run */
#define GW_FP_LOAD_RUNNING "load-running"     /* vCPUs run, pages are still missing */

#endif
