// SPDX-License-Identifier: Apache-2.0
/*
 * The steps of the agents' part of a move at which a test can stop the world (lib/failpoint.h), in the order in which a move
 * visits them. The two VMMs have their own.
 */
#ifndef GW_AGENT_FAILPOINTS_H
#define GW_AGENT_FAILPOINTS_H

/* Source. */
#define GW_FP_SRC_PREPARE "agent-src-prepare"     /* the record says "moving", the destination knows nothing */
#define GW_FP_SRC_PREPARED "agent-src-prepared"   /* the destination has agreed and holds the boot files */
#define GW_FP_SRC_CONNECTED "agent-src-connected" /* the data channels are open */
#define GW_FP_SRC_HANDED "agent-src-handed"       /* the source VMM has them: the move runs without us */
#define GW_FP_SRC_RELEASED "agent-src-released"   /* the source VMM has let go, nothing is recorded yet */
#define GW_FP_SRC_RECORDED "agent-src-recorded"   /* recorded as moved, the destination not told */
#define GW_FP_SRC_FAILED "agent-src-failed"       /* the move failed, the destination not told */
#define GW_FP_SRC_DOUBT "agent-src-doubt"         /* the destination's answer about a cut move is in hand */

/* The host that suspended what another one asks for. */
#define GW_FP_CLAIM_RELEASED "agent-claim-released" /* by its journal it is the other's, nothing is recorded or answered */

/* Destination. */
#define GW_FP_DST_PREPARE "agent-dst-prepare"     /* everything checked, nothing recorded */
#define GW_FP_DST_PREPARED "agent-dst-prepared"   /* recorded, taps made */
#define GW_FP_DST_SPAWNED "agent-dst-spawned"     /* the destination VMM waits */
#define GW_FP_DST_CONNECTED "agent-dst-connected" /* the data channels have come */
#define GW_FP_DST_HANDED "agent-dst-handed"       /* the destination VMM has them */
#define GW_FP_DST_ARRIVED "agent-dst-arrived"     /* the VM runs here, nothing is recorded yet */
#define GW_FP_DST_DECIDED "agent-dst-decided"     /* the outcome is durable, the VM's record is not */
#define GW_FP_DST_COMMITTED "agent-dst-committed" /* recorded as owner */
#define GW_FP_DST_UNDO "agent-dst-undo"           /* decided for the source, the leftovers are still there */

#endif
