// SPDX-License-Identifier: Apache-2.0
/*
 * Connections that have not shown yet who they are, by address: so that one address cannot hold all places with connections that say
 * nothing.
 */
#ifndef GW_AGENT_GATE_H
#define GW_AGENT_GATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define GW_GATE_SIZE 320      /* of all addresses together */
#define GW_GATE_PER_ADDRESS 48 /* more than the channels of one move */

struct gw_gate {
	pthread_mutex_t lock;
	struct {
		bool used;
		uint8_t address[16]; /* IPv6, or IPv4 mapped into it */
	} place[GW_GATE_SIZE];
};

void gw_gate_init(struct gw_gate *g);
void gw_gate_release(struct gw_gate *g);
/* For the other side of socket `fd`: a place (to be left by gw_gate_leave), or -EBUSY. */
int gw_gate_enter(struct gw_gate *g, int fd);
void gw_gate_leave(struct gw_gate *g, int place);

#endif
