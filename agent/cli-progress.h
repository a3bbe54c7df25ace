// SPDX-License-Identifier: Apache-2.0
/* How long work goes: a bar on a terminal, lines where there is none, JSON where that is asked for; and Ctrl-C as the wish to cancel it. */
#ifndef GW_AGENT_CLI_PROGRESS_H
#define GW_AGENT_CLI_PROGRESS_H

#include "agent/cli.h"

struct gw_progress {
	const struct gw_cli *cli;
	bool terminal;
	bool drawn;           /* a bar stands on the present line */
	uint64_t last_line_ns;
	char last_phase[16];
};

void gw_progress_init(struct gw_progress *p, const struct gw_cli *cli);
/* `message` is what JSON gets, `line` what people do, the bar is of total - left. */
void gw_progress_show(struct gw_progress *p, const ProtobufCMessage *message, const char *phase, uint64_t total, uint64_t left, const char *line);
/* Clears what was drawn. */
void gw_progress_end(struct gw_progress *p);

/* The first Ctrl-C asks for the end of what is done to the VM of the first argument, and the truth is waited for; the second one only stops waiting. */
void gw_cli_cancel_on_signal(const struct gw_cli *cli);

#endif
