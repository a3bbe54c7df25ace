// SPDX-License-Identifier: Apache-2.0
/*
 * Where the channels of moves arrive, and connections to repositories. Each TCP connection begins with a preamble in the clear that tells which waiting move it
 * belongs to; whether it is genuine the VMM finds out, by TLS with the move's secret. Little-endian:
 *   8 bytes "GWDMOVE1", 16 bytes move id, u32 channel number, u32 number of channels (control channel and data channels).
 */
#ifndef GW_AGENT_DATAPORT_H
#define GW_AGENT_DATAPORT_H

#include "agent/agent.h"
#include "agent/records.h"

#define GW_PREAMBLE_LEN 32
#define GW_MAX_MOVE_CHANNELS 17 /* the control channel and migrate's most data channels */

struct gw_preamble {
	uint8_t move_id[GW_ID_LEN];
	uint32_t number;
	uint32_t count;
};
void gw_preamble_encode(const struct gw_preamble *p, uint8_t raw[GW_PREAMBLE_LEN]);
/* -EPROTO for anything that is none. */
int gw_preamble_decode(const uint8_t raw[GW_PREAMBLE_LEN], struct gw_preamble *ret);

/* Expects `count` channels for the move. -EEXIST: it is expected already. */
int gw_arrival_expect(struct gw_agent *a, const uint8_t move_id[GW_ID_LEN], unsigned count, struct gw_arrival **ret,
		      struct gw_error *err);
/* Waits until all are there; fds[] are then the caller's. */
int gw_arrival_wait(struct gw_arrival *w, uint64_t deadline_ns, int fds[GW_MAX_MOVE_CHANNELS], struct gw_error *err);
/* Closes what was not taken. Takes NULL. */
void gw_arrival_free(struct gw_arrival *w);

/*
 * Serves one accepted connection: takes fd, reads its preamble by the deadline, hands it to whom it belongs. One to a repository (migrate/repo/ticket.h) that
 * has shown its ticket is returned, for gw_repositories_run(); else NULL.
 */
struct gw_serving *gw_dataport_serve(struct gw_agent *a, int fd, uint64_t deadline_ns);

#endif
